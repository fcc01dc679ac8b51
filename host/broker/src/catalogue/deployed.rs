//! A processor as this host knows it.

use millrace_engine::Version;
use millrace_model::Processor;

/// A processor in the catalogue.
#[derive(Clone, Debug)]
pub(crate) struct Deployed {
    pub(crate) processor: Processor,
    /// The version of its entry.
    pub(crate) version: Version,
    /// Why its current revision could not be loaded.
    pub(crate) problem: Option<String>,
    /// Why the revision on trial could not be loaded; the current one runs alone.
    pub(crate) trial_problem: Option<String>,
    /// Why the host could not roll the current revision back, at its last try.
    pub(crate) way_back_problem: Option<String>,
}
