//! Work on a directory without a running engine: opening and recovering, examining, repairing, and
//! restoring it from a backup.

pub mod examine;
pub(crate) mod lock;
pub(crate) mod recovery;
pub mod repair;
pub(crate) mod restore;
