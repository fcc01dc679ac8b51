//! On the value `chatty`, floods its log, its standard output and its standard error with too many
//! lines, which are too long and full of control characters; passes everything through.

use millrace_guest::{Message, Outcome, log, processor};

processor!(process);

const LINES: usize = 2_000;

fn process(message: &Message) -> Outcome {
    if message.value() == Some(b"chatty") {
        log::info("x".repeat(1 << 20));
        log::warn("\u{1b}[31mred\u{7}\r\nand a second line");
        for line in 0..LINES {
            log::info(format!("log {line}"));
            println!("out {line}");
            eprintln!("err {line}");
        }
    }
    Outcome::Emit(message.output())
}
