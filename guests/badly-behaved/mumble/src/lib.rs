//! Depending on the value, writes to standard error and output without line ends, or lines that are
//! too long, or ends right after writing; passes everything else through.

use std::iter;

use millrace_guest::{Message, Outcome, log, processor};

processor!(process);

/// The length of a line that every log cuts.
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
        // Some languages report an uncaught exception on standard output.
        ("trap-out", rest) => {
            say(&mut std::io::stdout(), rest);
            std::process::abort();
        }
        // Many lines before the only important one.
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
