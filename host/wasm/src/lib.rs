//! Runs users' modules: admits uploads, compiles them in a child process, keeps warm instances and makes the calls.
//!
//! Implements [`millrace_broker::handler`]; the broker knows nothing of this crate. In the order a module meets them:
//! [`admission`] looks at the bytes, [`compile`] compiles them elsewhere, [`compiled`] keeps the code, [`module`] links it,
//! [`pool`] keeps instances, [`call`] makes one call under limits, [`interfaces`] are what crosses. A guest may be hostile:
//! it has bounded memory, stack, time, output and log lines, reaches neither files nor sockets, and whatever it does ends
//! as a [`CallError`](millrace_broker::handler::CallError) of its own processor.

mod admission;
mod call;
mod compile;
mod compiled;
mod engine;
mod epoch;
mod host;
mod interfaces;
mod limits;
mod logs;
mod module;
mod notes;
mod output;
mod pool;
mod slots;
mod threads;
mod turns;

pub use compile::{CompileChild, compile_child_main};
pub use host::{StartError, WasmHost, WasmOptions};
