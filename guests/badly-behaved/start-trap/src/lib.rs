//! Traps while it is instantiated: valid in every respect, but it never reaches its first batch.
#![allow(
    unsafe_code,
    reason = "only an export of this name runs at instantiation"
)]

use millrace_guest::{Message, Outcome, processor};

processor!(process);

/// A component calls a function with this name while it is instantiated.
#[cfg(target_arch = "wasm32")]
#[unsafe(export_name = "_initialize")]
extern "C" fn refuse() {
    std::arch::wasm32::unreachable();
}

fn process(message: &Message) -> Outcome {
    Outcome::Emit(message.output())
}
