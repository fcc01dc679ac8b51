//! Who may do what: tokens, rules, and what those see who have none.

use std::path::Path;
use std::time::{Duration, Instant};

use millrace::Config;
use serde_json::{Value, json};

use crate::cli::{millrace, out, serve_into};
use crate::support::{Answer, TestHost, config, config_in};

/// A host that asks for tokens, and the token of its first principal.
pub(crate) struct Guarded {
    pub(crate) host: TestHost,
    pub(crate) admin: String,
    _directory: tempfile::TempDir,
}

impl Guarded {
    pub(crate) fn start() -> Self {
        Self::with(|_| {})
    }

    /// With other settings.
    pub(crate) fn with(change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut config = config_in(directory.path());
        config.access.required = true;
        change(&mut config);
        let host = TestHost::with(config);
        let admin = first_token(directory.path());
        Self {
            host,
            admin,
            _directory: directory,
        }
    }

    pub(crate) fn call(&self, token: &str, method: &str, path: &str, body: &Value) -> Answer {
        let line = format!("Bearer {token}");
        let headers = [
            ("authorization", line.as_str()),
            ("content-type", "application/json"),
        ];
        let body = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        self.host.call(method, path, &headers, body)
    }

    pub(crate) fn get(&self, token: &str, path: &str) -> Answer {
        self.call(token, "GET", path, &Value::Null)
    }

    /// A principal with these rules, and a token of it.
    pub(crate) fn principal(&self, name: &str, rules: &[&str]) -> String {
        let path = format!("/v1/access/principals/{name}");
        let put = self.call(&self.admin, "PUT", &path, &json!({ "rules": rules }));
        assert_eq!(put.status, 200, "{}", put.json());
        self.token(name, &json!({"name": "first"}))
    }

    pub(crate) fn token(&self, name: &str, body: &Value) -> String {
        let path = format!("/v1/access/principals/{name}/tokens");
        let made = self.call(&self.admin, "POST", &path, body);
        assert_eq!(made.status, 201, "{}", made.json());
        made.json()["secret"].as_str().expect("a secret").to_owned()
    }

    pub(crate) fn with_topic(self, name: &str) -> Self {
        let made = self.call(
            &self.admin,
            "POST",
            "/v1/topics",
            &json!({ "name": name, "partitions": 1 }),
        );
        assert_eq!(made.status, 201, "{}", made.json());
        self
    }

    pub(crate) fn produce(&self, token: &str, topic: &str) -> Answer {
        let body = json!({"messages": [{"value": "grain"}]});
        self.call(
            token,
            "POST",
            &format!("/v1/topics/{topic}/messages"),
            &body,
        )
    }
}

pub(crate) fn first_token(directory: &Path) -> String {
    let text = std::fs::read_to_string(directory.join("admin-token")).expect("the first token");
    text.trim().to_owned()
}

/// The part of a token that is secret; it may have any letter of base64, `_` among them.
pub(crate) fn secret_of(token: &str) -> &str {
    token.splitn(3, '_').nth(2).expect("a secret")
}

#[test]
fn the_first_start_leaves_a_token_for_its_operator_and_later_ones_do_not() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().expect("a directory");
    let mut config = config_in(directory.path());
    config.access.required = true;
    let host = TestHost::with(config.clone());
    let file = directory.path().join("admin-token");
    let mode = std::fs::metadata(&file)
        .expect("a file")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let line = format!("Bearer {}", first_token(directory.path()));
    let asks = |host: &TestHost| {
        host.call("GET", "/v1/topics", &[("authorization", &line)], "")
            .status
    };
    assert_eq!(asks(&host), 200);
    host.stop();
    std::fs::remove_file(&file).expect("removed");
    let host = TestHost::with(config);
    assert_eq!(asks(&host), 200);
    assert!(!file.exists(), "the second start makes none");
}

