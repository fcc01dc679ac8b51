//! What is done with a directory that no engine works on: it is opened and recovered, examined, repaired, or made of a backup.

pub mod examine;
pub(crate) mod lock;
pub(crate) mod recovery;
pub mod repair;
pub(crate) mod restore;
