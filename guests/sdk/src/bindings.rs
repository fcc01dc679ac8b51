//! The generated bindings of the worlds, and the conversions between their types and ours.
//! Only the macros use them.
#![allow(missing_docs, reason = "generated from wit/, where it is documented")]
#![allow(unsafe_code, reason = "wit-bindgen writes the canonical ABI")]
#![allow(
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    reason = "generated"
)]

use crate::columns::{Answer, Columns, Detail};
use crate::failure::{Cause, Decision, FailureFacts};
use crate::outcome::Unavailable;

pub use http::millrace::broker::{producer, views};
pub use processor::millrace::broker::{config, log, metrics, secrets, state, types};

pub mod processor {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "processor-module",
        pub_export_macro: true,
        default_bindings_module: "millrace_guest::bindings::processor",
    });
}

pub mod partitioner {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "partitioner-module",
        pub_export_macro: true,
        default_bindings_module: "millrace_guest::bindings::partitioner",
        with: {
            "millrace:broker/types@0.1.1": crate::bindings::types,
            "millrace:broker/log@0.1.1": crate::bindings::log,
        },
    });
}

pub mod error_handler {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "error-handler-module",
        pub_export_macro: true,
        default_bindings_module: "millrace_guest::bindings::error_handler",
        with: {
            "millrace:broker/types@0.1.1": crate::bindings::types,
            "millrace:broker/log@0.1.1": crate::bindings::log,
            "millrace:broker/config@0.1.1": crate::bindings::config,
        },
    });
}

/// What the component of a route imports; `wasi:http` is exported with other bindings.
pub mod http {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "http-module",
        with: {
            "millrace:broker/log@0.1.1": crate::bindings::log,
            "millrace:broker/config@0.1.1": crate::bindings::config,
            "millrace:broker/secrets@0.1.1": crate::bindings::secrets,
            "millrace:broker/metrics@0.1.1": crate::bindings::metrics,
        },
    });
}

/// Converts the result of a processor's function to that of the component.
pub fn answered(result: Result<Answer, Unavailable>) -> Result<types::Answer, types::BatchError> {
    match result {
        Ok(answer) => Ok(answer.into()),
        Err(Unavailable { reason }) => Err(types::BatchError::Unavailable(reason)),
    }
}

impl From<types::Batch> for Columns {
    fn from(batch: types::Batch) -> Self {
        let types::Batch {
            topic,
            partition,
            data,
            offsets,
            timestamps,
            attempts,
            keys,
            values,
            header_ends,
            headers,
        } = batch;
        Self {
            topic,
            partition,
            data,
            offsets,
            timestamps,
            attempts,
            keys,
            values,
            header_ends,
            headers,
        }
    }
}

impl From<Answer> for types::Answer {
    fn from(answer: Answer) -> Self {
        Self {
            outcomes: answer.outcomes,
            details: answer.details.into_iter().map(Into::into).collect(),
            data: answer.data,
            sources: answer.sources,
            topic_names: answer.topic_names,
            topics: answer.topics,
            partitions: answer.partitions,
            keys: answer.keys,
            values: answer.values,
            header_ends: answer.header_ends,
            headers: answer.headers,
            times: answer.times,
        }
    }
}

impl From<Detail> for types::Detail {
    fn from(
        Detail {
            message,
            after_ms,
            class,
            reason,
        }: Detail,
    ) -> Self {
        Self {
            message,
            after_ms,
            class,
            reason,
        }
    }
}

use error_handler::exports::millrace::broker::error_handler as interface;

impl From<interface::Failure> for FailureFacts {
    fn from(failure: interface::Failure) -> Self {
        Self {
            message: failure.message,
            revision: failure.revision,
            attempt: failure.attempt,
            first_failed_at: failure.first_failed_at,
            cause: match failure.cause {
                interface::Cause::Retry => Cause::Retry,
                interface::Cause::Reject => Cause::Reject,
                interface::Cause::Trap => Cause::Trap,
                interface::Cause::Timeout => Cause::Timeout,
                interface::Cause::Memory => Cause::Memory,
                interface::Cause::BadAnswer => Cause::BadAnswer,
            },
            class: failure.class,
            reason: failure.reason,
        }
    }
}

impl From<Decision> for interface::Decision {
    fn from(decision: Decision) -> Self {
        match decision {
            Decision::RetryAfter(after) => {
                Self::RetryAfter(after.as_millis().try_into().unwrap_or(u64::MAX))
            }
            Decision::DeadLetter => Self::DeadLetter,
            Decision::Drop(reason) => Self::Drop(reason),
            Decision::Policy => Self::Policy,
        }
    }
}
