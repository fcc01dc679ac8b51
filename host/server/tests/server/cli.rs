//! The built binary: what it prints, where, and with which exit code.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Output, Stdio};

use crate::support::{TestHost, program};
use serde_json::Value;

pub(crate) fn millrace(arguments: &[&str]) -> Command {
    let mut command = program();
    command.args(arguments);
    command
}

pub(crate) fn ask(host: &TestHost, arguments: &[&str]) -> Output {
    let url = host.url();
    let output = millrace(arguments).env("MILLRACE_HOST", url).output();
    output.expect("the binary runs")
}

pub(crate) fn out(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn failed(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_topic_is_made_filled_and_read_from_the_command_line() {
    let host = TestHost::start();
    out(&ask(
        &host,
        &["topic", "create", "orders", "--partitions", "2"],
    ));
    let text = out(&ask(&host, &["topic", "list"]));
    assert!(text.contains("TOPIC") && text.contains("orders"), "{text}");
    let produced = ask(
        &host,
        &[
            "produce",
            "orders",
            "--key",
            "k",
            "--header",
            "a=1",
            "--partition",
            "1",
            "hello",
            "world",
        ],
    );
    assert_eq!(out(&produced), "2 messages in 1 commit\n");
    let text = out(&ask(&host, &["consume", "orders"]));
    assert_eq!(text, "1/0\tk\thello\n1/1\tk\tworld\n");
    let text = out(&ask(
        &host,
        &["consume", "orders", "--json", "--from", "1", "--max", "1"],
    ));
    let message: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(
        (&message["value"], &message["headers"]["a"]),
        (&"world".into(), &"1".into())
    );
    let shown = out(&ask(&host, &["topic", "show", "orders", "--json"]));
    assert_eq!(
        serde_json::from_str::<Value>(&shown).expect("JSON")["ends"][1]["end"],
        2
    );
    out(&ask(&host, &["topic", "delete", "orders"]));
    failed(&ask(&host, &["topic", "show", "orders"]), 3);
}

#[test]
fn lines_come_from_standard_input_in_chunks_and_go_to_a_follower() {
    let host = TestHost::start().with_topic("orders", 1);
    let mut child = millrace(&["produce", "orders", "--file", "-", "--host", &host.url()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    for number in 0..12_000 {
        writeln!(stdin, "line {number}").expect("written");
    }
    drop(stdin);
    let told = out(&child.wait_with_output().expect("an end"));
    let commits = told.strip_prefix("12000 messages in ");
    let commits = commits.and_then(|rest| rest.strip_suffix(" commits\n"));
    // More than that if the writer had to wait.
    let commits: u32 = commits.and_then(|count| count.parse().ok()).expect(&told);
    assert!(commits >= 3, "{told}");
    let followed = ask(
        &host,
        &[
            "consume", "orders", "--follow", "--from", "11999", "--max", "1",
        ],
    );
    assert_eq!(out(&followed), "0/11999\t-\tline 11999\n");

    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("messages.ndjson");
    std::fs::write(&file, "{\"value\":\"a\"}\n{\"vlaue\":\"b\"}\n").expect("written");
    let file = file.to_str().expect("a path");
    let told = failed(
        &ask(&host, &["produce", "orders", "--ndjson", "--file", file]),
        4,
    );
    assert!(
        told.contains("line 2: ") && told.contains("did you mean `value`?"),
        "{told}"
    );
}

#[test]
fn exit_codes_tell_kinds_of_failure_apart() {
    let host = TestHost::start();
    failed(&millrace(&["topic"]).output().expect("runs"), 2);
    failed(
        &millrace(&["topic", "show", "a b"]).output().expect("runs"),
        2,
    );
    failed(
        &millrace(&["serve", "--listen", "0.0.0.0:0"])
            .output()
            .expect("runs"),
        2,
    );
    failed(&ask(&host, &["produce", "nothing", "x"]), 3);
    failed(
        &ask(&host, &["topic", "create", "x", "--partitions", "0"]),
        4,
    );
    let told = failed(
        &millrace(&["topic", "list", "--host", "http://127.0.0.1:1"])
            .output()
            .expect("runs"),
        5,
    );
    assert!(
        told.contains("millrace serve") && told.contains("--host"),
        "{told}"
    );
    let json = failed(&ask(&host, &["topic", "show", "x", "--json"]), 3);
    assert_eq!(
        serde_json::from_str::<Value>(&json).expect("JSON")["error"]["code"],
        "unknown-topic"
    );
    failed(
        &millrace(&["topic", "list", "--host", "ftp://x"])
            .output()
            .expect("runs"),
        2,
    );
}

#[test]
fn bytes_that_are_no_component_are_refused_on_the_command_line() {
    let host = TestHost::start();
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("no.wasm");
    std::fs::write(&file, "no").expect("written");
    let told = failed(
        &ask(&host, &["module", "push", file.to_str().expect("a path")]),
        4,
    );
    assert!(told.contains("wasm32-wasip2"), "{told}");
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let host = TestHost::start().with_topic("orders", 1);
    let body = "x".repeat(200);
    let lines: String = (0..20_000)
        .map(|_| format!("{{\"value\":\"{body}\"}}\n"))
        .collect();
    host.call(
        "POST",
        "/v1/topics/orders/messages",
        &[("content-type", "application/x-ndjson")],
        lines,
    );
    let mut child = millrace(&["consume", "orders", "--host", &host.url()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("an end");
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
}

pub(crate) struct Served {
    child: Child,
    pub(crate) url: String,
}

fn serve(arguments: &[&str]) -> Served {
    let quiet = [&["--log-filter", "warn"], arguments].concat();
    serve_into(Stdio::inherit(), &quiet)
}

/// A served host, with a place for its log.
pub(crate) fn serve_into(log: Stdio, arguments: &[&str]) -> Served {
    let mut child = millrace(&["serve", "--listen", "127.0.0.1:0"])
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .expect("the binary runs");
    let mut line = String::new();
    let stdout = child.stdout.take().expect("a pipe");
    BufReader::new(stdout).read_line(&mut line).expect("a line");
    let url = line
        .trim()
        .strip_prefix("millrace is ready at ")
        .expect("the first line says where");
    Served {
        url: url.to_owned(),
        child,
    }
}

impl Served {
    pub(crate) fn stop(mut self) -> i32 {
        let id = self.child.id().to_string();
        let sent = Command::new("kill")
            .args(["-TERM", &id])
            .status()
            .expect("kill runs");
        assert!(sent.success());
        self.child.wait().expect("an end").code().expect("a code")
    }
}

#[test]
fn a_served_host_says_where_it_is_and_stops_when_told() {
    let served = serve(&["--engine", "memory"]);
    let listed = millrace(&["topic", "list", "--host", &served.url])
        .output()
        .expect("runs");
    assert!(out(&listed).contains("there are no topics yet"));
    assert_eq!(served.stop(), 0);
}

#[test]
fn what_was_kept_is_there_after_a_restart_and_the_directory_has_one_owner() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().to_str().expect("a path");
    let served = serve(&["--data-dir", path]);
    let ask = |url: &str, arguments: &[&str]| {
        out(&millrace(arguments)
            .args(["--host", url])
            .output()
            .expect("runs"))
    };
    ask(&served.url, &["topic", "create", "orders"]);
    ask(&served.url, &["produce", "orders", "kept"]);
    let second = millrace(&["serve", "--listen", "127.0.0.1:0", "--data-dir", path])
        .output()
        .expect("runs");
    assert!(failed(&second, 6).contains("another"), "{second:?}");
    assert_eq!(served.stop(), 0);

    let served = serve(&["--data-dir", path]);
    assert_eq!(ask(&served.url, &["consume", "orders"]), "0/0\t-\tkept\n");
    assert_eq!(served.stop(), 0);
}

#[test]
fn what_is_no_file_is_named_and_not_blamed_on_the_host() {
    let host = TestHost::start().with_topic("orders", 1);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().to_str().expect("a path");
    let text = failed(&ask(&host, &["module", "push", path]), 2);
    assert!(text.contains(path), "{text}");
    failed(&ask(&host, &["module", "push", "/dev/zero"]), 2);
    let text = failed(&ask(&host, &["produce", "orders", "--file", path]), 2);
    assert!(text.contains(path), "{text}");
    failed(&ask(&host, &["produce", "orders", "--ndjson", "x"]), 2);
    failed(&ask(&host, &["bench", "--durability", "forever"]), 2);
}

#[test]
fn an_empty_file_is_answered_in_json_too() {
    let host = TestHost::start().with_topic("orders", 1);
    let arguments = ["produce", "orders", "--file", "/dev/null", "--json"];
    let text = out(&ask(&host, &arguments));
    assert_eq!(text, "{\"count\":0,\"placed\":[]}\n");
}

#[test]
fn no_command_at_all_shows_the_help() {
    let text = failed(&millrace(&[]).output().expect("the binary runs"), 2);
    assert!(text.starts_with("A message broker"), "{text}");
    assert!(
        text.contains("Exit codes") && !text.contains("compile-module"),
        "{text}"
    );
}

#[test]
fn dead_letters_are_named_or_filtered_or_all_meant_and_not_two_of_these() {
    let place = "in.p.dlq/0/1";
    for contradiction in [
        &[place, "--from", place][..],
        &[place, "--class", "late"],
        &[place, "--limit", "3"],
        &[place, "--all"],
        &["--all", "--class", "late"],
        &["--all", "--since", "2h"],
    ] {
        let arguments = [&["dlq", "redrive", "p"], contradiction].concat();
        let refused = millrace(&arguments).output().expect("the binary runs");
        let text = failed(&refused, 2);
        assert!(text.contains("cannot be used with"), "{text}");
    }
}
