//! What every room is built on.

use std::sync::Arc;

use millrace_engine::Engine;
use millrace_model::Clock;

use crate::ground::partitioner::Partitioners;
use crate::handler::ModuleHost;
use crate::hosts::living::Hosts;

/// The time, the store, the modules, and the hosts that share the store. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Base {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) modules: Arc<dyn ModuleHost>,
    pub(crate) partitioners: Arc<Partitioners>,
    pub(crate) hosts: Arc<Hosts>,
}