#[test]
fn without_a_token_a_host_that_asks_for_one_says_so_and_one_that_does_not_asks_nothing() {
    let guarded = Guarded::start();
    let refused = guarded.host.get("/v1/topics");
    assert_eq!(refused.headers["www-authenticate"], "Bearer");
    let said = refused.refused(401, "credentials-missing");
    assert!(said.contains("--token-file"), "{said}");
    assert_eq!(guarded.host.get("/health/live").status, 200);
    let open = TestHost::start();
    assert_eq!(open.get("/v1/topics").status, 200);
    assert_eq!(open.get("/v1/access/self").json()["everything"], true);
    let wrong = [(
        "authorization",
        "Bearer mr_aaaaaaaaaa_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    )];
    open.call("GET", "/v1/topics", &wrong, "")
        .refused(401, "credentials-refused");
    let of_a_proxy = [("authorization", "Basic cHJveHk6cHJveHk=")];
    assert_eq!(open.call("GET", "/v1/topics", &of_a_proxy, "").status, 200);
}

#[test]
fn a_principal_may_do_what_its_rules_say_and_is_told_what_is_missing() {
    let guarded = Guarded::start()
        .with_topic("orders-eu")
        .with_topic("salaries");
    let shop = guarded.principal("shop", &["producer on topic:orders-*"]);
    assert_eq!(guarded.produce(&shop, "orders-eu").status, 200);
    let said = guarded
        .produce(&shop, "salaries")
        .refused(403, "not-allowed");
    assert!(
        said.contains("produce on topic:salaries") && said.contains("access grant shop"),
        "{said}"
    );
    let read = guarded.get(&shop, "/v1/topics/orders-eu/partitions/0/messages");
    let said = read.refused(403, "not-allowed");
    assert!(said.contains("consume on topic:orders-eu"), "{said}");
}

#[test]
fn what_a_principal_may_not_see_looks_like_what_does_not_exist() {
    let guarded = Guarded::start().with_topic("orders").with_topic("salaries");
    let shop = guarded.principal("shop", &["producer on topic:orders"]);
    let topics = guarded.get(&shop, "/v1/topics").json();
    let names: Vec<&Value> = topics["topics"]
        .as_array()
        .expect("topics")
        .iter()
        .map(|t| &t["name"])
        .collect();
    assert_eq!(names, ["orders"]);
    let same = |path: &dyn Fn(&str) -> String, method: &str, body: Value| {
        let there = guarded.call(&shop, method, &path("salaries"), &body);
        let not_there = guarded.call(&shop, method, &path("nothings"), &body);
        let text = |answer: &Answer| answer.json().to_string().replace("salaries", "nothings");
        assert_eq!(
            (there.status, text(&there)),
            (not_there.status, text(&not_there))
        );
    };
    same(&|name| format!("/v1/topics/{name}"), "GET", Value::Null);
    same(&|name| format!("/v1/topics/{name}"), "DELETE", Value::Null);
    same(
        &|name| format!("/v1/topics/{name}/partitions/0/messages"),
        "GET",
        Value::Null,
    );
    same(
        &|name| format!("/v1/topics/{name}/messages"),
        "POST",
        json!({"messages": [{"value": "x"}]}),
    );
}

#[test]
fn a_token_may_be_narrower_than_its_principal_and_never_wider() {
    let guarded = Guarded::start().with_topic("orders").with_topic("returns");
    guarded.principal("shop", &["producer on topic:orders"]);
    let narrow = guarded.token(
        "shop",
        &json!({"name": "ci", "rules": ["view on topic:orders"]}),
    );
    guarded
        .produce(&narrow, "orders")
        .refused(403, "not-allowed");
    let wide = guarded.token("shop", &json!({"name": "all", "rules": ["admin"]}));
    assert_eq!(guarded.produce(&wide, "orders").status, 200);
    guarded
        .produce(&wide, "returns")
        .refused(403, "not-allowed");
}

#[test]
fn a_revoked_token_ends_requests_that_wait() {
    let guarded = Guarded::start().with_topic("orders");
    let reader = guarded.principal("reader", &["consumer on topic:orders"]);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| {
            guarded.get(
                &reader,
                "/v1/topics/orders/partitions/0/messages?wait_ms=30000",
            )
        });
        // Until it waits for messages.
        wait_for(|| waiting(&guarded) == 1);
        let revoked = Instant::now();
        let gone = guarded.call(
            &guarded.admin,
            "DELETE",
            "/v1/access/principals/reader/tokens/first",
            &Value::Null,
        );
        assert_eq!(gone.status, 204);
        let ended = waits.join().expect("an answer");
        ended.refused(401, "credentials-refused");
        assert!(
            revoked.elapsed() < Duration::from_secs(20),
            "it did not wait for its time"
        );
    });
    guarded
        .get(&reader, "/v1/topics")
        .refused(401, "credentials-refused");
}

pub(crate) fn waiting(guarded: &Guarded) -> u64 {
    let metrics = guarded.get(&guarded.admin, "/metrics");
    let text = String::from_utf8_lossy(&metrics.bytes).into_owned();
    let line = text
        .lines()
        .find(|line| line.starts_with("millrace_fetches_waiting "));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
        .unwrap_or(0)
}

pub(crate) fn wait_for(mut is_so: impl FnMut() -> bool) {
    for _ in 0..3_000 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("it never came to be so");
}

