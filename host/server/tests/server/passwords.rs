//! Passwords of principals over HTTP and from the command line.

use serde_json::{Value, json};

use crate::access::{Guarded, wait_for, waiting};
use crate::cli::{millrace, out};
use crate::support::{Answer, TestHost};

const PASSWORD: &str = "/v1/access/principals/shop/password";

/// The line of a name and a password.
fn basic(name: &str, password: &str) -> String {
    let mut text = String::from("Basic ");
    for chunk in format!("{name}:{password}").into_bytes().chunks(3) {
        let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let bits = chunk.iter().chain([0, 0].iter()).take(3);
        let bits = bits.fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
        for at in 0..4 {
            let letter = alphabet[(bits >> (18 - 6 * at)) as usize & 63];
            text.push(if at <= chunk.len() {
                char::from(letter)
            } else {
                '='
            });
        }
    }
    text
}

fn asks(host: &TestHost, path: &str, line: &str) -> Answer {
    host.call("GET", path, &[("authorization", line)], "")
}

/// Sets the password of `shop`, and returns its text.
fn made(guarded: &Guarded) -> String {
    let set = guarded.call(&guarded.admin, "PUT", PASSWORD, &json!({}));
    assert_eq!(set.status, 200, "{}", set.json());
    set.json()["secret"].as_str().expect("a secret").to_owned()
}

#[test]
fn a_name_and_a_password_are_as_good_as_a_token_on_the_host_s_own_paths() {
    assert_eq!(
        basic("Aladdin", "open sesame"),
        "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
    );
    let guarded = Guarded::start().with_topic("orders");
    guarded.principal("shop", &["viewer"]);
    let password = made(&guarded);
    let right = basic("shop", &password);
    for path in ["/v1/topics", "/metrics"] {
        assert_eq!(asks(&guarded.host, path, &right).status, 200, "{path}");
    }
    let who = asks(&guarded.host, "/v1/access/self", &right).json();
    assert_eq!(who["principal"], "shop");
    let read = asks(
        &guarded.host,
        "/v1/topics/orders/partitions/0/messages",
        &right,
    );
    read.refused(403, "not-allowed");
    let wrong = asks(&guarded.host, "/v1/topics", &basic("shop", "wrong"));
    let said = wrong.refused(401, "credentials-refused");
    let stranger = asks(&guarded.host, "/v1/topics", &basic("nobody", &password));
    assert_eq!(stranger.refused(401, "credentials-refused"), said);
    let both = [
        ("authorization", right.as_str()),
        ("authorization", &format!("Bearer {}", guarded.admin)),
    ];
    let both = guarded.host.call("GET", "/v1/topics", &both, "");
    both.refused(400, "malformed");
    for none in ["Basic", "Basic ???", "Basic c2hvcA=="] {
        let refused = asks(&guarded.host, "/v1/topics", none);
        refused.refused(401, "credentials-missing");
    }
}

#[test]
fn a_password_is_chosen_or_made_and_never_told_again() {
    let guarded = Guarded::start();
    guarded.principal("shop", &["viewer"]);
    let choose = |password: &str| {
        guarded.call(
            &guarded.admin,
            "PUT",
            PASSWORD,
            &json!({ "password": password }),
        )
    };
    let said = choose("too-short").refused(400, "bad-password");
    assert!(said.contains("12") && !said.contains("too-short"), "{said}");
    choose("with spaces in it").refused(400, "bad-password");
    let chosen = choose("grain-and-water");
    assert_eq!(
        (chosen.status, &chosen.json()["secret"]),
        (200, &Value::Null)
    );
    let line = basic("shop", "grain-and-water");
    assert_eq!(asks(&guarded.host, "/v1/topics", &line).status, 200);
    let shown = guarded
        .get(&guarded.admin, "/v1/access/principals/shop")
        .json();
    assert_eq!(shown["password"]["set_by"], "admin");
    let text = shown.to_string();
    assert!(!text.contains("SCRAM") && !text.contains("grain"), "{text}");
    let made = made(&guarded);
    assert!(made.len() >= 32, "{made}");
    asks(&guarded.host, "/v1/topics", &line).refused(401, "credentials-refused");
    let audit = guarded
        .get(&guarded.admin, "/v1/access/audit")
        .json()
        .to_string();
    assert!(
        audit.contains("set-password") && !audit.contains(&made),
        "{audit}"
    );
    let nobody = "/v1/access/principals/nobody/password";
    guarded
        .call(&guarded.admin, "PUT", nobody, &json!({}))
        .refused(404, "unknown-principal");
}

