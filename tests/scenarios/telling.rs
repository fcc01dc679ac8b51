//! What people see of a host: its output on a terminal, whatever the messages contain, and its log.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use guest_artifacts as guests;
use millrace_tests::Host;
use serde_json::json;

use crate::{MILLRACE, host};

/// Clears the screen, sets the window title, rings the bell, returns to the line's start, and
/// reverses the text direction.
const STEERS: &str = "\u{1b}[2J\u{1b}]0;owned\u{7}first\rsecond\u{202e}third";

/// The output of a command on a terminal; `None` if no installed program can provide one.
fn on_a_terminal(command: &Command) -> Result<Option<String>> {
    let quoted = |text: &std::ffi::OsStr| {
        let text = text.to_str().context("text")?;
        ensure!(!text.contains('\''), "{text} needs no quotes");
        Ok(format!("'{text}'"))
    };
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line: Vec<String> = words.map(quoted).collect::<Result<_>>()?;
    let mut script = Command::new("script");
    script.args(["-q", "-e", "-c", &line.join(" "), "/dev/null"]);
    for (name, value) in command.get_envs() {
        script.env(name, value.unwrap_or_default());
    }
    let output = match script.stdin(Stdio::null()).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        output => output?,
    };
    ensure!(output.status.success(), "{output:?}");
    Ok(Some(String::from_utf8(output.stdout)?))
}

#[test]
fn a_message_does_not_steer_the_terminal_that_it_is_shown_on() -> Result<()> {
    let host = host()?;
    let client = host.client();
    client.topic("in", 1)?;
    client.produce(
        "in",
        &[json!({"key": STEERS, "value": STEERS, "headers": {"h": STEERS}})],
    )?;
    for arguments in [
        &["consume", "in", "--max", "1"][..],
        &["consume", "in", "--max", "1", "--json"],
    ] {
        let command = host.command(arguments);
        let Some(shown) = on_a_terminal(&command)? else {
            eprintln!("skipped: no `script` here that gives a command a terminal");
            return Ok(());
        };
        // The terminal's own line ends are CR LF.
        let shown = shown.replace("\r\n", "\n");
        let steers = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
        ensure!(!shown.contains(steers), "{shown:?}");
        ensure!(
            shown.contains("first") && shown.contains("third"),
            "{shown:?}"
        );
    }
    // Through a pipe the output equals the produced value, byte for byte.
    let piped = host.command(&["consume", "in", "--max", "1"]).output()?;
    ensure!(String::from_utf8(piped.stdout)?.contains(STEERS));
    Ok(())
}

#[test]
fn the_log_says_what_was_done_to_the_host_by_whom_and_nothing_of_its_messages() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let log = directory.path().join("host.log");
    let mut host = Host::in_directory(MILLRACE, &directory.path().join("data"), &[]);
    host.log_to(&log);
    let mut serve = host.serve_command();
    serve.env("MILLRACE_LOG_FILTER", "info");
    host.spawn_as(serve)?;
    host.wait_until_ready()?;
    let client = host.client();
    client.topic("in", 1)?;
    client.topic("out", 1)?;
    crate::deploy_worker(&client, guests::PASSTHROUGH, json!({}))?;
    for number in 0..200 {
        client.produce("in", &[json!({"value": format!("secret-{number}")})])?;
    }
    client.wait_until_idle("worker")?;
    for arguments in [
        &["processor", "pause", "worker"][..],
        &["processor", "delete", "worker"],
        &["topic", "delete", "out"],
    ] {
        let output = host.command(arguments).output()?;
        ensure!(output.status.success(), "{output:?}");
    }
    ensure!(host.stop()?.success(), "it stops in order");
    let text = fs::read_to_string(&log)?;
    let mut rest = text.as_str();
    for part in [
        env!("CARGO_PKG_VERSION"),
        "topic created",
        "module uploaded",
        "processor deployed",
        "processor paused",
        "processor deleted",
        "topic deleted",
        "stop",
    ] {
        let at = rest
            .find(part)
            .with_context(|| format!("no {part:?} where it belongs in {text}"))?;
        rest = &rest[at..];
    }
    let by = |line: &str| line.contains("by=");
    ensure!(text.lines().filter(|line| by(line)).count() >= 6, "{text}");
    ensure!(!text.contains("secret"), "{text}");
    // Two hundred messages are not worth log lines of their own.
    ensure!(text.lines().count() < 60, "{text}");
    Ok(())
}
