//! Tests a handler in a plain `cargo test`: messages go in, and the outcome of each comes out, as
//! messages.
//!
//! ```
//! use millrace_guest::testing::{Said, Sent, Tester};
//! use millrace_guest::{Message, Outcome, Sample, state};
//!
//! /// Greets each name once.
//! fn process(message: &Message) -> Outcome {
//!     let Some(name) = message.value() else {
//!         return Outcome::reject("no-value", "there is nobody to greet");
//!     };
//!     if state::get(name).is_some() {
//!         return Outcome::Ack;
//!     }
//!     match state::set(message, name, b"greeted") {
//!         Ok(()) => {
//!             let greeting = message.output().topic("greetings").build_value(|buffer| {
//!                 buffer.extend_from_slice(b"hello, ");
//!                 buffer.extend_from_slice(name);
//!             });
//!             Outcome::Emit(greeting)
//!         }
//!         Err(full) => Outcome::retry("state-full", full.to_string()),
//!     }
//! }
//!
//! # fn main() {
//! let mut tester = Tester::new(process).with_state("Bob", "greeted");
//! let names = Sample::new("names")
//!     .message("1", "Ada")
//!     .message("2", "Bob")
//!     .nullable(Some(b"3"), None);
//! let run = tester.run(names);
//! assert_eq!(run.outputs(), [Sent::new("1", "hello, Ada").to("greetings")]);
//! assert_eq!(run.said(1), &Said::Acked);
//! assert_eq!(run.said(2), &Said::rejected("no-value", "there is nobody to greet"));
//! assert_eq!(run.changes(), [("Ada", "greeted")]);
//!
//! // The tester keeps state from one batch to the next.
//! let again = tester.run(Sample::new("names").message("4", "Ada"));
//! assert!(again.outputs().is_empty());
//! assert_eq!(tester.state("Ada").unwrap(), "greeted");
//! # }
//! ```
//!
//! A handler that panics fails its test, as it would fail its batch on a host: test that with
//! `#[should_panic]`. Error handlers and partitioners return plain values: call them natively with
//! [`decide`](crate::decide) and [`assign`](crate::assign). [`RouteTester`] asks a function that
//! answers HTTP.

mod reading;
pub(crate) mod route;
mod said;
mod text;

use std::collections::BTreeMap;
use std::fmt;

use crate::batch::Batch;
use crate::columns::{Answer, Columns};
use crate::message::Message;
use crate::outcome::Unavailable;
use crate::outcomes::Outcomes;
use crate::run::{Finished, Verdict};
use crate::sample::Sample;
use crate::state::memory::{self, Entry, Store};
use crate::{config, secrets};

pub use route::RouteTester;
pub use said::{Change, Said, Sent};
pub use text::Text;

type Call<'a> = Box<dyn Fn(Columns) -> Result<Answer, Unavailable> + 'a>;

/// Calls a handler with batches and keeps its state between them, as a host does for one partition.
pub struct Tester<'a> {
    call: Call<'a>,
    entries: BTreeMap<Vec<u8>, Entry>,
    config: BTreeMap<String, String>,
    secrets: BTreeMap<String, Vec<u8>>,
}

impl fmt::Debug for Tester<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tester")
            .field("state", &self.all_state())
            .finish_non_exhaustive()
    }
}

impl<'a> Tester<'a> {
    /// Tests a function of one message, as `processor!(process)` exports it.
    #[must_use]
    pub fn new<V: Verdict>(process: impl Fn(&Message) -> V + 'a) -> Self {
        Self::of_columns(move |columns| crate::process(columns, &process))
    }

    /// Tests a function of a batch, as `processor!(batch process)` exports it.
    #[must_use]
    pub fn of_batches<F: Finished>(process: impl Fn(&Batch, &mut Outcomes) -> F + 'a) -> Self {
        Self::of_columns(move |columns| crate::process_batch(columns, &process))
    }

    /// Tests a function of columns, as `processor!(columns process)` exports it.
    #[must_use]
    pub fn of_columns(process: impl Fn(Columns) -> Result<Answer, Unavailable> + 'a) -> Self {
        Self {
            call: Box::new(process),
            entries: BTreeMap::new(),
            config: BTreeMap::new(),
            secrets: BTreeMap::new(),
        }
    }

    /// Gives the handler this setting.
    #[must_use]
    pub fn with_config(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.config.insert(key.into(), value.into());
        self
    }

    /// Grants the handler this secret.
    #[must_use]
    pub fn with_secret(mut self, name: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.secrets.insert(name.into(), value.into());
        self
    }

    /// Starts with this key in state.
    #[must_use]
    pub fn with_state(mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        let entry = Entry {
            value: value.as_ref().to_vec(),
            ttl_ms: None,
        };
        self.entries.insert(key.as_ref().to_vec(), entry);
        self
    }

    /// Starts with this number in state, as [`state::add`](crate::state::add) stores it.
    #[must_use]
    pub fn with_number(self, key: impl AsRef<[u8]>, number: i64) -> Self {
        self.with_state(key, number.to_le_bytes())
    }

    /// Processes the batch; returns the outcome of each message, and the changes of state. A failed
    /// message leaves no trace in state: if a message that wrote is retried or rejected, it is
    /// called again alone, and the messages before and after it without it, as on a host. Panics if
    /// the handler returns `Unavailable`; [`try_run`](Self::try_run) returns it instead.
    #[track_caller]
    pub fn run(&mut self, batch: Sample) -> Run {
        match self.try_run(batch) {
            Ok(run) => run,
            Err(unavailable) => panic!(
                "the handler did not answer the batch, but said: {}; use try_run where that is meant",
                unavailable.reason
            ),
        }
    }

