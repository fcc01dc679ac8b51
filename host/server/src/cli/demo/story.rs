//! The demo's output: chapters, results, a progress bar while events flow, and the totals.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::sync::watch;

use super::tally::Tally;
use crate::cli::table;

/// Time to read a chapter's heading.
const PAUSE: Duration = Duration::from_millis(600);

/// Standard output, with or without pauses.
pub(super) struct Story {
    fast: bool,
}

impl Story {
    pub(super) fn new(fast: bool) -> Self {
        Self { fast }
    }

    pub(super) fn is_fast(&self) -> bool {
        self.fast
    }

    pub(super) fn title(&self, text: &str) -> Result<()> {
        write_line(&format!(
            "\n  {text}\n  {}",
            "═".repeat(text.chars().count())
        ))
    }

    pub(super) fn say(&self, text: &str) -> Result<()> {
        write_line(&format!("  {text}"))
    }

    pub(super) fn done(&self, text: &str) -> Result<()> {
        write_line(&format!("  ✓ {text}"))
    }

    pub(super) fn chapter(&self, text: &str) -> Result<()> {
        if !self.fast {
            std::thread::sleep(PAUSE);
        }
        write_line(&format!("\n  ── {text}"))
    }

    /// Shows progress until `target` events are acknowledged.
    pub(super) async fn watch(&self, sent: &watch::Receiver<usize>, target: usize) -> Result<()> {
        let mut sent = sent.clone();
        let bar = bar(super::events::count() as u64);
        while *sent.borrow_and_update() < target {
            if sent.changed().await.is_err() {
                break;
            }
            bar.set_position(*sent.borrow() as u64);
        }
        bar.finish_and_clear();
        self.done(&format!(
            "{} events acknowledged",
            thousands(*sent.borrow())
        ))
    }

    pub(super) fn tally(&self, tally: &Tally) -> Result<()> {
        let mut rows = vec![
            row("quakes", tally.inputs.len(), "all produced events"),
            row("classified", tally.classified.len(), "below magnitude 4.5"),
            row("alerts", tally.alerts.len(), "magnitude 4.5 and more"),
        ];
        for (class, &count) in &tally.by_class {
            rows.push(row("quakes.classify.dlq", count, class));
        }
        for line in table::table(&["TOPIC", "MESSAGES", ""], rows, "").lines() {
            self.say(line)?;
        }
        let revisions: Vec<String> = tally
            .by_revision
            .iter()
            .map(|(revision, &count)| format!("{} by revision {revision}", thousands(count)))
            .collect();
        self.done(&format!("outputs: {}", revisions.join(", ")))?;
        if let Some(strongest) = &tally.strongest {
            self.done(&format!(
                "the strongest: {} ({})",
                strongest.properties.title, strongest.class
            ))?;
        }
        self.done("every event is in exactly one place: none lost, none repeated, none invented")
    }

    pub(super) fn ending(&self, tally: &Tally) -> Result<()> {
        let (inputs, out, dead) = (tally.inputs.len(), tally.out(), tally.dead.len());
        self.title(&format!(
            "{} in = {} out + {} dead",
            thousands(inputs),
            thousands(out),
            thousands(dead)
        ))?;
        self.say("")?;
        self.say("Where to look next:")?;
        self.say("  millrace serve                your own host; see millrace --help")?;
        self.say("  guests/README.md              write a processor in two minutes")?;
        self.say("  guests/quake-classifier*      the two revisions of this story")?;
        self.say("  docs/ARCHITECTURE.md          the path of one message")?;
        self.say("")
    }
}

fn row(topic: &str, count: usize, what: &str) -> Vec<String> {
    vec![topic.to_owned(), thousands(count), what.to_owned()]
}

/// Formats a number with separators: 1,707.
fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

fn bar(length: u64) -> ProgressBar {
    let target = match std::io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let bar = ProgressBar::with_draw_target(Some(length), target);
    let style = ProgressStyle::with_template("    {bar:40} {human_pos} of {human_len} events");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn write_line(text: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}

#[cfg(test)]
mod tests {
    #[test]
    fn thousands_are_grouped() {
        assert_eq!(
            ["7", "707", "1,707", "1,234,567"],
            [7, 707, 1_707, 1_234_567]
                .map(super::thousands)
                .each_ref()
                .map(String::as_str)
        );
    }
}
