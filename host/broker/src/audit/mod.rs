//! The audit log: who changed what, and whom the host refused what. Messages of an ordinary topic, which only the host writes.

pub(crate) mod log;
pub(crate) mod reading;
pub(crate) mod record;
mod refusals;
pub(crate) mod writing;
