//! A processor ready to run: what its workers are given when it was loaded.

use std::sync::Arc;

use millrace_model::Timestamp;

use crate::dispatch::input::Input;
use crate::dispatch::live::Live;

/// A revision ready to run.
pub(crate) struct Prepared {
    pub(crate) live: Arc<Live>,
    /// The canary, and its percentage.
    pub(crate) canary: Option<(Arc<Live>, u32)>,
    /// The shadow, and since when it runs.
    pub(crate) shadow: Option<(Arc<Live>, Timestamp)>,
    pub(crate) inputs: Vec<Input>,
}
