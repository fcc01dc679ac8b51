//! The development loop: `new`, `build`, `test` and `dev`, as a developer uses them. Projects are built with the crates that the
//! guests of this repository have downloaded, and share what those have compiled.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use millrace_tests::{Client, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::MILLRACE;

/// Maximum wait for the next event of `millrace dev`.
const EVENT_PATIENCE: Duration = Duration::from_secs(240);

/// A command of the developer in a folder.
fn command(folder: &Path, arguments: &[&str]) -> Command {
    let guests = Path::new(MILLRACE)
        .ancestors()
        .nth(2)
        .map(|target| target.join("guests"));
    let mut command = Command::new(MILLRACE);
    command
        .args(arguments)
        .current_dir(folder)
        .env("MILLRACE_CONFIG_DIR", folder.join("target/no-contexts"))
        .env("CARGO_NET_OFFLINE", "true")
        .env("CARGO_TARGET_DIR", guests.unwrap_or_default());
    // Settings of the build that runs the tests are not those of a project.
    for name in [
        "RUSTFLAGS",
        "CARGO_PROFILE_DEV_OPT_LEVEL",
        "CARGO_INCREMENTAL",
        "MILLRACE_HOST",
    ] {
        command.env_remove(name);
    }
    command
}

fn run(folder: &Path, arguments: &[&str]) -> Result<Output> {
    Ok(command(folder, arguments).output()?)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A new project in Rust.
fn project(folder: &TempDir, name: &str, kind: &str) -> Result<PathBuf> {
    let made = run(
        folder.path(),
        &["new", name, "--lang", "rust", "--kind", kind],
    )?;
    ensure!(made.status.success(), "{}", said(&made));
    let text = String::from_utf8(made.stdout)?;
    ensure!(
        text.contains("millrace test"),
        "it says what comes next: {text}"
    );
    Ok(folder.path().join(name))
}

/// The answer of `millrace test --json`, and whether it passed.
fn tested(project: &Path, more: &[&str]) -> Result<(Value, bool)> {
    let output = run(project, &[&["test", "--json"], more].concat())?;
    let answer = serde_json::from_slice(&output.stdout).with_context(|| said(&output))?;
    Ok((answer, output.status.success()))
}

fn replace(file: &Path, from: &str, to: &str) -> Result<()> {
    let text = std::fs::read_to_string(file)?;
    ensure!(text.contains(from), "{} has no {from:?}", file.display());
    Ok(std::fs::write(file, text.replace(from, to))?)
}

#[test]
fn a_new_processor_passes_its_test_and_what_differs_or_traps_is_told() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let project = project(&folder, "greeter", "processor")?;
    replace(
        &project.join("src/lib.rs"),
        "    let Some(name) = message",
        "    assert!(message.value() != Some(b\"boom\"), \"it went off\");\n    let Some(name) = message",
    )?;
    let (answer, passed) = tested(&project, &[])?;
    ensure!(passed, "{answer}");
    let samples = answer["samples"].as_array().context("samples")?;
    ensure!(
        samples.len() == 2 && samples[0]["compared"] == true,
        "{answer}"
    );
    let first = samples
        .iter()
        .find(|sample| sample["name"] == "first")
        .context("first")?;
    ensure!(first["log"].to_string().contains("Grace is new"), "{first}");
    ensure!(
        first["calls"][0]["memory_bytes"].as_u64() > Some(0),
        "{first}"
    );
    ensure!(
        first["calls"]
            .to_string()
            .contains(r#""key":"Ada","value":2"#),
        "{first}"
    );

    // A failing expectation.
    let expected = project.join("samples/first.expected.ndjson");
    replace(&expected, "hello, Grace", "hi, Grace")?;
    let differing = run(&project, &["test", "--no-build"])?;
    let text = String::from_utf8(differing.stdout.clone())?;
    ensure!(differing.status.code() == Some(1), "{differing:?}");
    ensure!(
        text.contains("hello, Grace") && text.contains("expected \"hi, Grace\""),
        "{text}"
    );
    let updated = run(&project, &["test", "--no-build", "--update"])?;
    ensure!(updated.status.success(), "{}", said(&updated));
    ensure!(
        tested(&project, &["--no-build"])?.1,
        "what happened is expected now"
    );

    // A trap fails the sample, unless it is expected; the messages around it succeed.
    let trap = project.join("samples/trap.ndjson");
    let lines = ["Ada", "boom", "Grace"].map(|value| json!({ "value": value }).to_string());
    std::fs::write(&trap, lines.join("\n"))?;
    let (answer, passed) = tested(&project, &["--no-build", "--sample", "trap"])?;
    let messages = &answer["samples"][0]["messages"];
    let outcomes: Vec<&str> = messages
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|message| message["outcome"].as_str())
        .collect();
    ensure!(!passed && outcomes == ["emit", "trap", "emit"], "{answer}");
    ensure!(
        messages[1]["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("it went off")),
        "{answer}"
    );
    let expected =
        ["emit", "trap", "emit"].map(|outcome| json!({ "outcome": outcome }).to_string());
    std::fs::write(
        project.join("samples/trap.expected.ndjson"),
        expected.join("\n"),
    )?;
    ensure!(
        tested(&project, &["--no-build", "--sample", "trap"])?.1,
        "the trap is expected now"
    );

    // What was built, and what a deployment with it needs.
    let manifest = project.join("millrace.toml");
    replace(&manifest, "kind = \"processor\"", "kind = \"partitioner\"")?;
    let other = run(&project, &["test", "--no-build"])?;
    ensure!(
        said(&other).contains("does not export millrace:broker/partitioner"),
        "{}",
        said(&other)
    );
    Ok(())
}

#[test]
fn a_new_partitioner_and_a_new_error_handler_pass_their_tests() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (name, kind) in [
        ("by-customer", "partitioner"),
        ("patience", "error-handler"),
    ] {
        let project = project(&folder, name, kind)?;
        let (answer, passed) = tested(&project, &[])?;
        ensure!(
            passed && answer["samples"][0]["compared"] == true,
            "{answer}"
        );
        ensure!(
            project.join("build").join(format!("{name}.wasm")).is_file(),
            "{name}"
        );
    }
    Ok(())
}

