//! The guest `http-sink`: a server's status decides what becomes of a message.

use std::sync::Arc;

use guest_artifacts as guests;
use millrace_broker::handler::{BatchHandler, CallError, LoadRequest, ModuleHost as _};
use millrace_model::columns::OutcomeCode;
use millrace_model::processor::{Config, Grants, Limits, Origin};
use millrace_model::{ColumnBatch, SecretName};
use millrace_wasm::SecretStore;

use crate::servers::{Script, Server};
use crate::support::{TestHost, batch, request};

/// A store that has every secret.
#[derive(Debug)]
struct Tokens;

impl SecretStore for Tokens {
    fn secret(&self, _name: &SecretName) -> Result<Vec<u8>, String> {
        Ok(b"Bearer t".to_vec())
    }
}

fn host() -> TestHost {
    TestHost::start_with(|options| options.secrets = Arc::new(Tokens))
}

/// The sink with these settings, which may reach this server.
async fn sink(host: &TestHost, origin: &str, settings: &[(&str, &str)]) -> Arc<dyn BatchHandler> {
    let load = LoadRequest {
        grants: Grants {
            http: vec![Origin::parse(origin).unwrap()],
            secrets: vec![SecretName::parse("token").unwrap()],
            ..Grants::default()
        },
        limits: Limits {
            call_ms_max: 30_000,
            ..Limits::default()
        },
        ..request("p", guests::HTTP_SINK)
    };
    let settings = settings.iter();
    let settings = settings.map(|(key, value)| ((*key).to_owned(), Some((*value).to_owned())));
    load.config.set(&Config::default().with(settings).unwrap());
    host.host.processor(load).await.unwrap()
}

/// A message `{}` with the key `a b`.
fn message() -> Arc<ColumnBatch> {
    let mut columns = (*batch(["{}"])).clone();
    let start = columns.data.len() as u32;
    columns.data.extend_from_slice(b"a b");
    columns.keys = vec![start, 3];
    Arc::new(columns)
}

async fn becomes(handler: &Arc<dyn BatchHandler>) -> String {
    let answer = match handler.process(&message()).await {
        Ok(answer) => answer,
        Err(CallError::Unavailable(_)) => return "outage".to_owned(),
        Err(error) => return error.to_string(),
    };
    match (OutcomeCode::of(answer.outcomes[0]), answer.details.first()) {
        (Some(OutcomeCode::Ack), None) => "done".to_owned(),
        (Some(OutcomeCode::Retry), Some(why)) => format!("retry {} {:?}", why.class, why.after_ms),
        (Some(OutcomeCode::Reject), Some(why)) => format!("reject {}", why.class),
        other => format!("{other:?}"),
    }
}

#[tokio::test]
async fn a_message_is_done_tried_again_or_given_up_as_the_server_says() {
    let host = host();
    for (head, expected) in [
        ("204 No Content", "done"),
        ("404 Not Found", "reject http-404"),
        ("302 Found", "reject http-302"),
        (
            "429 Too Many Requests\r\nretry-after: 7",
            "retry http-429 Some(7000)",
        ),
        ("500 Internal Server Error", "retry http-500 None"),
        ("503 Service Unavailable", "outage"),
    ] {
        let answer = format!("HTTP/1.1 {head}\r\nconnection: close\r\n\r\n");
        let server = Server::start(Script::Bytes(answer)).await;
        let handler = sink(&host, &server.origin(), &[("url", &server.origin())]).await;
        assert_eq!(becomes(&handler).await, expected, "{head}");
    }
    let closes = Server::start(Script::Closes).await;
    let handler = sink(&host, &closes.origin(), &[("url", &closes.origin())]).await;
    assert_eq!(becomes(&handler).await, "outage");
    let unset = sink(&host, &closes.origin(), &[]).await;
    assert_eq!(becomes(&unset).await, "outage", "an operator can set it");
}

#[tokio::test]
async fn a_request_has_the_key_in_its_path_the_settings_headers_and_an_idempotency_key() {
    let host = host();
    let server = Server::start(Script::body("thanks")).await;
    let url = format!("{}/orders/{{key}}?x=1", server.origin());
    let settings = [
        ("url", url.as_str()),
        ("method", "put"),
        ("header.x-shop", "7"),
        ("authorization_secret", "token"),
    ];
    let handler = sink(&host, &server.origin(), &settings).await;
    assert_eq!(becomes(&handler).await, "done");
    let head = server.asked().remove(0);
    assert!(
        head.starts_with("PUT /orders/a%20b?x=1 HTTP/1.1\r\n"),
        "{head}"
    );
    for line in [
        "content-type: application/json",
        "idempotency-key: in-0-0",
        "x-shop: 7",
        "authorization: Bearer t",
    ] {
        assert!(head.contains(&format!("{line}\r\n")), "{line}: {head}");
    }
}
