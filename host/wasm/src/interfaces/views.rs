//! `views`: the component of a route reads the state of processors. Waiting for the disk is the call's time.

use std::sync::Arc;

use bytes::Bytes;
use millrace_broker::handler::{self, AccessError, RouteAccess};
use millrace_broker::state::StateQuery;
use millrace_model::PartitionId;
use millrace_model::bounds::{
    STATE_KEY_BYTES_MAX, STATE_LISTED_BYTES_MAX, STATE_LISTED_MAX, VIEW_KEYS_MAX,
};
use millrace_model::columns::NONE;
use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Lift, Linker, Lower, WasmList};

use super::producer::{malformed, span};
use crate::pool::GuestState;

/// Bytes of the keys of one call, each of which has a bound of its own.
const KEYS_BYTES_MAX: usize = VIEW_KEYS_MAX * STATE_KEY_BYTES_MAX;

/// `views.view`.
#[derive(ComponentType, Lift)]
#[component(record)]
struct View {
    processor: String,
    topic: Option<String>,
}

/// `views.values`.
#[derive(ComponentType, Lower)]
#[component(record)]
struct Values {
    data: Vec<u8>,
    values: Vec<u32>,
}

/// `views.entries`.
#[derive(ComponentType, Lower)]
#[component(record)]
struct Entries {
    data: Vec<u8>,
    keys: Vec<u32>,
    values: Vec<u32>,
    #[component(name = "has-more")]
    has_more: bool,
}

/// `views.view-error`.
#[derive(ComponentType, Lower)]
#[component(variant)]
enum ViewError {
    #[component(name = "not-granted")]
    NotGranted(String),
    #[component(name = "refused")]
    Refused(String),
    #[component(name = "unavailable")]
    Unavailable(String),
}

type Store<'a> = StoreContextMut<'a, GuestState>;
type Blob = WasmList<u8>;
type Numbers = WasmList<u32>;

pub(crate) fn link(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    let mut interface = linker.instance("millrace:broker/views@0.1.1")?;
    interface.func_wrap_async("partitions", |store: Store<'_>, (of,): (View,)| {
        Box::new(async move {
            let access = access(store.data());
            Ok((partitions(access, of).await,))
        })
    })?;
    interface.func_wrap_async(
        "get",
        |store: Store<'_>, (of, partition, data, keys): (View, Option<u32>, Blob, Numbers)| {
            Box::new(async move {
                let keys = read_keys(&store, &data, &keys)?;
                let access = access(store.data());
                Ok((values(access, of, partition, keys).await,))
            })
        },
    )?;
    interface.func_wrap_async(
        "scan",
        |store: Store<'_>,
         (of, partition, prefix, after, max): (View, u32, Blob, Option<Blob>, u32)| {
            Box::new(async move {
                let query = query(&store, &prefix, after.as_ref(), max);
                let access = access(store.data());
                Ok((entries(access, of, partition, query).await,))
            })
        },
    )
}

async fn partitions(access: Access, of: View) -> Result<u32, ViewError> {
    Ok(access?.partitions(&of.into()).await?)
}

async fn values(
    access: Access,
    of: View,
    partition: Option<u32>,
    keys: Result<Vec<Bytes>, String>,
) -> Result<Values, ViewError> {
    let keys = keys.map_err(ViewError::Refused)?;
    let partition = partition.map(PartitionId);
    let found = access?.values(&of.into(), partition, keys).await?;
    let mut values = Values {
        data: Vec::new(),
        values: Vec::with_capacity(found.len() * 2),
    };
    for value in found {
        let bytes = value.as_ref().map(|value| value.as_bytes());
        put(&mut values.data, &mut values.values, bytes);
    }
    Ok(values)
}

async fn entries(
    access: Access,
    of: View,
    partition: u32,
    query: Result<StateQuery, String>,
) -> Result<Entries, ViewError> {
    let query = query.map_err(ViewError::Refused)?;
    let (view, partition) = (of.into(), PartitionId(partition));
    let page = access?.entries(&view, partition, query).await?;
    let mut entries = Entries {
        data: Vec::new(),
        keys: Vec::new(),
        values: Vec::new(),
        has_more: page.has_more,
    };
    for entry in &page.entries {
        put(&mut entries.data, &mut entries.keys, Some(&entry.key));
        let value = Some(entry.value.as_bytes());
        put(&mut entries.data, &mut entries.values, value);
    }
    Ok(entries)
}

/// What a route's component may do; an error for every other component.
type Access = Result<Arc<dyn RouteAccess>, ViewError>;

fn access(guest: &GuestState) -> Access {
    guest.access.clone().ok_or_else(|| {
        let why =
            "only the component of a route reads other processors' state; a processor has its own";
        ViewError::NotGranted(why.to_owned())
    })
}

/// The keys, or why there are too many. A wrong span, or a key that is "none", is a trap.
fn read_keys(
    store: &Store<'_>,
    data: &Blob,
    keys: &Numbers,
) -> wasmtime::Result<Result<Vec<Bytes>, String>> {
    let (data, keys) = (data.as_le_slice(store), keys.as_le_slice(store));
    let count = keys.len() / 2;
    if keys.len() % 2 != 0 {
        return Err(malformed("keys need two numbers each"));
    }
    if count > VIEW_KEYS_MAX || data.len() > KEYS_BYTES_MAX {
        return Ok(Err(format!(
            "{count} keys of {} bytes at once; the maximum is {VIEW_KEYS_MAX} keys and {KEYS_BYTES_MAX} bytes: ask in several calls",
            data.len()
        )));
    }
    let data = Bytes::copy_from_slice(data);
    let key = |index| span(&data, keys, index)?.ok_or_else(|| malformed("a key is none"));
    (0..count).map(key).collect::<wasmtime::Result<_>>().map(Ok)
}

fn query(
    store: &Store<'_>,
    prefix: &Blob,
    after: Option<&Blob>,
    max: u32,
) -> Result<StateQuery, String> {
    let prefix = prefix.as_le_slice(store);
    let after = after.map(|after| after.as_le_slice(store));
    let longest = prefix.len().max(after.map_or(0, <[u8]>::len));
    if longest > STATE_KEY_BYTES_MAX {
        return Err(format!(
            "a key has at most {STATE_KEY_BYTES_MAX} bytes, not {longest}"
        ));
    }
    Ok(StateQuery {
        prefix: prefix.to_vec(),
        after: after.map(<[u8]>::to_vec),
        entries_max: (max as usize).min(STATE_LISTED_MAX),
        bytes_max: STATE_LISTED_BYTES_MAX,
        ..StateQuery::default()
    })
}

/// Appends the bytes and their span; `None` gets the span of a missing value.
fn put(data: &mut Vec<u8>, spans: &mut Vec<u32>, bytes: Option<&[u8]>) {
    let start = data.len() as u32;
    match bytes {
        None => spans.extend([0, NONE]),
        Some(bytes) => {
            spans.extend([start, bytes.len() as u32]);
            data.extend_from_slice(bytes);
        }
    }
}

impl From<View> for handler::View {
    fn from(View { processor, topic }: View) -> Self {
        Self { processor, topic }
    }
}

impl From<AccessError> for ViewError {
    fn from(error: AccessError) -> Self {
        match error {
            AccessError::NotGranted(why) => Self::NotGranted(why),
            AccessError::Refused(why) | AccessError::KeyReused(why) => Self::Refused(why),
            AccessError::Unavailable(why) => Self::Unavailable(why),
        }
    }
}
