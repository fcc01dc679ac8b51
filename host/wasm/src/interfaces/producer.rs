//! `producer`: the component of a route sends messages. Columns are read in the guest's memory, and nothing is copied before the bounds of
//! one call are checked. Waiting for the commit is the call's time.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millrace_broker::handler::{AccessError, Outgoing, RouteAccess, Sent, SentPlace};
use millrace_model::bounds::{PRODUCE_CALL_BYTES_MAX, PRODUCE_CALL_MESSAGES_MAX};
use millrace_model::columns::NONE;
use millrace_model::{Header, Message, Offset, PartitionId, Timestamp};
use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Lift, Linker, Lower, WasmList};

use crate::pool::GuestState;

/// Headers of all messages of one call. More are refused.
const SEND_HEADERS_MAX: usize = 100_000;

/// The offset of a message that is delivered later.
const LATER: u64 = u64::MAX;

/// `producer.outgoing`.
#[derive(ComponentType, Lift)]
#[component(record)]
struct Columns {
    data: WasmList<u8>,
    keys: WasmList<u32>,
    values: WasmList<u32>,
    #[component(name = "header-ends")]
    header_ends: WasmList<u32>,
    headers: WasmList<u32>,
    partitions: WasmList<u32>,
    times: WasmList<u64>,
}

/// `producer.sent`.
#[derive(ComponentType, Lift, Lower)]
#[component(record)]
struct Places {
    partitions: Vec<u32>,
    offsets: Vec<u64>,
    repeated: bool,
}

/// `producer.send-error`.
#[derive(ComponentType, Lower)]
#[component(variant)]
enum SendError {
    #[component(name = "not-granted")]
    NotGranted(String),
    #[component(name = "refused")]
    Refused(String),
    #[component(name = "key-reused")]
    KeyReused(String),
    #[component(name = "unavailable")]
    Unavailable(String),
}

type Store<'a> = StoreContextMut<'a, GuestState>;

pub(crate) fn link(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    let mut interface = linker.instance("millrace:broker/producer@0.1.1")?;
    interface.func_wrap_async(
        "send",
        |store: Store<'_>, (topic, columns, key): (String, Columns, Option<String>)| {
            Box::new(async move {
                let messages = columns.messages(&store)?;
                let access = access(store.data());
                Ok((send(access, &topic, messages, key).await,))
            })
        },
    )?;
    interface.func_wrap_async(
        "settled",
        |store: Store<'_>, (processor, topic, places, ms): (String, String, Places, u64)| {
            Box::new(async move {
                let places = places.read()?;
                let access = access(store.data());
                Ok((settled(access, &processor, &topic, places, ms).await,))
            })
        },
    )
}

async fn send(
    access: Access,
    topic: &str,
    messages: Result<Vec<Outgoing>, String>,
    key: Option<String>,
) -> Result<Places, SendError> {
    let messages = messages.map_err(SendError::Refused)?;
    let sent = access?.send(topic, messages, key).await?;
    Ok(sent.into())
}

async fn settled(
    access: Access,
    processor: &str,
    topic: &str,
    places: Vec<SentPlace>,
    ms: u64,
) -> Result<bool, SendError> {
    let patience = Duration::from_millis(ms);
    Ok(access?.settled(processor, topic, places, patience).await?)
}

/// What a route's component may do; an error for every other component.
type Access = Result<Arc<dyn RouteAccess>, SendError>;

fn access(guest: &GuestState) -> Access {
    guest.access.clone().ok_or_else(|| {
        let why = "only the component of a route sends messages; the outputs of a processor are part of its answer";
        SendError::NotGranted(why.to_owned())
    })
}