#[test]
fn a_core_module_of_any_language_becomes_a_component() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let version = include_str!("../../wit/world.wit");
    let version = version
        .split_once("broker@")
        .and_then(|(_, rest)| rest.split_once(';'));
    let version = version.context("a version")?.0;
    // Everything goes to partition 0: the answer is one number for one message.
    let core = |more: &str| {
        format!(
            r#"(module {more}
            (memory (export "memory") 1) (global $next (mut i32) (i32.const 1024))
            (data (i32.const 8) "\10\00\00\00\01\00\00\00\00\00\00\00")
            (func (export "millrace:broker/partitioner@{version}#assign") (param i32) (result i32) i32.const 8)
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
                (global.set $next (i32.and (i32.add (i32.add (global.get $next) (local.get 3)) (i32.const 15)) (i32.const -16)))
                (i32.sub (global.get $next) (i32.and (i32.add (local.get 3) (i32.const 15)) (i32.const -16)))))"#
        )
    };
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text);
    write(
        "millrace.toml",
        "[module]\nname = \"zero\"\nlanguage = \"wat\"\nkind = \"partitioner\"\nimports = [\"log\"]\n[build]\ncommand = [\"true\"]\ncore = \"zero.wat\"\n",
    )?;
    write("zero.wat", &core(""))?;
    std::fs::create_dir(folder.path().join("samples"))?;
    write("samples/one.ndjson", "{\"value\": \"x\"}\n")?;
    write("samples/one.expected.ndjson", "{\"partition\": 0}\n")?;
    let (answer, passed) = tested(folder.path(), &[])?;
    ensure!(passed, "{answer}");
    let shown = run(folder.path(), &["build", "--json"])?;
    let shown: Value = serde_json::from_slice(&shown.stdout).with_context(|| said(&shown))?;
    let types = json!([format!("millrace:broker/types@{version}")]);
    ensure!(
        shown["imports"] == types && shown["bytes"].as_u64() < Some(4_000),
        "{shown}"
    );

    // An import that nothing provides is explained.
    write("zero.wat", &core(r#"(import "env" "helper" (func))"#))?;
    let refused = run(folder.path(), &["build"])?;
    ensure!(
        refused.status.code() == Some(1) && said(&refused).contains("env.helper"),
        "{}",
        said(&refused)
    );
    ensure!(
        said(&refused).contains("link the file"),
        "{}",
        said(&refused)
    );
    Ok(())
}

#[test]
fn what_cannot_be_written_or_built_is_refused_with_what_to_do() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let refused = |arguments: &[&str], code: i32, says: &str| -> Result<()> {
        let output = run(folder.path(), arguments)?;
        let text = said(&output);
        ensure!(
            output.status.code() == Some(code) && text.contains(says),
            "{arguments:?}: {text}"
        );
        Ok(())
    };
    refused(&["new", "Not a Name", "--lang", "rust"], 2, "a-z")?;
    refused(&["new", "x", "--lang", "cobol"], 2, "rust")?;
    refused(
        &["new", "x", "--lang", "rust", "--kind", "sink"],
        2,
        "error-handler, http, partitioner, processor",
    )?;
    std::fs::create_dir(folder.path().join("taken"))?;
    refused(&["new", "taken", "--lang", "rust"], 4, "exists already")?;
    ensure!(
        std::fs::read_dir(folder.path().join("taken"))?
            .next()
            .is_none(),
        "it is left as it was"
    );
    refused(&["test"], 2, "millrace new")?;
    refused(
        &["dev", "--host", "http://127.0.0.1:1"],
        2,
        "does not talk to a host",
    )?;

    let project = project(&folder, "greeter", "processor")?;
    for (arguments, says) in [
        (["dev", "--send", "nosuch"], "there is no sample \"nosuch\""),
        (["dev", "--secrets-dir", "nosuch"], "it is not a directory"),
        (["dev", "--config", "nosuch"], "KEY=VALUE"),
        (
            ["dev", "--grant-http", "https://x/path"],
            "something follows the server",
        ),
    ] {
        let output = run(&project, &arguments)?;
        ensure!(
            !output.status.success() && said(&output).contains(says),
            "{}",
            said(&output)
        );
    }
    let nothing = tempfile::tempdir()?;
    let output = command(&project, &["build"])
        .env("PATH", nothing.path())
        .output()?;
    ensure!(
        output.status.code() == Some(2) && said(&output).contains("apt-get install rustup"),
        "{}",
        said(&output)
    );
    Ok(())
}

