//! Follows the stream: the headers of all its messages, in order. Whatever a host knows of the others comes from here, its own commits
//! too: one is done when it was heard of, or when it is the next in the stream and [acknowledged](crate::acknowledged).

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::push::{self, OrderedErrorKind};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use millrace_model::{Offset, Timestamp, Topic};
use tokio::sync::mpsc;

use crate::acknowledged::{Acknowledged, WaitingForTurn};
use crate::atomic::Note;
use crate::compacted::Compacted;
use crate::counting::Counts;
use crate::fetch::{ANSWER_DURATION_MAX, number, stamp};
use crate::heard::{Applying, Event, Said, What};
use crate::index::{Anchor, Piece};
use crate::loading::Loading;
use crate::store::Store;
use crate::subjects::{Place, unword};
use crate::trouble::Trouble;

/// Pause after the stream could not be followed.
const AGAIN_INTERVAL: Duration = Duration::from_millis(200);
/// Messages of one commit at most, and those that are heard together.
const TOGETHER_MAX: usize = 4096;
/// How often counts are read that others write anew meanwhile.
const TRIES_MAX: u32 = 10;
/// How long the cells of a stream may take to be read.
const LOAD_DURATION_MAX: Duration = Duration::from_secs(120);

/// A message as it arrived.
pub(crate) struct Arrived {
    pub(crate) seq: u64,
    pub(crate) at: Timestamp,
    pub(crate) place: Place,
    pub(crate) note: Note,
    pub(crate) bytes: u64,
    pub(crate) body: Option<Bytes>,
}

impl Arrived {
    fn of(
        store: &Store,
        message: async_nats::jetstream::Message,
        has_body: bool,
    ) -> Result<Self, Trouble> {
        let info = message.info().map_err(Trouble::unavailable)?;
        let (seq, at) = (info.stream_sequence, info.published);
        let at = stamp(at);
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
        Ok(Self {
            seq,
            at,
            place,
            note: headers.and_then(Note::of).unwrap_or_else(nothing),
            bytes: bytes.unwrap_or(message.payload.len() as u64),
            body: has_body.then(|| message.payload.clone()),
        })
    }
}

/// Where a host begins to follow the stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Begun {
    /// A time, by the monotonic clock, as of which this host knows everything.
    heard_at: Duration,
    /// It has counted everything that was there when it has come so far.
    caught_up_at: u64,
}

/// Reads all cells, and begins at the newest counts.
pub(crate) async fn load(store: &Store) -> Result<Begun, Trouble> {
    let heard_at = store.clock.monotonic();
    let loaded = tokio::time::timeout(LOAD_DURATION_MAX, load_all(store)).await;
    let caught_up_at = loaded.map_err(|_| Trouble::unavailable("the stream is not answered"))??;
    store.mirror.heard_at(heard_at);
    Ok(Begun {
        heard_at,
        caught_up_at,
    })
}

/// Cells must be newer than the counts: the changes before the counts are not read any more.
async fn load_all(store: &Store) -> Result<u64, Trouble> {
    let said = store.say_word().await?;
    let counts = newest_counts(store, said).await?;
    let said_again = store.say_word().await?;
    let arrived = load_cells(store, said_again).await?;
    check_cells(&arrived, &counts, said)?;
    begin(store, counts, arrived).await?;
    Ok(said_again)
}

/// The newest counts in the stream, and their sequence.
#[derive(Debug, Default)]
pub(crate) struct NewestCounts {
    pub(crate) seq: u64,
    pub(crate) counts: Counts,
}

/// The newest counts, as the leader has them once it has everything up to a sequence. Other servers do not count: one that is behind, or was
/// killed, has older ones, and what those do not count may be gone. There are none only if the leader says so.
pub(crate) async fn newest_counts(store: &Store, said: u64) -> Result<NewestCounts, Trouble> {
    let subject = store.subjects.checkpoint(0);
    for _ in 0..TRIES_MAX {
        let Some(first) = store.last_as_of(&subject, said).await? else {
            return Ok(NewestCounts::default());
        };
        let note = first.note.as_ref().ok_or_else(unreadable)?;
        let as_of = note.number(0).ok_or_else(unreadable)?;
        let (seq, parts) = (first.seq, note.number(1).unwrap_or(1));
        if let Some(body) = in_parts(store, seq, parts, first.body).await? {
            let counts = Counts::decode(&body).filter(|counts| counts.as_of() == as_of);
            let counts = counts.ok_or_else(unreadable)?;
            return Ok(NewestCounts { seq, counts });
        }
    }
    Err(Trouble::unavailable("others keep writing counts"))
}