#[test]
fn an_expired_token_is_refused_and_says_which_it_is() {
    let guarded = Guarded::start();
    guarded.principal("ci", &["viewer"]);
    let soon = std::time::SystemTime::now() + Duration::from_millis(1_500);
    let soon = soon
        .duration_since(std::time::UNIX_EPOCH)
        .expect("a time")
        .as_millis() as u64;
    let short = guarded.token("ci", &json!({"name": "short", "expires_at": soon}));
    assert_eq!(guarded.get(&short, "/v1/topics").status, 200);
    wait_for(|| guarded.get(&short, "/v1/topics").status == 401);
    let said = guarded
        .get(&short, "/v1/topics")
        .refused(401, "credentials-refused");
    assert!(said.contains("short") && said.contains("expired"), "{said}");
}

#[test]
fn a_rotated_token_overlaps_with_the_one_before() {
    let guarded = Guarded::start();
    let before = guarded.principal("ci", &["viewer"]);
    let rotate = |overlap: u64| {
        let path = "/v1/access/principals/ci/tokens/first/rotate";
        let made = guarded.call(
            &guarded.admin,
            "POST",
            path,
            &json!({"overlap_ms": overlap}),
        );
        assert_eq!(made.status, 201, "{}", made.json());
        made.json()["secret"].as_str().expect("a secret").to_owned()
    };
    let after = rotate(60_000);
    for token in [&before, &after] {
        assert_eq!(guarded.get(token, "/v1/topics").status, 200);
    }
    let last = rotate(0);
    assert_eq!(guarded.get(&last, "/v1/topics").status, 200);
    guarded
        .get(&after, "/v1/topics")
        .refused(401, "credentials-refused");
}

#[test]
fn who_administers_some_principals_gives_no_more_than_they_have() {
    let guarded = Guarded::start();
    guarded.principal("ci", &["viewer"]);
    guarded.principal("boss", &["admin"]);
    let lead = guarded.principal(
        "lead",
        &[
            "administer on principal:ci*",
            "administer on principal:boss",
            "producer on topic:orders-*",
        ],
    );
    let gives = |rule: &str| {
        let path = "/v1/access/principals/ci/grant";
        guarded.call(&lead, "POST", path, &json!({ "rule": rule }))
    };
    assert_eq!(gives("produce on topic:orders-eu").status, 200);
    for rule in ["admin", "produce on topic:salaries", "administer"] {
        let said = gives(rule).refused(403, "not-allowed");
        assert!(said.contains(rule), "{said}");
    }
    // An identity that others present as well would make them somebody else.
    guarded
        .call(
            &lead,
            "PUT",
            "/v1/access/principals/ci/identities/dns%3Abilling.internal",
            &Value::Null,
        )
        .refused(403, "not-allowed");
    // A token of somebody who may more would be theirs.
    guarded
        .call(
            &lead,
            "POST",
            "/v1/access/principals/boss/tokens",
            &json!({"name": "mine"}),
        )
        .refused(403, "not-allowed");
    guarded
        .call(
            &lead,
            "POST",
            "/v1/access/principals/boss/tokens/first/rotate",
            &json!({}),
        )
        .refused(403, "not-allowed");
}

#[test]
fn no_log_of_a_host_has_a_token_at_any_level() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().to_str().expect("a path");
    let log = directory.path().join("log");
    let served = serve_into(
        std::fs::File::create(&log).expect("a file").into(),
        &[
            "--data-dir",
            path,
            "--require-tokens",
            "--log-filter",
            "trace",
        ],
    );
    let admin = first_token(directory.path());
    let ask = |token: &str, words: &[&str]| {
        let all = [words, &["--host", &served.url]].concat();
        let asked = millrace(&all).env("MILLRACE_TOKEN", token).output();
        asked.expect("the binary runs")
    };
    let made = ask(&admin, &["access", "grant", "ci", "developer"]);
    assert!(made.status.success(), "{made:?}");
    let made = ask(
        &admin,
        &["access", "token", "create", "ci", "--name", "one"],
    );
    let ci = out(&made).lines().next().expect("a token").to_owned();
    assert!(ask(&ci, &["topic", "create", "orders"]).status.success());
    // Refusals, and what is no request at all, may not show it either.
    assert!(!ask(&ci, &["access", "list"]).status.success());
    let cut = &ci[..ci.len() - 1];
    assert!(!ask(cut, &["topic", "list"]).status.success());
    assert!(ask(&ci, &["produce", "orders", "grain"]).status.success());
    assert!(!ask(&ci, &["produce", "nothings", "grain"]).status.success());
    assert_eq!(served.stop(), 0);
    let log = std::fs::read_to_string(log).expect("the log");
    assert!(
        log.contains("topic created"),
        "the log is that of the host: {log}"
    );
    for token in [&admin, &ci, &cut.to_owned()] {
        let secret = secret_of(token);
        assert!(!log.contains(secret), "the log has a token");
    }
}

