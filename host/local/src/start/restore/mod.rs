//! The client's half of backups: receiving, verifying and restoring them.

pub(crate) mod checking;
pub(crate) mod receiving;
pub(crate) mod restoring;