fn unreadable() -> Trouble {
    Trouble::malformed("counts")
}

/// All parts of something that was written in one step; `None` if it was replaced.
async fn in_parts(
    store: &Store,
    seq: u64,
    parts: u64,
    first: Bytes,
) -> Result<Option<Bytes>, Trouble> {
    if parts <= 1 {
        return Ok(Some(first));
    }
    let mut body = BytesMut::from(&*first);
    for part in 1..parts {
        match store.at(seq + part).await? {
            Some(message) => body.extend_from_slice(&message.body),
            None => return Ok(None),
        }
    }
    Ok(Some(body.freeze()))
}

/// All cells, at least as of `said`, the sequence of this host's last word.
pub(crate) async fn load_cells(store: &Store, said: u64) -> Result<Vec<Arrived>, Trouble> {
    let cells = store.stream.create_consumer(push::OrderedConfig {
        deliver_subject: store.client.new_inbox(),
        filter_subject: store.subjects.cells(),
        deliver_policy: DeliverPolicy::LastPerSubject,
        ..push::OrderedConfig::default()
    });
    let cells = cells.await.map_err(Trouble::unavailable)?;
    let mut messages = cells.messages().await.map_err(Trouble::unavailable)?;
    let mut loading = Loading::new(store.subjects.word(store.me), said);
    let behind = || Trouble::unavailable("the server that was asked for cells is behind");
    let mut nothing_pending_at = None;
    loop {
        let message = tokio::time::timeout(ANSWER_DURATION_MAX, messages.next()).await;
        let ended = || Trouble::unavailable("the stream's cells cannot be read");
        let message = message.map_err(|_| behind())?.ok_or_else(ended)?;
        let message = message.map_err(Trouble::unavailable)?;
        let pending = message.info().map_err(Trouble::unavailable)?.pending;
        let subject = message.subject.to_string();
        let next = Arrived::of(store, message, true)?;
        loading.see(&subject, next.seq, next);
        if loading.is_whole(pending) {
            return Ok(loading.into_cells());
        }
        if pending == 0 {
            let since = *nothing_pending_at.get_or_insert_with(|| store.clock.monotonic());
            if store.clock.monotonic().saturating_sub(since) > ANSWER_DURATION_MAX {
                return Err(behind());
            }
        }
    }
}

/// Counts that are older than what the cells show would give messages the offsets of others.
fn check_cells(arrived: &[Arrived], newest: &NewestCounts, said: u64) -> Result<(), Trouble> {
    let is_newer = |next: &&Arrived| {
        next.place == Place::Checkpoint && next.seq > newest.seq && next.seq <= said
    };
    match arrived.iter().find(is_newer) {
        Some(_) => Err(Trouble::unavailable("the stream's leader is behind")),
        None => Ok(()),
    }
}