#[test]
fn nobody_can_take_administration_from_the_last_who_has_it() {
    let guarded = Guarded::start();
    let change = |method: &str, path: &str, body: Value| {
        guarded
            .call(&guarded.admin, method, path, &body)
            .refused(409, "last-admin");
    };
    change("DELETE", "/v1/access/principals/admin", Value::Null);
    change(
        "DELETE",
        "/v1/access/principals/admin/tokens/first",
        Value::Null,
    );
    change(
        "PUT",
        "/v1/access/principals/admin",
        json!({"rules": ["viewer"]}),
    );
    change(
        "POST",
        "/v1/access/principals/admin/withdraw",
        json!({"rule": "admin"}),
    );
    let other = guarded.principal("root", &["admin"]);
    let gone = guarded.call(
        &other,
        "DELETE",
        "/v1/access/principals/admin",
        &Value::Null,
    );
    assert_eq!(gone.status, 204);
    guarded
        .get(&guarded.admin, "/v1/topics")
        .refused(401, "credentials-refused");
}

#[test]
fn secrets_of_tokens_are_in_no_answer_but_the_first() {
    let guarded = Guarded::start();
    let token = guarded.principal("ci", &["viewer"]);
    let secret = secret_of(&token);
    for path in [
        "/v1/access/principals",
        "/v1/access/principals/ci",
        "/v1/host",
        "/metrics",
        "/v1/access/self",
    ] {
        let answer = guarded.get(&guarded.admin, path);
        let text = String::from_utf8_lossy(&answer.bytes).into_owned();
        assert!(
            !text.contains(secret) && !text.contains("hash"),
            "{path}: {text}"
        );
    }
}

#[test]
fn the_command_line_grants_checks_and_makes_tokens() {
    let guarded = Guarded::start().with_topic("orders");
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str| directory.path().join(name).display().to_string();
    std::fs::write(file("admin"), &guarded.admin).expect("written");
    let url = guarded.host.url();
    let with = |token: &str, words: &[&str]| {
        let token = file(token);
        let all = [words, &["--host", &url, "--token-file", &token]].concat();
        millrace(&all).output().expect("the binary runs")
    };
    let granted = with(
        "admin",
        &["access", "grant", "shop", "producer on topic:orders"],
    );
    assert!(
        out(&granted).contains("producer on topic:orders"),
        "{granted:?}"
    );
    let to = file("shop");
    let made = with(
        "admin",
        &[
            "access", "token", "create", "shop", "--name", "prod", "--to", &to,
        ],
    );
    assert!(
        made.status.success() && !out(&made).contains("mr_"),
        "{made:?}"
    );
    assert!(
        with("shop", &["produce", "orders", "grain"])
            .status
            .success()
    );
    let refused = with("shop", &["topic", "delete", "orders"]);
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    let who = out(&with("shop", &["access", "self"]));
    assert!(who.contains("shop"), "{who}");
    let may = out(&with(
        "admin",
        &["access", "check", "produce", "topic:orders"],
    ));
    assert!(may.contains("shop") && may.contains("admin"), "{may}");
    let again = with(
        "admin",
        &[
            "access", "token", "create", "shop", "--name", "more", "--to", &to,
        ],
    );
    assert_eq!(
        again.status.code(),
        Some(2),
        "it overwrites no file: {again:?}"
    );
    let without = millrace(&["topic", "list", "--host", &url])
        .output()
        .expect("the binary runs");
    let said = String::from_utf8_lossy(&without.stderr).into_owned();
    assert!(said.contains("--token-file"), "{said}");
}

/// A directory with an authority and certificates of `localhost` that it signed; `None` without the tool that makes them.
pub(crate) fn certificates() -> Option<tempfile::TempDir> {
    const MAKE: &str = r#"set -e
key="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
openssl req -x509 $key -days 2 -subj /CN=ours -keyout ours.key -out ours.crt
printf 'subjectAltName=DNS:localhost,IP:127.0.0.1' > names
for name in first second; do
  openssl req $key -subj "/CN=$name" -keyout $name.key -out $name.csr
  openssl x509 -req -in $name.csr -CA ours.crt -CAkey ours.key -CAcreateserial -days 2 -extfile names -out $name.crt
done"#;
    let directory = tempfile::tempdir().expect("a directory");
    let made = std::process::Command::new("sh")
        .args(["-c", MAKE])
        .current_dir(directory.path())
        .output();
    match made {
        Ok(made) if made.status.success() => Some(directory),
        _ => {
            println!("skipped: openssl is not installed on this machine");
            None
        }
    }
}