/// A running `millrace dev`. Dropping it kills the process.
struct Dev {
    child: Child,
    events: Receiver<Value>,
}

impl Dev {
    fn start(project: &Path, more: &[&str]) -> Result<Self> {
        let mut command = command(project, &[&["dev", "--json"], more].concat());
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().context("it is piped")?;
        let (sender, events) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap_or_default();
                if sender.send(event).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, events })
    }

    /// The next event of this name; others are skipped.
    fn next(&self, name: &str) -> Result<Value> {
        loop {
            let event = self.events.recv_timeout(EVENT_PATIENCE);
            let event = event.with_context(|| format!("while waiting for {name}"))?;
            if event["event"] == name {
                return Ok(event);
            }
        }
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_saved_source_becomes_the_next_revision_and_a_broken_one_changes_nothing() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let project = project(&folder, "live", "processor")?;
    let source = project.join("src/lib.rs");
    let mut dev = Dev::start(&project, &["--config", "greeting=hi"])?;
    let url = dev.next("host")?["url"]
        .as_str()
        .context("a URL")?
        .to_owned();
    let client = Client::new(&url);
    let greeted = |dev: &Dev, name: &str| -> Result<String> {
        client.produce("in", &[json!({ "value": name })])?;
        let output = dev.next("output")?;
        Ok(output["message"]["value"]
            .as_str()
            .unwrap_or_default()
            .to_owned())
    };
    ensure!(dev.next("deployed")?["revision"] == 1);
    ensure!(greeted(&dev, "Ada")? == "hi, Ada");
    replace(&source, "b\", \"", "b\"! \"")?;
    ensure!(dev.next("deployed")?["revision"] == 2);
    ensure!(greeted(&dev, "Ada")? == "hi! Ada");
    replace(&source, "fn process(", "fn process(no longer Rust")?;
    dev.next("not deployed")?;
    ensure!(greeted(&dev, "Grace")? == "hi! Grace");
    client.produce("in", &[json!({ "key": "k", "value": null })])?;
    let letter = dev.next("dead letter")?;
    ensure!(letter["dead_letter"]["class"] == "no-name", "{letter}");
    kill_process(Pid::from_child(&dev.child), Signal::INT)?;
    let status = wait_for("dev to end", || Ok(dev.child.try_wait()?))?;
    ensure!(status.success(), "{status}");
    Ok(())
}
