//! What clients, an unread log and a closed terminal may do to a host: nothing. On the real binary.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use millrace_tests::{Client, Host, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::{MILLRACE, host};

/// A host started by a special command; dropping it kills it.
struct Started {
    child: Child,
    client: Client,
    address: String,
    _directory: tempfile::TempDir,
}

impl Started {
    fn of(how: impl FnOnce(&mut Command)) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut command = Command::new(MILLRACE);
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(directory.path().join("data"))
            .stdout(Stdio::piped());
        how(&mut command);
        let mut child = command.spawn()?;
        let mut out = child.stdout.take().context("no output")?;
        let mut line = Vec::new();
        let mut byte = [0; 1];
        while out.read(&mut byte)? == 1 && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        let line = String::from_utf8(line)?;
        let url = line.rsplit(' ').next().unwrap_or_default();
        Ok(Self {
            child,
            client: Client::new(url),
            address: url.trim_start_matches("http://").to_owned(),
            _directory: directory,
        })
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    fn exit_code(&mut self) -> Result<Option<i32>> {
        let status = wait_for("the host to end", || Ok(self.child.try_wait()?))?;
        Ok(status.code())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_hangup_stops_the_host_in_order_and_a_request_under_way_is_answered() -> Result<()> {
    let takes = Command::new("env")
        .args(["--default-signal=HUP", "true"])
        .output();
    if !takes.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no `env` here that lets a command heed a signal");
        return Ok(());
    }
    let mut host = Started::of(|command| {
        // The test runner may ignore the signal, as under nohup, and its child processes would
        // inherit that.
        let mut heeding = Command::new("env");
        heeding.args(["--default-signal=HUP", MILLRACE]);
        heeding.args(command.get_args().map(ToOwned::to_owned));
        heeding.stdout(Stdio::piped()).stderr(Stdio::null());
        *command = heeding;
    })?;
    host.client.topic("t", 1)?;
    let mut stream = TcpStream::connect(&host.address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let head = "POST /v1/topics/t/messages HTTP/1.1\r\nhost: localhost\r\ncontent-type: text/plain\r\ncontent-length: 6\r\nexpect: 100-continue\r\n\r\n";
    stream.write_all(head.as_bytes())?;
    // The host asks for the body, so the request is under way.
    let mut goes_on = [0; b"HTTP/1.1 100 Continue\r\n\r\n".len()];
    stream.read_exact(&mut goes_on)?;
    ensure!(goes_on.starts_with(b"HTTP/1.1 100"), "{goes_on:?}");
    stream.write_all(b"abc")?;
    host.signal(Signal::HUP)?;
    std::thread::sleep(Duration::from_millis(200));
    stream.write_all(b"def")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(host.exit_code()?, Some(0));
    Ok(())
}

#[test]
fn a_hangup_that_was_ignored_at_the_start_stays_ignored() -> Result<()> {
    let host = Started::of(|command| {
        // Like nohup: a shell ignores the signal and is replaced by the host in the same process.
        let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        let mut shell = Command::new("sh");
        shell
            .args(["-c", "trap '' HUP; exec \"$0\" \"$@\"", MILLRACE])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        *command = shell;
    })?;
    host.signal(Signal::HUP)?;
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(50));
        host.client.get("/health/ready")?.ok()?;
    }
    Ok(())
}

/// A host with a very detailed log, which goes to a pipe.
fn logging_into(pipe: std::io::PipeWriter) -> Result<Started> {
    Started::of(|command| {
        command
            .env("MILLRACE_LOG_FILTER", "trace")
            .stderr(Stdio::from(pipe));
    })
}

fn works(host: &Started, requests: usize) -> Result<()> {
    for number in 0..requests {
        host.client.get("/health/ready")?.ok()?;
        host.client.produce("t", &[json!({"value": number})])?;
        // A refused change writes a log line.
        host.client.delete("/v1/topics/none")?;
    }
    Ok(())
}

#[test]
fn a_log_whose_reader_takes_nothing_keeps_nobody_waiting() -> Result<()> {
    /// How much a pipe holds while it is not read.
    const PIPE_BYTES: usize = 64 << 10;
    let (reader, mut writer) = std::io::pipe()?;
    writer.write_all(&[b'x'; PIPE_BYTES])?;
    let mut host = logging_into(writer)?;
    host.client.topic("t", 1)?;
    works(&host, 20)?;
    host.signal(Signal::TERM)?;
    assert_eq!(host.exit_code()?, Some(0));
    drop(reader);
    Ok(())
}

#[test]
fn a_log_whose_reader_has_gone_ends_nothing() -> Result<()> {
    let (reader, writer) = std::io::pipe()?;
    let mut host = logging_into(writer)?;
    host.client.topic("t", 1)?;
    drop(reader);
    works(&host, 20)?;
    wait_for("lines to be lost", || {
        works(&host, 1)?;
        let lost = host.client.metric("millrace_log_lines_lost_total");
        Ok(lost.ok().filter(|&lost| lost > 0.0))
    })?;
    let count = host.client.count("t")?;
    assert!(count >= 20);
    host.signal(Signal::TERM)?;
    assert_eq!(host.exit_code()?, Some(0));
    Ok(())
}

