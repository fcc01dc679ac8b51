//! `wasi:messaging`: components that handle one message at a time and send others. The adapter hands each message of a batch to `handle`;
//! what that sends becomes outputs of the message, which are committed with it, or not at all. `docs/messaging.md` has the mapping.

use std::sync::{Arc, Weak};

use async_trait::async_trait;
use millrace_broker::handler::{BatchHandler, CallError, Called, Interface};
use millrace_broker::state::StateAttempt;
use millrace_model::bounds::MESSAGE_BYTES_MAX;
use millrace_model::columns::{Detail, NONE, OutcomeCode};
use millrace_model::processor::{Grants, Limits};
use millrace_model::{Answer, ColumnBatch};
use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Lift, Linker, Lower, Resource, ResourceType};

use crate::call::{GuestCall, Returned};
use crate::logs::clean;
use crate::pool::{Guest, GuestState, Pool};

/// The header with the type of a message's content.
const CONTENT_TYPE: &str = "content-type";

/// The metadata in which a component finds the key of a message, and gives one to a message that it sends.
const KEY: &str = "millrace-key";

/// Why the data of a message cannot be read.
const GONE: &str = "the message was received in an earlier call, and its data is gone";

/// Bytes of an error's text that are kept.
const REASON_BYTES_MAX: usize = 2_000;

/// Room for key and headers of the message that is being handled: no more than a message has, as text.
const RECEIVED_BYTES: u64 = 2 * MESSAGE_BYTES_MAX as u64;

/// Bytes of a topic's name that are repeated in an error.
const TOPIC_SHOWN_BYTES_MAX: usize = 200;

/// `types.client`. Whatever its name, it is this host.
struct Client;

/// `types.message`.
struct Message {
    topic: Option<String>,
    data: Data,
    /// Names and values in order, the content type among them.
    headers: Vec<(String, Vec<u8>)>,
    key: Option<Vec<u8>>,
    /// What it counts against the bound of messages that a guest holds.
    held_bytes: u64,
}

enum Data {
    /// The value of a message of the batch. It is gone after the call: a guest that keeps the message keeps no batch.
    Received(Weak<ColumnBatch>, usize),
    Own(Vec<u8>),
}

/// `types.error`.
#[derive(ComponentType, Lift, Lower)]
#[component(variant)]
enum Failure {
    #[component(name = "timeout")]
    Timeout,
    #[component(name = "connection")]
    Connection(String),
    #[component(name = "permission-denied")]
    PermissionDenied(String),
    #[component(name = "other")]
    Other(String),
}

/// The messages of an instance.
#[derive(Default)]
pub(crate) struct Messaging {
    /// Bytes of the messages that the guest holds.
    held_bytes: u64,
    /// While a batch is handled.
    handling: Option<Handling>,
}

/// The answer to a batch, as far as it has been handled.
struct Handling {
    batch: Arc<ColumnBatch>,
    answer: Answer,
    /// The bound that the answer exceeds.
    over: Option<String>,
    message: u32,
    /// How far the answer was when this message began.
    begun: Mark,
}

#[derive(Clone, Copy, Default)]
struct Mark {
    outputs: usize,
    bytes: usize,
    headers: usize,
}

type Store<'a> = StoreContextMut<'a, GuestState>;
type Metadata = Vec<(String, String)>;

