//! Tries to call home: it imports sockets, which no processor is granted, so admission refuses it.

use std::net::TcpStream;

use millrace_guest::{Message, Outcome, processor};

processor!(process);

fn process(message: &Message) -> Outcome {
    match TcpStream::connect(("127.0.0.1", 9)) {
        Ok(_) => Outcome::Emit(message.output()),
        Err(error) => Outcome::retry("no-network", error.to_string()),
    }
}
