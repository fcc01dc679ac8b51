//! Write Millrace modules in Rust: a function of one message, exported by a macro.
//!
//! ```
//! use millrace_guest::{Message, Outcome, processor};
//!
//! processor!(process);
//!
//! fn process(message: &Message) -> Outcome {
//!     let Some(value) = message.value() else {
//!         return Outcome::reject("no-value", "there is nothing to greet");
//!     };
//!     let greeting = message.output().build_value(|buffer| {
//!         buffer.extend_from_slice(b"hello, ");
//!         buffer.extend_from_slice(value);
//!     });
//!     Outcome::Emit(greeting)
//! }
//! ```
//!
//! The host passes messages in batches, in columns (`wit/types.wit`), which [`Batch`] and
//! [`Outcomes`] hide. An output starts as a copy of its message and states only the differences:
//! unchanged parts are not copied.
//!
//! Tests of a handler need neither WASM nor a host: [`testing`] passes messages to it and shows its
//! outcomes.
//!
//! A panic is a trap: the host finds the failing message, tries it again, and finally makes it a
//! dead letter. So this crate hides no mistakes: if it cannot give a valid answer, it panics with a
//! line that says why.

mod batch;
mod columns;
mod failure;
mod message;
mod outcome;
mod outcomes;
mod output;
mod run;
mod sample;
mod scratch;

pub mod config;
pub mod http;
pub mod log;
pub mod metrics;
pub mod producer;
pub mod secrets;
pub mod state;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;
pub mod views;

#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
pub mod bindings;

pub use batch::Batch;
pub use columns::{Answer, Columns, Detail, NO_TIME, NONE};
pub use failure::{Cause, Decision, Failure, FailureFacts};
pub use message::Message;
pub use outcome::{Outcome, Unavailable};
pub use outcomes::Outcomes;
pub use output::Output;
pub use run::{Finished, Verdict, assign, decide, process, process_batch};
pub use sample::Sample;

/// Exports a function as the module's message processor. The function has one of three forms:
///
/// - `processor!(process)` with `fn process(message: &Message) -> Outcome`, or
///   `-> Result<Outcome, Unavailable>`
/// - `processor!(batch process)` with `fn process(batch: &Batch, outcomes: &mut Outcomes)`, or
///   `-> Result<(), Unavailable>`; for work that is cheaper once per batch
/// - `processor!(columns process)` with
///   `fn process(columns: Columns) -> Result<Answer, Unavailable>`; the answer is not checked here
///
/// ```
/// use millrace_guest::{Batch, Outcome, Outcomes, Unavailable, processor};
///
/// processor!(batch process);
///
/// fn process(batch: &Batch, outcomes: &mut Outcomes) -> Result<(), Unavailable> {
///     let seen = batch.messages().filter(|message| message.key().is_some()).count();
///     if seen == 0 {
///         return Err(Unavailable::new("no keys today"));
///     }
///     for message in batch.messages() {
///         outcomes.push(Outcome::Emit(message.output()));
///     }
///     Ok(())
/// }
/// ```
#[macro_export]
macro_rules! processor {
    (batch $process:path) => {
        $crate::export_processor!(|columns| $crate::process_batch(columns, $process));
    };
    (columns $process:path) => {
        $crate::export_processor!(|columns| $process(columns));
    };
    ($process:path) => {
        $crate::export_processor!(|columns| $crate::process(columns, $process));
    };
}

/// Exports a function as a topic's partitioner. It returns the partition of a message, less than
/// `partitions`.
///
/// ```
/// use millrace_guest::{Message, partitioner};
///
/// partitioner!(choose);
///
/// fn choose(message: &Message, partitions: u32) -> u32 {
///     u32::from(message.key().is_some()) % partitions
/// }
/// ```
#[macro_export]
macro_rules! partitioner {
    ($choose:path) => {
        $crate::export_partitioner!($choose);
    };
}

/// Exports a function as a processor's error handler.
///
/// ```
/// use millrace_guest::{Decision, Failure, error_handler};
/// use std::time::Duration;
///
/// error_handler!(decide);
///
/// fn decide(failure: &Failure) -> Decision {
///     match failure.class() {
///         "busy" => Decision::RetryAfter(Duration::from_secs(u64::from(failure.attempt()))),
///         _ => Decision::Policy,
///     }
/// }
/// ```
#[macro_export]
macro_rules! error_handler {
    ($decide:path) => {
        $crate::export_error_handler!($decide);
    };
}