pub(crate) fn link(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    let mut types = linker.instance("wasi:messaging/types@0.2.0-draft")?;
    types.resource(
        "client",
        ResourceType::host::<Client>(),
        |mut store, client| {
            let client = Resource::<Client>::new_own(client);
            store.data_mut().table().delete(client)?;
            Ok(())
        },
    )?;
    types.resource(
        "message",
        ResourceType::host::<Message>(),
        |mut store, message| {
            take(store.data_mut(), Resource::new_own(message))?;
            Ok(())
        },
    )?;
    types.func_wrap(
        "[static]client.connect",
        |mut store: Store<'_>, (_name,): (String,)| {
            let client = store.data_mut().table().push(Client)?;
            Ok((Ok::<_, Failure>(client),))
        },
    )?;
    types.func_wrap(
        "[method]client.disconnect",
        |mut store: Store<'_>, (client,): (Resource<Client>,)| {
            store.data_mut().table().get(&client)?;
            Ok((Ok::<(), Failure>(()),))
        },
    )?;
    types.func_wrap(
        "[constructor]message",
        |mut store: Store<'_>, (data,): (Vec<u8>,)| {
            let message = Message {
                topic: None,
                data: Data::Own(data),
                headers: Vec::new(),
                key: None,
                held_bytes: 0,
            };
            let guest = store.data_mut();
            let message = guest.table().push(message)?;
            count(guest, &message)?;
            Ok((message,))
        },
    )?;
    types.func_wrap(
        "[method]message.topic",
        |store: Store<'_>, message: (Resource<Message>,)| {
            read(store, message, |message| message.topic.clone())
        },
    )?;
    types.func_wrap(
        "[method]message.content-type",
        |store: Store<'_>, message: (Resource<Message>,)| {
            read(store, message, |message| {
                let mut headers = message.headers.iter();
                let found = headers.find(|(name, _)| is_content_type(name));
                found.map(|(_, value)| text(value))
            })
        },
    )?;
    types.func_wrap(
        "[method]message.data",
        |store: Store<'_>, message: (Resource<Message>,)| {
            let (data,) = read(store, message, |message| message.data.to_vec())?;
            let data = data.ok_or_else(|| wasmtime::Error::msg(GONE))?;
            Ok((data,))
        },
    )?;
    types.func_wrap(
        "[method]message.metadata",
        |store: Store<'_>, message: (Resource<Message>,)| {
            read(store, message, |message| {
                let metadata = message.metadata();
                Some(metadata).filter(|metadata| !metadata.is_empty())
            })
        },
    )?;
    types.func_wrap(
        "[method]message.set-content-type",
        |store: Store<'_>, (message, value): (Resource<Message>, String)| {
            change(store, &message, |message| message.set(CONTENT_TYPE, value))
        },
    )?;
    types.func_wrap(
        "[method]message.set-data",
        |store: Store<'_>, (message, data): (Resource<Message>, Vec<u8>)| {
            change(store, &message, |message| message.data = Data::Own(data))
        },
    )?;
    types.func_wrap(
        "[method]message.add-metadata",
        |store: Store<'_>, (message, name, value): (Resource<Message>, String, String)| {
            change(store, &message, |message| message.set(&name, value))
        },
    )?;
    types.func_wrap(
        "[method]message.set-metadata",
        |store: Store<'_>, (message, metadata): (Resource<Message>, Metadata)| {
            change(store, &message, |message| {
                message.headers.retain(|(name, _)| is_content_type(name));
                message.key = None;
                for (name, value) in metadata {
                    match name.as_str() {
                        KEY => message.key = Some(value.into_bytes()),
                        // A name may be there several times.
                        _ => message.headers.push((name, value.into_bytes())),
                    }
                }
            })
        },
    )?;
    types.func_wrap(
        "[method]message.remove-metadata",
        |store: Store<'_>, (message, name): (Resource<Message>, String)| {
            change(store, &message, |message| message.remove(&name))
        },
    )?;
    let mut producer = linker.instance("wasi:messaging/producer@0.2.0-draft")?;
    producer.func_wrap(
        "send",
        |mut store: Store<'_>,
         (client, topic, message): (Resource<Client>, String, Resource<Message>)| {
            let guest = store.data_mut();
            guest.table().get(&client)?;
            let message = take(guest, message)?;
            Ok((guest.send(&topic, message),))
        },
    )
}

/// Answers a question about a message.
fn read<T>(
    mut store: Store<'_>,
    (message,): (Resource<Message>,),
    read: impl FnOnce(&Message) -> T,
) -> wasmtime::Result<(T,)> {
    Ok((read(store.data_mut().table().get(&message)?),))
}

