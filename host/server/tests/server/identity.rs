//! Users of an identity provider: what their JWTs allow, while the provider changes its keys or is away.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use millrace::config::ProviderSettings;
use millrace_tests::identity::{KeyServer, Signer, unsigned};
use serde_json::{Value, json};

use crate::access::{Guarded, certificates, wait_for, waiting};
use crate::cli::{millrace, out};
use crate::support::{Answer, TestHost, config};

const REFUSED: &str = "credentials-refused";

/// A provider, and a host that takes its JWTs for the principal `users`.
struct Users {
    server: KeyServer,
    signer: Signer,
    guarded: Guarded,
}

impl Users {
    fn start(change: impl FnOnce(&mut ProviderSettings)) -> Self {
        let signer = Signer::es256("first");
        let server = KeyServer::start(&[&signer]);
        let mut provider = ProviderSettings {
            issuer: server.issuer(),
            audience: vec!["mill".to_owned()],
            principal: Some("users".to_owned()),
            ..ProviderSettings::default()
        };
        change(&mut provider);
        let guarded = Guarded::with(|config| config.access.providers = vec![provider]);
        Self {
            server,
            signer,
            guarded,
        }
    }

    /// The rules of the principal.
    fn may(&self, rules: &[&str]) {
        let path = "/v1/access/principals/users";
        let put = self
            .guarded
            .call(&self.guarded.admin, "PUT", path, &json!({ "rules": rules }));
        assert_eq!(put.status, 200, "{}", put.json());
    }

    fn claims(&self, sub: &str, seconds: u64) -> Value {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("a time");
        json!({"iss": self.server.issuer(), "aud": "mill", "sub": sub, "exp": now.as_secs() + seconds})
    }

    fn jwt(&self, sub: &str) -> String {
        self.signer.sign(&self.claims(sub, 600))
    }

    fn get(&self, jwt: &str, path: &str) -> Answer {
        self.guarded.get(jwt, path)
    }

    /// Sends messages with these keys.
    fn produce(&self, token: &str, keys: &[&str]) -> Answer {
        let message = |key: &&str| json!({"key": key, "value": format!("of {key}")});
        let messages: Vec<Value> = keys.iter().map(message).collect();
        let body = json!({ "messages": messages });
        self.guarded
            .call(token, "POST", "/v1/topics/orders/messages", &body)
    }

    fn metric(&self, line: &str) -> bool {
        let metrics = self.get(&self.guarded.admin, "/metrics");
        String::from_utf8_lossy(&metrics.bytes).contains(line)
    }
}

#[test]
fn a_jwt_acts_as_a_principal_and_its_subject_is_recorded() {
    let users = Users::start(|_| {});
    let ann = users.jwt("ann");
    let said = users.get(&ann, "/v1/topics").refused(401, REFUSED);
    assert!(
        said.contains("principal users") && said.contains("access grant users"),
        "{said}"
    );
    users.may(&["developer on topic:orders", "view on host"]);
    let oneself = users.get(&ann, "/v1/access/self").json();
    assert_eq!(
        (&oneself["principal"], &oneself["subject"]),
        (&json!("users"), &json!("ann"))
    );
    let made = json!({"name": "orders", "partitions": 1});
    assert_eq!(
        users.guarded.call(&ann, "POST", "/v1/topics", &made).status,
        201
    );
    assert_eq!(users.produce(&ann, &["a"]).status, 200);
    let other = json!({"name": "salaries", "partitions": 1});
    users
        .guarded
        .call(&ann, "POST", "/v1/topics", &other)
        .refused(403, "not-allowed");
    // The command line sends it like a token.
    let listed = millrace(&["topic", "list", "--host", &users.guarded.host.url()])
        .env("MILLRACE_TOKEN", &ann)
        .output()
        .expect("the binary runs");
    assert!(out(&listed).contains("orders"), "{listed:?}");
    // The host fetches the keys at its start, and once more if a JWT comes before they are there.
    assert!(users.server.asked() <= 2);
    let audit = users.get(&users.guarded.admin, "/v1/access/audit").json();
    let records = audit["records"].as_array().expect("records");
    let is_hers = |record: &&Value| record["principal"] == "users" && record["by"] == "ann";
    assert!(
        records
            .iter()
            .any(|record| is_hers(&record) && record["verb"] == "create-topic"),
        "{audit}"
    );
    users.may(&["view on topic:orders"]);
    users.produce(&ann, &["a"]).refused(403, "not-allowed");
    assert_eq!(users.get(&ann, "/v1/topics/orders").status, 200);
}

