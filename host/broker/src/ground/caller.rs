//! The caller: every verb is called on behalf of a caller.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use millrace_model::{Quota, Tenant};

use crate::ground::keys::may_touch;
use crate::ground::meters::OverQuota;
use crate::ground::notes::{Note, Notes};
use crate::ground::standing::{Forbidden, Standing};
use crate::ground::verbs::Verb;

/// The name of the host for its own actions.
pub(crate) const HOST: &str = "host";

/// The name recorded for a caller that gives none.
pub(crate) const UNKNOWN: &str = "unknown";

/// Who calls a verb. Cheap to clone.
///
/// A caller that has proved to be a principal is recorded under the principal's name with each change, and under the name of whom it acts
/// for. The name that any other gives is a claim, which is recorded too, and proves nothing.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// Every room of a session has its caller, and a door makes a session for each request: one count each, not one for each part.
    inner: Arc<Inner>,
}

#[derive(Clone, Debug, Default)]
struct Inner {
    tenant: Tenant,
    standing: Standing,
    by: Option<Arc<str>>,
    address: Option<IpAddr>,
    request: Option<Arc<str>>,
    notes: Option<Notes>,
}

impl Caller {
    /// Someone without a name, who may do everything.
    #[must_use]
    pub fn unnamed() -> Self {
        Self::default()
    }

    /// The host itself, for its own actions.
    #[must_use]
    pub fn host() -> Self {
        Self::default().named(HOST)
    }

    /// The same caller, under a name that is recorded with each change.
    #[must_use]
    pub fn named(mut self, by: &str) -> Self {
        Arc::make_mut(&mut self.inner).by = Some(by.into());
        self
    }

    /// The same caller, who may do this.
    #[must_use]
    pub fn standing(mut self, standing: Standing) -> Self {
        let inner = Arc::make_mut(&mut self.inner);
        if let Some(by) = standing.signature() {
            inner.by = Some(by);
        }
        inner.standing = standing;
        self
    }

    /// Whether the caller may do this with the thing of this name.
    ///
    /// # Errors
    /// [`Forbidden`] says which right is missing.
    pub fn may(&self, verb: Verb, name: &str) -> Result<(), Forbidden> {
        let asked = self.inner.standing.may(verb, name);
        if let Some(notes) = &self.inner.notes {
            notes.add(verb, name, asked.is_ok());
        }
        asked
    }

    /// Whether there is anything of its kind with which the caller may do this.
    ///
    /// # Errors
    /// [`Forbidden`] says which right is missing.
    pub fn may_with_some(&self, verb: Verb) -> Result<(), Forbidden> {
        let asked = self.inner.standing.may_with_some(verb);
        if let Some(notes) = &self.inner.notes {
            notes.add(verb, "", asked.is_ok());
        }
        asked
    }

    /// Whether the caller may do this with what has this key, in the thing of this name.
    ///
    /// # Errors
    /// [`Forbidden`] says which right is missing, or that it is the key.
    pub fn may_with_key(
        &self,
        verb: Verb,
        name: &str,
        key: Option<&[u8]>,
    ) -> Result<(), Forbidden> {
        self.may_with_keys(verb, name, std::iter::once(key))
    }

    /// The same for several.
    ///
    /// # Errors
    /// [`Forbidden`] says which right is missing, or that it is a key.
    pub fn may_with_keys<'a>(
        &self,
        verb: Verb,
        name: &str,
        mut keys: impl Iterator<Item = Option<&'a [u8]>>,
    ) -> Result<(), Forbidden> {
        self.may(verb, name)?;
        match keys.all(|key| may_touch(self.inner.standing.keys(), key)) {
            true => Ok(()),
            false => Err(self.outside_keys(verb, name)),
        }
    }

    /// The refusal for a caller whose rules allow it, but with other keys only.
    pub(crate) fn outside_keys(&self, verb: Verb, name: &str) -> Forbidden {
        if let Some(notes) = &self.inner.notes {
            notes.add(verb, name, false);
        }
        self.inner.standing.outside_keys(verb, name)
    }

    /// Whether the caller may do this with the thing of this name, for lists that leave out what it may not see.
    #[must_use]
    pub fn sees(&self, verb: Verb, name: &str) -> bool {
        self.inner.standing.may(verb, name).is_ok()
    }

    /// Whether the caller owes nothing of these quotas.
    ///
    /// # Errors
    /// [`OverQuota`].
    pub fn check_quotas(&self, quotas: &[Quota], now: Duration) -> Result<(), OverQuota> {
        match self.inner.standing.meters() {
            Some(meters) => meters.check(quotas, now),
            None => Ok(()),
        }
    }

    /// Takes this much of the caller's quotas. `now` is monotonic.
    pub fn take(&self, amounts: &[(Quota, u64)], now: Duration) {
        if let Some(meters) = self.inner.standing.meters() {
            meters.take(amounts, now);
        }
    }

    /// The same caller, whose request is noted for the audit log.
    #[must_use]
    pub fn noting(mut self) -> Self {
        Arc::make_mut(&mut self.inner).notes = Some(Notes::default());
        self
    }

    /// What its request asked for, for the audit log.
    pub(crate) fn noted(&self) -> Option<Note> {
        self.inner.notes.as_ref().and_then(Notes::noted)
    }

    /// The same caller with the address of its connection.
    #[must_use]
    pub fn at(mut self, address: IpAddr) -> Self {
        Arc::make_mut(&mut self.inner).address = Some(address);
        self
    }

    /// The same caller with the id of its request, for tracing.
    #[must_use]
    pub fn asking(mut self, request: &str) -> Self {
        Arc::make_mut(&mut self.inner).request = Some(request.into());
        self
    }

    /// The tenant whose names it uses. Every caller uses those of the default tenant, until access
    /// control assigns others.
    #[must_use]
    pub fn tenant(&self) -> &Tenant {
        &self.inner.tenant
    }

    /// What the caller may do.
    #[must_use]
    pub fn rights(&self) -> &Standing {
        &self.inner.standing
    }

    /// The principal's name and whom it acts for, or the name that the caller gave; `None` if it gave none.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.inner.by.as_deref()
    }

    /// The name recorded for it: its own, or `unknown`.
    #[must_use]
    pub fn signature(&self) -> &str {
        self.name().unwrap_or(UNKNOWN)
    }

    /// The address of its connection; `None` within the process, or if the address is unknown.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.inner.address
    }

    /// The id of its request; `None` if it has none.
    #[must_use]
    pub fn request(&self) -> Option<&str> {
        self.inner.request.as_deref()
    }
}
