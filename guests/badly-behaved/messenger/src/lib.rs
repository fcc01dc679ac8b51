//! A component of WASI messaging: it handles one message at a time, and sends, forwards, fails or hoards as the message says.
#![allow(
    unsafe_code,
    missing_docs,
    unused_qualifications,
    unreachable_pub,
    reason = "wit-bindgen writes the canonical ABI"
)]

use std::cell::RefCell;

use exports::wasi::messaging::incoming_handler::Guest;
use wasi::messaging::producer;
use wasi::messaging::types::{Client, Error, Message};

wit_bindgen::generate!({
    path: "wit",
    world: "messaging-core",
});

struct Messenger;

export!(Messenger);

thread_local! {
    /// Messages that are never let go.
    static HOARD: RefCell<Vec<Message>> = const { RefCell::new(Vec::new()) };
}

impl Guest for Messenger {
    fn handle(message: Message) -> Result<(), Error> {
        let said = String::from_utf8_lossy(&message.data()).into_owned();
        let mut words = said.splitn(3, ' ');
        let (what, topic) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let rest = words.next().unwrap_or("");
        match what {
            "send" => send(topic, made(rest)),
            "send-keyed" => {
                let message = made(rest);
                message.add_metadata("millrace-key", "k-2");
                send(topic, message)
            }
            "forward" => {
                message.add_metadata("via", "messenger");
                message.remove_metadata("gone");
                send(topic, message)
            }
            "tell" => {
                let told = format!(
                    "{:?} {:?} {:?}",
                    message.topic(),
                    message.content_type(),
                    message.metadata()
                );
                send(topic, made(&told))
            }
            "send-and-fail" => {
                send(topic, made(rest))?;
                Err(Error::Other("after it was sent".to_owned()))
            }
            "flood" => {
                for _ in 0..1_000 {
                    send(topic, made(&"x".repeat(100_000)))?;
                }
                Ok(())
            }
            "timeout" => Err(Error::Timeout),
            "connection" => Err(Error::Connection("nobody answers".to_owned())),
            "hoard" => {
                let hoarded = (0..100).map(|_| Message::new(&vec![0; 1 << 20]));
                HOARD.with_borrow_mut(|hoard| hoard.extend(hoarded));
                Ok(())
            }
            "keep" => {
                HOARD.with_borrow_mut(|hoard| hoard.push(message));
                Ok(())
            }
            "recall" => {
                let kept = HOARD.with_borrow(|hoard| hoard.first().map(Message::data));
                send(topic, made(&format!("{kept:?}")))
            }
            "trap" => panic!("it was told to"),
            _ => Ok(()),
        }
    }
}

fn made(text: &str) -> Message {
    let message = Message::new(b"to be replaced");
    message.set_data(text.as_bytes());
    message.set_metadata(&[("by".to_owned(), "messenger".to_owned())]);
    message.set_content_type("text/plain");
    message
}

fn send(topic: &str, message: Message) -> Result<(), Error> {
    // The default output.
    let topic = if topic == "-" { "" } else { topic };
    let client = Client::connect("any")?;
    producer::send(&client, topic, message)?;
    client.disconnect()
}