#[test]
fn what_is_not_a_jwt_of_a_provider_of_this_host_says_why_it_is_refused() {
    let users = Users::start(|_| {});
    users.may(&["viewer"]);
    let mut others = users.claims("ann", 600);
    others["iss"] = "https://other.example".into();
    let said = users
        .get(&users.signer.sign(&others), "/v1/topics")
        .refused(401, REFUSED);
    assert!(said.contains("other.example"), "{said}");
    let old = users
        .signer
        .sign(&json!({"iss": users.server.issuer(), "aud": "mill", "exp": 1}));
    let said = users.get(&old, "/v1/topics").refused(401, REFUSED);
    assert!(said.contains("expired") && !said.contains(&old), "{said}");
    users
        .get("opaque", "/v1/topics")
        .refused(401, "credentials-missing");
    let line = format!("Bearer {}", users.jwt("ann"));
    let twice = [("authorization", &*line), ("authorization", &*line)];
    users
        .guarded
        .host
        .call("GET", "/v1/topics", &twice, "")
        .refused(400, "malformed");
    assert!(users.metric(r#"millrace_identity_refused_total{reason="expired"}"#));
}

#[test]
fn a_request_that_waits_ends_with_its_jwt_and_with_the_rules_of_its_principal() {
    let users = Users::start(|provider| provider.leeway_s = 0);
    let guarded = &users.guarded;
    users.may(&["developer on topic:orders"]);
    let made = json!({"name": "orders", "partitions": 1});
    assert_eq!(
        guarded
            .call(&users.jwt("ann"), "POST", "/v1/topics", &made)
            .status,
        201
    );
    let path = "/v1/topics/orders/partitions/0/messages?wait_ms=30000";
    let ends = |jwt: String, change: &dyn Fn()| {
        let began = Instant::now();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| users.get(&jwt, path));
            wait_for(|| waiting(guarded) == 1);
            change();
            waits.join().expect("an answer").refused(401, REFUSED);
        });
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "it did not wait for its time"
        );
    };
    ends(users.signer.sign(&users.claims("ann", 3)), &|| {});
    ends(users.jwt("ann"), &|| users.may(&["viewer"]));
    users.may(&["developer on topic:orders"]);
    ends(users.jwt("ann"), &|| {
        let gone = guarded.call(
            &guarded.admin,
            "DELETE",
            "/v1/access/principals/users",
            &Value::Null,
        );
        assert_eq!(gone.status, 204);
    });
    users.get(&users.jwt("ann"), path).refused(401, REFUSED);
}

#[test]
fn a_new_key_counts_at_once_and_one_that_is_gone_no_more() {
    let users = Users::start(|_| {});
    users.may(&["viewer", "consumer on topic:orders"]);
    let (second, third) = (Signer::ed25519("second"), Signer::es256("third"));
    let before = users.jwt("ann");
    assert_eq!(users.get(&before, "/v1/topics").status, 200);
    // The provider announces the new key and goes on with both.
    users.server.has(&[&users.signer, &second]);
    let after = second.sign(&users.claims("ann", 600));
    for jwt in [&after, &before, &users.jwt("bob")] {
        assert_eq!(users.get(jwt, "/v1/topics").status, 200);
    }
    // Keys that anyone can make up do not let the host ask again and again.
    let asked = users.server.asked();
    for _ in 0..20 {
        let unknown = third.sign(&users.claims("ann", 600));
        users.get(&unknown, "/v1/topics").refused(401, REFUSED);
    }
    assert_eq!(users.server.asked(), asked);
    users.server.has(&[&second, &third]);
    let newest = third.sign(&users.claims("ann", 600));
    wait_for(|| users.get(&newest, "/v1/topics").status == 200);
    // That fetch told the host that the first key is gone, with all that it signed.
    for jwt in [&before, &users.jwt("cyd")] {
        users.get(jwt, "/v1/topics").refused(401, REFUSED);
    }
    assert_eq!(users.get(&after, "/v1/topics").status, 200);
}