impl Columns {
    /// The messages, or why there are too many. Columns that contradict each other are a trap.
    fn messages(&self, store: &Store<'_>) -> wasmtime::Result<Result<Vec<Outgoing>, String>> {
        let data = self.data.as_le_slice(store);
        let keys = self.keys.as_le_slice(store);
        let values = self.values.as_le_slice(store);
        let header_ends = self.header_ends.as_le_slice(store);
        let headers = self.headers.as_le_slice(store);
        let partitions = self.partitions.as_le_slice(store);
        let times = self.times.as_le_slice(store);
        let count = keys.len() / 2;
        let fits = |column: usize, each: usize| column == 0 || column == count * each;
        if keys.len() % 2 != 0 || values.len() != keys.len() {
            return Err(malformed("keys and values need two numbers per message"));
        }
        if !fits(header_ends.len(), 1) || !fits(partitions.len(), 1) || !fits(times.len(), 2) {
            return Err(malformed(
                "a column has an entry for some messages and none for others",
            ));
        }
        if let Some(why) = too_many(count, headers.len() / 4, data.len()) {
            return Ok(Err(why));
        }
        let data = Bytes::copy_from_slice(data);
        let mut headers = HeaderColumns {
            data: &data,
            ends: header_ends,
            headers,
            next: 0,
        };
        let mut messages = Vec::with_capacity(count);
        for index in 0..count {
            let time = |which: usize| times.get(index * 2 + which).copied().unwrap_or_default();
            messages.push(Outgoing {
                partition: partitions
                    .get(index)
                    .filter(|&&partition| partition != NONE)
                    .map(|&partition| PartitionId(partition)),
                message: Message {
                    key: span(&data, keys, index)?,
                    value: span(&data, values, index)?,
                    headers: headers.of(index)?,
                    timestamp: Timestamp(time(0)),
                },
                deliver_at: Some(Timestamp(time(1))).filter(|at| at.0 > 0),
            });
        }
        headers.end()?;
        Ok(Ok(messages))
    }
}

fn too_many(messages: usize, headers: usize, bytes: usize) -> Option<String> {
    let checks = [
        (messages, PRODUCE_CALL_MESSAGES_MAX, "messages"),
        (headers, SEND_HEADERS_MAX, "headers"),
        (bytes, PRODUCE_CALL_BYTES_MAX, "bytes"),
    ];
    let (found, max, what) = checks.into_iter().find(|(found, max, _)| found > max)?;
    Some(format!(
        "the call has {found} {what}; the maximum is {max}: send them in several calls"
    ))
}

/// The headers of messages, read in order.
struct HeaderColumns<'a> {
    data: &'a Bytes,
    ends: &'a [u32],
    headers: &'a [u32],
    /// The first header of the next message.
    next: usize,
}

impl HeaderColumns<'_> {
    fn of(&mut self, message: usize) -> wasmtime::Result<Vec<Header>> {
        let Some(&end) = self.ends.get(message) else {
            return Ok(Vec::new());
        };
        let end = end as usize;
        if end < self.next || end > self.headers.len() / 4 {
            return Err(malformed("header-ends do not ascend to the last header"));
        }
        let headers = (self.next..end).map(|header| {
            let name = span(self.data, self.headers, header * 2)?;
            Ok(Header {
                name: name.ok_or_else(|| malformed("a header has no name"))?,
                value: span(self.data, self.headers, header * 2 + 1)?,
            })
        });
        let headers = headers.collect();
        self.next = end;
        headers
    }

    /// Every header belongs to a message.
    fn end(&self) -> wasmtime::Result<()> {
        match self.next * 4 == self.headers.len() {
            true => Ok(()),
            false => Err(malformed("there are headers that belong to no message")),
        }
    }
}

/// The `index`th span of a column, which has it.
pub(super) fn span(data: &Bytes, column: &[u32], index: usize) -> wasmtime::Result<Option<Bytes>> {
    let (start, length) = (column[index * 2], column[index * 2 + 1]);
    if length == NONE {
        return Ok(None);
    }
    let (start, length) = (start as usize, length as usize);
    match start.checked_add(length).filter(|end| *end <= data.len()) {
        Some(end) => Ok(Some(data.slice(start..end))),
        None => Err(malformed("a span is not within the data")),
    }
}

