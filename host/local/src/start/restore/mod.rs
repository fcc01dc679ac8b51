//! What is done with backups on the other side: they are received, looked at, and made data directories again.

pub(crate) mod checking;
pub(crate) mod receiving;
pub(crate) mod restoring;
