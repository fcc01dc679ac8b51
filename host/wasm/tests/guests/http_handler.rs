//! Components that answer HTTP requests, well or badly.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use guest_artifacts as guests;
use millrace_broker::handler::{
    CallError, HTTP_BODY_PARTS_MAX, HttpHandler, HttpPart, HttpRequest, Interface, LoadRequest,
    ModuleHost as _,
};
use millrace_model::processor::Limits;
use tokio::sync::{mpsc, oneshot};

use crate::support::{TestHost, request};

async fn web(host: &TestHost, limits: Limits) -> Arc<dyn HttpHandler> {
    let load = LoadRequest {
        limits,
        ..request("/web", guests::WEB)
    };
    host.host.http_handler(load).await.unwrap()
}

fn limits() -> Limits {
    Limits {
        call_ms_max: 10_000,
        ..Limits::default()
    }
}

/// A request and where its body comes from.
fn asking(method: &str, target: &str) -> (HttpRequest, mpsc::Sender<HttpPart>) {
    let (sender, body) = mpsc::channel(HTTP_BODY_PARTS_MAX);
    let request = HttpRequest {
        method: method.to_owned(),
        target: target.to_owned(),
        authority: "example.com".to_owned(),
        headers: vec![("x-asked".to_owned(), Bytes::from_static(b"politely"))],
        body,
    };
    (request, sender)
}

struct Answered {
    /// The status and the body, as far as they came.
    head: Option<u16>,
    body: Vec<u8>,
    is_whole: bool,
    ended: Result<(), CallError>,
}

impl Answered {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

async fn get(handler: &Arc<dyn HttpHandler>, target: &str) -> Answered {
    let (request, sender) = asking("GET", target);
    sender.send(HttpPart::End).await.unwrap();
    answered(handler, request).await
}

async fn answered(handler: &Arc<dyn HttpHandler>, request: HttpRequest) -> Answered {
    let (sender, head) = oneshot::channel();
    let handler = Arc::clone(handler);
    let call = tokio::spawn(async move { handler.handle(request, sender).await });
    let (mut body, mut is_whole, mut status) = (Vec::new(), false, None);
    if let Ok(mut answer) = head.await {
        status = Some(answer.status);
        assert_eq!(answer.headers, [("x-web".to_owned(), Bytes::from("yes"))]);
        while let Some(part) = answer.body.recv().await {
            match part {
                HttpPart::Bytes(bytes) => body.extend_from_slice(&bytes),
                HttpPart::End => is_whole = true,
            }
        }
    }
    Answered {
        head: status,
        body,
        is_whole,
        ended: call.await.unwrap(),
    }
}

#[tokio::test]
async fn a_component_that_answers_requests_is_admitted_and_gets_them_whole() {
    let host = TestHost::start();
    let facts = host.admit(guests::WEB).await.unwrap();
    assert_eq!(facts.exports, [Interface::HttpHandler]);
    let handler = web(&host, limits()).await;
    let (request, body) = asking("POST", "/web/echo?a=b");
    let sending = tokio::spawn(async move {
        for _ in 0..20 {
            let part = HttpPart::Bytes(Bytes::from(vec![b'x'; 10_000]));
            body.send(part).await.unwrap();
        }
        body.send(HttpPart::End).await.unwrap();
    });
    let answer = answered(&handler, request).await;
    sending.await.unwrap();
    assert_eq!(answer.ended, Ok(()));
    assert_eq!((answer.head, answer.is_whole), (Some(200), true));
    assert_eq!(
        answer.text(),
        "Post example.com /web/echo?a=b Some(\"politely\") 200000 bytes, whole: true"
    );
}

#[tokio::test]
async fn a_request_that_is_cut_off_is_seen_to_be() {
    let host = TestHost::start();
    let handler = web(&host, limits()).await;
    let (request, body) = asking("POST", "/web/echo");
    body.send(HttpPart::Bytes(Bytes::from_static(b"half")))
        .await
        .unwrap();
    drop(body);
    let answer = answered(&handler, request).await;
    assert!(
        answer.text().ends_with("4 bytes, whole: false"),
        "{}",
        answer.text()
    );
}

#[tokio::test]
async fn a_host_that_is_no_text_is_not_the_components_failure() {
    let host = TestHost::start();
    let handler = web(&host, limits()).await;
    let (mut request, sender) = asking("GET", "/web/echo");
    let name = Bytes::from_static(b"caf\xc3\xa9.example.com");
    request.headers.push(("host".to_owned(), name));
    sender.send(HttpPart::End).await.unwrap();
    let answer = answered(&handler, request).await;
    assert_eq!((&answer.ended, answer.head), (&Ok(()), Some(200)));
    assert!(
        answer.text().starts_with("Get example.com /web/echo"),
        "{}",
        answer.text()
    );
}

#[tokio::test]
async fn each_request_has_a_fresh_instance() {
    let host = TestHost::start();
    let handler = web(&host, limits()).await;
    for _ in 0..3 {
        assert_eq!(get(&handler, "/web/count").await.text(), "1");
    }
}

#[tokio::test]
async fn an_answer_of_many_parts_arrives_whole() {
    let host = TestHost::start();
    let handler = web(&host, limits()).await;
    let answer = get(&handler, "/web/parts").await;
    assert_eq!((answer.body.len(), answer.is_whole), (409_600, true));
}

#[tokio::test]
async fn a_component_that_fails_before_its_answer_gives_none() {
    let host = TestHost::start();
    let handler = web(&host, limits()).await;
    let answer = get(&handler, "/web/trap").await;
    assert_eq!(answer.head, None);
    assert!(matches!(answer.ended, Err(CallError::Trap { .. })));
    for (page, why) in [
        ("silent", "without an answer"),
        ("refuses", "ConfigurationError"),
    ] {
        let answer = get(&handler, &format!("/web/{page}")).await;
        assert_eq!(answer.head, None);
        match answer.ended {
            Err(CallError::BadAnswer(said)) => assert!(said.contains(why), "{said}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(get(&handler, "/web/count").await.text(), "1");
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_not_whole() {
    let host = TestHost::start();
    let handler = web(&host, limits()).await;
    let answer = get(&handler, "/web/trap-late").await;
    assert_eq!((answer.head, answer.is_whole), (Some(200), false));
    assert!(matches!(answer.ended, Err(CallError::Trap { .. })));

    let small = Limits {
        answer_bytes_max: 100_000,
        ..limits()
    };
    let handler = web(&host, small).await;
    let answer = get(&handler, "/web/large").await;
    assert!(!answer.is_whole && answer.body.len() <= 100_000);
    match answer.ended {
        Err(CallError::BadAnswer(said)) => {
            assert!(said.contains("limits.answer_bytes_max = 100000"), "{said}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_request_without_end_is_stopped_in_time_and_others_are_answered_meanwhile() {
    let host = TestHost::start();
    let quick = Limits {
        call_ms_max: 300,
        ..limits()
    };
    let slow = web(&host, quick).await;
    let endless = tokio::spawn(async move { get(&slow, "/web/endless").await });
    let handler = web(&host, limits()).await;
    assert_eq!(get(&handler, "/web/count").await.text(), "1");
    let answer = endless.await.unwrap();
    assert_eq!(
        answer.ended,
        Err(CallError::Timeout(Duration::from_millis(300)))
    );
}
