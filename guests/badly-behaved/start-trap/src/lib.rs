//! Traps during instantiation: a valid component that never gets a batch.
#![allow(
    unsafe_code,
    reason = "only an export of this name runs at instantiation"
)]

use millrace_guest::{Message, Outcome, processor};

processor!(process);

/// A component runs its export of this name during instantiation.
#[cfg(target_arch = "wasm32")]
#[unsafe(export_name = "_initialize")]
extern "C" fn refuse() {
    std::arch::wasm32::unreachable();
}

fn process(message: &Message) -> Outcome {
    Outcome::Emit(message.output())
}
