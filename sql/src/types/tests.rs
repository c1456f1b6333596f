//! Tests of every type through the public builder and encoder.