#[test]
fn a_removed_password_ends_requests_that_wait() {
    let guarded = Guarded::start().with_topic("orders");
    guarded.principal("shop", &["consumer on topic:orders"]);
    let line = basic("shop", &made(&guarded));
    std::thread::scope(|scope| {
        let path = "/v1/topics/orders/partitions/0/messages?wait_ms=30000";
        let waits = scope.spawn(|| asks(&guarded.host, path, &line));
        wait_for(|| waiting(&guarded) == 1);
        for _ in 0..2 {
            let gone = guarded.call(&guarded.admin, "DELETE", PASSWORD, &Value::Null);
            assert_eq!(gone.status, 204, "again changes nothing");
        }
        let ended = waits.join().expect("an answer");
        ended.refused(401, "credentials-refused");
    });
    asks(&guarded.host, "/v1/topics", &line).refused(401, "credentials-refused");
}

#[test]
fn on_a_host_that_asks_for_nothing_a_password_of_nobody_is_for_a_proxy() {
    let open = TestHost::start();
    let json = [("content-type", "application/json")];
    let put = open.call(
        "PUT",
        "/v1/access/principals/shop",
        &json,
        r#"{"rules":["viewer"]}"#,
    );
    assert_eq!(put.status, 200);
    let body = r#"{"password":"grain-and-water"}"#;
    assert_eq!(open.call("PUT", PASSWORD, &json, body).status, 200);
    let who = |name: &str, password: &str| asks(&open, "/v1/access/self", &basic(name, password));
    assert_eq!(who("proxy", "grain-and-water").json()["everything"], true);
    assert_eq!(who("shop", "grain-and-water").json()["principal"], "shop");
    who("shop", "water-and-grain").refused(401, "credentials-refused");
}

#[test]
fn on_the_path_of_a_route_a_password_is_for_its_component() {
    let guarded = Guarded::start();
    guarded.principal("shop", &["admin"]);
    let line = basic("shop", &made(&guarded));
    let admin = format!("Bearer {}", guarded.admin);
    let wasm = [
        ("authorization", admin.as_str()),
        ("content-type", "application/wasm"),
    ];
    let bytes = guest_artifacts::WEB.to_vec();
    let uploaded = guarded
        .host
        .call("POST", "/v1/modules?tag=web@1.0.0", &wasm, bytes);
    assert_eq!(uploaded.status, 201, "{}", uploaded.json());
    let set = |path: &str, public: bool| {
        let spec =
            json!({"module": "web@1.0.0", "public": public, "limits": {"call_ms_max": 10_000}});
        let path = format!("/v1/routes/{path}");
        let set = guarded.call(&guarded.admin, "PUT", &path, &spec);
        assert_eq!(set.status, 200, "{}", set.json());
    };
    set("web", true);
    assert_eq!(asks(&guarded.host, "/web/authorized", &line).bytes, b"true");
    set("metrics-of-mine", false);
    let refused = asks(&guarded.host, "/metrics-of-mine/authorized", &line);
    refused.refused(401, "credentials-missing");
}

#[test]
fn the_command_line_sets_and_removes_passwords() {
    let guarded = Guarded::start();
    guarded.principal("shop", &["viewer"]);
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str| directory.path().join(name).display().to_string();
    std::fs::write(file("admin"), &guarded.admin).expect("written");
    let (url, token) = (guarded.host.url(), file("admin"));
    let run = |words: &[&str]| {
        let all = [
            &["access", "password"],
            words,
            &["--host", &url, "--token-file", &token],
        ];
        millrace(&all.concat()).output().expect("the binary runs")
    };
    let is_right = |password: &str| {
        asks(&guarded.host, "/v1/topics", &basic("shop", password.trim())).status == 200
    };
    let shown = out(&run(&["set", "shop"]));
    assert!(is_right(shown.lines().next().expect("a line")), "{shown}");
    let to = file("made");
    let told = out(&run(&["set", "shop", "--to", &to]));
    let made = std::fs::read_to_string(&to).expect("a password");
    assert!(!told.contains(made.trim()) && is_right(&made), "{told}");
    assert_eq!(run(&["set", "shop", "--to", &to]).status.code(), Some(2));
    assert!(
        is_right(&made),
        "a file that is there is refused before anything changes"
    );
    std::fs::write(file("chosen"), "grain-and-water\n").expect("written");
    let told = out(&run(&["set", "shop", "--from", &file("chosen")]));
    assert!(
        !told.contains("grain") && is_right("grain-and-water"),
        "{told}"
    );
    out(&run(&["remove", "shop"]));
    assert!(!is_right("grain-and-water"));
}
