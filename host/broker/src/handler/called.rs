//! The result of a call, what it used, and the last lines that its guest logged in it: evidence in case a message fails.

use std::collections::VecDeque;
use std::time::Duration;

use millrace_engine::state::StateAttempt;
use millrace_model::Answer;
use millrace_model::bounds::{CALL_LOG_BYTES_MAX, CALL_LOG_LINES_MAX};
use serde::{Deserialize, Serialize};

use super::{CallError, GuestLine};

/// How a call ended.
pub struct Called {
    /// The unchecked answer, with the state that it was called with; or why there is none.
    pub outcome: Result<(Answer, Option<Box<StateAttempt>>), CallError>,
    /// What it used, if that is measured.
    pub used: Option<CallUse>,
}

/// What one call used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CallUse {
    /// Time that the guest ran or waited for the host, in microseconds.
    pub guest_us: u64,
    /// Linear memory of its instance at the end, which is the most it ever had.
    pub memory_bytes: u64,
    /// Messages in the call.
    pub messages: u32,
    /// The last lines that the guest logged in it, newest last: at most 10 lines and 2 KiB.
    pub log: Vec<GuestLine>,
}

impl CallUse {
    /// Time that the guest ran or waited for the host.
    #[must_use]
    pub fn guest_time(&self) -> Duration {
        Duration::from_micros(self.guest_us)
    }
}

/// The last lines of one call: at most [`CALL_LOG_LINES_MAX`] and [`CALL_LOG_BYTES_MAX`]. The oldest are dropped first.
#[derive(Debug, Default)]
pub struct CallLog {
    lines: VecDeque<GuestLine>,
    bytes: usize,
}

impl CallLog {
    /// Adds a line; a line longer than the whole bound is cut.
    pub fn push(&mut self, line: &GuestLine) {
        let cut = line.text.floor_char_boundary(CALL_LOG_BYTES_MAX);
        self.bytes += cut;
        self.lines.push_back(GuestLine {
            at: line.at,
            level: line.level.clone(),
            revision: line.revision,
            text: line.text[..cut].to_owned(),
        });
        while self.lines.len() > CALL_LOG_LINES_MAX || self.bytes > CALL_LOG_BYTES_MAX {
            let oldest = self.lines.pop_front();
            self.bytes -= oldest.map_or(0, |line| line.text.len());
        }
    }

    /// The lines, newest last; leaves none.
    pub fn take(&mut self) -> Vec<GuestLine> {
        self.bytes = 0;
        std::mem::take(&mut self.lines).into()
    }
}

#[cfg(test)]
mod tests {
    use millrace_model::Timestamp;

    use super::*;

    fn line(text: String) -> GuestLine {
        GuestLine {
            at: Timestamp(1),
            level: "info".to_owned(),
            revision: 1,
            text,
        }
    }

    #[test]
    fn the_last_lines_are_kept_by_number_and_by_bytes() {
        let mut log = CallLog::default();
        for number in 0..100 {
            log.push(&line(number.to_string()));
        }
        let kept = log.take();
        assert_eq!(kept.len(), CALL_LOG_LINES_MAX);
        assert_eq!(kept.last().map(|line| line.text.as_str()), Some("99"));
        assert!(log.take().is_empty());
        log.push(&line("é".repeat(CALL_LOG_BYTES_MAX)));
        log.push(&line("the end".to_owned()));
        assert_eq!(log.take(), [line("the end".to_owned())]);
        log.push(&line("é".repeat(CALL_LOG_BYTES_MAX)));
        assert_eq!(log.take()[0].text.len(), CALL_LOG_BYTES_MAX);
    }
}
