//! What becomes of committed things behind the commit: into files and checkpoints, looked after there, compacted, copied and let go.

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
