//! The handle of routes.

use std::collections::BTreeMap;
use std::sync::Arc;

use millrace_engine::{Engine, Version};
use millrace_model::{Clock, Route, RoutePath};
use parking_lot::RwLock;
use tokio::sync::Semaphore;

use crate::catalogue::deciding::Followed;
use crate::catalogue::handle::Catalogue;
use crate::ground::caller::Caller;
use crate::handler::{HttpHandler, ModuleHost};
use crate::hosts::base::Base;
use crate::messages::handle::Messages;
use crate::processors::handle::Processors;

/// Routes, which answer HTTP requests. Cheap to clone.
#[derive(Clone)]
pub struct Routes {
    pub(super) inner: Arc<Inner>,
    pub(super) caller: Caller,
}

pub(super) struct Inner {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) modules: Arc<dyn ModuleHost>,
    pub(super) catalogue: Catalogue,
    /// What components send goes here.
    pub(super) messages: Messages,
    /// Whose state components read.
    pub(super) processors: Processors,
    pub(super) all: RwLock<BTreeMap<RoutePath, Known>>,
    /// Up to which version this host knows the catalogue's entries of routes.
    pub(super) followed: Followed,
    /// Locked while a route is changed.
    pub(super) changes: tokio::sync::Mutex<()>,
}

/// A route as the host knows it.
#[derive(Clone)]
pub(super) struct Known {
    pub(super) route: Arc<Route>,
    /// The version of its entry.
    pub(super) version: Version,
    /// Its component, or why it could not be loaded.
    pub(super) handler: Result<Arc<dyn HttpHandler>, String>,
    /// Requests that it may have at a time.
    pub(super) places: Arc<Semaphore>,
}

impl Routes {
    pub(crate) fn new(
        base: &Base,
        catalogue: Catalogue,
        messages: Messages,
        processors: Processors,
    ) -> Self {
        let Base {
            clock,
            engine,
            modules,
            ..
        } = base.clone();
        Self {
            inner: Arc::new(Inner {
                clock,
                engine,
                modules,
                catalogue,
                messages,
                processors,
                all: RwLock::default(),
                followed: Followed::default(),
                changes: tokio::sync::Mutex::default(),
            }),
            caller: Caller::default(),
        }
    }

    /// The same handle for a caller.
    #[must_use]
    pub(crate) fn called_by(&self, caller: &Caller) -> Self {
        Self {
            caller: caller.clone(),
            ..self.clone()
        }
    }
}