/// Exports a function that answers the HTTP requests of a route. It needs the feature `http` of this crate.
///
/// ```
/// use millrace_guest::http;
/// use millrace_guest::http::{Request, Response};
///
/// http!(answer);
///
/// fn answer(request: &Request) -> Response {
///     match request.method() {
///         "GET" => Response::text(200, format!("this is {}", request.path())),
///         _ => Response::text(405, "only GET").header("allow", "GET"),
///     }
/// }
/// ```
#[macro_export]
macro_rules! http {
    ($answer:path) => {
        $crate::export_http!($answer);
    };
}

/// The export itself, on WASM.
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
#[macro_export]
macro_rules! export_processor {
    ($call:expr) => {
        const _: () = {
            use $crate::bindings::processor as bindings;
            struct Module;
            impl bindings::exports::millrace::broker::message_processor::Guest for Module {
                fn process(
                    batch: $crate::bindings::types::Batch,
                ) -> Result<$crate::bindings::types::Answer, $crate::bindings::types::BatchError>
                {
                    let call: fn($crate::Columns) -> Result<$crate::Answer, $crate::Unavailable> =
                        $call;
                    $crate::bindings::answered(call(batch.into()))
                }
            }
    bindings::export!(Module with_types_in bindings);
        };
    };
}

/// The export itself, on WASM.
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
#[macro_export]
macro_rules! export_partitioner {
    ($choose:path) => {
        const _: () = {
            use $crate::bindings::partitioner as bindings;
            struct Module;
            impl bindings::exports::millrace::broker::partitioner::Guest for Module {
                fn assign(partitions: u32, messages: $crate::bindings::types::Batch) -> Vec<u32> {
                    $crate::assign(messages.into(), partitions, $choose)
                }
            }
    bindings::export!(Module with_types_in bindings);
        };
    };
}

/// The export itself, on WASM.
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
#[macro_export]
macro_rules! export_error_handler {
    ($decide:path) => {
        const _: () = {
            use bindings::exports::millrace::broker::error_handler as interface;
            use $crate::bindings::error_handler as bindings;
            struct Module;
            impl interface::Guest for Module {
                fn handle(
                    failures: Vec<interface::Failure>,
                    messages: $crate::bindings::types::Batch,
                ) -> Vec<interface::Decision> {
                    let failures = failures.into_iter().map(Into::into).collect();
                    let decisions = $crate::decide(messages.into(), failures, $decide);
                    decisions.into_iter().map(Into::into).collect()
                }
            }
    bindings::export!(Module with_types_in bindings);
        };
    };
}

/// The export itself, on WASM.
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
#[macro_export]
macro_rules! export_http {
    ($answer:path) => {
        const _: () = {
            use $crate::http::guest as interface;
            struct Module;
            impl interface::Guest for Module {
                fn handle(request: interface::IncomingRequest, out: interface::ResponseOutparam) {
                    interface::handle(&request, out, $answer);
                }
            }
            interface::export!(Module);
        };
    };
}

/// Without WASM nothing is exported, but the function's signature is still checked.
#[cfg(not(target_arch = "wasm32"))]
#[doc(hidden)]
#[macro_export]
macro_rules! export_http {
    ($answer:path) => {
        const _: fn(&$crate::http::Request) -> $crate::http::Response = $answer;
    };
}

/// Without WASM nothing is exported, but the function's signature is still checked.
#[cfg(not(target_arch = "wasm32"))]
#[doc(hidden)]
#[macro_export]
macro_rules! export_processor {
    ($call:expr) => {
        const _: fn($crate::Columns) -> Result<$crate::Answer, $crate::Unavailable> = $call;
    };
}

/// Without WASM nothing is exported, but the function's signature is still checked.
#[cfg(not(target_arch = "wasm32"))]
#[doc(hidden)]
#[macro_export]
macro_rules! export_partitioner {
    ($choose:path) => {
        const _: fn(&$crate::Message, u32) -> u32 = $choose;
    };
}

/// Without WASM nothing is exported, but the function's signature is still checked.
#[cfg(not(target_arch = "wasm32"))]
#[doc(hidden)]
#[macro_export]
macro_rules! export_error_handler {
    ($decide:path) => {
        const _: fn(&$crate::Failure) -> $crate::Decision = $decide;
    };
}
