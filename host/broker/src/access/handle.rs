//! The handle of principals.

use std::sync::{Arc, Weak};

use millrace_engine::Engine;
use millrace_model::Clock;
use parking_lot::RwLock;
use tokio::sync::Semaphore;

use crate::access::book::Book;
use crate::access::passwords::{PASSWORDS_CHECKED_AT_ONCE_MAX, Strangers};
use crate::catalogue::deciding::Followed;
use crate::catalogue::handle::Catalogue;
use crate::ground::caller::Caller;
use crate::hosts::base::Base;

/// Principals and their tokens. Cheap to clone.
#[derive(Clone)]
pub struct Access {
    pub(super) inner: Arc<Inner>,
    pub(super) caller: Caller,
}

pub(crate) struct Inner {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) catalogue: Catalogue,
    pub(super) book: RwLock<Book>,
    /// Up to which version this host knows the catalogue's entries of principals.
    pub(super) followed: Followed,
    /// Locked while a principal is changed.
    pub(super) changes: tokio::sync::Mutex<()>,
    pub(super) strangers: Strangers,
    /// Held while a key is derived from a password.
    pub(super) deriving: Arc<Semaphore>,
}

impl Access {
    pub(crate) fn new(base: &Base, catalogue: Catalogue) -> Self {
        let Base { clock, engine, .. } = base.clone();
        Self {
            inner: Arc::new(Inner {
                clock,
                engine,
                catalogue,
                book: RwLock::default(),
                followed: Followed::default(),
                changes: tokio::sync::Mutex::default(),
                strangers: Strangers::new(),
                deriving: Arc::new(Semaphore::new(PASSWORDS_CHECKED_AT_ONCE_MAX)),
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

    /// A weak reference, which does not keep the principals alive.
    pub(crate) fn downgrade(&self) -> Weak<Inner> {
        Arc::downgrade(&self.inner)
    }
}
