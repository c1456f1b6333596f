//! A node's shards on a disk in memory: append, crash, start again, compare.

mod across;
mod across_faults;
mod durability;
mod full_disk;
mod log_suite;
mod lost_files;
mod node;
mod staging;
mod upkeep;
