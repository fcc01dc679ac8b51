//! Metrics of the component, on the host's `/metrics` with the label `processor`. They need the
//! grant `--grant-metrics`. They count what calls did, including calls whose batch was tried
//! again: for exact counts use [`state`](crate::state).
//!
//! A wrong name is a trap: names of metrics and labels have 1 to 60 of the characters a-z, 0-9 and
//! `_` and begin with a letter. Each update is a call of the host; in a hot handler, update once a
//! batch. Without WASM, updates go nowhere.

/// Labels: names and values.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// Adds to the counter `guest_<name>_total`.
pub fn add(name: &str, labels: Labels<'_>, delta: u64) {
    host::add(name, &owned(labels), delta);
}

/// Sets the gauge `guest_<name>`.
pub fn set(name: &str, labels: Labels<'_>, value: f64) {
    host::set(name, &owned(labels), value);
}

/// Records a value in the histogram `guest_<name>_observed`.
pub fn observe(name: &str, labels: Labels<'_>, value: f64) {
    host::observe(name, &owned(labels), value);
}

fn owned(labels: Labels<'_>) -> Vec<(String, String)> {
    let pair = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
    labels.iter().map(pair).collect()
}

#[cfg(target_arch = "wasm32")]
use crate::bindings::metrics as host;

#[cfg(not(target_arch = "wasm32"))]
mod host {
    type Owned = [(String, String)];

    pub(super) fn add(_name: &str, _labels: &Owned, _delta: u64) {}
    pub(super) fn set(_name: &str, _labels: &Owned, _value: f64) {}
    pub(super) fn observe(_name: &str, _labels: &Owned, _value: f64) {}
}
