//! `metrics`: a guest counts and measures.

use wasmtime::StoreContextMut;
use wasmtime::component::Linker;

use crate::guest_metrics::{Kind, WrongName};
use crate::pool::GuestState;

type Store<'a> = StoreContextMut<'a, GuestState>;
type Labels = Vec<(String, String)>;

pub(crate) fn link(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    let mut interface = linker.instance("millrace:broker/metrics@0.1.1")?;
    interface.func_wrap(
        "add",
        |store: Store<'_>, (name, labels, delta): (String, Labels, u64)| {
            update(store.data(), &name, labels, Kind::Counter(delta))
        },
    )?;
    interface.func_wrap(
        "set",
        |store: Store<'_>, (name, labels, value): (String, Labels, f64)| {
            update(store.data(), &name, labels, Kind::Gauge(value))
        },
    )?;
    interface.func_wrap(
        "observe",
        |store: Store<'_>, (name, labels, value): (String, Labels, f64)| {
            update(store.data(), &name, labels, Kind::Histogram(value))
        },
    )
}

fn update(guest: &GuestState, name: &str, labels: Labels, kind: Kind) -> wasmtime::Result<()> {
    let updated = guest.metrics.update(name, labels, kind);
    updated.map_err(|WrongName(why)| wasmtime::Error::msg(why))
}
