//! Keeps what guests write: the last lines of each owner, at a bounded rate.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use metrics::Counter;
use millrace_broker::handler::GuestLine;
use millrace_model::{Clock, Timestamp};
use parking_lot::Mutex;

use crate::notes::Notes;

/// Lines kept of one owner; the oldest go first.
const LINES_KEPT_MAX: usize = 1_000;

/// Bytes of one owner's lines; the oldest go first.
const LINES_KEPT_BYTES_MAX: usize = 1 << 20;

/// Bytes of one line; a longer one is cut.
pub(crate) const LINE_BYTES_MAX: usize = 4 << 10;

/// Owners whose lines are kept. Beyond it, those without a loaded module are forgotten.
const OWNERS_MAX: usize = 1_000;

/// The rate is counted in windows of this length.
const RATE_WINDOW: Duration = Duration::from_secs(1);

/// For whom a module is loaded.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Owner {
    Processor(String),
    Topic(String),
}

impl Owner {
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Processor(name) | Self::Topic(name) => name,
        }
    }
}

/// The lines of all owners.
#[derive(Default)]
pub(crate) struct GuestLogs(Mutex<HashMap<Owner, Arc<OwnerLog>>>);

impl GuestLogs {
    /// The log that an owner's guests write to.
    pub(crate) fn of(&self, owner: &Owner) -> Arc<OwnerLog> {
        let mut logs = self.0.lock();
        if logs.len() >= OWNERS_MAX {
            logs.retain(|_, log| Arc::strong_count(log) > 1);
        }
        Arc::clone(
            logs.entry(owner.clone())
                .or_insert_with(|| Arc::new(OwnerLog::new(owner))),
        )
    }

    /// An owner's lines, newest last.
    pub(crate) fn lines(&self, owner: &Owner) -> Vec<GuestLine> {
        let log = self.0.lock().get(owner).cloned();
        log.map_or_else(Vec::new, |log| {
            log.kept.lock().lines.iter().cloned().collect()
        })
    }
}

/// The lines of one owner's guests.
pub(crate) struct OwnerLog {
    name: String,
    dropped: Counter,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    lines: VecDeque<GuestLine>,
    bytes: usize,
    window_start: Duration,
    window_lines: u32,
    window_dropped: u64,
}

impl OwnerLog {
    fn new(owner: &Owner) -> Self {
        let name = owner.name().to_owned();
        Self {
            dropped: metrics::counter!(
                "millrace_guest_log_lines_dropped_total", "processor" => name.clone()
            ),
            name,
            kept: Mutex::default(),
        }
    }
}

impl Kept {
    /// Whether another line may be written now; the second value is how many were dropped in the window just over.
    fn admit(&mut self, now: Duration, lines_per_second: u32) -> (bool, u64) {
        let mut dropped_before = 0;
        if now.saturating_sub(self.window_start) >= RATE_WINDOW {
            dropped_before = std::mem::take(&mut self.window_dropped);
            (self.window_start, self.window_lines) = (now, 0);
        }
        let admitted = self.window_lines < lines_per_second;
        if admitted {
            self.window_lines += 1;
        } else {
            self.window_dropped += 1;
        }
        (admitted, dropped_before)
    }

    fn push(&mut self, line: GuestLine) {
        self.bytes += line.text.len();
        self.lines.push_back(line);
        while self.lines.len() > LINES_KEPT_MAX || self.bytes > LINES_KEPT_BYTES_MAX {
            let Some(oldest) = self.lines.pop_front() else {
                return;
            };
            self.bytes -= oldest.text.len();
        }
    }
}

/// Where one instance writes to.
#[derive(Clone)]
pub(crate) struct LogSink {
    pub(crate) log: Arc<OwnerLog>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) revision: u32,
    pub(crate) lines_per_second: u32,
    /// Of the instance that writes; nobody reads them where there is none.
    pub(crate) notes: Arc<Notes>,
}

