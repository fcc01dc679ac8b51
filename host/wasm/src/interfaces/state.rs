//! `state`: keys and values of a processor in a partition. Columns are read where they lie in the guest's memory; what each call
//! may ask for is bounded, so it ends in milliseconds, and its time is the guest's.

use millrace_broker::state::{KeyColumns, StateAttempt, StateError, ValueColumns, WriteColumns};
use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Lift, Linker, Lower, WasmList};

use crate::pool::GuestState;

/// `state.values`.
#[derive(ComponentType, Lower)]
#[component(record)]
struct Values {
    data: Vec<u8>,
    values: Vec<u32>,
}

/// `state.entries`.
#[derive(ComponentType, Lower)]
#[component(record)]
struct Entries {
    data: Vec<u8>,
    keys: Vec<u32>,
    values: Vec<u32>,
}

/// `state.writes`.
#[derive(ComponentType, Lift)]
#[component(record)]
struct Writes {
    #[component(name = "ttl-ms")]
    ttl_ms: WasmList<u64>,
    messages: WasmList<u32>,
}

/// `state.state-error`.
#[derive(ComponentType, Lower)]
#[component(variant)]
enum Refusal {
    #[component(name = "full")]
    Full(String),
}

type Store<'a> = StoreContextMut<'a, GuestState>;
type Bytes = WasmList<u8>;
type Numbers = WasmList<u32>;

pub(crate) fn link(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    let mut interface = linker.instance("millrace:broker/state@0.1.0")?;
    interface.func_wrap("get", |store: Store<'_>, (data, keys): (Bytes, Numbers)| {
        with(store, |store, attempt| {
            let found = attempt.get(&columns(store, &data, &keys));
            let ValueColumns { data, values, .. } = found.map_err(trap)?;
            Ok((Values { data, values },))
        })
    })?;
    interface.func_wrap(
        "set",
        |store: Store<'_>, (data, keys, values, how): (Bytes, Numbers, Numbers, Writes)| {
            with(store, |store, attempt| {
                let values = values.as_le_slice(store);
                let done = attempt.put(&columns(store, &data, &keys), values, &how.of(store));
                Ok((refused(done)?,))
            })
        },
    )?;
    interface.func_wrap(
        "add",
        |store: Store<'_>, (data, keys, deltas, how): (Bytes, Numbers, WasmList<i64>, Writes)| {
            with(store, |store, attempt| {
                let deltas = deltas.as_le_slice(store);
                let sums = attempt.add(&columns(store, &data, &keys), deltas, &how.of(store));
                Ok((refused(sums)?,))
            })
        },
    )?;
    interface.func_wrap(
        "scan",
        |store: Store<'_>, (prefix, after, max): (Bytes, Option<Bytes>, u32)| {
            with(store, |store, attempt| {
                let after = after.as_ref().map(|after| after.as_le_slice(store));
                let listed = attempt.list(prefix.as_le_slice(store), after, max as usize);
                let ValueColumns { data, keys, values } = listed.map_err(trap)?;
                Ok((Entries { data, keys, values },))
            })
        },
    )
}

/// Does something with the attempt and the guest's memory at once.
fn with<T>(
    mut store: Store<'_>,
    work: impl FnOnce(&Store<'_>, &mut StateAttempt) -> wasmtime::Result<T>,
) -> wasmtime::Result<T> {
    let Some(mut attempt) = store.data_mut().state.take() else {
        return Err(wasmtime::Error::msg(
            "state: there is none now; it is there while a message processor processes a batch",
        ));
    };
    let done = work(&store, &mut attempt);
    store.data_mut().state = Some(attempt);
    done
}

fn columns<'a>(store: &'a Store<'_>, data: &Bytes, keys: &Numbers) -> KeyColumns<'a> {
    KeyColumns {
        data: data.as_le_slice(store),
        spans: keys.as_le_slice(store),
    }
}

impl Writes {
    fn of<'a>(&self, store: &'a Store<'_>) -> WriteColumns<'a> {
        WriteColumns {
            ttl_ms: self.ttl_ms.as_le_slice(store),
            messages: self.messages.as_le_slice(store),
        }
    }
}

fn refused<T>(done: Result<T, StateError>) -> wasmtime::Result<Result<T, Refusal>> {
    match done {
        Ok(done) => Ok(Ok(done)),
        Err(StateError::Full(why)) => Ok(Err(Refusal::Full(why))),
        Err(error) => Err(trap(error)),
    }
}

fn trap(error: StateError) -> wasmtime::Error {
    wasmtime::Error::msg(error.to_string())
}