#[test]
fn a_certificate_is_replaced_under_load_and_no_request_fails() {
    let Some(directory) = certificates() else {
        return;
    };
    let file = |name: &str| directory.path().join(name);
    let put = |name: &str| {
        for kind in ["crt", "key"] {
            // As tools do that renew certificates: whole or not at all.
            let new = file("new");
            std::fs::copy(file(&format!("{name}.{kind}")), &new).expect("copied");
            std::fs::rename(&new, file(&format!("host.{kind}"))).expect("renamed");
        }
    };
    put("first");
    let mut config = config();
    config.listen.tls.certificate_file = Some(file("host.crt"));
    config.listen.tls.key_file = Some(file("host.key"));
    let host = TestHost::with(config);
    let served = || {
        let shown = std::process::Command::new("openssl")
            .args(["s_client", "-connect", &host.address.to_string()])
            .stdin(std::process::Stdio::null())
            .output()
            .expect("openssl runs");
        String::from_utf8_lossy(&shown.stdout).into_owned()
    };
    assert!(served().contains("CN = first") || served().contains("CN=first"));
    let url = format!("https://localhost:{}", host.address.port());
    let ca = file("ours.crt").display().to_string();
    let is_done = std::sync::atomic::AtomicBool::new(false);
    let asked = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut asked = 0;
            while !is_done.load(std::sync::atomic::Ordering::Relaxed) {
                let listed = millrace(&["topic", "list", "--host", &url, "--ca", &ca]).output();
                out(&listed.expect("the binary runs"));
                asked += 1;
            }
            asked
        });
        put("second");
        let is_second = || served().contains("CN = second") || served().contains("CN=second");
        wait_for(is_second);
        is_done.store(true, std::sync::atomic::Ordering::Relaxed);
        asking.join().expect("no request failed")
    });
    assert!(asked > 0);
    let strangers = millrace(&["topic", "list", "--host", &url])
        .output()
        .expect("the binary runs");
    assert_eq!(
        strangers.status.code(),
        Some(5),
        "its signer is not known here: {strangers:?}"
    );
}

#[test]
fn a_host_that_other_machines_reach_asks_for_tokens_and_encrypts_them() {
    let refused = |words: &[&str]| {
        let words = [
            &["serve", "--listen", "0.0.0.0:0", "--engine", "memory"],
            words,
        ]
        .concat();
        let ended = millrace(&words).output().expect("the binary runs");
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        String::from_utf8_lossy(&ended.stderr).into_owned()
    };
    for words in [&[][..], &["--require-tokens"]] {
        let said = refused(words);
        assert!(
            said.contains("--tls-certificate") && said.contains("--require-tokens"),
            "{said}"
        );
    }
    let said = refused(&["--require-tokens", "--tls-certificate", "host.crt"]);
    assert!(said.contains("given together"), "{said}");
    let said = refused(&[
        "--require-tokens",
        "--tls-certificate",
        "none.crt",
        "--tls-key",
        "none.key",
    ]);
    assert!(said.contains("none.crt"), "{said}");
}

#[test]
fn a_component_sees_no_token_and_a_public_route_asks_for_none() {
    let guarded = Guarded::start();
    let line = format!("Bearer {}", guarded.admin);
    let wasm = [
        ("authorization", line.as_str()),
        ("content-type", "application/wasm"),
    ];
    let bytes = guest_artifacts::WEB.to_vec();
    let uploaded = guarded
        .host
        .call("POST", "/v1/modules?tag=web@1.0.0", &wasm, bytes);
    assert_eq!(uploaded.status, 201, "{}", uploaded.json());
    let set = |public: bool| {
        let spec =
            json!({"module": "web@1.0.0", "public": public, "limits": {"call_ms_max": 10_000}});
        let set = guarded.call(&guarded.admin, "PUT", "/v1/routes/web", &spec);
        assert_eq!(set.status, 200, "{}", set.json());
    };
    set(false);
    guarded
        .host
        .get("/web/echo")
        .refused(401, "credentials-missing");
    let caller = guarded.principal("caller", &["call on route:/web"]);
    assert_eq!(guarded.get(&caller, "/web/echo").status, 200);
    let other = guarded.principal("other", &["call on route:/webs"]);
    guarded.get(&other, "/web/echo").refused(403, "not-allowed");
    assert_eq!(guarded.get(&caller, "/web/authorized").bytes, b"false");
    set(true);
    assert_eq!(guarded.host.get("/web/echo").status, 200);
}