impl LogSink {
    /// The same for one instance, whose calls are noted.
    pub(crate) fn noting(&self, notes: &Arc<Notes>) -> Self {
        Self {
            notes: Arc::clone(notes),
            ..self.clone()
        }
    }

    /// Whose log it is.
    pub(crate) fn owner(&self) -> &str {
        &self.log.name
    }

    /// Writes a line, or counts it as dropped without looking at its text.
    pub(crate) fn write(&self, level: &'static str, text: impl FnOnce() -> String) {
        let now = self.clock.monotonic();
        let (admitted, dropped_before) = self.log.kept.lock().admit(now, self.lines_per_second);
        if dropped_before > 0 {
            let max = self.lines_per_second;
            self.keep(
                "warn",
                format!("{dropped_before} lines were dropped: more than {max} in a second"),
            );
        }
        if admitted {
            self.keep(level, text());
        } else {
            self.log.dropped.increment(1);
        }
    }

    fn keep(&self, level: &'static str, text: String) {
        tracing::debug!(
            target: "millrace::guest", processor = self.log.name, revision = self.revision, level, "{text}"
        );
        let at: Timestamp = self.clock.wall();
        let (level, revision) = (level.to_owned(), self.revision);
        let line = GuestLine {
            at,
            level,
            revision,
            text,
        };
        self.notes.line(&line);
        self.log.kept.lock().push(line);
    }
}

/// `text` cut to `bytes_max` and free of control characters: safe to print and to put into a header.
pub(crate) fn clean(text: &str, bytes_max: usize) -> String {
    let cut = text.floor_char_boundary(bytes_max);
    let visible = |c: char| if c.is_control() { ' ' } else { c };
    text[..cut].chars().map(visible).collect()
}

#[cfg(test)]
mod tests {
    use millrace_model::ManualClock;

    use super::*;

    fn sink(clock: &Arc<ManualClock>, logs: &GuestLogs, lines_per_second: u32) -> LogSink {
        LogSink {
            log: logs.of(&Owner::Processor("p".into())),
            clock: Arc::clone(clock) as Arc<dyn Clock>,
            revision: 3,
            lines_per_second,
            notes: Arc::default(),
        }
    }

    fn texts(logs: &GuestLogs) -> Vec<String> {
        let lines = logs.lines(&Owner::Processor("p".into()));
        lines.into_iter().map(|line| line.text).collect()
    }

    #[test]
    fn lines_beyond_the_rate_are_dropped_and_the_next_second_says_how_many() {
        let (clock, logs) = (
            Arc::new(ManualClock::at(Timestamp(10_000))),
            GuestLogs::default(),
        );
        let sink = sink(&clock, &logs, 2);
        for n in 0..5 {
            sink.write("info", || format!("line {n}"));
        }
        clock.advance(RATE_WINDOW);
        sink.write("info", || "later".into());
        let dropped = "3 lines were dropped: more than 2 in a second";
        assert_eq!(texts(&logs), ["line 0", "line 1", dropped, "later"]);
    }

    #[test]
    fn the_oldest_lines_go_first_by_number_and_by_bytes() {
        let (clock, logs) = (
            Arc::new(ManualClock::at(Timestamp(0))),
            GuestLogs::default(),
        );
        let sink = sink(&clock, &logs, u32::MAX);
        for n in 0..LINES_KEPT_MAX + 7 {
            sink.write("info", || n.to_string());
        }
        assert_eq!(texts(&logs).len(), LINES_KEPT_MAX);
        assert_eq!(texts(&logs)[0], "7");
        for _ in 0..LINES_KEPT_MAX {
            sink.write("info", || "x".repeat(LINE_BYTES_MAX));
        }
        let bytes: usize = texts(&logs).iter().map(String::len).sum();
        assert!(bytes <= LINES_KEPT_BYTES_MAX, "{bytes}");
    }

    #[test]
    fn text_is_cut_between_characters_and_has_no_control_characters() {
        assert_eq!(clean("a\u{1b}[31m\nb", 100), "a [31m b");
        assert_eq!(clean("éé", 3), "é");
    }
}
