//! Everything that happens after the commit: writing files and checkpoints, checking, compacting,
//! backing up and removing them.

pub(crate) mod backup;
pub(crate) mod care;
pub(crate) mod checkpoint;
pub(crate) mod checkpoints;
pub(crate) mod cleaner;
pub(crate) mod evidence;
mod expiry;
pub(crate) mod flusher;
pub(crate) mod keeper;
pub(crate) mod modules;
pub(crate) mod names;
pub(crate) mod pause;
pub(crate) mod runs;
pub(crate) mod saver;
