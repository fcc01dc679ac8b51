//! Takes names by HTTP and sends them to a topic; says which greeting they will get.
//!
//! - `GET …/greeting`: the greeting of the settings, as JSON
//! - `POST …/names` with a name as the body: sends it, and says where it is

use millrace_guest::http::{Request, Response};
use millrace_guest::producer::{self, Outgoing, SendError};
use millrace_guest::{config, http, log};
use serde_json::json;

http!(answer);

/// Bytes of a name.
const NAME_BYTES_MAX: usize = 100;

fn answer(request: &Request) -> Response {
    // The path begins with that of the route, wherever that is.
    let last = request.path().rsplit('/').next().unwrap_or_default();
    match (last, request.method()) {
        ("greeting", "GET") => greeting(),
        ("greeting", _) => failure(405, "a greeting is read with GET").header("allow", "GET"),
        ("names", "POST") => take(request),
        ("names", _) => failure(405, "a name is sent with POST").header("allow", "POST"),
        _ => failure(404, "there are only greeting and names"),
    }
}

fn greeting() -> Response {
    let greeting = config::get("greeting").unwrap_or_else(|| "hello".to_owned());
    Response::json(200, json!({ "greeting": greeting }))
}

fn take(request: &Request) -> Response {
    let name = request.text().unwrap_or_default().trim();
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return failure(400, "send a name as the body, as text");
    }
    let topic = config::get("topic").unwrap_or_else(|| "names".to_owned());
    let messages = [Outgoing::new(name).key(name)];
    // A caller that repeats a request with the same key sends one message.
    let sent = match request.header("idempotency-key") {
        Some(key) => producer::send_once(&topic, key, &messages),
        None => producer::send(&topic, &messages),
    };
    match sent {
        Ok(sent) => {
            let place = sent.places[0];
            let body = json!({ "topic": topic, "partition": place.partition, "offset": place.offset });
            Response::json(202, body)
        }
        Err(error) => not_sent(&error),
    }
}

/// An answer that makes the caller do what helps: try again, or stop.
fn not_sent(error: &SendError) -> Response {
    log::error(format!("a name was not sent: {error}"));
    match error {
        SendError::Unavailable(_) => failure(503, "try again later"),
        SendError::KeyReused(_) => failure(409, "the key was used for another name"),
        SendError::Refused(_) => failure(422, "the topic does not take this name"),
        SendError::NotGranted(_) => failure(500, "the route is not set up"),
    }
}

fn failure(status: u16, why: &str) -> Response {
    Response::json(status, json!({ "error": why }))
}

#[cfg(test)]
mod tests {
    use millrace_guest::http::Request;
    use millrace_guest::producer::SendError;
    use millrace_guest::testing::{RouteTester, Sent};

    #[test]
    fn a_name_is_sent_once_for_each_key() {
        let mut tester = RouteTester::new(super::answer).with_config("topic", "guests");
        let request = Request::new("POST", "/hello/names").with_body("Ada");
        let request = request.with_header("Idempotency-Key", "7");
        let first = tester.ask(&request);
        assert_eq!(first.status(), 202);
        assert_eq!(tester.ask(&request), first);
        assert_eq!(tester.take_sent(), [Sent::new("Ada", "Ada").to("guests")]);
    }

    #[test]
    fn a_name_that_cannot_be_sent_now_is_to_be_sent_again() {
        let failure = SendError::Unavailable("stopping".to_owned());
        let mut tester = RouteTester::new(super::answer).with_failure(failure);
        let response = tester.ask(&Request::new("POST", "/names").with_body("Ada"));
        assert_eq!(response.status(), 503);
    }
}
