//! Tests of a function that answers HTTP: requests go in, answers and sent messages come out.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::mem;
use std::ops::Bound;

use super::said::Sent as SentMessage;
use crate::http::{Request, Response};
use crate::producer::{Outgoing, Place, SendError, Sent};
use crate::views::{Entries, Entry, ViewError};
use crate::{config, secrets};

/// The state of one processor.
type State = BTreeMap<Vec<u8>, Vec<u8>>;

/// Asks a function as a host asks a route.
///
/// ```
/// use millrace_guest::http::{Request, Response};
/// use millrace_guest::producer::{self, Outgoing};
/// use millrace_guest::testing::{RouteTester, Sent};
///
/// fn answer(request: &Request) -> Response {
///     match producer::send("names", &[Outgoing::new(request.body()).key("1")]) {
///         Ok(_) => Response::new(202),
///         Err(error) => Response::text(503, error.to_string()),
///     }
/// }
///
/// # fn main() {
/// let mut tester = RouteTester::new(answer);
/// let response = tester.ask(&Request::new("POST", "/names").with_body("Ada"));
/// assert_eq!(response.status(), 202);
/// assert_eq!(tester.take_sent(), [Sent::new("1", "Ada").to("names")]);
/// # }
/// ```
pub struct RouteTester<'a> {
    answer: Box<dyn Fn(&Request) -> Response + 'a>,
    config: BTreeMap<String, String>,
    secrets: BTreeMap<String, Vec<u8>>,
    broker: Broker,
}

impl fmt::Debug for RouteTester<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouteTester")
            .field("sent", &self.broker.sent)
            .finish_non_exhaustive()
    }
}

/// The host that a handler sees during a call.
#[derive(Default)]
struct Broker {
    sent: Vec<SentMessage>,
    /// The next offset of each topic.
    next: BTreeMap<String, u64>,
    /// Calls with a key, by topic and key.
    keys: BTreeMap<(String, String), (Vec<SentMessage>, Sent)>,
    views: BTreeMap<String, State>,
    failure: Option<SendError>,
}

thread_local! {
    static BROKER: RefCell<Option<Broker>> = const { RefCell::new(None) };
}

impl<'a> RouteTester<'a> {
    /// Tests a function that [`http!`](crate::http) exports.
    #[must_use]
    pub fn new(answer: impl Fn(&Request) -> Response + 'a) -> Self {
        Self {
            answer: Box::new(answer),
            config: BTreeMap::new(),
            secrets: BTreeMap::new(),
            broker: Broker::default(),
        }
    }

    /// Gives the function this setting.
    #[must_use]
    pub fn with_config(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.config.insert(key.into(), value.into());
        self
    }

    /// Grants the function this secret.
    #[must_use]
    pub fn with_secret(mut self, name: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.secrets.insert(name.into(), value.into());
        self
    }

    /// Grants the function the state of a processor, which has this entry.
    #[must_use]
    pub fn with_view(
        mut self,
        processor: impl Into<String>,
        key: impl Into<Vec<u8>>,
        value: impl Into<Vec<u8>>,
    ) -> Self {
        let state = self.broker.views.entry(processor.into()).or_default();
        state.insert(key.into(), value.into());
        self
    }

    /// Lets every call that sends fail.
    #[must_use]
    pub fn with_failure(mut self, failure: SendError) -> Self {
        self.broker.failure = Some(failure);
        self
    }

    /// The answer to a request.
    pub fn ask(&mut self, request: &Request) -> Response {
        config::host::replace(&self.config);
        secrets::host::replace(&self.secrets);
        BROKER.set(Some(mem::take(&mut self.broker)));
        let response = (self.answer)(request);
        self.broker = BROKER.take().unwrap_or_default();
        response
    }

    /// What was sent since the last look, in order.
    pub fn take_sent(&mut self) -> Vec<SentMessage> {
        mem::take(&mut self.broker.sent)
    }
}

/// Whether a tester calls a function on this thread.
pub(crate) fn is_calling() -> bool {
    BROKER.with_borrow(Option::is_some)
}

/// Sends to the tester that calls on this thread; `None`: there is none.
pub(crate) fn send(
    topic: &str,
    messages: &[Outgoing<'_>],
    key: Option<&str>,
) -> Option<Result<Sent, SendError>> {
    BROKER.with_borrow_mut(|broker| Some(broker.as_mut()?.send(topic, messages, key)))
}

/// Reads the state of a processor of the tester that calls on this thread; `None`: there is none.
pub(crate) fn with_view<T>(
    processor: &str,
    read: impl FnOnce(&State) -> T,
) -> Option<Result<T, ViewError>> {
    BROKER.with_borrow(|broker| {
        let not_granted = || {
            let why = format!("the state of processor {processor} is not granted to this route");
            ViewError::NotGranted(why)
        };
        let state = broker.as_ref()?.views.get(processor);
        Some(state.map(read).ok_or_else(not_granted))
    })
}

/// Entries of a state whose keys begin with `prefix` and come after `after`.
pub(crate) fn entries(state: &State, prefix: &[u8], after: Option<&[u8]>, max: usize) -> Entries {
    let first = match after {
        Some(after) if after >= prefix => Bound::Excluded(after.to_vec()),
        _ => Bound::Included(prefix.to_vec()),
    };
    let found = state.range((first, Bound::Unbounded));
    let mut found = found.take_while(|(key, _)| key.starts_with(prefix));
    let entry = |(key, value): (&Vec<u8>, &Vec<u8>)| Entry {
        key: key.clone(),
        value: value.clone(),
    };
    Entries {
        entries: found.by_ref().take(max).map(entry).collect(),
        has_more: found.next().is_some(),
    }
}

impl Broker {
    fn send(
        &mut self,
        topic: &str,
        messages: &[Outgoing<'_>],
        key: Option<&str>,
    ) -> Result<Sent, SendError> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        let messages: Vec<SentMessage> = messages
            .iter()
            .map(|message| SentMessage::of_outgoing(topic, message))
            .collect();
        let key = key.map(|key| (topic.to_owned(), key.to_owned()));
        if let Some((before, sent)) = key.as_ref().and_then(|key| self.keys.get(key)) {
            return match *before == messages {
                true => Ok(Sent {
                    repeated: true,
                    ..sent.clone()
                }),
                false => Err(SendError::KeyReused(
                    "the key was used before, for other messages".to_owned(),
                )),
            };
        }
        let next = self.next.entry(topic.to_owned()).or_default();
        let mut place = |message: &SentMessage| {
            let offset = message.deliver_at.is_none().then(|| {
                *next += 1;
                *next - 1
            });
            Place {
                partition: message.partition.unwrap_or_default(),
                offset,
            }
        };
        let sent = Sent {
            places: messages.iter().map(&mut place).collect(),
            repeated: false,
        };
        if let Some(key) = key {
            self.keys.insert(key, (messages.clone(), sent.clone()));
        }
        self.sent.extend(messages);
        Ok(sent)
    }
}
