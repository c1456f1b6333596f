//! Files of segments that no view has any more, on their way out.
//!
//! Owns what must hold before a file is unlinked: readers of older views go on reading it. Leaves out when (a seal, once
//! its manifest lists it as removed). A crash forgets this; the manifest does not, and then nobody reads.

use super::error::StorageError;
use super::segment::Segment;
use std::sync::{Arc, Weak};

/// A segment file that is to go.
#[derive(Debug, Clone)]
pub(crate) struct Removing {
    pub(crate) file: String,
    /// Gone when no view has it.
    held: Weak<Segment>,
}

impl Removing {
    /// The file of `segment`.
    pub(crate) fn of(segment: &Arc<Segment>) -> Self {
        Self { file: segment.file().to_owned(), held: Arc::downgrade(segment) }
    }

    /// Sees to it that the file may be unlinked: nobody has it, or it is kept open.
    ///
    /// # Errors
    /// When readers have it and it cannot be kept open now.
    pub(crate) fn free(&self) -> Result<(), StorageError> {
        // Whoever does not have it now never gets it: only views give it away.
        self.held.upgrade().map_or(Ok(()), |segment| segment.pin())
    }
}
