//! Secrets of the host that were granted to the processor by name. A new value reaches the
//! component with its next call. Without WASM they are what a test gave with
//! [`Tester::with_secret`](crate::testing::Tester::with_secret).

use std::fmt;

use crate::outcome::Unavailable;

/// Why a secret cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretError {
    /// No secret with this name is granted.
    NotGranted(String),
    /// The host has no value for it now.
    Unavailable(String),
}

impl fmt::Display for SecretError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotGranted(reason) | Self::Unavailable(reason) => f.write_str(reason),
        }
    }
}

impl std::error::Error for SecretError {}

impl From<SecretError> for Unavailable {
    /// A missing secret is an outage: the host waits until an operator has provided it, and no
    /// message is given up.
    fn from(error: SecretError) -> Self {
        Self {
            reason: error.to_string(),
        }
    }
}

/// The bytes of a secret.
///
/// # Errors
/// [`SecretError`].
pub fn get(name: &str) -> Result<Vec<u8>, SecretError> {
    host::get(name)
}

#[cfg(target_arch = "wasm32")]
mod host {
    use super::SecretError;
    use crate::bindings::secrets;

    pub(super) fn get(name: &str) -> Result<Vec<u8>, SecretError> {
        secrets::get(name).map_err(|error| match error {
            secrets::SecretError::NotGranted(reason) => SecretError::NotGranted(reason),
            secrets::SecretError::Unavailable(reason) => SecretError::Unavailable(reason),
        })
    }
}

#[cfg(not(target_arch = "wasm32"))]
pub(crate) mod host {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use super::SecretError;

    thread_local! {
        static VALUES: RefCell<BTreeMap<String, Vec<u8>>> = RefCell::default();
    }

    /// Replaces the secrets that handlers on this thread may read.
    pub(crate) fn replace(values: &BTreeMap<String, Vec<u8>>) {
        VALUES.with_borrow_mut(|known| known.clone_from(values));
    }

    pub(super) fn get(name: &str) -> Result<Vec<u8>, SecretError> {
        let value = VALUES.with_borrow(|values| values.get(name).cloned());
        value.ok_or_else(|| {
            SecretError::NotGranted(format!("secret {name:?} is not granted to this processor"))
        })
    }
}
