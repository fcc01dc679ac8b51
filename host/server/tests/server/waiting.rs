//! Commands that wait: for lines of a pipe, for a host that is not there yet or restarts, and until
//! they are interrupted.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::cli::{ask, millrace, out};
use crate::support::TestHost;

/// An address without a listener.
fn free_address() -> String {
    let held = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    held.local_addr().expect("an address").to_string()
}

/// A host as a separate process; it prints its first line when it is ready.
fn serve(address: &str, data: &str) -> Child {
    let mut host = millrace(&["serve", "--listen", address, "--data-dir", data])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary runs");
    let mut said = BufReader::new(host.stdout.take().expect("a pipe"));
    let mut line = String::new();
    said.read_line(&mut line).expect("a line");
    assert!(line.contains(address), "{line}");
    host
}

fn end(mut host: Child) {
    host.kill().expect("killed");
    host.wait().expect("an end");
}

/// Produces from a pipe that stays open; returns the command and the writing end.
fn piping(host: &TestHost, more: &[&str]) -> (Child, std::process::ChildStdin) {
    let url = host.url();
    let arguments = [&["produce", "orders", "--file", "-", "--host", &url], more].concat();
    let mut child = millrace(&arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let stdin = child.stdin.take().expect("a pipe");
    (child, stdin)
}

/// Waits until the topic holds `count` messages.
fn holds(host: &TestHost, count: u64) {
    for _ in 0..3_000 {
        if host.get("/v1/topics/orders").json()["ends"][0]["end"] == count {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{}", host.get("/v1/topics/orders").json());
}

fn interrupt(child: &Child, signal: &str) {
    let pid = child.id().to_string();
    let status = Command::new("kill").args([signal, &pid]).status();
    assert!(status.expect("kill runs").success());
}

#[test]
fn lines_of_an_open_pipe_are_sent_as_they_come_and_an_interrupt_says_what_was() {
    for signal in ["-INT", "-TERM"] {
        let host = TestHost::start().with_topic("orders", 1);
        let (child, mut stdin) = piping(&host, &[]);
        stdin.write_all(b"one\n").expect("written");
        holds(&host, 1);
        stdin.write_all(b"two\nthree\n").expect("written");
        holds(&host, 3);
        interrupt(&child, signal);
        let ended = child.wait_with_output().expect("an end");
        assert_eq!(ended.status.code(), Some(130), "{ended:?}");
        let told = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(
            told.contains("3 messages were sent, all of the 3 lines"),
            "{told}"
        );
        drop(stdin);
    }
}

#[test]
fn an_interrupt_under_a_key_of_the_users_says_what_was_not_sent() {
    let host = TestHost::start().with_topic("orders", 1);
    let (child, mut stdin) = piping(&host, &["--idempotency-key", "imp"]);
    for number in 0..5_003 {
        writeln!(stdin, "line {number}").expect("written");
    }
    holds(&host, 5_000);
    // The last three will be read within a moment.
    std::thread::sleep(Duration::from_millis(500));
    interrupt(&child, "-INT");
    let ended = child.wait_with_output().expect("an end");
    assert_eq!(ended.status.code(), Some(130), "{ended:?}");
    let told = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(
        told.contains("lines 5001 to 5003 were read and not sent"),
        "{told}"
    );
    holds(&host, 5_000);
    drop(stdin);
}

#[test]
fn a_repeat_under_a_key_says_that_nothing_was_added() {
    let host = TestHost::start().with_topic("orders", 1);
    let arguments = ["produce", "orders", "--idempotency-key", "imp", "a", "b"];
    assert_eq!(out(&ask(&host, &arguments)), "2 messages in 1 commit\n");
    let again = ask(&host, &arguments);
    assert_eq!(
        out(&again),
        "repeated: nothing was added; 2 messages were already there\n"
    );
    holds(&host, 2);
}

#[test]
fn a_command_goes_on_asking_for_a_host_that_comes_later() {
    let address = free_address();
    let url = format!("http://{address}");
    let mut waiting = millrace(&["topic", "list", "--host", &url, "--retry-for", "60"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut notes = BufReader::new(waiting.stderr.take().expect("a pipe"));
    let mut note = String::new();
    notes.read_line(&mut note).expect("a line");
    assert!(note.contains("trying again for 60 s"), "{note}");
    let directory = tempfile::tempdir().expect("a directory");
    let data = directory.path().to_str().expect("a path");
    let host = serve(&address, data);
    let ended = waiting.wait_with_output().expect("an end");
    end(host);
    assert!(out(&ended).contains("there are no topics"), "{ended:?}");
    let began = Instant::now();
    let nobody = millrace(&["topic", "list", "--host", &url]).output();
    assert_eq!(nobody.expect("runs").status.code(), Some(5));
    assert!(began.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_follower_goes_on_after_its_host_was_killed_and_started_again() {
    let (address, directory) = (free_address(), tempfile::tempdir().expect("a directory"));
    let data = directory.path().to_str().expect("a path");
    let url = format!("http://{address}");
    let ask = |arguments: &[&str]| {
        let done = millrace(&[arguments, &["--host", &url]].concat()).output();
        out(&done.expect("the binary runs"));
    };
    let host = serve(&address, data);
    ask(&["topic", "create", "orders"]);
    let mut follower = millrace(&["consume", "orders", "--follow", "--host", &url])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary runs");
    let mut lines = BufReader::new(follower.stdout.take().expect("a pipe")).lines();
    let mut next = || lines.next().expect("a line").expect("text");
    ask(&["produce", "orders", "before"]);
    assert_eq!(next(), "0/0\t-\tbefore");
    end(host);
    std::thread::sleep(Duration::from_millis(300));
    let host = serve(&address, data);
    ask(&["produce", "orders", "after"]);
    assert_eq!(next(), "0/1\t-\tafter");
    follower.kill().expect("killed");
    follower.wait().expect("an end");
    end(host);
}
