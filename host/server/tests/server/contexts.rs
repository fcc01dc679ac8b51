//! Contexts: what `millrace login` keeps, and which host and token commands use.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Output, Stdio};

use serde_json::{Value, json};

use crate::access::{Guarded, secret_of};
use crate::cli::out;
use crate::support::{TestHost, program};

/// A user with contexts of their own.
struct User {
    directory: tempfile::TempDir,
}

impl User {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        Self { directory }
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("millrace/contexts.toml")
    }

    fn kept(&self) -> String {
        std::fs::read_to_string(self.file()).unwrap_or_default()
    }

    /// A command with this at standard input, and these variables.
    fn with(&self, words: &[&str], input: &str, variables: &[(&str, &str)]) -> Output {
        let mut command = program();
        command
            .args(words)
            .current_dir(self.directory.path())
            .env(
                "MILLRACE_CONFIG_DIR",
                self.directory.path().join("millrace"),
            )
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary runs");
        // It may end before it has read everything.
        let _ = child
            .stdin
            .take()
            .expect("an input")
            .write_all(input.as_bytes());
        child.wait_with_output().expect("it ends")
    }

    fn run(&self, words: &[&str]) -> Output {
        self.with(words, "", &[])
    }

    fn login(&self, name: &str, host: &TestHost, token: &str) -> Output {
        let words = ["login", "--context", name, "--host", &host.url()];
        self.with(&words, token, &[])
    }

    /// Who a command is to its host.
    fn who(&self, words: &[&str]) -> Value {
        let all = [&["access", "self", "--json"], words].concat();
        serde_json::from_str(&out(&self.run(&all))).expect("JSON")
    }
}

fn refused(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn who_has_logged_in_need_not_say_the_host_and_the_token_again() {
    let (guarded, user) = (Guarded::start().with_topic("orders"), User::new());
    let told = out(&user.login("prod", &guarded.host, &format!("{}\n", guarded.admin)));
    assert!(told.contains("admin") && told.contains("prod"), "{told}");
    let listed = out(&user.run(&["topic", "list"]));
    assert!(listed.contains("orders"), "{listed}");
    assert!(user.kept().contains(&guarded.admin));
    let mode = |path: PathBuf| {
        let metadata = std::fs::metadata(path).expect("it is there");
        metadata.permissions().mode() & 0o777
    };
    assert_eq!(mode(user.file()), 0o600);
    assert_eq!(mode(user.directory.path().join("millrace")), 0o700);
    let secret = secret_of(&guarded.admin);
    for words in [
        &["context", "list"][..],
        &["context", "list", "--json"],
        &["context", "show"],
        &["context", "show", "prod", "--json"],
        &["context", "use", "prod", "--json"],
    ] {
        let shown = out(&user.run(words));
        assert!(shown.contains(&guarded.host.url()), "{shown}");
        assert!(!shown.contains(secret), "{words:?}: {shown}");
    }
}

#[test]
fn what_a_host_refuses_is_not_kept() {
    let (guarded, user) = (Guarded::start(), User::new());
    let wrong = "mr_aaaaaaaaaa_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    for token in [wrong, "something", ""] {
        let said = refused(&user.login("prod", &guarded.host, token), 4);
        assert!(!said.contains("AAAA"), "{said}");
        assert_eq!(user.kept(), "", "{token}");
    }
    let nobody = user.with(&["login", "--host", "http://127.0.0.1:1"], wrong, &[]);
    refused(&nobody, 5);
    let open = TestHost::start();
    refused(&user.login("open", &open, "something"), 4);
    assert_eq!(user.kept(), "");
    let nameless = user.with(&["login", "--context", "new"], wrong, &[]);
    let said = refused(&nameless, 2);
    assert!(said.contains("--host"), "{said}");
}

#[test]
fn a_host_that_asks_for_nothing_needs_no_token_and_names_its_context() {
    let (open, user) = (TestHost::start(), User::new());
    let url = open.url();
    out(&user.run(&["login", "--host", &url]));
    let name = format!("127.0.0.1-{}", open.address.port());
    let shown: Value =
        serde_json::from_str(&out(&user.run(&["context", "show", "--json"]))).expect("JSON");
    let expected =
        json!({"name": name, "host": url, "ca": null, "has_token": false, "current": true});
    assert_eq!(shown, expected);
    assert_eq!(user.who(&[])["everything"], true);
}

