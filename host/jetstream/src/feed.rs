//! Follows the stream: the headers of all its messages, in order. Whatever a host knows of the others comes from here, its own commits
//! too: one is done when it was heard of.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::jetstream::consumer::{DeliverPolicy, push};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use millrace_model::{Offset, Timestamp, Topic};

use crate::atomic::Note;
use crate::counting::Counts;
use crate::fetch::number;
use crate::index::{Anchor, Piece};
use crate::mirror::{Applying, Event, What};
use crate::store::Store;
use crate::subjects::{Place, unword};
use crate::trouble::Trouble;

/// Pause after the stream could not be followed.
const AGAIN_INTERVAL: Duration = Duration::from_millis(200);
/// Messages of one commit at most, and those that are heard together.
const TOGETHER_MAX: usize = 4096;
/// How long the cells of a stream may take to be read.
const LOAD_DURATION_MAX: Duration = Duration::from_secs(120);

/// A message as it arrived.
struct Arrived {
    seq: u64,
    at: Timestamp,
    place: Place,
    note: Note,
    bytes: u64,
    body: Option<Bytes>,
}

impl Arrived {
    fn of(store: &Store, message: async_nats::jetstream::Message, has_body: bool) -> Option<Self> {
        let info = message.info().ok()?;
        let (seq, at) = (info.stream_sequence, info.published);
        let at = Timestamp((at.unix_timestamp_nanos() / 1_000_000) as u64);
        let place = store.subjects.parse(&message.subject);
        let headers = message.headers.as_ref();
        let bytes = headers.and_then(|headers| number(headers, "Nats-Msg-Size"));
        // What others have written is passed over.
        let nothing = || Note {
            commit: 0,
            index: 0,
            count: 1,
            words: Vec::new(),
        };
        Some(Self {
            seq,
            at,
            place,
            note: headers.and_then(Note::of).unwrap_or_else(nothing),
            bytes: bytes.unwrap_or(message.payload.len() as u64),
            body: has_body.then(|| message.payload.clone()),
        })
    }
}

/// Reads all cells, and begins at the newest counts. Returns a time, by the monotonic clock, as of which this host knows everything.
pub(crate) async fn load(store: &Store) -> Result<Duration, Trouble> {
    let as_of = store.clock.monotonic();
    let said = store.say().await?;
    let loaded = tokio::time::timeout(LOAD_DURATION_MAX, load_cells(store, said)).await;
    loaded.map_err(|_| Trouble::unavailable("the stream's cells are not answered"))??;
    Ok(as_of)
}

/// `said` is the sequence of what this host has just said: whoever knows that knows all that was there before.
pub(crate) async fn load_cells(store: &Store, said: u64) -> Result<(), Trouble> {
    let cells = store.stream.create_consumer(push::OrderedConfig {
        deliver_subject: store.client.new_inbox(),
        filter_subject: store.subjects.cells(),
        deliver_policy: DeliverPolicy::LastPerSubject,
        ..push::OrderedConfig::default()
    });
    let cells = cells.await.map_err(Trouble::unavailable)?;
    let mut left = cells.cached_info().num_pending;
    let mut messages = cells.messages().await.map_err(Trouble::unavailable)?;
    let mut arrived = Vec::new();
    // The parts of the newest counts.
    let mut parts = Vec::new();
    let prefix = store.subjects.checkpoint(0);
    let prefix = prefix.trim_end_matches('0').to_owned();
    while left > 0 {
        let Some(message) = messages.next().await else {
            return Err(Trouble::unavailable("the stream's cells cannot be read"));
        };
        let message = message.map_err(Trouble::unavailable)?;
        left = message.info().map_err(Trouble::unavailable)?.pending;
        let number = message.subject.strip_prefix(&prefix);
        let number = number.and_then(|number| number.parse::<u64>().ok());
        if let Some(next) = Arrived::of(store, message, true) {
            if let (Some(number), Some(as_of)) = (number, next.note.number(0)) {
                let body = next.body.clone().unwrap_or_default();
                parts.push((number, as_of, next.note.number(1).unwrap_or(1), body));
            }
            arrived.push(next);
        }
    }
    drop(messages);
    // Any server may answer, and one that was away is behind: it has old counts, and what they do not count may be gone.
    let is_own = |next: &Arrived| next.place == Place::Host(store.me) && next.seq >= said;
    if !arrived.iter().any(is_own) {
        return Err(Trouble::unavailable("the server that was asked is behind"));
    }
    let counts = counts_of(&mut parts)?;
    tracing::debug!(
        as_of = counts.as_of(),
        cells = arrived.len(),
        "read the cells of the stream"
    );
    store.mirror.begin(counts);
    let mut events = Vec::with_capacity(arrived.len());
    for next in arrived {
        events.push(event(store, next, true).await?);
    }
    // A partition is there before its start is.
    events.sort_by_key(|event| !matches!(event.place, Place::Topic(_)));
    store.mirror.apply(events, applying(store, true));
    Ok(())
}