#[test]
fn a_command_whose_reader_goes_away_ends_quietly() -> Result<()> {
    let host = host()?;
    let client = host.client();
    client.topic("t", 1)?;
    let messages: Vec<Value> = (0..5_000)
        .map(|n| json!({"value": format!("{n:0>100}")}))
        .collect();
    client.produce("t", &messages)?;
    for arguments in [&["consume", "t"][..], &["consume", "t", "--follow"]] {
        let mut child = host
            .command(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        drop(child.stdout.take());
        let status = wait_for("the command to end", || Ok(child.try_wait()?))?;
        let mut said = String::new();
        child
            .stderr
            .take()
            .context("no stderr")?
            .read_to_string(&mut said)?;
        assert_eq!((status.code(), said.as_str()), (Some(0), ""));
    }
    Ok(())
}

#[test]
fn clients_cannot_take_the_files_that_the_engine_needs() -> Result<()> {
    const FILES: u64 = 512;
    let mut host = Started::of(|command| {
        limited(command, FILES);
    })?;
    host.client.topic("t", 16)?;
    let mut silent = Vec::new();
    for _ in 0..2 * FILES {
        silent.push(TcpStream::connect(&host.address)?);
    }
    for _ in 0..20 {
        let value = "x".repeat(1 << 20);
        let sent = host
            .client
            .post("/v1/topics/t/messages", "text/plain", value.as_bytes())?;
        assert_eq!(sent.status, 200);
    }
    let open = fs::read_dir(format!("/proc/{}/fd", host.child.id()))?.count() as u64;
    ensure!(open < FILES - 32, "{open} of {FILES} files are open");
    drop(silent);
    host.client.get("/health/ready")?.ok()?;
    host.signal(Signal::TERM)?;
    assert_eq!(host.exit_code()?, Some(0));
    Ok(())
}

/// Makes the command run under a shell that sets the limit first.
fn limited(command: &mut Command, files: u64) {
    let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let files = files.to_string();
    let mut shell = Command::new("sh");
    shell
        .args([
            "-c",
            "ulimit -n \"$1\"; shift; exec \"$@\"",
            "sh",
            &files,
            MILLRACE,
        ])
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    *command = shell;
}

/// The median and the 99th percentile of this many health requests over new connections.
fn health(host: &Host, times: usize) -> Result<(Duration, Duration)> {
    let mut took = Vec::new();
    for _ in 0..times {
        let began = Instant::now();
        let reply = Client::new(host.url()).get("/health/ready")?;
        took.push(began.elapsed());
        assert_eq!(reply.status, 200);
    }
    took.sort();
    Ok((took[times / 2], took[times * 99 / 100]))
}

#[test]
fn health_answers_at_once_while_every_connection_waits_or_sends() -> Result<()> {
    // More connections than the bound, all of them busy; the bound is explicit, so that it does not
    // depend on the limit of open files here.
    let host = Host::start_with(MILLRACE, &["--connections-max", "400"])?;
    host.client().topic("t", 32)?;
    let (_, idle) = health(&host, 200)?;
    let address = host.url().trim_start_matches("http://").to_owned();
    let mut busy = Vec::new();
    for number in 0..600 {
        let mut stream = TcpStream::connect(&address)?;
        let request = match number % 2 {
            0 => format!(
                "GET /v1/topics/t/partitions/{}/messages?from=latest&wait_ms=30000 HTTP/1.1\r\nhost: localhost\r\n\r\n",
                number % 32
            ),
            _ => "POST /v1/topics/t/messages HTTP/1.1\r\nhost: localhost\r\ncontent-type: text/plain\r\ncontent-length: 9\r\n\r\nx".to_owned(),
        };
        stream.write_all(request.as_bytes())?;
        busy.push(stream);
    }
    wait_for("all connections to be at work", || {
        // While connections beyond the bound are refused, the reserve may be full for a moment.
        let busy = host.client().metric("millrace_connections").ok();
        Ok(busy.filter(|&busy| busy >= 400.0))
    })?;
    let (median, p99) = health(&host, 200)?;
    println!(
        "health with every connection at work: p50 {median:?}, p99 {p99:?}; on an idle host p99 {idle:?}"
    );
    ensure!(
        p99 <= Duration::from_millis(50) + 20 * idle,
        "p99 {p99:?}, idle {idle:?}"
    );
    drop(busy);
    Ok(())
}

#[test]
fn followers_of_many_partitions_take_a_connection_each() -> Result<()> {
    let host = host()?;
    let client = host.client();
    client.topic("t", 200)?;
    let mut followers = Vec::new();
    for _ in 0..3 {
        let follower = host
            .command(&["consume", "t", "--follow", "--from", "latest", "--max", "1"])
            .stdout(Stdio::piped())
            .spawn()?;
        followers.push(follower);
    }
    wait_for("them to wait", || {
        let waiting = client.metric("millrace_fetches_waiting")?;
        Ok((waiting >= 3.0).then_some(()))
    })?;
    assert_eq!(client.metric("millrace_fetches_waiting")?, 3.0);
    client.produce("t", &[json!({"partition": 137, "value": "x"})])?;
    for follower in followers {
        let output = follower.wait_with_output()?;
        assert_eq!(String::from_utf8(output.stdout)?, "137/0\t-\tx\n");
    }
    Ok(())
}
