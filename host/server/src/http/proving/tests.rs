//! Every route with every kind of credential. The list of routes is the router's own, so a new route is in here without a further line.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::http::HeaderValue;
use millrace_broker::{Access, Caller, NewToken, Verb};
use millrace_model::{Clock as _, Right, Rights, Rule, SystemClock, TokenName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::runtime::Runtime;

use super::super::{Route, every_route};
use super::named_by;
use crate::config::{Config, EngineKind};
use crate::host::Host;

/// What is in the place of what a path names.
const NAMED: &str = "none-such";
/// Long enough to make a token on a busy machine.
const EXPIRES_IN_MS: u64 = 2_000;
/// What cannot be a token.
const WRONG: &str = "mr_aaaaaaaaaa_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

struct Asked {
    runtime: Runtime,
    host: Host,
    asked: AtomicU32,
    _directory: tempfile::TempDir,
}

impl Asked {
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut config = Config {
            data_dir: directory.path().to_owned(),
            ..Config::default()
        };
        config.listen.http.address = "127.0.0.1:0".to_owned();
        config.engine.kind = EngineKind::Memory;
        config.access.required = true;
        let runtime = Runtime::new().expect("a runtime");
        let host = runtime.block_on(Host::start(config)).expect("a host");
        Self {
            runtime,
            host,
            asked: AtomicU32::new(0),
            _directory: directory,
        }
    }

    fn access(&self) -> Access {
        self.host.broker().session(Caller::host()).access().clone()
    }

    /// A token of a principal with these rules.
    fn token(&self, name: &str, rules: Vec<Rule>, expires_in_ms: Option<u64>) -> String {
        let principal = name.parse().expect("a name");
        let access = self.access();
        let new = NewToken {
            name: TokenName::parse("one").expect("a name"),
            scope: None,
            expires_at: expires_in_ms
                .map(|ms| SystemClock::new().wall().after(Duration::from_millis(ms))),
        };
        let made = self.runtime.block_on(async {
            access.set_principal(&principal, rules).await?;
            access.make_token(&principal, new).await
        });
        made.expect("a token").text.reveal().to_owned()
    }

    /// The status and the code of the answer. Each request comes from an address of its own: refusals to one that was refused often
    /// take long.
    fn ask(&self, route: &Route, token: Option<&str>) -> (u16, String) {
        let token = token.map(|token| format!("authorization: Bearer {token}\r\n"));
        let (method, path) = (&route.method, path_of(route));
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 2\r\n{}\r\n{{}}",
            token.unwrap_or_default(),
        );
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        let from = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 1, 0, 1)) + number);
        let answer = self.runtime.block_on(async {
            let socket = TcpSocket::new_v4()?;
            socket.bind(SocketAddr::from((from, 0)))?;
            let mut stream = socket.connect(self.host.address()).await?;
            stream.write_all(request.as_bytes()).await?;
            let mut answer = Vec::new();
            tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut answer))
                .await??;
            Ok::<_, std::io::Error>(answer)
        });
        let answer = String::from_utf8_lossy(&answer.expect("an answer")).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
        let body: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
        let code = body["error"]["code"].as_str().unwrap_or_default();
        (status.expect("a status"), code.to_owned())
    }
}

fn path_of(route: &Route) -> String {
    let mut path = String::new();
    for part in route.path.split('/').skip(1) {
        path.push('/');
        path.push_str(match part {
            "{partition}" | "{offset}" => "0",
            "{*path}" => "hooks",
            part if part.starts_with('{') => NAMED,
            part => part,
        });
    }
    match route.path {
        "/v1/access/check" => path + "?right=view&on=host",
        _ => path,
    }
}

fn rule(granted: Right, on: &str) -> Rule {
    format!("{granted} on {on}").parse().expect("a rule")
}

/// A rule that grants this on everything of its kind.
fn granting(verb: Verb) -> Rule {
    let right = verb.rights().iter().next().expect("a right");
    match verb.kind().as_str() {
        "host" => rule(right, "host"),
        kind => rule(right, &format!("{kind}:*")),
    }
}

#[test]
fn the_user_of_the_process_and_root_are_the_hosts_own() {
    let own = 1_000;
    let users = [0, 1, own, own + 1, u32::MAX];
    assert_eq!(
        users.map(|uid| super::is_own_user(uid, own)),
        [true, false, true, false, false]
    );
}

