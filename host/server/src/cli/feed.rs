//! Lines of a file or a pipe, read by a separate thread, so that lines can be sent while the next one is awaited, and an interrupt ends
//! the reading without losing what was read.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

/// Bytes that are read at once.
const READ_BYTES: usize = 256 << 10;
/// Blocks of lines that wait to be taken; when there are more, the reader waits.
const BLOCKS_WAITING_MAX: usize = 4;

/// Printed if the user does not wait for the end.
const TWICE: &str = "interrupted twice; unacknowledged messages may not have been stored";

/// What comes next.
pub(super) enum Next {
    /// A line, with its line ending if it has one; cut off if it is longer than a message can be.
    Line(Vec<u8>),
    /// No line arrived in time.
    Idle,
    /// There is nothing more.
    End,
    /// The user wants to stop.
    Interrupted,
}

enum Event {
    Lines(Vec<Vec<u8>>),
    End,
    Failed(io::Error),
    Interrupted,
}

/// Whether the user wants to stop; cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    pub(super) fn is_wanted(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// The lines on their way.
pub(super) struct Feed {
    events: Receiver<Event>,
    lines: std::vec::IntoIter<Vec<u8>>,
    ended: bool,
}

impl Feed {
    /// Starts reading, and handles SIGINT and SIGTERM: the first one ends the reading, a second one ends the process at once.
    pub(super) fn start(
        input: impl Read + Send + 'static,
        line_bytes_max: u64,
        interrupt: &Interrupt,
    ) -> io::Result<Self> {
        let (sender, events) = mpsc::sync_channel(BLOCKS_WAITING_MAX);
        let to = sender.clone();
        // Queued behind lines that were already read, which are still sent; the second signal must not wait for that.
        let tell = move || drop(thread::spawn(move || to.send(Event::Interrupted)));
        heed(interrupt.clone(), TWICE, tell)?;
        // Does not wait for the thread, which may wait for a line that never comes.
        thread::spawn(move || {
            read(
                BufReader::with_capacity(READ_BYTES, input),
                line_bytes_max,
                &sender,
            )
        });
        Ok(Self {
            events,
            lines: Vec::new().into_iter(),
            ended: false,
        })
    }

    /// The next line, or that none arrived in this time.
    pub(super) fn next(&mut self, wait: Option<Duration>) -> io::Result<Next> {
        loop {
            if let Some(line) = self.lines.next() {
                return Ok(Next::Line(line));
            }
            if self.ended {
                return Ok(Next::End);
            }
            let event = match wait {
                None => self
                    .events
                    .recv()
                    .map_err(|_| RecvTimeoutError::Disconnected),
                Some(wait) => self.events.recv_timeout(wait),
            };
            match event {
                Ok(Event::Lines(lines)) => self.lines = lines.into_iter(),
                Ok(Event::End) | Err(RecvTimeoutError::Disconnected) => self.ended = true,
                Ok(Event::Failed(error)) => return Err(error),
                Ok(Event::Interrupted) => return Ok(Next::Interrupted),
                Err(RecvTimeoutError::Timeout) => return Ok(Next::Idle),
            }
        }
    }
}

/// Reads to the end. Lines that are available are passed on together; none waits for one that is not.
fn read(mut input: BufReader<impl Read>, line_bytes_max: u64, to: &SyncSender<Event>) {
    loop {
        let (mut lines, mut bytes) = (Vec::new(), 0);
        let ended = loop {
            let mut line = Vec::new();
            match (&mut input)
                .take(line_bytes_max)
                .read_until(b'\n', &mut line)
            {
                Err(error) => break Some(Event::Failed(error)),
                Ok(0) => break Some(Event::End),
                Ok(count) => bytes += count,
            }
            lines.push(line);
            if bytes >= READ_BYTES || !input.buffer().contains(&b'\n') {
                break None;
            }
        };
        let ends = ended.is_some();
        let events = [(!lines.is_empty()).then_some(Event::Lines(lines)), ended];
        let sent = events
            .into_iter()
            .flatten()
            .try_for_each(|event| to.send(event));
        if sent.is_err() || ends {
            return;
        }
    }
}

/// Reports the first SIGINT or SIGTERM, from a separate thread. A second one prints `twice` and ends the process at once.
pub(super) fn heed(
    interrupt: Interrupt,
    twice: &'static str,
    first: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (mut int, mut term) = {
        let _inside = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        )
    };
    let mut first = Some(first);
    thread::spawn(move || {
        loop {
            runtime.block_on(async {
                tokio::select! {
                    _ = int.recv() => {}
                    _ = term.recv() => {}
                }
            });
            if interrupt.0.swap(true, Ordering::SeqCst) {
                eprintln!("error: {twice}");
                std::process::exit(super::failure::Exit::Interrupted as i32);
            }
            if let Some(tell) = first.take() {
                tell();
            }
        }
    });
    Ok(())
}
