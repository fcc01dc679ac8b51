//! A loaded processor that is ready to run, as its workers receive it.

use std::sync::Arc;

use millrace_model::Timestamp;

use crate::dispatch::input::Input;
use crate::dispatch::live::Live;

/// A processor's revisions, ready to run.
pub(crate) struct Prepared {
    pub(crate) live: Arc<Live>,
    pub(crate) trial: Option<PreparedTrial>,
    pub(crate) inputs: Vec<Input>,
}

/// A revision on trial, ready to run.
pub(crate) enum PreparedTrial {
    /// It takes the messages of this percentage of the keys.
    Canary { live: Arc<Live>, percent: u32 },
    /// It is called beside the current one, since this time.
    Shadow { live: Arc<Live>, since: Timestamp },
}