/// The counts in the parts of a checkpoint; from the beginning, if there is none.
fn counts_of(parts: &mut [(u64, u64, u64, Bytes)]) -> Result<Counts, Trouble> {
    parts.sort_by_key(|(number, ..)| *number);
    let Some((0, as_of, count, _)) = parts.first().cloned() else {
        return Ok(Counts::default());
    };
    let own = parts.iter().filter(|(_, of, ..)| *of == as_of);
    let bodies: Vec<&Bytes> = own.map(|(.., body)| body).collect();
    if bodies.len() as u64 != count {
        return Err(Trouble::unavailable("the counts are being written"));
    }
    let mut body = BytesMut::new();
    bodies.iter().for_each(|part| body.extend_from_slice(part));
    Counts::decode(&body).ok_or_else(|| Trouble::malformed("counts"))
}

fn applying(store: &Store, is_loading: bool) -> Applying<'_> {
    Applying {
        me: store.me,
        holds: &store.holds,
        now: store.clock.monotonic(),
        is_loading,
    }
}

/// Follows the stream for good, from what was [loaded](load).
pub(crate) async fn run(store: Arc<Store>, as_of: Duration) {
    let mut heard_at = as_of;
    loop {
        match follow(&store, &mut heard_at).await {
            Ok(()) => {
                tracing::warn!(
                    "this host was behind for so long that it reads its place in the stream anew"
                );
                match load(&store).await {
                    Ok(as_of) => heard_at = as_of,
                    Err(error) => {
                        tracing::warn!(%error, "the stream cannot be read; it is tried again");
                    }
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the stream cannot be followed; it is tried again");
            }
        }
        tokio::time::sleep(AGAIN_INTERVAL).await;
    }
}

/// Follows until this host must begin anew. `heard_at` is a time as of which it has heard everything: when it said what it last heard of
/// itself. When it hears that says nothing, because the server that it follows may be behind.
async fn follow(store: &Arc<Store>, heard_at: &mut Duration) -> Result<(), Trouble> {
    let position = store.mirror.heard.read().position;
    let all = store.stream.create_consumer(push::OrderedConfig {
        deliver_subject: store.client.new_inbox(),
        deliver_policy: DeliverPolicy::ByStartSequence {
            start_sequence: position + 1,
        },
        headers_only: true,
        ..push::OrderedConfig::default()
    });
    let all = all.await.map_err(Trouble::unavailable)?;
    let mut messages = all.messages().await.map_err(Trouble::unavailable)?;
    let mut last = position;
    let mut together: Vec<Arrived> = Vec::new();
    // This host hears itself more often than that, unless the server that served it is gone.
    let silence = store.options.heartbeat_interval * 2;
    loop {
        let message = match tokio::time::timeout(silence, messages.next()).await {
            Ok(Some(Ok(message))) => message,
            Ok(None) => return Err(Trouble::unavailable("the server ended it")),
            Err(_) => return Err(Trouble::unavailable("nothing is heard")),
            Ok(Some(Err(error))) => {
                // It goes on by itself where it was.
                tracing::debug!(%error, "the stream was lost for a moment");
                continue;
            }
        };
        let Some(next) = Arrived::of(store, message, false) else {
            continue;
        };
        if next.seq <= last {
            continue;
        }
        last = next.seq;
        let now = store.clock.monotonic();
        if now.saturating_sub(*heard_at) > store.options.counted_after / 2 {
            // Some of what it has not counted may be gone.
            return Ok(());
        }
        if next.place == Place::Host(store.me)
            && let Some(said_ms) = next.note.number(1)
        {
            *heard_at = Duration::from_millis(said_ms).max(*heard_at);
        }
        let is_other = together
            .last()
            .is_some_and(|before| before.note.commit != next.note.commit);
        if is_other {
            pass(store, std::mem::take(&mut together)).await;
        }
        let is_last = next.note.index + 1 >= next.note.count;
        together.push(next);
        if is_last || together.len() >= TOGETHER_MAX {
            pass(store, std::mem::take(&mut together)).await;
        }
    }
}

/// Applies messages that belong together.
async fn pass(store: &Arc<Store>, arrived: Vec<Arrived>) {
    let Some(last) = arrived.last().map(|last| last.seq) else {
        return;
    };
    let has_hosts = arrived.iter().any(|a| matches!(a.place, Place::Host(_)));
    let mut events = Vec::with_capacity(arrived.len());
    for mut next in arrived {
        let event = loop {
            let tried = Arrived {
                place: next.place.clone(),
                note: next.note.clone(),
                body: next.body.take(),
                ..next
            };
            match event(store, tried, false).await {
                Ok(event) => break event,
                Err(error) => {
                    tracing::debug!(%error, "something in the stream cannot be read now");
                    tokio::time::sleep(AGAIN_INTERVAL).await;
                }
            }
        };
        events.push(event);
    }
    let news = store.mirror.apply(events, applying(store, false));
    if news.is_wrong && !store.is_wrong.swap(true, Ordering::AcqRel) {
        tracing::error!(
            seq = last,
            "this host counts the messages of the stream otherwise than another host; it stops serving"
        );
    }
    store.mirror.reached(last);
    if has_hosts {
        store.mirror.look(store.options.dead_after);
    }
    for (key, is_own) in news.tables {
        if !is_own {
            let store = Arc::clone(store);
            tokio::spawn(async move { store.hear_state(&key).await });
        }
    }
}

/// What a message says. The bodies of some are read for it; one that is gone meanwhile is followed by another of its subject.
async fn event(store: &Store, arrived: Arrived, is_loading: bool) -> Result<Event, Trouble> {
    let Arrived {
        seq,
        at,
        place,
        note,
        bytes,
        body,
    } = arrived;
    let needs_body = match &place {
        Place::Entry(..) | Place::Topic(_) => !note.is_gone(),
        Place::Checkpoint => !is_loading && !store.mirror.is_own(note.commit),
        _ => false,
    };
    let body = match body {
        None if needs_body => store.at(seq).await?.map(|message| message.body),
        body => body,
    };
    let what = match &place {
        Place::Piece(_) => piece(&note, seq, bytes),
        Place::Delta(..) => match (note.number(0), note.number(1)) {
            (Some(0), Some(parts)) => What::Delta { parts },
            _ => What::Nothing,
        },
        Place::Entry(..) if note.is_gone() => What::Entry(None),
        Place::Entry(..) => match body {
            Some(body) => What::Entry(Some(body)),
            None => What::Nothing,
        },
        Place::Topic(_) if note.is_gone() => What::Topic(None),
        Place::Topic(id) => match body.map(|body| serde_json::from_slice(&body)) {
            Some(Ok(spec)) => What::Topic(Some(Box::new(Topic { id: *id, spec }))),
            Some(Err(error)) => {
                tracing::error!(%error, topic = %id, "a topic cannot be read: a newer host may have written it");
                What::Nothing
            }
            None => What::Nothing,
        },
        Place::Start(_) => match (note.number(0), note.number(1), note.number(2)) {
            (Some(start), Some(offset), Some(seq)) => What::Start {
                start: Offset(start),
                anchor: Anchor {
                    offset: Offset(offset),
                    seq,
                },
            },
            _ => What::Nothing,
        },
        Place::Chain(..) => match note.number(0) {
            Some(epoch) => What::Chain {
                epoch,
                next: note.number(1).map(Offset),
            },
            None => What::Nothing,
        },
        Place::Checkpoint => match note.number(0) {
            Some(as_of) => What::Checkpoint {
                as_of,
                counts: checkpoint(store, seq, &note, body, is_loading).await?,
            },
            None => What::Nothing,
        },
        Place::Host(_) if note.is_gone() => What::Host(None),
        Place::Host(_) => {
            let address = note.words.first().and_then(|address| unword(address));
            What::Host(Some(address.unwrap_or_default().into()))
        }
        _ => What::Nothing,
    };
    Ok(Event {
        seq,
        at,
        place,
        commit: note.commit,
        index: note.index,
        what,
    })
}

fn piece(note: &Note, seq: u64, bytes: u64) -> What {
    let number = |place| note.number(place);
    match (number(0), number(2), number(3), number(4)) {
        (Some(part), Some(span), Some(messages), Some(latest)) => What::Piece {
            piece: Piece {
                seq,
                span,
                messages,
                latest: Timestamp(latest),
                bytes: bytes.saturating_mul(number(1).unwrap_or(1)),
            },
            part,
        },
        _ => What::Nothing,
    }
}

/// What somebody else has counted, to compare it.
async fn checkpoint(
    store: &Store,
    seq: u64,
    note: &Note,
    first: Option<Bytes>,
    is_loading: bool,
) -> Result<Option<Box<Counts>>, Trouble> {
    let (Some(first), false) = (first, is_loading) else {
        return Ok(None);
    };
    let mut body = BytesMut::from(&*first);
    for part in 1..note.number(1).unwrap_or(1) {
        match store.at(seq + part).await? {
            Some(message) => body.extend_from_slice(&message.body),
            // It was replaced.
            None => return Ok(None),
        }
    }
    Ok(Counts::decode(&body).map(Box::new))
}
