//! Runs users' modules: admits uploads, compiles them in a child process, keeps warm instances and makes the calls.
//!
//! Implements [`millrace_broker::handler`]; the broker knows nothing of this crate. In the order in which a module meets them:
//! [`admission`] examines the bytes, [`compile`] compiles them in another process, [`compiled`] stores the code, [`module`] links it,
//! [`pool`] keeps instances, [`call`] makes one call under limits, [`interfaces`] connect host and guest. A guest may be hostile: it
//! has bounded memory, stack, time, output and log lines, reaches neither files nor sockets and by HTTP only granted servers
//! ([`outbound`]), and whatever it does ends as a
//! [`CallError`](millrace_broker::handler::CallError) of its own processor.

mod admission;
mod call;
mod compile;
mod compiled;
mod engine;
mod epoch;
mod granted;
mod guest_metrics;
mod host;
mod interfaces;
mod limits;
mod logs;
mod metadata;
mod module;
mod notes;
mod outbound;
mod output;
mod pool;
mod secrets;
mod slots;
mod threads;
mod turns;
mod under_way;

pub use compile::{CompileChild, compile_child_main};
pub use host::{StartError, WasmHost, WasmOptions};
pub use outbound::{HttpOptions, Resolver, SystemResolver};
pub use secrets::{NoSecrets, SecretStore};