#[test]
fn keys_stay_in_use_while_the_provider_is_away() {
    let users =
        Users::start(|provider| provider.jwks_url = Some(format!("{}/keys", provider.issuer)));
    users.may(&["viewer"]);
    assert_eq!(users.get(&users.jwt("ann"), "/v1/topics").status, 200);
    users.server.is_away(true);
    let unknown = Signer::es256("second").sign(&users.claims("ann", 600));
    users.get(&unknown, "/v1/topics").refused(401, REFUSED);
    assert!(users.metric(r#"outcome="failed""#));
    assert_eq!(users.get(&users.jwt("bob"), "/v1/topics").status, 200);
}

#[test]
fn a_host_starts_without_its_provider_and_takes_its_jwts_when_it_is_there() {
    let signer = Signer::es256("first");
    let server = KeyServer::start(&[&signer]);
    server.is_away(true);
    let provider = ProviderSettings {
        issuer: server.issuer(),
        audience: vec!["mill".to_owned()],
        principal: Some("admin".to_owned()),
        ..ProviderSettings::default()
    };
    let guarded = Guarded::with(|config| config.access.providers = vec![provider]);
    let users = Users {
        server,
        signer,
        guarded,
    };
    let ann = users.jwt("ann");
    let said = users.get(&ann, "/v1/topics").refused(503, "provider-away");
    assert!(said.contains("log"), "{said}");
    // Tokens of the host count meanwhile.
    assert_eq!(users.get(&users.guarded.admin, "/v1/topics").status, 200);
    users.server.is_away(false);
    wait_for(|| users.get(&ann, "/v1/topics").status == 200);
}

#[test]
fn a_component_sees_a_jwt_unless_the_provider_is_to_be_stripped() {
    for strip in [false, true] {
        let users = Users::start(|provider| provider.strip = strip);
        users.may(&["call on route:/web"]);
        let guarded = &users.guarded;
        let line = format!("Bearer {}", guarded.admin);
        let wasm = [
            ("authorization", &*line),
            ("content-type", "application/wasm"),
        ];
        let uploaded = guarded.host.call(
            "POST",
            "/v1/modules?tag=web@1.0.0",
            &wasm,
            guest_artifacts::WEB.to_vec(),
        );
        assert_eq!(uploaded.status, 201, "{}", uploaded.json());
        let set = |public: bool| {
            let spec =
                json!({"module": "web@1.0.0", "public": public, "limits": {"call_ms_max": 10_000}});
            let set = guarded.call(&guarded.admin, "PUT", "/v1/routes/web", &spec);
            assert_eq!(set.status, 200, "{}", set.json());
        };
        set(false);
        let sees = users.get(&users.jwt("ann"), "/web/authorized");
        assert_eq!(sees.bytes, (!strip).to_string().as_bytes());
        // Credentials of others are the component's, and prove nothing here.
        let mut others = users.claims("ann", 600);
        others["iss"] = "https://other.example".into();
        let others = users.signer.sign(&others);
        users
            .get(&others, "/web/authorized")
            .refused(401, "credentials-missing");
        set(true);
        assert_eq!(users.get(&others, "/web/authorized").bytes, b"true");
    }
}

/// The admin's component at a route that everyone may call.
fn with_public_route(guarded: &Guarded) {
    let line = format!("Bearer {}", guarded.admin);
    let wasm = [
        ("authorization", &*line),
        ("content-type", "application/wasm"),
    ];
    let bytes = guest_artifacts::WEB.to_vec();
    let uploaded = guarded
        .host
        .call("POST", "/v1/modules?tag=web@1.0.0", &wasm, bytes);
    assert_eq!(uploaded.status, 201, "{}", uploaded.json());
    let spec = json!({"module": "web@1.0.0", "public": true, "limits": {"call_ms_max": 10_000}});
    let set = guarded.call(&guarded.admin, "PUT", "/v1/routes/web", &spec);
    assert_eq!(set.status, 200, "{}", set.json());
}

#[test]
fn a_component_sees_no_forgery_of_a_jwt_that_the_host_checks() {
    let users = Users::start(|_| {});
    users.may(&["call on route:/web"]);
    with_public_route(&users.guarded);
    let issuer = users.server.issuer();
    let forged = |header: &str, payload: &str| unsigned(header, payload) + ".c2ln";
    let (header, claims) = (
        r#"{"alg":"ES256","kid":"first"}"#,
        users.claims("root", 600),
    );
    let payload = claims.to_string();
    let twice = format!(r#"{{"iss":"{issuer}","iss":"https://other.example"}}"#);
    let deep = "[".repeat(64) + &"]".repeat(64);
    let deep = format!(r#"{{"iss":"{issuer}","x":{deep}}}"#);
    let long = format!(r#"{{"iss":"{issuer}","x":"{}"}}"#, "x".repeat(16 << 10));
    let plain = forged(header, &payload);
    let asks = |lines: &[&[u8]]| {
        let mut request =
            b"GET /web/authorized HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n".to_vec();
        for line in lines {
            request.extend([b"authorization: ", *line, b"\r\n"].concat());
        }
        request.extend(b"\r\n");
        users.guarded.host.raw(&request)
    };
    for (what, line) in [
        ("plain", format!("Bearer {plain}")),
        ("a tab", format!("Bearer\t{plain}")),
        (
            "a space in the header",
            format!("bearer {}", forged(&format!(" {header}"), &payload)),
        ),
        ("twice", format!("Bearer {}", forged(header, &twice))),
        ("deep", format!("Bearer {}", forged(header, &deep))),
        ("long", format!("Bearer {}", forged(header, &long))),
        ("two words", format!("Bearer {plain} a.b")),
        ("not ASCII", format!("Bearer {plain}\u{e9}")),
        ("white space before it", format!("\u{a0}Bearer {plain}")),
        ("opaque, not ASCII", "Bearer \u{e9}".to_owned()),
        ("another white space", format!("Bearer\u{3000}{plain}")),
    ] {
        let answer = asks(&[line.as_bytes()]);
        assert!(
            answer.starts_with("HTTP/1.1 401") && answer.contains(REFUSED),
            "{what}: {answer}"
        );
    }
    let good = format!("Bearer {}", users.jwt("ann"));
    let forged = format!("Bearer {plain}");
    for second in [&forged, &good, "Bearer opaque", "Basic YTpi"] {
        let answer = asks(&[good.as_bytes(), second.as_bytes()]);
        assert!(
            answer.starts_with("HTTP/1.1 400") && answer.contains("send one Authorization line"),
            "{second}: {answer}"
        );
    }
    let mut others = users.claims("ann", 600);
    others["iss"] = "https://other.example".into();
    let others = format!("Bearer {}", users.signer.sign(&others));
    for passes in [
        &good,
        &others,
        "Bearer opaque",
        "Basic YTpi",
        "Digest a.b.c",
    ] {
        let answer = asks(&[passes.as_bytes()]);
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.contains("true"),
            "{passes}: {answer}"
        );
    }
}

#[test]
fn a_scope_in_a_claim_narrows_what_the_principal_may() {
    let users = Users::start(|provider| provider.rules_claim = Some("scope".to_owned()));
    users.may(&["consumer on topic:*", "producer on topic:orders"]);
    let with = |scope: &str| {
        let mut claims = users.claims("ann", 600);
        claims["scope"] = scope.into();
        users.signer.sign(&claims)
    };
    let admin = users.guarded.admin.clone();
    for topic in ["orders", "salaries"] {
        let made = json!({"name": topic, "partitions": 1});
        assert_eq!(
            users
                .guarded
                .call(&admin, "POST", "/v1/topics", &made)
                .status,
            201
        );
    }
    assert_eq!(
        users
            .produce(&with("openid produce:topic:orders"), &["a"])
            .status,
        200
    );
    users
        .produce(&with("openid consumer:topic:orders"), &["a"])
        .refused(403, "not-allowed");
    let path = "/v1/topics/salaries/partitions/0/messages";
    assert_eq!(users.get(&with("consumer"), path).status, 200);
    users
        .get(&with("consumer:topic:orders"), path)
        .refused(403, "not-allowed");
    // It never widens.
    let wide = with("admin");
    let gone = users
        .guarded
        .call(&wide, "DELETE", "/v1/topics/orders", &Value::Null);
    gone.refused(403, "not-allowed");
    users.get(&users.jwt("ann"), path).refused(401, REFUSED);
}

fn keys_of(answer: &Answer) -> Vec<String> {
    assert_eq!(answer.status, 200, "{}", answer.json());
    let json = answer.json();
    let messages = json["messages"].as_array().expect("messages").iter();
    let key = |message: &Value| message["key"].as_str().unwrap_or("none").to_owned();
    messages.map(key).collect()
}

#[test]
fn a_user_reads_and_sends_only_messages_with_its_keys() {
    let users = Users::start(|provider| {
        provider.keys = Some(vec!["user:{sub}".to_owned(), "user:{sub}:*".to_owned()]);
    });
    users.may(&["developer"]);
    let guarded = &users.guarded;
    let admin = &guarded.admin;
    let made = json!({"name": "orders", "partitions": 1});
    assert_eq!(guarded.call(admin, "POST", "/v1/topics", &made).status, 201);
    let all = ["user:ann", "user:anna", "user:bob", "user:ann:1", "shared"];
    assert_eq!(users.produce(admin, &all).status, 200);
    let without_key = json!({"messages": [{"value": "of nobody"}]});
    let sent = guarded.call(admin, "POST", "/v1/topics/orders/messages", &without_key);
    assert_eq!(sent.status, 200);
    let (ann, bob) = (users.jwt("ann"), users.jwt("bob"));
    let shown = users.get(&ann, "/v1/access/self").json();
    assert_eq!(shown["keys"], json!(["user:ann", "user:ann:*"]));

    let one = "/v1/topics/orders/partitions/0/messages";
    let read = users.get(&ann, one);
    assert_eq!(keys_of(&read), ["user:ann", "user:ann:1"]);
    assert_eq!(read.json()["next"], 6, "it goes on after those of others");
    assert_eq!(
        keys_of(&users.get(&bob, &format!("{one}?from=2&max=1"))),
        ["user:bob"]
    );
    assert_eq!(
        keys_of(&users.get(&ann, "/v1/topics/orders/messages")),
        ["user:ann", "user:ann:1"]
    );
    assert_eq!(keys_of(&users.get(admin, one)).len(), 6);
    assert_eq!(
        users.get(&ann, &format!("{one}/3/value")).bytes,
        b"of user:ann:1"
    );
    users
        .get(&ann, &format!("{one}/2/value"))
        .refused(404, "unknown-message");
    let lines = [
        ("authorization", format!("Bearer {ann}")),
        ("accept", "application/x-ndjson".to_owned()),
    ];
    let lines: Vec<(&str, &str)> = lines
        .iter()
        .map(|(name, line)| (*name, line.as_str()))
        .collect();
    let lines = guarded.host.call("GET", one, &lines, "");
    assert_eq!(String::from_utf8_lossy(&lines.bytes).lines().count(), 2);

    assert_eq!(users.produce(&ann, &["user:ann:2"]).status, 200);
    for keys in [&["user:bob"][..], &["user:ann:3", "user:anna"], &["user:"]] {
        let said = users.produce(&ann, keys).refused(403, "not-allowed");
        assert!(said.contains("some keys only"), "{said}");
    }
    guarded
        .call(&ann, "POST", "/v1/topics/orders/messages", &without_key)
        .refused(403, "not-allowed");
    assert_eq!(
        keys_of(&users.get(admin, one)).len(),
        7,
        "nothing of these was stored"
    );

    // A name in which somebody hides a pattern, or another's name, gets its own keys or none.
    assert_eq!(keys_of(&users.get(&users.jwt("*"), one)), [""; 0]);
    users.get(&users.jwt("ann:1"), one).refused(401, REFUSED);
    users.get(&users.jwt(""), one).refused(401, REFUSED);
}

#[test]
fn a_user_with_keys_gets_nothing_that_shows_what_others_have() {
    let users = Users::start(|provider| provider.keys = Some(vec!["user:{sub}:*".to_owned()]));
    users.may(&["admin"]);
    let guarded = &users.guarded;
    let ann = users.jwt("ann");
    for path in [
        "/v1/processors/shout/dead-letters",
        "/v1/processors/shout/logs",
        "/v1/processors/shout/parked?topic=orders",
        "/v1/topics/orders/delayed",
        "/v1/access/principals",
        "/v1/schedules/nightly",
        "/metrics",
        "/v1/access/audit",
    ] {
        let said = users.get(&ann, path).refused(403, "not-allowed");
        assert!(said.contains("some keys only"), "{path}: {said}");
    }
    for (method, path, body) in [
        (
            "POST",
            "/v1/access/principals/users/tokens",
            json!({"name": "wide"}),
        ),
        (
            "PUT",
            "/v1/access/principals/other",
            json!({"rules": ["admin"]}),
        ),
        ("DELETE", "/v1/topics/orders", Value::Null),
        (
            "POST",
            "/v1/topics",
            json!({"name": "mine", "partitions": 1}),
        ),
    ] {
        guarded
            .call(&ann, method, path, &body)
            .refused(403, "not-allowed");
    }
    let state = "/v1/processors/shout/state";
    let read = |path: &str| users.get(&ann, &format!("{state}{path}"));
    read("?partition=0&prefix=user:bob:").refused(403, "not-allowed");
    // It may ask for its own, of a processor that is not there.
    read("?partition=0&prefix=user:ann:").refused(404, "unknown-processor");
}

#[test]
fn keys_are_fetched_over_tls_from_whom_the_settings_trust_and_from_nobody_else() {
    let Some(directory) = certificates() else {
        return;
    };
    let file = |name: &str| directory.path().join(name);
    // A host of its own serves the keys: as the value of a message.
    let mut serving = config();
    serving.listen.tls.certificate_file = Some(file("first.crt"));
    serving.listen.tls.key_file = Some(file("first.key"));
    let serving = TestHost::with(serving);
    let url = format!("https://localhost:{}", serving.address.port());
    let ca = file("ours.crt").display().to_string();
    let signer = Signer::es256("first");
    let jwks = json!({"keys": [signer.jwk()]}).to_string();
    for words in [
        &["topic", "create", "keys", "--partitions", "1"][..],
        &["produce", "keys", &jwks],
    ] {
        let done = millrace(&[words, &["--host", &url, "--ca", &ca]].concat()).output();
        out(&done.expect("the binary runs"));
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("a time");
    let jwt = signer.sign(&json!({"iss": "ours", "aud": "mill", "exp": now.as_secs() + 600}));
    let status = |ca_file: Option<std::path::PathBuf>| {
        let provider = ProviderSettings {
            issuer: "ours".to_owned(),
            audience: vec!["mill".to_owned()],
            principal: Some("admin".to_owned()),
            jwks_url: Some(format!(
                "{url}/v1/topics/keys/partitions/0/messages/0/value"
            )),
            ca_file,
            ..ProviderSettings::default()
        };
        let guarded = Guarded::with(|config| config.access.providers = vec![provider]);
        guarded.get(&jwt, "/v1/topics").status
    };
    assert_eq!(status(Some(file("ours.crt"))), 200);
    assert_eq!(status(None), 503, "its signer is not known here");
    assert_eq!(status(Some(file("second.crt"))), 503, "it did not sign");
    assert_eq!(status(Some(file("none.crt"))), 503);
}
