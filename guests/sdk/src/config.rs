//! Settings of the processor, as operators gave them (`millrace processor config`). A change reaches
//! the component with its next batch. Without WASM they are what a test gave with
//! [`Tester::with_config`](crate::testing::Tester::with_config).

use std::str::FromStr;

/// The value of a key; none if it has none.
#[must_use]
pub fn get(key: &str) -> Option<String> {
    host::get(key)
}

/// The value of a key as a number or another type, or else the default.
///
/// # Panics
/// If the value cannot be parsed, with a line that names the key: a wrong setting is better
/// noticed than ignored.
#[must_use]
pub fn get_or<T: FromStr>(key: &str, default: T) -> T {
    let Some(text) = get(key) else {
        return default;
    };
    match text.parse() {
        Ok(value) => value,
        Err(_) => panic!("the setting {key} is {text:?}, which cannot be understood"),
    }
}

/// All keys and their values, in ascending order of keys.
#[must_use]
pub fn all() -> Vec<(String, String)> {
    host::all()
}

#[cfg(target_arch = "wasm32")]
use crate::bindings::config as host;

#[cfg(not(target_arch = "wasm32"))]
pub(crate) mod host {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    thread_local! {
        static VALUES: RefCell<BTreeMap<String, String>> = RefCell::default();
    }

    /// Replaces the settings that handlers on this thread see.
    pub(crate) fn replace(values: &BTreeMap<String, String>) {
        VALUES.with_borrow_mut(|known| known.clone_from(values));
    }

    pub(super) fn get(key: &str) -> Option<String> {
        VALUES.with_borrow(|values| values.get(key).cloned())
    }

    pub(super) fn all() -> Vec<(String, String)> {
        let pair = |(key, value): (&String, &String)| (key.clone(), value.clone());
        VALUES.with_borrow(|values| values.iter().map(pair).collect())
    }
}
