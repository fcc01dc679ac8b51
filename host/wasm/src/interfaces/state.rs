//! `state`: keys and values of a processor in a partition. Columns are read in the guest's memory. Every call is bounded, so it ends in
//! milliseconds, which count as the guest's time. Reads from the disk run on a separate thread and count as the host's time.

use std::sync::Arc;
use std::time::Duration;

use millrace_broker::state::{KeyColumns, StateAttempt, StateError, ValueColumns, WriteColumns};
use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Lift, Linker, Lower, WasmList};

use crate::notes::Notes;
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

/// The longest wait of a call for the disk; after that the host could not make the call.
const STATE_READ_MS_MAX: u64 = 30_000;

pub(crate) fn link(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    let mut interface = linker.instance("millrace:broker/state@0.1.1")?;
    interface.func_wrap_async(
        "get",
        |mut store: Store<'_>, (data, keys): (Bytes, Numbers)| {
            Box::new(async move {
                read_ahead(&mut store, &data, &keys, true).await?;
                with(&mut store, |store, attempt| {
                    let found = attempt.get(&columns(store, &data, &keys));
                    let ValueColumns { data, values, .. } = found.map_err(trap)?;
                    Ok((Values { data, values },))
                })
            })
        },
    )?;
    interface.func_wrap_async(
        "set",
        |mut store: Store<'_>, (data, keys, values, how): (Bytes, Numbers, Numbers, Writes)| {
            Box::new(async move {
                read_ahead(&mut store, &data, &keys, false).await?;
                with(&mut store, |store, attempt| {
                    let values = values.as_le_slice(store);
                    let done = attempt.put(&columns(store, &data, &keys), values, &how.of(store));
                    Ok((refused(done)?,))
                })
            })
        },
    )?;
    interface.func_wrap_async(
        "add",
        |mut store: Store<'_>,
         (data, keys, deltas, how): (Bytes, Numbers, WasmList<i64>, Writes)| {
            Box::new(async move {
                read_ahead(&mut store, &data, &keys, false).await?;
                with(&mut store, |store, attempt| {
                    let deltas = deltas.as_le_slice(store);
                    let sums = attempt.add(&columns(store, &data, &keys), deltas, &how.of(store));
                    Ok((refused(sums)?,))
                })
            })
        },
    )?;
    interface.func_wrap_async(
        "scan",
        |mut store: Store<'_>, (prefix, after, max): (Bytes, Option<Bytes>, u32)| {
            Box::new(async move {
                let listed = list(&mut store, &prefix, after.as_ref(), max as usize).await?;
                let ValueColumns { data, keys, values } = listed.map_err(trap)?;
                Ok((Entries { data, keys, values },))
            })
        },
    )
}

/// Prepares the next call on these keys so that it does not wait for the disk: missing keys are read on a separate thread.
async fn read_ahead(
    store: &mut Store<'_>,
    data: &Bytes,
    keys: &Numbers,
    gets: bool,
) -> wasmtime::Result<()> {
    let fetch = with(store, |store, attempt| {
        attempt
            .prepare(&columns(store, data, keys), gets)
            .map_err(trap)
    })?;
    let Some(mut fetch) = fetch else {
        return Ok(());
    };
    let notes = Arc::clone(store.data().notes());
    let read = in_time(notes, move || fetch.read().map(|()| fetch)).await;
    let fetch = read.and_then(|read| read).map_err(trap)?;
    with(store, |_, attempt| {
        attempt.take_in(fetch);
        Ok(())
    })
}

async fn list(
    store: &mut Store<'_>,
    prefix: &Bytes,
    after: Option<&Bytes>,
    max: usize,
) -> wasmtime::Result<Result<ValueColumns, StateError>> {
    let from_disk = with(store, |_, attempt| Ok(attempt.lists_from_disk()))?;
    if !from_disk {
        return with(store, |store, attempt| {
            let after = after.map(|after| after.as_le_slice(store));
            Ok(attempt.list(prefix.as_le_slice(store), after, max))
        });
    }
    let prefix = prefix.as_le_slice(&*store).to_vec();
    let after = after.map(|after| after.as_le_slice(&*store).to_vec());
    let mut attempt = store.data_mut().state.take().ok_or_else(no_state)?;
    // If nothing waits for it any more, the call is over, and its writes do not count.
    let notes = Arc::clone(store.data().notes());
    let listed = in_time(notes, move || {
        let listed = attempt.list(&prefix, after.as_deref(), max);
        (attempt, listed)
    });
    Ok(match listed.await {
        Ok((attempt, listed)) => {
            store.data_mut().state = Some(attempt);
            listed
        }
        Err(error) => Err(error),
    })
}

/// Reads on a thread that may wait for the disk. This counts as the host's time, not the guest's.
async fn in_time<T: Send + 'static>(
    notes: Arc<Notes>,
    read: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StateError> {
    let _reading = notes.reading();
    let bound = Duration::from_millis(STATE_READ_MS_MAX);
    let read = tokio::time::timeout(bound, tokio::task::spawn_blocking(read)).await;
    let unreadable = |why: String| StateError::Unreadable(why.into());
    let read = read.map_err(|_| {
        unreadable(format!(
            "the disk did not answer within {STATE_READ_MS_MAX} ms"
        ))
    })?;
    read.map_err(|error| unreadable(format!("the reading thread failed: {error}")))
}

/// Works on the attempt and the guest's memory at once.
fn with<T>(
    store: &mut Store<'_>,
    work: impl FnOnce(&Store<'_>, &mut StateAttempt) -> wasmtime::Result<T>,
) -> wasmtime::Result<T> {
    let mut attempt = store.data_mut().state.take().ok_or_else(no_state)?;
    let done = work(store, &mut attempt);
    store.data_mut().state = Some(attempt);
    done
}

fn no_state() -> wasmtime::Error {
    wasmtime::Error::msg(
        "there is no state now; state exists only while a message processor processes a batch",
    )
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
    match error {
        // Its type distinguishes it from a guest's error.
        error @ StateError::Unreadable(_) => wasmtime::Error::new(error),
        error => wasmtime::Error::msg(error.to_string()),
    }
}
