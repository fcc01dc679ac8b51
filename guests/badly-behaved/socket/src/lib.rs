//! Tries to reach out of its sandbox by what the standard library offers, and emits what it is told: a connection, a datagram, a name, a
//! file, a variable.

use std::net::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket};

use millrace_guest::{Message, Outcome, processor};

processor!(process);

fn process(message: &Message) -> Outcome {
    let reached = match message.value().unwrap_or_default() {
        b"connect" => TcpStream::connect(("127.0.0.1", 9)).map(drop),
        b"listen" => TcpListener::bind(("127.0.0.1", 0)).map(drop),
        b"datagram" => UdpSocket::bind(("127.0.0.1", 0)).map(drop),
        b"name" => ("localhost", 9).to_socket_addrs().map(drop),
        b"read" => std::fs::read("/etc/hostname").map(drop),
        b"write" => std::fs::write("file", "x"),
        b"list" => std::fs::read_dir("/").map(drop),
        _ => std::env::var("PATH")
            .map(drop)
            .map_err(std::io::Error::other),
    };
    let answer = match reached {
        Ok(()) => "reached".to_owned(),
        Err(error) => format!("refused: {error}"),
    };
    Outcome::Emit(message.output().value(answer))
}
