//! The Unix socket: who may do what there, and what becomes of its file.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Output;

use millrace::{Config, Host};

use crate::cli::{millrace, out};
use crate::support::{TestHost, config_in};

fn config_at(directory: &Path) -> Config {
    let mut config = config_in(&directory.join("data"));
    config.access.required = true;
    config.listen.socket = Some(directory.join("mill.sock"));
    config
}

fn host_at(directory: &Path) -> String {
    format!("unix:{}", directory.join("mill.sock").display())
}

fn run(directory: &Path, words: &[&str]) -> Output {
    let host = host_at(directory);
    let words = [words, &["--host", &host]].concat();
    millrace(&words).output().expect("the binary runs")
}

#[test]
fn the_hosts_own_user_administers_at_the_socket_without_a_token() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = directory.path();
    let host = TestHost::with(config_at(at));
    host.get("/v1/topics").refused(401, "credentials-missing");
    out(&run(at, &["topic", "create", "orders"]));
    out(&run(at, &["produce", "orders", "grain"]));
    assert!(out(&run(at, &["consume", "orders", "--from", "earliest"])).contains("grain"));
    let granted = run(at, &["access", "grant", "shop", "producer on topic:orders"]);
    assert!(out(&granted).contains("producer on topic:orders"));
    let said = out(&run(at, &["access", "self"]));
    assert!(said.contains("Unix socket"), "{said}");
    let token = at.join("admin.token");
    std::fs::copy(at.join("data/admin-token"), &token).expect("copied");
    let token = token.display().to_string();
    let said = out(&run(at, &["access", "self", "--token-file", &token]));
    assert!(
        said.contains("admin"),
        "a token counts before the user: {said}"
    );
    let mode = std::fs::metadata(at.join("mill.sock"))
        .expect("a socket")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    host.stop();
    assert!(!at.join("mill.sock").exists(), "it goes with its host");
    let gone = run(at, &["topic", "list"]);
    assert_eq!(gone.status.code(), Some(5), "{gone:?}");
    let said = String::from_utf8_lossy(&gone.stderr).into_owned();
    assert!(said.contains("mill.sock"), "{said}");
}

#[test]
fn another_user_of_the_machine_goes_by_its_identity() {
    use std::os::unix::process::CommandExt as _;
    /// A user that need not exist.
    const OTHER: u32 = 54_321;
    let directory = tempfile::tempdir().expect("a directory");
    let at = directory.path();
    let host = TestHost::with(config_at(at));
    let open = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("opened");
    };
    open(at, 0o755);
    open(&at.join("mill.sock"), 0o666);
    // The binary may lie where another user cannot reach it.
    let binary = at.join("millrace");
    std::fs::copy(env!("CARGO_BIN_EXE_millrace"), &binary).expect("copied");
    let other = |words: &[&str]| {
        std::process::Command::new(&binary)
            .args(words)
            .args(["--host", &host_at(at)])
            .current_dir("/")
            .uid(OTHER)
            .output()
    };
    let refused = match other(&["topic", "list"]) {
        Ok(refused) => refused,
        Err(error) => {
            println!("skipped: this user cannot become another one: {error}");
            return;
        }
    };
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    let identity = format!("uid:{OTHER}");
    assert!(said.contains(&identity), "{said}");
    out(&run(at, &["access", "grant", "ops", "operator"]));
    out(&run(at, &["access", "identity", "add", "ops", &identity]));
    let known = out(&other(&["access", "self"]).expect("the binary runs"));
    assert!(
        known.contains("ops") && known.contains(&identity),
        "{known}"
    );
    out(&other(&["topic", "list"]).expect("the binary runs"));
    let created = other(&["topic", "create", "orders"]).expect("the binary runs");
    assert_eq!(created.status.code(), Some(4), "{created:?}");
    drop(host);
}

#[test]
fn the_socket_of_a_dead_host_is_replaced_and_that_of_a_living_one_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = directory.path();
    drop(UnixListener::bind(at.join("mill.sock")).expect("a socket"));
    let host = TestHost::with(config_at(at));
    out(&run(at, &["topic", "list"]));
    let mut other = config_at(at);
    other.data_dir = at.join("other");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let refused = runtime.block_on(Host::start(other)).err().expect("refused");
    assert!(
        refused.to_string().contains("another process listens"),
        "{refused}"
    );
    out(&run(at, &["topic", "list"]));
    host.stop();
    std::fs::write(at.join("mill.sock"), "notes").expect("written");
    let refused = runtime
        .block_on(Host::start(config_at(at)))
        .err()
        .expect("refused");
    assert!(refused.to_string().contains("is no socket"), "{refused}");
}
