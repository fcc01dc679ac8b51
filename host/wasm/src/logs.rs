//! Keeps guests' log lines: the latest lines of each owner, at a bounded rate.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, counter};
use millrace_broker::handler::GuestLine;
use millrace_model::plain::steers;
use millrace_model::{Clock, Timestamp};
use parking_lot::Mutex;

use crate::notes::Notes;
use crate::secrets::Hidden;

/// Lines kept per owner; the oldest are dropped first.
const LINES_KEPT_MAX: usize = 1_000;

/// Bytes of one owner's lines; the oldest are dropped first.
const LINES_KEPT_BYTES_MAX: usize = 1 << 20;

/// Bytes of one line; a longer one is cut.
pub(crate) const LINE_BYTES_MAX: usize = 4 << 10;

/// Bytes of the note on a cut line.
const CUT_NOTE_BYTES_MAX: usize = 40;

/// Owners whose lines are kept. Beyond it, those without a loaded module are forgotten.
const OWNERS_MAX: usize = 1_000;

/// Lines of all guests together per second in the host's log; more are counted and left out there.
const SHIPPED_LINES_PER_SECOND_MAX: u32 = 1_000;

/// The rate is counted in windows of this length.
const RATE_WINDOW: Duration = Duration::from_secs(1);

/// What a module is loaded for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Owner {
    Processor(String),
    Topic(String),
    Route(String),
    /// A trial of an upload, to see whether it starts.
    Admission(String),
}

/// The owner of a trial instance's log lines.
const ADMISSION: &str = "(admission)";