    /// Like [`run`](Self::run), for handlers that may return `Unavailable`.
    ///
    /// # Errors
    /// [`Unavailable`] from the handler; state is unchanged.
    pub fn try_run(&mut self, batch: Sample) -> Result<Run, Unavailable> {
        let columns = batch.columns();
        let before = self.entries.clone();
        let said = self.settle(&columns).inspect_err(|_| {
            self.entries.clone_from(&before);
        })?;
        let changes = changes(&before, &self.entries);
        Ok(Run { said, changes })
    }

    /// The current value of a key in state.
    #[must_use]
    pub fn state(&self, key: impl AsRef<[u8]>) -> Option<Text> {
        let entry = self.entries.get(key.as_ref())?;
        Some(Text::from(entry.value.as_slice()))
    }

    /// The current number of a key in state. Panics if the value is not a number.
    #[must_use]
    #[track_caller]
    pub fn number(&self, key: impl AsRef<[u8]>) -> Option<i64> {
        Some(self.state(key)?.number())
    }

    /// The whole current state, by key.
    #[must_use]
    pub fn all_state(&self) -> Vec<(Text, Text)> {
        let text = |bytes: &[u8]| Text::from(bytes);
        let entries = self.entries.iter();
        entries
            .map(|(key, entry)| (text(key), text(&entry.value)))
            .collect()
    }

    /// Calls the handler with all messages, and if a message that wrote to state failed, again with
    /// the parts whose writes are kept.
    fn settle(&mut self, columns: &Columns) -> Result<Vec<Said>, Unavailable> {
        let (said, store) = self.call_with(columns.clone())?;
        let failed: Vec<usize> = (0..said.len())
            .filter(|&at| said[at].is_failure())
            .collect();
        let wrote = |at: &usize| store.by_all || store.writers.contains(&(*at as u32));
        if !failed.iter().any(wrote) {
            self.entries = store.entries;
            return Ok(said);
        }
        if columns.offsets.len() == 1 {
            // Alone, and all its writes are discarded.
            return Ok(said);
        }
        let mut said = Vec::with_capacity(said.len());
        let mut begin = 0;
        for at in failed {
            said.extend(self.settle_part(columns, begin..at)?);
            said.extend(self.settle_part(columns, at..at + 1)?);
            begin = at + 1;
        }
        said.extend(self.settle_part(columns, begin..columns.offsets.len())?);
        Ok(said)
    }

    fn settle_part(
        &mut self,
        columns: &Columns,
        part: std::ops::Range<usize>,
    ) -> Result<Vec<Said>, Unavailable> {
        match part.is_empty() {
            true => Ok(Vec::new()),
            false => self.settle(&reading::part_of(columns, part)),
        }
    }

    /// One call, with its own state.
    fn call_with(&self, columns: Columns) -> Result<(Vec<Said>, Store), Unavailable> {
        let mut lent = Lent::of(Store {
            entries: self.entries.clone(),
            ..Store::default()
        });
        config::host::replace(&self.config);
        secrets::host::replace(&self.secrets);
        let answer = (self.call)(columns.clone());
        let store = lent.take_back();
        Ok((reading::said(&columns, &answer?), store))
    }
}

/// The thread's state while a handler is called with another one; it is restored however the call
/// ends.
struct Lent {
    own: Store,
    is_back: bool,
}

impl Lent {
    fn of(mut store: Store) -> Self {
        memory::swap(&mut store);
        Self {
            own: store,
            is_back: false,
        }
    }

    fn take_back(&mut self) -> Store {
        let mut store = std::mem::take(&mut self.own);
        memory::swap(&mut store);
        self.is_back = true;
        store
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if !self.is_back {
            self.take_back();
        }
    }
}

fn changes(before: &BTreeMap<Vec<u8>, Entry>, after: &BTreeMap<Vec<u8>, Entry>) -> Vec<Change> {
    let mut changes = Vec::new();
    for (key, entry) in after {
        if before.get(key) != Some(entry) {
            changes.push(Change {
                key: key.as_slice().into(),
                value: Some(entry.value.as_slice().into()),
                ttl_ms: entry.ttl_ms,
            });
        }
    }
    for key in before.keys().filter(|key| !after.contains_key(*key)) {
        changes.push(Change::removed(key));
    }
    changes.sort_by(|a, b| a.key.cmp(&b.key));
    changes
}

/// The result of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    said: Vec<Said>,
    changes: Vec<Change>,
}

impl Run {
    /// The outcome of the `index`th message, from 0. Panics if there is none.
    #[must_use]
    #[track_caller]
    pub fn said(&self, index: usize) -> &Said {
        let count = self.said.len();
        let said = self.said.get(index);
        said.unwrap_or_else(|| panic!("a batch of {count} has no message {index}"))
    }

    /// The outcome of each message, in order.
    #[must_use]
    pub fn all(&self) -> &[Said] {
        &self.said
    }

    /// All outputs, in order.
    #[must_use]
    pub fn outputs(&self) -> Vec<&Sent> {
        self.said.iter().flat_map(Said::outputs).collect()
    }

    /// Outputs to this topic, in order.
    #[must_use]
    pub fn outputs_to(&self, topic: &str) -> Vec<&Sent> {
        let outputs = self.said.iter().flat_map(Said::outputs);
        outputs.filter(|sent| sent.topic() == Some(topic)).collect()
    }

    /// The only output. Panics if there are none, or several.
    #[must_use]
    #[track_caller]
    pub fn output(&self) -> &Sent {
        match self.outputs()[..] {
            [only] => only,
            ref outputs => panic!("one output was expected, and there are {outputs:#?}"),
        }
    }

    /// Keys of state that changed, in order.
    #[must_use]
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }
}