async fn begin(store: &Store, newest: NewestCounts, arrived: Vec<Arrived>) -> Result<(), Trouble> {
    let mut events = Vec::with_capacity(arrived.len());
    for next in arrived {
        events.push(event(store, next, true).await?);
    }
    // A partition is there before its start is.
    events.sort_by_key(|event| !matches!(event.place, Place::Topic(_)));
    tracing::info!(
        as_of = newest.counts.as_of(),
        seq = newest.seq,
        cells = events.len(),
        "begins to follow the stream at the newest counts"
    );
    store.counting.begun_anew();
    store.mirror.begin(newest.counts, newest.seq);
    store.mirror.apply(events, applying(store, true));
    Ok(())
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
pub(crate) async fn run(
    store: Arc<Store>,
    mut begun: Begun,
    mut acknowledged: mpsc::Receiver<Acknowledged>,
) {
    let mut is_loaded = true;
    loop {
        if !is_loaded {
            match load(&store).await {
                Ok(anew) => (begun, is_loaded) = (anew, true),
                Err(error) => {
                    tracing::warn!(%error, "the stream cannot be read; it is tried again");
                }
            }
        }
        if is_loaded {
            match follow(&store, &mut begun, &mut acknowledged).await {
                Ok(()) => {
                    tracing::warn!("this host reads its place in the stream anew");
                    is_loaded = false;
                }
                Err(error) => {
                    tracing::warn!(%error, "the stream cannot be followed; it is tried again");
                }
            }
        }
        tokio::time::sleep(AGAIN_INTERVAL).await;
    }
}

/// Follows until this host must begin anew: because it was behind for too long, or was asked to. It has heard everything as of when it said
/// what it last heard of itself. When it hears that says nothing, because the server that it follows may be behind.
async fn follow(
    store: &Arc<Store>,
    begun: &mut Begun,
    acknowledged: &mut mpsc::Receiver<Acknowledged>,
) -> Result<(), Trouble> {
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
    // Servers that do not sync may have lost since what they acknowledged: whoever follows anew goes by the stream.
    while acknowledged.try_recv().is_ok() {}
    let mut last = position;
    let mut together: Vec<Arrived> = Vec::new();
    let mut waiting = WaitingForTurn::default();
    // This host hears itself more often than that, unless the server that served it is gone.
    let silence = store.options.heartbeat_interval * 3;
    let mut spoke_at = store.clock.monotonic();
    loop {
        while together.is_empty()
            && let Some(own) = waiting.next(last)
        {
            last = own.last().map_or(last, |message| message.seq);
            pass(store, own, begun).await;
        }
        let silent = store.clock.monotonic().saturating_sub(spoke_at);
        let patience = silence.saturating_sub(silent);
        let message = tokio::select! {
            biased;
            () = store.counting.asked_anew() => return Ok(()),
            Some(own) = acknowledged.recv() => {
                waiting.add(own);
                continue;
            }
            message = tokio::time::timeout(patience, messages.next()) => message,
        };
        spoke_at = store.clock.monotonic();
        let message = match message {
            Ok(Some(Ok(message))) => message,
            Ok(None) => return Err(Trouble::unavailable("the server ended it")),
            Err(_) => return Err(Trouble::unavailable("nothing is heard")),
            // The connection is closed for good.
            Ok(Some(Err(error))) if error.kind() == OrderedErrorKind::Other => {
                return Err(Trouble::unavailable(error));
            }
            Ok(Some(Err(error))) => {
                // It goes on by itself where it was, or from the beginning of the stream.
                tracing::debug!(%error, "the stream was lost for a moment");
                continue;
            }
        };
        let next = Arrived::of(store, message, false)?;
        if next.seq <= last {
            continue;
        }
        last = next.seq;
        let now = store.clock.monotonic();
        if now.saturating_sub(begun.heard_at) > store.options.counted_after / 2 {
            tracing::warn!(
                "this host was behind for so long that some of what it has not counted may be gone"
            );
            return Ok(());
        }
        if next.place == Place::Host(store.me)
            && let Some(said_ms) = next.note.number(1)
        {
            begun.heard_at = Duration::from_millis(said_ms).max(begun.heard_at);
            store.mirror.heard_at(begun.heard_at);
        }
        let is_other = together
            .last()
            .is_some_and(|before| before.note.commit != next.note.commit);
        if is_other {
            pass(store, std::mem::take(&mut together), begun).await;
        }
        let is_last = next.note.index + 1 >= next.note.count;
        together.push(next);
        if is_last || together.len() >= TOGETHER_MAX {
            pass(store, std::mem::take(&mut together), begun).await;
        }
    }
}

/// Applies messages that belong together.
async fn pass(store: &Arc<Store>, arrived: Vec<Arrived>, begun: &Begun) {
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
    if let Some(what) = news.wrong {
        store.stop_serving(&format!("{what} at sequence {last}"));
    }
    if last >= begun.caught_up_at && store.counting.is_done_anew() {
        store.mirror.settle();
        tracing::info!(seq = last, "this host has counted anew, and serves again");
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
        Place::Piece(_) => match Piece::part_of(seq, &note, bytes) {
            Some((part, piece)) => What::Piece { piece, part },
            None => What::Nothing,
        },
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
                compacted: Compacted::of(&note).map(Arc::new),
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
            let seat = note.number(2).and_then(|seat| u32::try_from(seat).ok());
            What::Host(Some(Said {
                address: address.unwrap_or_default().into(),
                seat,
            }))
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
    let body = in_parts(store, seq, note.number(1).unwrap_or(1), first).await?;
    let counts = body.and_then(|body| Counts::decode(&body));
    Ok(counts.map(Box::new))
}
