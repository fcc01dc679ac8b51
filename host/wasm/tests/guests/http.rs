//! Guests reach by HTTP only the servers that their grants name, and no server can hold them up.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use guest_artifacts as guests;
use millrace_broker::handler::{AdmitError, BatchHandler, CallError, LoadRequest, ModuleHost as _};
use millrace_model::ProcessorName;
use millrace_model::processor::{Grants, Limits, Origin};
use millrace_wasm::{Resolver, WasmOptions};

use crate::servers::{Script, Server, root};
use crate::support::{TestHost, one, request};

/// A resolver of one name's addresses; it counts how often it is asked.
#[derive(Debug)]
struct Names {
    addresses: Vec<SocketAddr>,
    asked: AtomicUsize,
}

impl Names {
    fn new(addresses: &[SocketAddr]) -> Arc<Self> {
        Arc::new(Self {
            addresses: addresses.to_vec(),
            asked: AtomicUsize::new(0),
        })
    }
}

#[async_trait]
impl Resolver for Names {
    async fn addresses(&self, _host: &str, _port: u16) -> io::Result<Vec<SocketAddr>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        match self.addresses.is_empty() {
            true => Err(io::Error::other("no such name")),
            false => Ok(self.addresses.clone()),
        }
    }
}

struct Fetcher {
    host: TestHost,
    handler: Arc<dyn BatchHandler>,
}

impl Fetcher {
    async fn with(grants: Grants, change: impl FnOnce(&mut WasmOptions)) -> Self {
        let host = TestHost::start_with(change);
        let load = LoadRequest {
            grants,
            limits: Limits {
                call_ms_max: 30_000,
                ..Limits::default()
            },
            ..request("p", guests::FETCH)
        };
        let handler = host.host.processor(load).await.unwrap();
        Self { host, handler }
    }

    /// May reach these servers.
    async fn granted(origins: &[&str]) -> Self {
        Self::with(granting(origins), |_| {}).await
    }

    async fn fetch(&self, asked: &str) -> String {
        one(&self.handler, asked).await.unwrap()
    }

    /// The processor's log.
    fn log(&self) -> String {
        let name = ProcessorName::parse("p").unwrap();
        let lines = self.host.host.logs(&name);
        let lines: Vec<_> = lines.into_iter().map(|line| line.text).collect();
        lines.join("\n")
    }
}

fn granting(origins: &[&str]) -> Grants {
    Grants {
        http: origins
            .iter()
            .map(|origin| Origin::parse(origin).unwrap())
            .collect(),
        ..Grants::default()
    }
}

#[tokio::test]
async fn a_granted_server_is_asked_and_answers() {
    let server = Server::start(Script::body("hello")).await;
    let fetcher = Fetcher::granted(&[&server.origin()]).await;
    let asked = format!(
        "POST {}/a?b=c\naccept: text/plain\n!body-bytes 10000",
        server.origin()
    );
    assert_eq!(fetcher.fetch(&asked).await, "200 5 hello");
    let head = server.asked().remove(0);
    assert!(head.starts_with("POST /a?b=c HTTP/1.1\r\n"), "{head}");
    assert!(
        head.contains(&format!("host: {}\r\n", server.address)),
        "{head}"
    );
    assert!(head.contains("accept: text/plain\r\n"), "{head}");
}

#[tokio::test]
async fn a_server_that_no_grant_names_is_denied_and_the_log_says_so() {
    let (granted, other) = (
        Server::start(Script::body("granted")).await,
        Server::start(Script::body("other")).await,
    );
    let fetcher = Fetcher::granted(&[&granted.origin()]).await;
    let denied = [
        other.origin(),
        // Scheme, host and port are compared whole.
        format!("https://{}", granted.address),
        format!("http://localhost:{}", granted.port()),
        format!("http://{}.example.com", granted.address.ip()),
        format!("http://2130706433:{}", granted.port()),
        format!("http://user@{}", granted.address),
    ];
    for origin in &denied {
        let answer = fetcher.fetch(&format!("GET {origin}/")).await;
        assert!(answer.contains("HttpRequestDenied"), "{origin}: {answer}");
    }
    assert_eq!(other.asked(), Vec::<String>::new());
    assert_eq!(granted.asked(), Vec::<String>::new());
    let log = fetcher.log();
    assert!(
        log.contains(&format!("a request to {} was denied", other.origin())),
        "{log}"
    );
    let answer = fetcher.fetch(&format!("GET {}/", granted.origin())).await;
    assert_eq!(answer, "200 7 granted");
}

