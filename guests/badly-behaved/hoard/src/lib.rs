//! Allocates memory without bound on the value `hoard`; passes everything else through.

use millrace_guest::{Message, Outcome, processor};

processor!(process);

fn process(message: &Message) -> Outcome {
    if message.value() == Some(b"hoard") {
        let mut treasure = Vec::new();
        loop {
            treasure.push(std::hint::black_box(vec![1_u8; 1 << 20]));
        }
    }
    Outcome::Emit(message.output())
}
