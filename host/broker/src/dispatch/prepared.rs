//! A processor ready to run: what its workers are given when it was loaded.

use std::sync::Arc;

use millrace_model::Timestamp;

use crate::dispatch::input::Input;
use crate::dispatch::live::Live;

/// A revision ready to run.
pub(crate) struct Prepared {
    pub(crate) live: Arc<Live>,
    /// The revision that takes a share, and its percentage.
    pub(crate) canary: Option<(Arc<Live>, u32)>,
    /// The revision that is only looked at, and since when.
    pub(crate) shadow: Option<(Arc<Live>, Timestamp)>,
    pub(crate) inputs: Vec<Input>,
}