pub(super) fn malformed(what: &str) -> wasmtime::Error {
    wasmtime::Error::msg(format!("malformed columns: {what}"))
}

impl Places {
    fn read(self) -> wasmtime::Result<Vec<SentPlace>> {
        if self.partitions.len() != self.offsets.len() {
            return Err(malformed("a place has a partition or an offset only"));
        }
        let places = self.partitions.into_iter().zip(self.offsets);
        let place = |(partition, offset)| SentPlace {
            partition: PartitionId(partition),
            offset: Some(offset).filter(|offset| *offset != LATER).map(Offset),
        };
        Ok(places.map(place).collect())
    }
}

impl From<Sent> for Places {
    fn from(sent: Sent) -> Self {
        let places = sent.places.iter();
        Self {
            partitions: places.clone().map(|place| place.partition.0).collect(),
            offsets: places
                .map(|place| place.offset.map_or(LATER, |offset| offset.0))
                .collect(),
            repeated: sent.repeated,
        }
    }
}

impl From<AccessError> for SendError {
    fn from(error: AccessError) -> Self {
        match error {
            AccessError::NotGranted(why) => Self::NotGranted(why),
            AccessError::Refused(why) => Self::Refused(why),
            AccessError::KeyReused(why) => Self::KeyReused(why),
            AccessError::Unavailable(why) => Self::Unavailable(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_outside_of_the_data_is_a_mistake() {
        let data = Bytes::from_static(b"abc");
        let of = |start, length| span(&data, &[7, 7, start, length], 1);
        assert_eq!(of(1, 2).unwrap().as_deref(), Some(&b"bc"[..]));
        assert_eq!(of(3, 0).unwrap().as_deref(), Some(&b""[..]));
        assert_eq!(of(9, NONE).unwrap(), None);
        for (start, length) in [(0, 4), (4, 0), (2, 2), (u32::MAX, 2), (2, u32::MAX - 1)] {
            assert!(of(start, length).is_err(), "{start} {length}");
        }
    }

    #[test]
    fn every_header_belongs_to_one_message() {
        let data = Bytes::from_static(b"ab");
        let headers = [0, 1, 1, 1, 1, 1, 0, NONE];
        let names = |ends: &[u32], messages: usize| -> wasmtime::Result<Vec<Vec<Header>>> {
            let mut columns = HeaderColumns {
                data: &data,
                ends,
                headers: &headers,
                next: 0,
            };
            let of_each: Vec<_> = (0..messages)
                .map(|message| columns.of(message))
                .collect::<wasmtime::Result<_>>()?;
            columns.end()?;
            Ok(of_each)
        };
        let read = names(&[1, 1, 2], 3).unwrap();
        let counts: Vec<usize> = read.iter().map(Vec::len).collect();
        assert_eq!(counts, [1, 0, 1]);
        assert_eq!(read[0][0].value.as_deref(), Some(&b"b"[..]));
        assert_eq!(
            (&read[2][0].name[..], &read[2][0].value),
            (&b"b"[..], &None)
        );
        let malformed: [&[u32]; 5] = [&[2, 1], &[1, 3], &[1, 1], &[u32::MAX], &[]];
        for ends in malformed {
            assert!(names(ends, 2).is_err(), "{ends:?}");
        }
    }

    #[test]
    fn a_call_beyond_a_bound_is_refused_before_anything_is_copied() {
        assert_eq!(
            too_many(PRODUCE_CALL_MESSAGES_MAX, SEND_HEADERS_MAX, 0),
            None
        );
        let why = too_many(1, SEND_HEADERS_MAX + 1, 0).unwrap();
        assert!(why.contains("100001 headers"), "{why}");
        assert!(too_many(PRODUCE_CALL_MESSAGES_MAX + 1, 0, 0).is_some());
        assert!(too_many(1, 0, PRODUCE_CALL_BYTES_MAX + 1).is_some());
    }
}
