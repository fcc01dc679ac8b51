//! `doctor --monitoring` against real NATS servers that these tests start. They take the program that `MILLRACE_TEST_NATS` names, or the
//! `nats-server` of the search path, and are skipped with a word if there is none.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// How often a server is asked whether it has started.
const TRIES: u32 = 300;

fn program() -> Option<PathBuf> {
    let given = std::env::var_os("MILLRACE_TEST_NATS").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&path).map(|dir| dir.join("nats-server"));
    given.or_else(|| found.find(|file| file.is_file()))
}

/// A server on free ports; it ends when this is dropped.
struct Nats {
    process: Child,
    clients: String,
    monitoring: String,
    _directory: tempfile::TempDir,
}

impl Nats {
    /// `None`, with a line that says so, if there is no NATS here.
    fn start(jetstream: &str) -> Option<Self> {
        let Some(program) = program() else {
            println!("skipped: there is no nats-server, neither in MILLRACE_TEST_NATS nor in PATH");
            return None;
        };
        let directory = tempfile::tempdir().expect("a directory");
        let dir = directory.path().display();
        let config = format!(
            "server_name: a\nhost: \"127.0.0.1\"\nport: -1\nhttp: \"127.0.0.1:-1\"\nports_file_dir: \"{dir}\"\n\
             jetstream {{ store_dir: \"{dir}/store\", {jetstream} }}\n"
        );
        let file = directory.path().join("nats.conf");
        fs::write(&file, config).expect("written");
        let mut command = Command::new(program);
        command.arg("-c").arg(&file);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().expect("it starts");
        let ports = ports(directory.path());
        let address = |kind: &str| ports[kind][0].as_str().expect("an address").to_owned();
        let clients = address("nats").replace("nats://", "");
        let monitoring = address("monitoring");
        Some(Self {
            process,
            clients,
            monitoring,
            _directory: directory,
        })
    }

    fn make_stream(&self, config: &Value) {
        let body = config.to_string();
        let name = config["name"].as_str().expect("a name");
        let mut socket = TcpStream::connect(&self.clients).expect("it accepts");
        let wait = Some(Duration::from_secs(30));
        socket.set_read_timeout(wait).expect("a socket");
        let asked = format!(
            "CONNECT {{\"verbose\":false}}\r\nSUB inbox 1\r\nPUB $JS.API.STREAM.CREATE.{name} inbox {}\r\n{body}\r\n",
            body.len()
        );
        socket.write_all(asked.as_bytes()).expect("sent");
        let mut told = String::new();
        let mut buffer = [0; 4096];
        while !told.contains("did_create") {
            assert!(!told.contains("\"error\""), "{told}");
            let count = socket.read(&mut buffer).expect("an answer");
            assert!(count > 0, "{told}");
            told.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    }

    fn doctor(&self, more: &[&str]) -> Output {
        doctor(&[&["--monitoring", &self.monitoring], more].concat())
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The file in which the server says what it listens on.
fn ports(directory: &Path) -> Value {
    for _ in 0..TRIES {
        let files = fs::read_dir(directory).expect("a directory").flatten();
        let mut files = files.filter(|file| file.path().extension().is_some_and(|e| e == "ports"));
        let text = files.next().map(|file| fs::read(file.path()));
        if let Some(Ok(text)) = text
            && let Ok(ports) = serde_json::from_slice::<Value>(&text)
        {
            return ports;
        }
        thread::sleep(Duration::from_millis(100));
    }
    panic!("the server does not say where it listens");
}

fn doctor(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
    command.args(["doctor", "--json"]).args(arguments);
    command.output().expect("the binary runs")
}

/// The findings at this exit code: severity and meaning of each.
fn found(output: &Output, code: i32) -> Vec<(String, String)> {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let findings = answer["findings"].as_array().expect("findings");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let both = |finding: &Value| (text(&finding["severity"]), text(&finding["meaning"]));
    findings.iter().map(both).collect()
}

#[track_caller]
fn says(findings: &[(String, String)], severity: &str, words: &str) {
    let is_it = |(found, meaning): &(String, String)| found == severity && meaning.contains(words);
    assert!(
        findings.iter().any(is_it),
        "{severity} {words}: {findings:#?}"
    );
}

#[test]
fn a_server_that_syncs_is_sound_and_the_limits_of_its_streams_are_told() {
    let Some(nats) = Nats::start("sync_interval: always, max_file_store: 1GB") else {
        return;
    };
    let findings = found(&nats.doctor(&[]), 0);
    says(&findings, "ok", "NATS 2.");
    says(
        &findings,
        "ok",
        "always: what is acknowledged is on the disk",
    );
    says(&findings, "ok", "of 1 GiB are used");
    says(&findings, "ok", "is healthy");
    says(&findings, "note", "no such stream");

    nats.make_stream(
        &json!({"name": "millrace", "subjects": ["m.>"], "storage": "file", "num_replicas": 1}),
    );
    let findings = found(&nats.doctor(&[]), 0);
    says(&findings, "note", "1 replicas: the loss of one server");
    says(&findings, "ok", "0 messages");
    nats.make_stream(&json!({
        "name": "limited", "subjects": ["l.>"], "storage": "memory", "num_replicas": 1, "max_age": 3_600_000_000_000_u64,
    }));
    let findings = found(&nats.doctor(&["--stream", "limited"]), 1);
    says(&findings, "fault", "max_age is set");
    says(&findings, "fault", "storage is memory");
}

#[test]
fn a_server_that_answers_before_it_syncs_has_a_fault() {
    let Some(nats) = Nats::start("max_file_store: 1GB") else {
        return;
    };
    let findings = found(&nats.doctor(&[]), 1);
    says(&findings, "fault", "it is 120 s: if the machine stops");
}

#[test]
fn what_is_no_monitoring_port_is_refused_with_a_reason() {
    let output = doctor(&["--monitoring", "127.0.0.1:8222"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    // Nobody listens on the port of a socket that is closed.
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = socket.local_addr().expect("an address");
    drop(socket);
    let output = doctor(&["--monitoring", &format!("http://{address}")]);
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("127.0.0.1:8222"), "{told}");
    let output = doctor(&["--monitoring", "http://127.0.0.1:1", "--repair"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}