/// Changes a message of the guest.
fn change(
    mut store: Store<'_>,
    message: &Resource<Message>,
    change: impl FnOnce(&mut Message),
) -> wasmtime::Result<()> {
    change(store.data_mut().table().get_mut(message)?);
    count(store.data_mut(), message)
}

/// Counts what a message holds now. A guest that holds too much traps: the host's memory is not its own. The message that it handles
/// always has room.
fn count(guest: &mut GuestState, message: &Resource<Message>) -> wasmtime::Result<()> {
    let max = guest.call_limits.answer_bytes_max + RECEIVED_BYTES;
    let message = guest.table().get_mut(message)?;
    let (before, now) = (message.held_bytes, message.bytes());
    message.held_bytes = now;
    let held = &mut guest.messaging.held_bytes;
    *held = held.saturating_sub(before).saturating_add(now);
    match *held > max {
        false => Ok(()),
        true => Err(wasmtime::Error::msg(format!(
            "the messages that it holds have {held} bytes; the maximum is {max} (limits.answer_bytes_max and {RECEIVED_BYTES})"
        ))),
    }
}

/// Takes a message from the guest.
fn take(guest: &mut GuestState, message: Resource<Message>) -> wasmtime::Result<Message> {
    let message = guest.table().delete(message)?;
    let held = &mut guest.messaging.held_bytes;
    *held = held.saturating_sub(message.held_bytes);
    Ok(message)
}

impl Data {
    /// The bytes; `None` if their batch is gone.
    fn to_vec(&self) -> Option<Vec<u8>> {
        match self {
            Self::Received(batch, message) => {
                // A message without a value is one without bytes.
                let batch = batch.upgrade()?;
                Some(batch.value(*message).unwrap_or_default().to_vec())
            }
            Self::Own(bytes) => Some(bytes.clone()),
        }
    }
}

impl Message {
    /// A message of the batch.
    fn received(batch: &Arc<ColumnBatch>, message: usize) -> Self {
        let header = |(name, value): (&[u8], Option<&[u8]>)| {
            (text(name), value.unwrap_or_default().to_vec())
        };
        Self {
            topic: Some(batch.topic.clone()),
            data: Data::Received(Arc::downgrade(batch), message),
            headers: batch.headers(message).map(header).collect(),
            key: batch.key(message).map(<[u8]>::to_vec),
            held_bytes: 0,
        }
    }

    /// What it takes of the host's memory besides the batch.
    fn bytes(&self) -> u64 {
        let data = match &self.data {
            Data::Received(..) => 0,
            Data::Own(bytes) => bytes.len(),
        };
        let headers = self.headers.iter();
        let headers =
            headers.map(|(name, value)| name.len() + value.len() + size_of::<(String, Vec<u8>)>());
        let key = self.key.as_ref().map_or(0, Vec::len);
        (data + key + headers.sum::<usize>()) as u64
    }

    fn metadata(&self) -> Metadata {
        let key = self.key.as_ref().map(|key| (KEY.to_owned(), text(key)));
        let headers = self.headers.iter();
        let headers = headers.filter(|(name, _)| !is_content_type(name));
        let headers = headers.map(|(name, value)| (name.clone(), text(value)));
        key.into_iter().chain(headers).collect()
    }

    /// Sets the only value of a name.
    fn set(&mut self, name: &str, value: String) {
        self.remove(name);
        match name {
            KEY => self.key = Some(value.into_bytes()),
            _ => self.headers.push((name.to_owned(), value.into_bytes())),
        }
    }

    fn remove(&mut self, name: &str) {
        if name == KEY {
            self.key = None;
        }
        let is_type = is_content_type(name);
        let is_it = |known: &str| known == name || (is_type && is_content_type(known));
        self.headers.retain(|(known, _)| !is_it(known));
    }
}

fn is_content_type(name: &str) -> bool {
    name.eq_ignore_ascii_case(CONTENT_TYPE)
}