#[tokio::test]
async fn a_name_with_a_private_address_is_refused_unless_that_is_granted() {
    let server = Server::start(Script::body("private")).await;
    let origin = format!("http://api.example.com:{}", server.port());
    let public = SocketAddr::new([8, 8, 8, 8].into(), server.port());
    // One bad address among good ones is enough.
    let names = Names::new(&[public, server.address]);
    let resolver = Arc::clone(&names);
    let fetcher = Fetcher::with(granting(&[&origin]), |options| {
        options.http.resolver = resolver;
    })
    .await;
    let answer = fetcher.fetch(&format!("GET {origin}/")).await;
    assert!(answer.contains("DestinationIpProhibited"), "{answer}");
    assert_eq!(server.asked(), Vec::<String>::new());
    let log = fetcher.log();
    assert!(log.contains("http_private"), "{log}");

    let grants = Grants {
        http_private: true,
        ..granting(&[&origin])
    };
    let names = Names::new(&[server.address]);
    let resolver = Arc::clone(&names);
    let fetcher = Fetcher::with(grants, |options| options.http.resolver = resolver).await;
    let answer = fetcher.fetch(&format!("GET {origin}/")).await;
    assert_eq!(answer, "200 7 private");
    // Resolved once: the address that was checked is the one that was used.
    assert_eq!(names.asked.load(Ordering::SeqCst), 1);
    let head = server.asked().remove(0);
    let host = format!("host: api.example.com:{}\r\n", server.port());
    assert!(head.contains(&host), "{head}");
}