impl Owner {
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Processor(name) | Self::Topic(name) | Self::Route(name) => name,
            Self::Admission(_) => ADMISSION,
        }
    }

    /// Its name in metrics.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Processor(_) | Self::Admission(_) => "processor",
            Self::Topic(_) => "topic",
            Self::Route(_) => "route",
        }
    }

    /// Whose share of the threads for guests it uses: a processor's revisions, shadow and error handler share one.
    pub(crate) fn lane(&self) -> String {
        match self {
            // Names have no slash: the part after it says which part of the processor it is.
            Self::Processor(name) => {
                format!("processor {}", name.split('/').next().unwrap_or(name))
            }
            Self::Topic(name) => format!("topic {name}"),
            Self::Route(path) => format!("route {path}"),
            Self::Admission(uploader) => format!("trial {uploader}"),
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

    /// Lines of an owner that were dropped because of its rate.
    pub(crate) fn dropped(&self, owner: &Owner) -> u64 {
        let log = self.0.lock().get(owner).cloned();
        log.map_or(0, |log| log.kept.lock().dropped)
    }

    /// Forgets a deleted owner: one of the same name starts over.
    pub(crate) fn forget(&self, owner: &Owner) {
        self.0.lock().remove(owner);
    }
}

/// Passes guests' lines to the host's log, for all of them together.
#[derive(Default)]
pub(crate) struct HostLog(Mutex<Rate>);

/// Lines within a window of time.
#[derive(Default)]
struct Rate {
    window_start: Duration,
    window_lines: u32,
    window_dropped: u64,
}

impl Rate {
    /// Whether another line may be written now; the second value is how many were dropped in the previous window.
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
}

/// The lines of one owner's guests.
pub(crate) struct OwnerLog {
    owner: Owner,
    /// Lines over the rate, and bytes cut from lines.
    dropped: Counter,
    cut: Counter,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    lines: VecDeque<GuestLine>,
    bytes: usize,
    rate: Rate,
    /// Lines over the rate since the start.
    dropped: u64,
}

impl OwnerLog {
    fn new(owner: &Owner) -> Self {
        let (label, name) = (owner.label(), owner.name().to_owned());
        Self {
            dropped: counter!("millrace_guest_log_lines_dropped_total", label => name.clone()),
            cut: counter!("millrace_guest_log_bytes_cut_total", label => name),
            owner: owner.clone(),
            kept: Mutex::default(),
        }
    }
}

impl Kept {
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

/// Where one instance logs to.
#[derive(Clone)]
pub(crate) struct LogSink {
    pub(crate) log: Arc<OwnerLog>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) revision: u32,
    pub(crate) lines_per_second: u32,
    /// The host's log, if guests' lines go there as well.
    pub(crate) host_log: Option<Arc<HostLog>>,
    /// The lines of the current call, if they are needed.
    pub(crate) notes: Arc<Notes>,
    /// Secrets that the instance has read.
    pub(crate) hidden: Arc<Hidden>,
}

impl LogSink {
    /// The same for one instance whose calls are noted.
    pub(crate) fn noting(&self, notes: &Arc<Notes>) -> Self {
        Self {
            notes: Arc::clone(notes),
            hidden: Arc::default(),
            ..self.clone()
        }
    }

    /// The log's owner.
    pub(crate) fn owner(&self) -> &Owner {
        &self.log.owner
    }

    /// Writes a line, or counts it as dropped without reading its text.
    pub(crate) fn write(&self, level: &'static str, line: impl FnOnce() -> Line) {
        let now = self.clock.monotonic();
        let (admitted, dropped_before) = {
            let mut kept = self.log.kept.lock();
            let told = kept.rate.admit(now, self.lines_per_second);
            kept.dropped += u64::from(!told.0);
            told
        };
        if dropped_before > 0 {
            let max = self.lines_per_second;
            self.keep(
                "warn",
                format!("{dropped_before} lines were dropped: more than {max} in a second"),
            );
        }
        if admitted {
            let mut line = line();
            self.log.cut.increment(line.cut as u64);
            // Before the note on a cut, which would hide that a secret was cut.
            line.text = self.hidden.removed_from(line.text);
            self.keep(level, line.shown());
        } else {
            self.log.dropped.increment(1);
        }
    }

    fn keep(&self, level: &'static str, text: String) {
        self.ship(level, &text);
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

    /// Also passes it to the host's log, if configured.
    fn ship(&self, level: &'static str, text: &str) {
        let (processor, revision) = (self.log.owner.name(), self.revision);
        let Some(host_log) = &self.host_log else {
            tracing::debug!(target: "millrace::guest", processor, revision, level, "{text}");
            return;
        };
        let told = host_log
            .0
            .lock()
            .admit(self.clock.monotonic(), SHIPPED_LINES_PER_SECOND_MAX);
        if told.1 > 0 {
            let lines = told.1;
            tracing::warn!(target: "millrace::guest", lines, "log lines of components were left out here because of the rate limit");
        }
        if !told.0 {
            counter!("millrace_guest_log_lines_not_shipped_total").increment(1);
            return;
        }
        let batch = self.notes.batch();
        let topic = batch.as_ref().map(|batch| batch.topic.as_str());
        let partition = batch.as_ref().map(|batch| batch.partition);
        match level {
            "error" => {
                tracing::error!(target: "millrace::guest", processor, topic, partition, revision, "{text}");
            }
            "warn" => {
                tracing::warn!(target: "millrace::guest", processor, topic, partition, revision, "{text}");
            }
            "info" => {
                tracing::info!(target: "millrace::guest", processor, topic, partition, revision, "{text}");
            }
            _ => {
                tracing::debug!(target: "millrace::guest", processor, topic, partition, revision, "{text}");
            }
        }
    }
}

/// A line for a log: cut, and by how much.
pub(crate) struct Line {
    pub(crate) text: String,
    /// How many bytes were cut.
    pub(crate) cut: usize,
}

impl Line {
    /// A text of any length.
    pub(crate) fn of(text: &str) -> Self {
        Self {
            text: clean(text, LINE_BYTES_MAX),
            cut: text.len().saturating_sub(LINE_BYTES_MAX),
        }
    }

    fn shown(self) -> String {
        if self.cut == 0 {
            return self.text;
        }
        let kept = self
            .text
            .floor_char_boundary(LINE_BYTES_MAX - CUT_NOTE_BYTES_MAX);
        let cut = self.cut + self.text.len() - kept;
        format!("{} [cut: {cut} more bytes]", &self.text[..kept])
    }
}

/// `text` cut to `bytes_max` and without control characters: safe to print and to put into a header.
pub(crate) fn clean(text: &str, bytes_max: usize) -> String {
    let cut = text.floor_char_boundary(bytes_max);
    let visible = |c: char| if steers(c) { ' ' } else { c };
    text[..cut].chars().map(visible).collect()
}

/// The text without names of files and threads: where something was built or ran means nothing to its reader here.
pub(crate) fn without_places(text: &str) -> String {
    let is_place = |word: &str| {
        let bare = word.trim_matches(|c: char| "'\"`(),;:".contains(c));
        (bare.starts_with('/') && bare.len() > 1) || bare.contains("/src/") || bare.contains(".rs:")
    };
    let words = text.split(' ').filter(|word| !is_place(word));
    words.collect::<Vec<_>>().join(" ")
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
            host_log: None,
            notes: Arc::default(),
            hidden: Arc::default(),
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
            sink.write("info", || Line::of(&format!("line {n}")));
        }
        clock.advance(RATE_WINDOW);
        sink.write("info", || Line::of("later"));
        let dropped = "3 lines were dropped: more than 2 in a second";
        assert_eq!(texts(&logs), ["line 0", "line 1", dropped, "later"]);
        assert_eq!(logs.dropped(&Owner::Processor("p".into())), 3);
    }

    #[test]
    fn the_oldest_lines_go_first_by_number_and_by_bytes() {
        let (clock, logs) = (
            Arc::new(ManualClock::at(Timestamp(0))),
            GuestLogs::default(),
        );
        let sink = sink(&clock, &logs, u32::MAX);
        for n in 0..LINES_KEPT_MAX + 7 {
            sink.write("info", || Line::of(&n.to_string()));
        }
        assert_eq!(texts(&logs).len(), LINES_KEPT_MAX);
        assert_eq!(texts(&logs)[0], "7");
        for _ in 0..LINES_KEPT_MAX {
            sink.write("info", || Line::of(&"x".repeat(LINE_BYTES_MAX)));
        }
        let bytes: usize = texts(&logs).iter().map(String::len).sum();
        assert!(bytes <= LINES_KEPT_BYTES_MAX, "{bytes}");
    }

    #[test]
    fn a_secret_at_the_cut_of_a_line_is_hidden_wherever_the_cut_falls() {
        let value = "hunter22-and-more";
        for at in 0..=value.len() {
            let (clock, logs) = (
                Arc::new(ManualClock::at(Timestamp(0))),
                GuestLogs::default(),
            );
            let sink = sink(&clock, &logs, u32::MAX);
            let name = millrace_model::SecretName::parse("token").expect("a name");
            sink.hidden.hide(&name, value.as_bytes());
            // The cut of the text, and the earlier one that makes room for the note.
            for cut in [LINE_BYTES_MAX, LINE_BYTES_MAX - CUT_NOTE_BYTES_MAX] {
                let before = "x".repeat(cut - at);
                sink.write("info", || {
                    Line::of(&format!("{before}{value} and so on, {value}"))
                });
            }
            for text in texts(&logs) {
                assert!(!text.contains("hunt"), "{at}: {}", &text[4_000..]);
                assert!(text.len() <= LINE_BYTES_MAX, "{at}: {}", text.len());
            }
        }
    }

    #[test]
    fn places_are_left_out_and_nothing_else_is() {
        let text = "cannot run /usr/lib/millrace/x: no such file; see host/wasm/src/a.rs:1:2 for wasi:io/streams@0.2.6, 1 / 2";
        let left = "cannot run no such file; see for wasi:io/streams@0.2.6, 1 / 2";
        assert_eq!(without_places(text), left);
    }

    #[test]
    fn text_is_cut_between_characters_and_has_no_control_characters() {
        assert_eq!(clean("a\u{1b}[31m\nb", 100), "a [31m b");
        assert_eq!(clean("éé", 3), "é");
        assert_eq!(clean("a\u{202e}b\u{2028}c", 100), "a b c");
        let long = Line::of(&"y".repeat(LINE_BYTES_MAX + 5)).shown();
        assert!(
            long.ends_with("y [cut: 45 more bytes]") && long.len() <= LINE_BYTES_MAX,
            "{long}"
        );
    }
}