/// Headers and keys are bytes, metadata is text.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl GuestState {
    /// Makes a message an output of the one that is being handled.
    fn send(&mut self, topic: &str, message: Message) -> Result<(), Failure> {
        let (grants, limits) = (Arc::clone(&self.grants), &self.call_limits);
        let Some(handling) = &mut self.messaging.handling else {
            let why = "messages are sent while a message is handled, and committed with it";
            return Err(Failure::Other(why.to_owned()));
        };
        let topic = handling.topic(topic, &grants)?;
        handling
            .send(topic, message, limits)
            .map_err(Failure::Other)
    }
}

impl Handling {
    fn new(batch: Arc<ColumnBatch>) -> Self {
        Self {
            batch,
            answer: Answer::default(),
            over: None,
            message: 0,
            begun: Mark::default(),
        }
    }

    /// The index of a granted topic; an empty name is the default output.
    fn topic(&mut self, name: &str, grants: &Grants) -> Result<u32, Failure> {
        if name.is_empty() {
            return Ok(NONE);
        }
        if grants.topics.iter().all(|granted| granted.as_str() != name) {
            let name = clean(name, TOPIC_SHOWN_BYTES_MAX);
            return Err(Failure::PermissionDenied(format!(
                "topic {name} is not granted; `millrace processor deploy` grants it with --grant-topic {name}, and an empty topic is \
                 the processor's output"
            )));
        }
        let names = &mut self.answer.topic_names;
        let known = names.iter().position(|known| known == name);
        let index = known.unwrap_or_else(|| {
            names.push(name.to_owned());
            names.len() - 1
        });
        Ok(index as u32)
    }

    fn send(&mut self, topic: u32, message: Message, limits: &Limits) -> Result<(), String> {
        let (bytes_max, outputs_max) = (limits.answer_bytes_max, limits.answer_outputs_max);
        let bytes = (self.answer.data.len() as u64).saturating_add(message.bytes());
        let outputs = self.answer.sources.len() as u64 + 1;
        let over = if bytes > bytes_max {
            Some(format!("it has {bytes} bytes; the maximum is {bytes_max}"))
        } else if outputs > u64::from(outputs_max) {
            Some(format!(
                "it has {outputs} outputs; the maximum is {outputs_max}"
            ))
        } else {
            None
        };
        if let Some(why) = over {
            self.over = Some(why.clone());
            return Err(format!("the answer is too large: {why}"));
        }
        let key = match &message.key {
            Some(key) => self.span(key),
            None => self.of_source(|batch, at| [batch.keys[at * 2], batch.keys[at * 2 + 1]]),
        };
        let value = match &message.data {
            Data::Received(batch, at) if batch.as_ptr() == Arc::as_ptr(&self.batch) => {
                [self.batch.values[at * 2], self.batch.values[at * 2 + 1]]
            }
            Data::Received(..) => return Err(GONE.to_owned()),
            Data::Own(bytes) => self.span(bytes),
        };
        for (name, value) in &message.headers {
            let (name, value) = (self.span(name.as_bytes()), self.span(value));
            self.answer.headers.extend(name.into_iter().chain(value));
        }
        let headers = (self.answer.headers.len() / 4) as u32;
        self.answer.sources.push(self.message);
        self.answer.topics.push(topic);
        self.answer.keys.extend(key);
        self.answer.values.extend(value);
        self.answer.header_ends.push(headers);
        Ok(())
    }

    fn of_source<T>(&self, read: impl FnOnce(&ColumnBatch, usize) -> T) -> T {
        read(&self.batch, self.message as usize)
    }

    /// Appends bytes to the answer; their place is counted from the beginning of the batch's.
    fn span(&mut self, bytes: &[u8]) -> [u32; 2] {
        let start = self.batch.data.len() + self.answer.data.len();
        self.answer.data.extend_from_slice(bytes);
        [start as u32, bytes.len() as u32]
    }

    fn mark(&self) -> Mark {
        Mark {
            outputs: self.answer.sources.len(),
            bytes: self.answer.data.len(),
            headers: self.answer.headers.len(),
        }
    }

