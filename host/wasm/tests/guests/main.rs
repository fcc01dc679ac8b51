//! Real components, good and bad, on a real [`millrace_wasm::WasmHost`].

mod admission;
mod bytes;
mod cache;
mod calls;
mod cost;
mod diagnostics;
mod forged;
mod grants;
mod hostile;
mod http;
mod http_handler;
mod kept;
mod messaging;
mod runtime;
mod servers;
mod shapeless;
mod sink;
mod state;
mod support;
mod uploads;
mod words;