#[test]
fn whatever_stands_between_the_scheme_and_the_rest_a_bearer_is_one() {
    let table: [(&[u8], Option<&[u8]>); 16] = [
        (b"Bearer a.b.c", Some(b"a.b.c")),
        (b"bEARER a.b.c", Some(b"a.b.c")),
        (b"Bearer\ta.b.c", Some(b"a.b.c")),
        (b"Bearer \t  a.b.c \t", Some(b"a.b.c")),
        (b"Bearer a b", Some(b"a b")),
        (b"Bearer ", Some(b"")),
        (b"Bearer\xa0a.b.c", Some(b"\xa0a.b.c")),
        (b"Bearer\xe3\x80\x80a.b.c", Some(b"\xe3\x80\x80a.b.c")),
        (b"\xc2\xa0Bearer a.b.c", Some(b"a.b.c")),
        (b"Bearer a.b.c\xff", Some(b"a.b.c\xff")),
        (b"Bearer", None),
        (b"Bearers a.b.c", None),
        (b"Basic YTpi", None),
        (b"Digest a=\xff", None),
        (b"", None),
        (b"a.b.c", None),
    ];
    for (line, expected) in table {
        let line = HeaderValue::from_bytes(line).expect("a line");
        assert_eq!(super::bearer_in(&line), expected, "{line:?}");
    }
    for (line, expected) in [
        (WRONG, None),
        ("Bearer mr_a", Some("mr_a")),
        ("Bearer\tmr_a", Some("mr_a")),
        ("Bearer other", None),
    ] {
        let line = HeaderValue::from_static(line);
        assert_eq!(super::token_in(&line), expected, "{line:?}");
    }
}

#[test]
fn every_route_asks_for_the_right_of_its_verb() {
    let asked = Asked::start();
    let expired = asked.token(
        "expired",
        vec!["admin".parse().expect("a rule")],
        Some(EXPIRES_IN_MS),
    );
    let revoked = asked.token("revoked", vec!["admin".parse().expect("a rule")], None);
    asked.runtime.block_on(async {
        let principal = "revoked".parse().expect("a name");
        let token = "one".parse().expect("a name");
        asked
            .access()
            .revoke_token(&principal, &token)
            .await
            .expect("revoked");
    });
    let nothing = asked.token("nothing", Vec::new(), None);
    let admin = asked.token("root", vec!["admin".parse().expect("a rule")], None);
    let clock = SystemClock::new();
    let until = clock.wall().after(Duration::from_millis(EXPIRES_IN_MS));
    while clock.wall() <= until {
        std::thread::sleep(Duration::from_millis(10));
    }
    for (at, route) in every_route().iter().enumerate() {
        let called = format!("{} {}", route.method, route.path);
        for token in [WRONG, &expired, &revoked] {
            let answer = asked.ask(route, Some(token));
            assert_eq!(answer, (401, "credentials-refused".to_owned()), "{called}");
        }
        let Some(verb) = route.verb else {
            assert_ne!(asked.ask(route, None).0, 401, "{called}");
            continue;
        };
        let without = asked.ask(route, None);
        assert_eq!(without, (401, "credentials-missing".to_owned()), "{called}");
        let not_allowed = (403, "not-allowed".to_owned());
        assert_eq!(asked.ask(route, Some(&nothing)), not_allowed, "{called}");
        let others: Vec<Rule> = Right::ALL
            .iter()
            .filter(|right| !verb.rights().has_any(Rights::of(&[**right])))
            .map(|right| right.to_string().parse().expect("a rule"))
            .collect();
        if !others.is_empty() {
            let other = asked.token(&format!("other-{at}"), others, None);
            assert_eq!(asked.ask(route, Some(&other)), not_allowed, "{called}");
        }
        let right = asked.token(&format!("right-{at}"), vec![granting(verb)], None);
        for token in [&right, &admin] {
            let (status, code) = asked.ask(route, Some(token));
            assert!(
                status != 401 && code != "not-allowed",
                "{called}: {status} {code}"
            );
        }
    }
}

#[test]
fn a_right_on_one_thing_is_none_on_another() {
    let asked = Asked::start();
    let is_about_one = |route: &&Route| {
        let named = route.path.contains('{');
        route.verb.is_some() && named && route.path != "/v1/modules/{reference}"
    };
    let routes = every_route();
    for (at, route) in routes.iter().filter(is_about_one).enumerate() {
        let called = format!("{} {}", route.method, route.path);
        let verb = route.verb.expect("a verb");
        let right = verb.rights().iter().next().expect("a right");
        let another = rule(right, &format!("{}:another", verb.kind()));
        let token = asked.token(&format!("p-{at}"), vec![another], None);
        let (status, code) = asked.ask(route, Some(&token));
        if named_by(verb.kind()).is_some_and(|name| route.path.contains(&format!("{{{name}}}"))) {
            assert_eq!((status, code.as_str()), (403, "not-allowed"), "{called}");
            continue;
        }
        // What is not seen may as well not exist, and a body that is no request is told so.
        let is_refused = matches!(status, 400 | 403 | 404 | 415 | 422);
        assert!(is_refused, "{called}: {status} {code}");
    }
}