    /// The message was handled, with this result. What a failed one has sent is not sent.
    fn settle(&mut self, result: Result<(), Failure>) {
        let outcome = match result {
            Ok(()) if self.answer.sources.len() > self.begun.outputs => OutcomeCode::Emit,
            Ok(()) => OutcomeCode::Ack,
            Err(failure) => {
                let (class, reason) = failure.told();
                self.take_back();
                self.answer.details.push(Detail {
                    message: self.message,
                    after_ms: None,
                    class: class.to_owned(),
                    reason: clean(&reason, REASON_BYTES_MAX),
                });
                OutcomeCode::Retry
            }
        };
        self.answer.outcomes.push(outcome as u8);
    }

    fn take_back(&mut self) {
        let Mark {
            outputs,
            bytes,
            headers,
        } = self.begun;
        let answer = &mut self.answer;
        answer.sources.truncate(outputs);
        answer.topics.truncate(outputs);
        answer.keys.truncate(outputs * 2);
        answer.values.truncate(outputs * 2);
        answer.header_ends.truncate(outputs);
        answer.headers.truncate(headers);
        answer.data.truncate(bytes);
    }
}

impl Failure {
    /// Its class and its reason.
    fn told(self) -> (&'static str, String) {
        match self {
            Self::Timeout => (
                "timeout",
                "something that it waited for took too long".to_owned(),
            ),
            Self::Connection(reason) => ("connection", reason),
            Self::PermissionDenied(reason) => ("permission-denied", reason),
            Self::Other(reason) => ("other", reason),
        }
    }
}

type Params = (Resource<Message>,);
type Return = (Result<(), Failure>,);

/// One call of `handle` for each message of a batch.
pub(crate) struct Handle(Arc<ColumnBatch>);

impl GuestCall for Handle {
    type Output = Answer;
    const INTERFACE: Interface = Interface::MessageProcessor;
    const FUNCTION: &'static str = "handle";

    fn check(guest: &Guest) -> wasmtime::Result<()> {
        guest
            .function
            .typed::<Params, Return>(&guest.store)
            .map(drop)
    }

    fn batch(&self) -> Option<&Arc<ColumnBatch>> {
        Some(&self.0)
    }

    async fn make(self, guest: &mut Guest) -> wasmtime::Result<Returned<Answer>> {
        let Self(batch) = self;
        let function = guest.function.typed::<Params, Return>(&guest.store)?;
        let mut handling = Handling::new(Arc::clone(&batch));
        for message in 0..batch.len() {
            handling.message = message as u32;
            handling.begun = handling.mark();
            let state = guest.store.data_mut();
            state.messaging.handling = Some(handling);
            let received = state.table().push(Message::received(&batch, message))?;
            count(state, &received)?;
            let (result,) = function.call_async(&mut guest.store, (received,)).await?;
            let handled = guest.store.data_mut().messaging.handling.take();
            let Some(mut handled) = handled else {
                return Ok(Returned::Bad("its answer was lost".to_owned()));
            };
            handled.settle(result);
            if let Some(why) = handled.over.take() {
                return Ok(Returned::Bad(why));
            }
            handling = handled;
        }
        Ok(Returned::Answer(handling.answer))
    }
}

/// A component of `wasi:messaging` in the form of the broker's message processor.
pub(crate) struct Handler(pub(crate) Arc<Pool>);

#[async_trait]
impl BatchHandler for Handler {
    async fn process(&self, batch: &Arc<ColumnBatch>) -> Result<Answer, CallError> {
        self.0.call(Handle(Arc::clone(batch))).await
    }

    async fn call(&self, batch: &Arc<ColumnBatch>, state: Option<Box<StateAttempt>>) -> Called {
        let call = Handle(Arc::clone(batch));
        let (outcome, used) = self.0.measured(call, batch.len()).await;
        Called {
            outcome: outcome.map(|answer| (answer, state)),
            used,
        }
    }
}
