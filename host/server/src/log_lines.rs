//! Log lines on their way to standard error. Logging never waits and never fails: lines are queued within a bound, and a separate
//! thread writes them. Lines without room, or without a reader, are counted, and the count is logged once the log works again.
//!
//! The thread is detached: a stuck reader may hold it forever, and a stopping host leaves it behind.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Bytes of lines that wait to be written; further lines are counted as lost.
const LOG_BYTES_MAX: usize = 4 << 20;
/// Size of a line besides its bytes.
const LINE_BYTES: usize = 64;
/// Lines that are written at once.
const LINES_AT_ONCE_MAX: usize = 256;
/// Delay before writing again to a non-blocking pipe that is full.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Where log lines go. Cheap to clone.
#[derive(Clone)]
pub(crate) struct LogLines(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    /// A line was queued or written.
    moved: Condvar,
}

#[derive(Default)]
struct Queue {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Whether lines were taken out that are not written yet.
    writing: bool,
    /// Lost lines that were not reported yet.
    lost: u64,
}

impl LogLines {
    /// Writes to standard error from a thread of its own.
    pub(crate) fn to_standard_error() -> io::Result<Self> {
        // Our own handle: nobody else waits for the lock that a stalled write would hold.
        let file = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        Self::to(file)
    }

    fn to(out: impl Write + Send + 'static) -> io::Result<Self> {
        let lines = Self(Arc::new(Shared {
            queue: Mutex::default(),
            moved: Condvar::new(),
        }));
        let writer = lines.clone();
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || writer.keep_writing(out))?;
        Ok(lines)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Each change completes before anything can panic.
        let locked = self.0.queue.lock();
        locked.unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &[u8]) {
        let mut queue = self.queue();
        let bytes = line.len() + LINE_BYTES;
        if queue.bytes + bytes > LOG_BYTES_MAX {
            queue.lost += 1;
            drop(queue);
            return count_lost(1);
        }
        queue.bytes += bytes;
        queue.lines.push_back(line.to_vec());
        drop(queue);
        self.0.moved.notify_all();
    }

    /// Waits until everything is written, at most this long.
    pub(crate) fn flush(&self, patience: Duration) {
        let queue = self.queue();
        let is_full = |queue: &mut Queue| queue.writing || !queue.lines.is_empty();
        let waited = self.0.moved.wait_timeout_while(queue, patience, is_full);
        drop(waited);
    }

    fn keep_writing(&self, mut out: impl Write) {
        loop {
            let lines = self.next();
            let count = lines.len() as u64;
            let written = write(&mut out, &lines.concat());
            let lost = self.done(written.is_err().then_some(count));
            if let Some(lost) = lost {
                tracing::warn!(lost, "log lines were lost because nobody read them");
            }
        }
    }

    /// Waits for lines and takes them from the queue.
    fn next(&self) -> Vec<Vec<u8>> {
        let waited = self
            .0
            .moved
            .wait_while(self.queue(), |q| q.lines.is_empty());
        let mut queue = waited.unwrap_or_else(PoisonError::into_inner);
        let count = queue.lines.len().min(LINES_AT_ONCE_MAX);
        let lines: Vec<Vec<u8>> = queue.lines.drain(..count).collect();
        queue.bytes -= lines
            .iter()
            .map(|line| line.len() + LINE_BYTES)
            .sum::<usize>();
        queue.writing = true;
        lines
    }

    /// Records a write: one that succeeded, or one that lost this many lines. The first success
    /// after losses returns how many lines were lost.
    fn done(&self, failed: Option<u64>) -> Option<u64> {
        let mut queue = self.queue();
        queue.writing = false;
        let lost = match failed {
            Some(count) => {
                queue.lost += count;
                count_lost(count);
                0
            }
            None => std::mem::take(&mut queue.lost),
        };
        drop(queue);
        self.0.moved.notify_all();
        (lost > 0).then_some(lost)
    }
}

fn count_lost(lines: u64) {
    metrics::counter!("millrace_log_lines_lost_total").increment(lines);
}

/// Writes everything, also to a non-blocking pipe.
fn write(out: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(RETRY_PAUSE),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Takes one formatted event.
pub(crate) struct OneLine(LogLines);

impl Write for OneLine {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for LogLines {
    type Writer = OneLine;

    fn make_writer(&self) -> OneLine {
        OneLine(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// A writer whose every write waits for the test to decide its result.
    struct Told {
        outcomes: mpsc::Receiver<io::Result<()>>,
        written: mpsc::Sender<Vec<u8>>,
    }

    impl Write for Told {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match self.outcomes.recv() {
                Ok(outcome) => outcome?,
                Err(_) => loop {
                    thread::park();
                },
            }
            let _ = self.written.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn told() -> (
        LogLines,
        mpsc::Sender<io::Result<()>>,
        mpsc::Receiver<Vec<u8>>,
    ) {
        let (tell, outcomes) = mpsc::channel();
        let (written, seen) = mpsc::channel();
        let lines = LogLines::to(Told { outcomes, written }).expect("a thread");
        (lines, tell, seen)
    }

    #[test]
    fn a_reader_that_takes_nothing_keeps_nobody_waiting_and_costs_a_bounded_share_of_memory() {
        let (lines, _tell, seen) = told();
        let line = [b'x'; 1_000];
        for _ in 0..3 * LOG_BYTES_MAX / line.len() {
            lines.push(&line);
        }
        assert!(lines.queue().bytes <= LOG_BYTES_MAX);
        assert!(lines.queue().lost > LOG_BYTES_MAX as u64 / 1_000);
        lines.flush(Duration::from_millis(10));
        assert!(seen.try_recv().is_err());
    }

    #[test]
    fn what_nobody_read_is_counted_and_known_when_the_log_works_again() {
        let (lines, tell, seen) = told();
        tell.send(Err(ErrorKind::BrokenPipe.into())).expect("told");
        lines.push(b"lost\n");
        lines.flush(PATIENCE);
        assert_eq!(lines.queue().lost, 1);
        tell.send(Ok(())).expect("told");
        lines.push(b"seen\n");
        lines.flush(PATIENCE);
        assert_eq!(seen.recv_timeout(PATIENCE).expect("a line"), b"seen\n");
        assert_eq!(lines.queue().lost, 0);
    }

    #[test]
    fn a_pipe_that_does_not_wait_is_tried_again() {
        let (lines, tell, seen) = told();
        for outcome in [Err(ErrorKind::WouldBlock.into()), Ok(())] {
            tell.send(outcome).expect("told");
        }
        lines.push(b"seen\n");
        lines.flush(PATIENCE);
        assert_eq!(seen.recv_timeout(PATIENCE).expect("a line"), b"seen\n");
    }
}
