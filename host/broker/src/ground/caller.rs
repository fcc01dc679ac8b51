//! The caller: every verb is called on behalf of a caller.

use std::net::IpAddr;
use std::sync::Arc;

use millrace_model::Tenant;

/// The name of the host for its own actions.
pub(crate) const HOST: &str = "host";

/// The name recorded for a caller that gives none.
pub(crate) const UNKNOWN: &str = "unknown";

/// Who calls a verb. Cheap to clone.
///
/// Today there is one built-in principal, with every right: anyone who can connect. The name that a
/// caller gives is a claim, which is recorded with each change and proves nothing.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    tenant: Tenant,
    by: Option<Arc<str>>,
    address: Option<IpAddr>,
    request: Option<Arc<str>>,
}

impl Caller {
    /// The built-in principal, without a name.
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
    pub fn named(self, by: &str) -> Self {
        Self {
            by: Some(by.into()),
            ..self
        }
    }

    /// The same caller with the address of its connection.
    #[must_use]
    pub fn at(self, address: IpAddr) -> Self {
        Self {
            address: Some(address),
            ..self
        }
    }

    /// The same caller with the id of its request, for tracing.
    #[must_use]
    pub fn asking(self, request: &str) -> Self {
        Self {
            request: Some(request.into()),
            ..self
        }
    }

    /// The tenant whose names it uses. Every caller uses those of the default tenant, until access
    /// control assigns others.
    #[must_use]
    pub fn tenant(&self) -> &Tenant {
        &self.tenant
    }

    /// The name that the caller gave; `None` if it gave none.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.by.as_deref()
    }

    /// The name recorded for it: its own, or `unknown`.
    #[must_use]
    pub fn signature(&self) -> &str {
        self.name().unwrap_or(UNKNOWN)
    }

    /// The address of its connection; `None` within the process, or if the address is unknown.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// The id of its request; `None` if it has none.
    #[must_use]
    pub fn request(&self) -> Option<&str> {
        self.request.as_deref()
    }
}