#[test]
fn flags_go_before_variables_and_those_before_the_context() {
    let user = User::new();
    let [one, other, third] =
        ["one", "other", "third"].map(|topic| Guarded::start().with_topic(topic));
    out(&user.login("other", &other.host, &other.admin));
    out(&user.login("one", &one.host, &one.admin));
    let url_of = |guarded: &Guarded| guarded.host.url();
    // Each host has one topic.
    let asked = |words: &[&str], variables: &[(&str, &str)]| {
        let all = [&["topic", "list", "--json"], words].concat();
        let asked = user.with(&all, "", variables);
        match asked.status.success() {
            true => Ok(serde_json::from_slice::<Value>(&asked.stdout).expect("JSON")),
            false => Err(String::from_utf8_lossy(&asked.stderr).into_owned()),
        }
    };
    let is_at = |topic: &str, words: &[&str], variables: &[(&str, &str)]| {
        let answer = asked(words, variables).expect("topics");
        let mut topics = answer["topics"].as_array().expect("a list").iter();
        let is_there = topics.any(|listed| listed["name"] == topic);
        assert!(is_there, "{words:?} {variables:?}: {answer}");
    };
    is_at("one", &[], &[]);
    is_at("other", &[], &[("MILLRACE_CONTEXT", "other")]);
    is_at(
        "one",
        &["--context", "one"],
        &[("MILLRACE_CONTEXT", "other")],
    );
    is_at(
        "one",
        &["--context", "one"],
        &[("MILLRACE_HOST", &url_of(&third))],
    );
    // The token of one host is sent to no other.
    let said = asked(&[], &[("MILLRACE_HOST", &url_of(&third))]).expect_err("no token");
    assert!(said.contains("credentials-missing"), "{said}");
    let with_token = [
        ("MILLRACE_HOST", url_of(&third)),
        ("MILLRACE_TOKEN", third.admin.clone()),
    ];
    let with_token = with_token
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    is_at("third", &[], &with_token);
    is_at("one", &["--host", &url_of(&one)], &[]);
    let both = user.run(&[
        "topic",
        "list",
        "--context",
        "one",
        "--host",
        &url_of(&third),
    ]);
    refused(&both, 2);
    refused(&user.run(&["topic", "list", "--context", "none"]), 3);
    let said = asked(&[], &[("MILLRACE_TOKEN", "mr_wrong")]).expect_err("another token");
    assert!(said.contains("credentials-refused"), "{said}");
}

#[test]
fn contexts_are_chosen_removed_and_logged_out() {
    let (one, other, user) = (Guarded::start(), Guarded::start(), User::new());
    out(&user.login("one", &one.host, &one.admin));
    out(&user.login("other", &other.host, &other.admin));
    out(&user.run(&["context", "use", "one"]));
    let listed = out(&user.run(&["context", "list"]));
    let line = listed
        .lines()
        .find(|line| line.contains('*'))
        .expect("a mark");
    assert!(
        line.contains(&one.host.url()) && listed.contains("other"),
        "{listed}"
    );
    out(&user.run(&["logout"]));
    assert_eq!(user.who(&[])["principal"], Value::Null);
    assert!(!user.kept().contains(&one.admin) && user.kept().contains(&other.admin));
    // Another login to the same host keeps the name.
    let again = user.with(&["login"], &one.admin, &[("MILLRACE_TOKEN", "mr_other")]);
    out(&again);
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(
        said.contains("MILLRACE_TOKEN") && !said.contains("mr_other"),
        "{said}"
    );
    assert_eq!(user.who(&[])["principal"], "admin");
    out(&user.run(&["context", "remove", "one"]));
    refused(&user.run(&["context", "show"]), 3);
    for words in [
        ["context", "use", "one"],
        ["context", "remove", "one"],
        ["context", "show", "one"],
    ] {
        let said = refused(&user.run(&words), 3);
        assert!(said.contains("one"), "{said}");
    }
    refused(&user.run(&["logout", "one"]), 3);
    out(&user.run(&["logout", "other"]));
    assert!(!user.kept().contains("mr_"), "{}", user.kept());
}

#[test]
fn a_broken_file_is_named_with_its_line_and_one_that_others_can_read_is_warned_of() {
    let (guarded, user) = (Guarded::start(), User::new());
    let to = |mode: u32| {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(user.file(), permissions).expect("changed");
    };
    out(&user.login("prod", &guarded.host, &guarded.admin));
    to(0o640);
    let listed = user.run(&["topic", "list"]);
    out(&listed);
    let said = String::from_utf8_lossy(&listed.stderr).into_owned();
    assert!(
        said.contains("chmod 600") && said.contains("contexts.toml"),
        "{said}"
    );
    to(0o600);
    assert_eq!(user.run(&["topic", "list"]).stderr, b"");
    let broken = user.kept().replace("token = \"", "token = ");
    std::fs::write(user.file(), &broken).expect("written");
    let lines = broken.lines().take_while(|line| !line.starts_with("token"));
    let line = format!("line {} ", lines.count() + 1);
    for words in [&["topic", "list"][..], &["context", "list"], &["logout"]] {
        let said = refused(&user.run(words), 2);
        assert!(
            said.contains(&line) && said.contains("contexts.toml"),
            "{said}"
        );
        assert!(!said.contains("mr_"), "{said}");
    }
    assert_eq!(
        user.kept(),
        broken,
        "nothing is replaced that cannot be read"
    );
}

#[test]
fn a_token_in_a_file_is_kept_and_so_is_where_certificates_are() {
    let (guarded, user) = (Guarded::start(), User::new());
    let file = |name: &str| user.directory.path().join(name);
    std::fs::write(file("token"), &guarded.admin).expect("written");
    let url = guarded.host.url();
    let words = [
        "login",
        "--context",
        "prod",
        "--host",
        &url,
        "--token-file",
        "token",
    ];
    out(&user.with(&words, "mr_not_this", &[]));
    assert!(user.kept().contains(&guarded.admin) && !user.kept().contains("ca ="));
    let no_certificates = [&words[..], &["--ca", "token"]].concat();
    refused(&user.run(&no_certificates), 2);
    let pem = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    std::fs::write(file("ca.crt"), pem).expect("written");
    out(&user.run(&[&words[..], &["--ca", "ca.crt"]].concat()));
    let kept = user.kept();
    let absolute = file("ca.crt").display().to_string();
    assert!(kept.contains(&absolute), "{kept}");
}
