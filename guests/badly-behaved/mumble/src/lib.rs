//! Writes to standard error and standard output without line ends, or lines that are too long, as
//! the value says; passes everything else through.

use std::iter;

use millrace_guest::{Message, Outcome, log, processor};

processor!(process);

/// Bytes of a line that is too long for any log.
const LONG: usize = 10_000;

fn process(message: &Message) -> Outcome {
    let value = message.value().unwrap_or_default();
    let text = String::from_utf8_lossy(value);
    match text.split_once(' ').unwrap_or((&text, "")) {
        ("err", rest) => say(&mut std::io::stderr(), rest),
        ("out", rest) => say(&mut std::io::stdout(), rest),
        ("trap", rest) => {
            say(&mut std::io::stderr(), rest);
            std::process::abort();
        }
        // The message of an exception, as some languages print it on standard output.
        ("trap-out", rest) => {
            say(&mut std::io::stdout(), rest);
            std::process::abort();
        }
        // Much output before the one line that matters.
        ("trap-late", rest) => {
            (0..100).for_each(|line| eprintln!("step {line} of many, all of them good so far"));
            say(&mut std::io::stderr(), rest);
            std::process::abort();
        }
        ("long", _) => {
            let line: String = iter::repeat_n('x', LONG).collect();
            println!("{line}");
            log::info(line);
        }
        ("hang", rest) => {
            say(&mut std::io::stderr(), rest);
            loop {
                std::hint::spin_loop();
            }
        }
        _ => {}
    }
    Outcome::Emit(message.output())
}

fn say(to: &mut impl std::io::Write, text: &str) {
    let _ = to.write_all(text.as_bytes());
    let _ = to.flush();
}
