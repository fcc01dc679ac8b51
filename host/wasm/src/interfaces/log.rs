//! `log`: a guest writes a line.

use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Lift, Linker, WasmStr};

use crate::logs::Line;
use crate::pool::GuestState;

/// `log.level`.
#[allow(
    dead_code,
    reason = "guests name the variants; lifting makes them from their numbers"
)]
#[derive(Clone, Copy, ComponentType, Lift)]
#[component(enum)]
#[repr(u8)]
enum Level {
    #[component(name = "error")]
    Error,
    #[component(name = "warn")]
    Warn,
    #[component(name = "info")]
    Info,
    #[component(name = "debug")]
    Debug,
}

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

pub(crate) fn link(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    linker.instance("millrace:broker/log@0.1.1")?.func_wrap(
        "log",
        |store: StoreContextMut<'_, GuestState>, (level, message): (Level, WasmStr)| {
            let sink = store.data().log.clone();
            // The text is only read if the rate allows the line, so a flood costs the host almost nothing.
            sink.write(level.as_str(), || {
                let text = message.to_str(&store);
                Line::of(text.as_deref().unwrap_or("(a line that is not valid text)"))
            });
            Ok(())
        },
    )
}