#[tokio::test]
async fn a_name_that_is_unknown_or_no_server_is_an_error() {
    for addresses in [vec![], vec!["0.0.0.0:80".parse().unwrap()]] {
        let grants = Grants {
            http_private: true,
            ..granting(&["http://api.example.com"])
        };
        let resolver = Names::new(&addresses);
        let fetcher = Fetcher::with(grants, |options| options.http.resolver = resolver).await;
        let answer = fetcher.fetch("GET http://api.example.com/").await;
        let expected = match addresses.is_empty() {
            true => "DnsError",
            false => "DestinationIpProhibited",
        };
        assert!(answer.contains(expected), "{answer}");
    }
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_nobody_follows_it() {
    let secret = Server::start(Script::body("secret")).await;
    let redirect = format!(
        "HTTP/1.1 302 Found\r\nlocation: {}/\r\ncontent-length: 0\r\n\r\n",
        secret.origin()
    );
    let server = Server::start(Script::Bytes(redirect)).await;
    let fetcher = Fetcher::granted(&[&server.origin()]).await;
    let answer = fetcher.fetch(&format!("GET {}/", server.origin())).await;
    assert_eq!(answer, "302 0 ");
    assert_eq!(secret.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn tls_checks_the_servers_name_and_its_root() {
    let server = Server::start_tls(Script::body("secure")).await;
    let (right, wrong) = (
        format!("https://api.example.com:{}", server.port()),
        format!("https://www.example.com:{}", server.port()),
    );
    let grants = Grants {
        http_private: true,
        ..granting(&[&right, &wrong])
    };
    let resolver = Names::new(&[server.address]);
    let trusting = Fetcher::with(grants.clone(), |options| {
        options.http.resolver = Arc::clone(&resolver) as Arc<dyn Resolver>;
        options.http.roots_file = Some(root());
    })
    .await;
    let answer = trusting.fetch(&format!("GET {right}/")).await;
    assert_eq!(answer, "200 6 secure");
    let answer = trusting.fetch(&format!("GET {wrong}/")).await;
    assert!(answer.contains("TlsCertificateError"), "{answer}");

    let strict = Fetcher::with(grants, |options| options.http.resolver = resolver).await;
    let answer = strict.fetch(&format!("GET {right}/")).await;
    assert!(answer.contains("TlsCertificateError"), "{answer}");
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn an_answer_without_end_is_cut_off_at_the_bound() {
    let server = Server::start(Script::Endless).await;
    let fetcher = Fetcher::granted(&[&server.origin()]).await;
    let answer = fetcher.fetch(&format!("GET {}/", server.origin())).await;
    assert!(
        answer.contains("HttpResponseBodySize(Some(16777216))"),
        "{answer}"
    );
    let claims = "HTTP/1.1 200 OK\r\ncontent-length: 16777217\r\n\r\n";
    let server = Server::start(Script::Bytes(claims.into())).await;
    let fetcher = Fetcher::granted(&[&server.origin()]).await;
    let answer = fetcher.fetch(&format!("GET {}/", server.origin())).await;
    assert!(
        answer.contains("HttpResponseBodySize(Some(16777217))"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_request_over_the_bound_is_not_sent_in_full() {
    let server = Server::start(Script::Mute).await;
    let fetcher = Fetcher::with(granting(&[&server.origin()]), |options| {
        options.http.request_bytes_max = 10_000;
    })
    .await;
    let asked = format!("POST {}/\n!body-bytes 20000", server.origin());
    let answer = fetcher.fetch(&asked).await;
    assert!(
        answer.contains("HttpRequestBodySize(Some(10000))"),
        "{answer}"
    );
}

#[tokio::test]
async fn silence_ends_at_its_deadline_whoever_set_it() {
    let (silent, mute) = (
        Server::start(Script::Silent).await,
        Server::start(Script::Mute).await,
    );
    let origins = [silent.origin(), mute.origin()];
    let origins = origins.each_ref().map(String::as_str);
    let slow = |name: &str, origin: &str| format!("GET {origin}/\n!{name} 100");
    let fetcher = Fetcher::granted(&origins).await;
    let answer = fetcher.fetch(&slow("between-bytes-ms", origins[0])).await;
    assert!(
        answer.contains("ConnectionReadTimeout after 1 bytes"),
        "{answer}"
    );
    let answer = fetcher.fetch(&slow("first-byte-ms", origins[1])).await;
    assert!(answer.contains("ConnectionReadTimeout"), "{answer}");

    // The guest may ask for less than the host allows, not for more.
    let fetcher = Fetcher::with(granting(&origins), |options| {
        options.http.first_byte_ms_max = 100;
        options.http.between_bytes_ms_max = 100;
    })
    .await;
    for origin in origins {
        let asked = format!("GET {origin}/\n!first-byte-ms 600000\n!between-bytes-ms 600000");
        let answer = fetcher.fetch(&asked).await;
        assert!(answer.contains("ConnectionReadTimeout"), "{answer}");
    }
}

#[tokio::test]
async fn waiting_for_a_server_is_the_calls_time() {
    let server = Server::start(Script::Mute).await;
    let host = TestHost::start();
    let load = LoadRequest {
        grants: granting(&[&server.origin()]),
        limits: Limits {
            call_ms_max: 200,
            ..Limits::default()
        },
        ..request("p", guests::FETCH)
    };
    let handler = host.host.processor(load).await.unwrap();
    let error = one(&handler, &format!("GET {}/", server.origin())).await;
    assert_eq!(
        error.unwrap_err(),
        CallError::Timeout(Duration::from_millis(200))
    );
}

#[tokio::test]
async fn calls_that_wait_for_a_server_hold_up_no_others() {
    let server = Server::start(Script::Mute).await;
    // One thread for guests: if a waiting call kept it, the others would never end.
    let fetcher = Fetcher::with(granting(&[&server.origin()]), |options| {
        options.threads = 1;
    })
    .await;
    let asked = format!("GET {}/\n!first-byte-ms 20000", server.origin());
    let waiting: Vec<_> = (0..8)
        .map(|_| {
            let (handler, asked) = (Arc::clone(&fetcher.handler), asked.clone());
            tokio::spawn(async move { one(&handler, &asked).await })
        })
        .collect();
    while server.asked().len() < waiting.len() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let answer = fetcher.fetch("GET http://127.0.0.1:1/").await;
    assert!(answer.contains("HttpRequestDenied"), "{answer}");
    for call in waiting {
        call.abort();
    }
}

#[tokio::test]
async fn too_many_headers_or_headers_too_large_are_refused() {
    let many = "x: y\r\n".repeat(1_000);
    let large = format!("x: {}\r\n", "y".repeat(1 << 20));
    for headers in [many, large] {
        let bytes = format!("HTTP/1.1 200 OK\r\n{headers}content-length: 0\r\n\r\n");
        let server = Server::start(Script::Bytes(bytes)).await;
        let fetcher = Fetcher::granted(&[&server.origin()]).await;
        let answer = fetcher.fetch(&format!("GET {}/", server.origin())).await;
        assert!(answer.contains("HttpResponseHeaderSectionSize"), "{answer}");
    }
}

#[tokio::test]
async fn a_guest_with_too_many_requests_at_once_harms_only_itself() {
    let server = Server::start(Script::Silent).await;
    let fetcher = Fetcher::with(granting(&[&server.origin()]), |options| {
        options.http.owner_requests_max = 3;
        options.http.connect_ms_max = 300;
        options.http.between_bytes_ms_max = 100;
    })
    .await;
    let asked = format!("GET {}/\n!at-once 5", server.origin());
    let answers = fetcher.fetch(&asked).await;
    let refused = answers.matches("ConnectionLimitReached").count();
    assert_eq!(refused, 2, "{answers}");
    assert_eq!(server.asked().len(), 3);

    let other = Server::start(Script::body("hello")).await;
    let load = LoadRequest {
        grants: granting(&[&other.origin()]),
        ..request("q", guests::FETCH)
    };
    let handler = fetcher.host.host.processor(load).await.unwrap();
    let answer = one(&handler, &format!("GET {}/", other.origin())).await;
    assert_eq!(answer.unwrap(), "200 5 hello");
}

#[tokio::test]
async fn a_guest_that_keeps_answers_which_have_arrived_keeps_no_connections() {
    let server = Server::start(Script::body("hello")).await;
    let fetcher = Fetcher::with(granting(&[&server.origin()]), |options| {
        options.http.owner_requests_max = 1;
        options.http.requests_max = 1;
    })
    .await;
    // The guest has all five answers before it reads the first body.
    let asked = format!("GET {}/\n!at-once 5", server.origin());
    let answers = fetcher.fetch(&asked).await;
    assert_eq!(answers.matches("200 5 hello").count(), 5, "{answers}");
}

#[tokio::test]
async fn a_server_that_is_gone_or_breaks_off_is_an_error_with_its_code() {
    let closing = Server::start(Script::Closes).await;
    let short = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello";
    let short = Server::start(Script::Bytes(short.into())).await;
    let nonsense = Server::start(Script::Bytes("SSH-2.0-OpenSSH\r\n\r\n".into())).await;
    let gone = {
        let server = Server::start(Script::Closes).await;
        server.origin()
    };
    let expected = [
        (closing.origin(), "HttpResponseIncomplete"),
        (short.origin(), "HttpResponseIncomplete after 5 bytes"),
        (nonsense.origin(), "HttpProtocolError"),
        (gone, "ConnectionRefused"),
    ];
    let origins = expected.each_ref().map(|(origin, _)| origin.as_str());
    let fetcher = Fetcher::granted(&origins).await;
    for (origin, code) in &expected {
        let answer = fetcher.fetch(&format!("GET {origin}/")).await;
        assert!(answer.contains(code), "{code}: {answer}");
    }
}

#[tokio::test]
async fn a_guest_cannot_smuggle_lines_servers_or_connections() {
    let server = Server::start(Script::body("hello")).await;
    let fetcher = Fetcher::granted(&[&server.origin()]).await;
    let origin = server.origin();
    let refused = [
        format!("GET {origin}/\nx: y\r\nevil: 1"),
        format!("GET {origin}/\nx\r: y"),
        format!("GET {origin}/\nhost: other.example.com"),
        format!("GET {origin}/\nconnection: upgrade"),
        format!("GET {origin}/\ntransfer-encoding: chunked"),
        format!("GET {origin}/\ncontent-length: 5\ncontent-length: 6"),
        format!("GET {origin}/ HTTP/1.1\r\nx: y"),
        format!("CONNECT {origin}/"),
        format!("GET\r\n {origin}/"),
    ];
    for asked in &refused {
        let answer = fetcher.fetch(asked).await;
        assert!(answer.starts_with("error"), "{asked:?}: {answer}");
    }
    assert_eq!(server.asked(), Vec::<String>::new());
    assert_eq!(
        fetcher.fetch(&format!("GET {origin}/")).await,
        "200 5 hello"
    );
}

#[tokio::test]
async fn a_component_that_sends_requests_is_refused_without_a_grant() {
    let host = TestHost::start();
    let refused = host.host.processor(request("p", guests::FETCH)).await;
    match refused.map(drop) {
        Err(AdmitError::NotGranted { imports, command }) => {
            assert!(imports[0].starts_with("wasi:http/outgoing-handler@"));
            assert!(command.contains("--grant-http"), "{command}");
        }
        other => panic!("{other:?}"),
    }
    // It may be uploaded: grants belong to processors.
    host.admit(guests::FETCH).await.unwrap();
}
