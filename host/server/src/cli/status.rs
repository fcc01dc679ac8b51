//! `status`: shows what is running.

use serde_json::Value;

use super::client::Client;
use super::failure::Failure;
use super::table::{cell, facts, when};

const AFTER_HELP: &str = "\
Examples:
  millrace status                            version, uptime, counts, limits and settings in force
  millrace status --json | jq .counts.topics
  millrace --host http://10.0.0.5:7400 status";

/// Show what is running
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {}

pub(super) fn run(Args {}: Args, client: &Client) -> Result<(), Failure> {
    client.output().answer(&client.get("/v1/host")?, show)
}

fn show(host: &Value) -> String {
    let fact = |name: &'static str| (name, cell(&host[name]));
    let mut pairs = vec![fact("version"), fact("pid")];
    pairs.push(("started", when(&host["started_at"])));
    pairs.push(("uptime", spelled(host["uptime_ms"].as_u64().unwrap_or(0))));
    pairs.extend([fact("engine"), fact("encrypted"), fact("ready")]);
    if !host["trouble"].is_null() {
        pairs.push(fact("trouble"));
    }
    let sections = ["counts", "limits", "settings"].map(|section| {
        let values = host[section].as_object().into_iter().flatten();
        let pairs: Vec<(&str, String)> = values
            .map(|(name, value)| (name.as_str(), cell(value)))
            .collect();
        format!("\n\n{section}\n{}", facts(&pairs))
    });
    facts(&pairs) + &sections.concat()
}

/// A duration in its two largest units.
fn spelled(ms: u64) -> String {
    let seconds = ms / 1_000;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min {} s", seconds % 60),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn times_are_spelled_in_their_two_largest_units() {
        let spelled = [999, 61_000, 3_660_000, 90_000_000].map(spelled);
        assert_eq!(spelled, ["0 s", "1 min 1 s", "1 h 1 min", "1 d 1 h"]);
    }

    #[test]
    fn all_that_a_host_says_is_shown() {
        let host = json!({
            "version": "1.2.3", "pid": 7, "started_at": 0, "uptime_ms": 5_000, "engine": "local", "encrypted": false, "ready": true,
            "counts": {"topics": 3}, "limits": {"module_bytes_max": 64}, "settings": {"listen": "127.0.0.1:1"},
        });
        let shown = show(&host);
        for part in [
            "1.2.3",
            "5 s",
            "topics",
            "module_bytes_max  64",
            "127.0.0.1:1",
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
    }
}
