//! Imports an interface that no host has, so admission refuses it.
#![allow(
    unsafe_code,
    missing_docs,
    unused_qualifications,
    unreachable_pub,
    reason = "wit-bindgen writes the canonical ABI"
)]

use millrace_guest::{Message, Outcome, processor};

wit_bindgen::generate!({
    inline: "
        package outside:places@1.0.0;

        interface telephone {
            ring: func(number: string) -> bool;
        }

        world caller {
            import telephone;
        }
    ",
});

processor!(process);

fn process(message: &Message) -> Outcome {
    match outside::places::telephone::ring("112") {
        true => Outcome::Ack,
        false => Outcome::Emit(message.output()),
    }
}
