//! Calls a component that answers HTTP with the requests of a sample. What it sends to topics is collected; what it reads of
//! processors' state is what the sample gives.

use std::sync::Arc;

use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use millrace_broker::handler::{CallUse, HttpHandler, LoadRequest, Outgoing};
use millrace_broker::{
    CallError, HTTP_BODY_PARTS_MAX, HttpAnswer, HttpHeaders, HttpPart, HttpRequest, RouteRehearsal,
};
use millrace_model::{Clock, Header, TopicName};
use serde_json::{Map, Value, json};
use tokio::sync::{mpsc, oneshot};

use super::rehearse::{bytes_into, failure_shown, headers_shown};
use super::requests::Request;
use super::samples::Sample;
use crate::cli::failure::Failure;

/// The host that requests of samples name, unless they name another.
const AUTHORITY: &str = "localhost";

/// An answer as a whole.
struct Whole {
    status: u16,
    headers: HttpHeaders,
    body: Vec<u8>,
}

/// What a sample gives to a component besides its requests.
pub(super) fn stage(
    sample: &Sample,
    clock: &Arc<dyn Clock>,
    request: &mut LoadRequest,
) -> Result<Arc<RouteRehearsal>, String> {
    let settings = &sample.settings;
    let mut rehearsal = RouteRehearsal::new(settings.topics.clone(), Arc::clone(clock));
    for (processor, changes) in settings.views()? {
        rehearsal.set_view(processor, changes)?;
    }
    let rehearsal = Arc::new(rehearsal);
    // The access decides what is granted. Here it must only not be empty.
    let any = TopicName::parse("any").map_err(|error| error.to_string())?;
    request.grants.topics = vec![any];
    request.grants.views = settings.views.keys().cloned().collect();
    if request.grants.views.is_empty() {
        let any = millrace_model::ProcessorName::parse("any");
        request.grants.views = vec![any.map_err(|error| error.to_string())?];
    }
    request.access = Some(Arc::clone(&rehearsal) as _);
    Ok(rehearsal)
}

/// Asks the component, and returns what it did.
pub(super) async fn ask(
    handler: &Arc<dyn HttpHandler>,
    rehearsal: &RouteRehearsal,
    request: &Request,
) -> Result<(Map<String, Value>, Option<CallUse>), Failure> {
    let (parts, body) = mpsc::channel(HTTP_BODY_PARTS_MAX);
    let asked = HttpRequest {
        method: request.method.clone(),
        target: request.target.clone(),
        authority: AUTHORITY.to_owned(),
        headers: request.headers.clone(),
        body,
    };
    let (sender, head) = oneshot::channel();
    let bytes = request.body.clone();
    let sending = async move {
        if !bytes.is_empty() {
            let _ = parts.send(HttpPart::Bytes(bytes)).await;
        }
        let _ = parts.send(HttpPart::End).await;
    };
    let answered = async { whole(head.await.ok()?).await };
    let ((called, used), answered, ()) =
        tokio::join!(handler.handle_measured(asked, sender), answered, sending);
    let mut shown = match (called, answered) {
        (Ok(()), Some(answer)) if is_final(answer.status) => answer_shown(&answer),
        (Ok(()), Some(answer)) => {
            let what = format!("its status {} is not one of an answer", answer.status);
            failure_shown(CallError::BadAnswer(what))?
        }
        (Ok(()), None) => failure_shown(CallError::BadAnswer(
            "it ended without an answer".to_owned(),
        ))?,
        (Err(error), _) => failure_shown(error)?,
    };
    let sent = rehearsal.take_sent();
    if !sent.is_empty() {
        let sent = sent
            .iter()
            .map(|(topic, message)| sent_shown(topic, message));
        shown.insert("sent".to_owned(), sent.collect());
    }
    Ok((shown, used))
}

/// Reads an answer to its end; `None` if it was cut off.
async fn whole(answer: HttpAnswer) -> Option<Whole> {
    let HttpAnswer {
        status,
        headers,
        body: mut parts,
    } = answer;
    let mut body = Vec::new();
    while let HttpPart::Bytes(bytes) = parts.recv().await? {
        body.extend_from_slice(&bytes);
    }
    Some(Whole {
        status,
        headers,
        body,
    })
}

/// Whether a status can be that of an answer, as the HTTP door decides it.
fn is_final(status: u16) -> bool {
    StatusCode::from_u16(status).is_ok_and(|status| !status.is_informational())
}

fn answer_shown(answer: &Whole) -> Map<String, Value> {
    let mut shown = Map::new();
    shown.insert("status".to_owned(), json!(answer.status));
    if !answer.headers.is_empty() {
        let header = |(name, value): &(String, Bytes)| Header {
            name: Bytes::copy_from_slice(name.to_ascii_lowercase().as_bytes()),
            value: Some(value.clone()),
        };
        let headers: Vec<Header> = answer.headers.iter().map(header).collect();
        shown.insert("headers".to_owned(), headers_shown(&headers));
    }
    match str::from_utf8(&answer.body) {
        Ok(text) => shown.insert("body".to_owned(), json!(text)),
        Err(_) => shown.insert(
            "body_base64".to_owned(),
            json!(STANDARD.encode(&answer.body)),
        ),
    };
    shown
}

fn sent_shown(topic: &TopicName, outgoing: &Outgoing) -> Value {
    let mut shown = Map::new();
    shown.insert("topic".to_owned(), json!(topic));
    if let Some(partition) = outgoing.partition {
        shown.insert("partition".to_owned(), json!(partition));
    }
    let message = &outgoing.message;
    bytes_into(&mut shown, "key", message.key.as_deref());
    bytes_into(&mut shown, "value", message.value.as_deref());
    if !message.headers.is_empty() {
        shown.insert("headers".to_owned(), headers_shown(&message.headers));
    }
    if let Some(deliver_at) = outgoing.deliver_at {
        shown.insert("deliver_at".to_owned(), json!(deliver_at.0));
    }
    if message.timestamp.0 != 0 {
        shown.insert("timestamp".to_owned(), json!(message.timestamp.0));
    }
    Value::Object(shown)
}
