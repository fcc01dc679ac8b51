//! Asks a host over HTTP, and says plainly when nobody is there.

use std::io::Read;
use std::time::Duration;

use millrace_model::{Clock, SystemClock};
use serde_json::Value;
use ureq::http::{Method, Request, Response};
use ureq::{Agent, AsSendBody, Body};

use super::failure::{Exit, Failure};
use super::output::Output;

/// An answer larger than this is none of ours.
const ANSWER_BYTES_MAX: u64 = 128 << 20;
/// Nobody there, if it takes longer.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// How long to wait before a request is sent again; twice as long each time.
const RETRY_DELAY_FIRST: Duration = Duration::from_millis(100);
/// And at most so long, unless the host asks for more.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(2);

/// What a host answered.
struct Reply {
    status: u16,
    retry_after: Option<Duration>,
    body: Vec<u8>,
}

impl Reply {
    /// Whether the same request may succeed later.
    fn asks_to_come_back(&self) -> bool {
        matches!(self.status, 408 | 429 | 503)
    }

    fn success(self) -> Result<Vec<u8>, Failure> {
        match self.status {
            200..300 => Ok(self.body),
            status => Err(Failure::answered(status, &self.body)),
        }
    }
}

/// One host, asked over kept connections. Cheap to clone.
#[derive(Clone)]
pub(super) struct Client {
    agent: Agent,
    base: String,
    /// Who runs this, as far as the environment says: told to the host, which writes it down beside changes.
    user: Option<String>,
    /// Whether to answer in JSON.
    pub(super) json: bool,
}

impl Client {
    /// A client of the host at `url`.
    pub(super) fn new(url: &str, json: bool) -> Result<Self, Failure> {
        let base = url.trim_end_matches('/');
        if !base.starts_with("http://") {
            let failure = Failure::usage(format!("--host {url} is not understood"));
            return Err(
                failure.with_hint("write http://ADDRESS:PORT, such as http://127.0.0.1:7400")
            );
        }
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            // Environment proxies are for the web, not for the broker beside us.
            .proxy(None)
            .timeout_connect(Some(CONNECT_MAX))
            .build();
        Ok(Self {
            agent: config.new_agent(),
            base: base.to_owned(),
            user: user(),
            json,
        })
    }

    pub(super) fn get(&self, path: &str) -> Result<Value, Failure> {
        self.json_of(&self.call(Method::GET, path, None, ())?)
    }

    pub(super) fn delete(&self, path: &str) -> Result<(), Failure> {
        self.call(Method::DELETE, path, None, ()).map(drop)
    }

    /// Sends JSON, and gives the JSON that comes back.
    pub(super) fn send(&self, method: Method, path: &str, body: &Value) -> Result<Value, Failure> {
        let body = body.to_string();
        self.json_of(&self.call(method, path, Some("application/json"), body)?)
    }

    /// Sends bytes of a type, and gives the JSON that comes back.
    pub(super) fn upload(
        &self,
        path: &str,
        content_type: &str,
        body: impl AsSendBody,
    ) -> Result<Value, Failure> {
        self.json_of(&self.call(Method::POST, path, Some(content_type), body)?)
    }

    /// As [`Client::upload`], again and again within `patience` while the host is not there or asks to come back: under its key the
    /// request takes effect once.
    pub(super) fn upload_once(
        &self,
        path: &str,
        content_type: &str,
        body: &[u8],
        key: &str,
        patience: Duration,
    ) -> Result<Value, Failure> {
        let clock = SystemClock::new();
        let mut delay = RETRY_DELAY_FIRST;
        loop {
            let headers = [("content-type", content_type), ("idempotency-key", key)];
            let failure = match self.exchange(Method::POST, path, &headers, body) {
                Ok(reply) if !reply.asks_to_come_back() => return self.json_of(&reply.success()?),
                Ok(reply) => {
                    delay = delay.max(reply.retry_after.unwrap_or_default());
                    Failure::answered(reply.status, &reply.body)
                }
                Err(failure) if failure.is_unreachable() => failure,
                Err(failure) => return Err(failure),
            };
            if clock.monotonic() + delay >= patience {
                return Err(failure);
            }
            std::thread::sleep(delay);
            delay = (delay * 2).min(RETRY_DELAY_MAX);
        }
    }

    /// Sends JSON, and gives what comes back to be read as it comes, however much it is.
    pub(super) fn stream(&self, path: &str, body: &Value) -> Result<impl Read, Failure> {
        let headers = [("content-type", "application/json")];
        let response = self.run(Method::POST, path, &headers, body.to_string())?;
        let status = response.status().as_u16();
        match status {
            200..300 => Ok(response.into_body().into_reader()),
            _ => Err(Failure::answered(status, &self.read(response)?.body)),
        }
    }

    fn call(
        &self,
        method: Method,
        path: &str,
        content_type: Option<&str>,
        body: impl AsSendBody,
    ) -> Result<Vec<u8>, Failure> {
        let headers = content_type.map(|content_type| ("content-type", content_type));
        self.exchange(method, path, headers.as_slice(), body)?
            .success()
    }

    fn exchange(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl AsSendBody,
    ) -> Result<Reply, Failure> {
        self.read(self.run(method, path, headers, body)?)
    }

    fn run(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl AsSendBody,
    ) -> Result<Response<Body>, Failure> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(user) = &self.user {
            request = request.header("millrace-by", user);
        }
        let request = request.body(body).map_err(|error| {
            Failure::usage(format!("--host {} is not understood: {error}", self.base))
        })?;
        let response = self.agent.run(request);
        response.map_err(|error| self.unreached(error))
    }

    fn read(&self, response: Response<Body>) -> Result<Reply, Failure> {
        let status = response.status().as_u16();
        let retry_after = response.headers().get("retry-after");
        let retry_after = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
        let body = response
            .into_body()
            .into_with_config()
            .limit(ANSWER_BYTES_MAX);
        let body = body.read_to_vec().map_err(|error| self.unreached(error))?;
        Ok(Reply {
            status,
            retry_after: retry_after.map(Duration::from_secs),
            body,
        })
    }

    fn json_of(&self, body: &[u8]) -> Result<Value, Failure> {
        serde_json::from_slice(body).map_err(|_| {
            Failure::failed(format!("what answers at {} is no Millrace host", self.base))
        })
    }

    fn unreached(&self, error: ureq::Error) -> Failure {
        if let ureq::Error::BadUri(_) | ureq::Error::Http(_) = error {
            return Failure::usage(format!("--host {} is not understood: {error}", self.base));
        }
        let message = format!("no Millrace host answers at {} ({error})", self.base);
        Failure::new(Exit::Unreachable, "unreachable", message).with_hint(
            "start one with `millrace serve`, or name another with --host URL or MILLRACE_HOST",
        )
    }

    /// Where answers go.
    pub(super) fn output(&self) -> Output {
        Output::new(self.json)
    }
}

/// The user's name at the operating system, as far as a header can carry it.
fn user() -> Option<String> {
    let mut names = ["USER", "LOGNAME", "USERNAME"].iter();
    let name = names.find_map(|name| std::env::var(name).ok())?;
    let plain: String = name.chars().filter(char::is_ascii_graphic).collect();
    (!plain.is_empty()).then_some(plain)
}

/// A text as one segment of a path, or one value of a query.
pub(super) fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~@".contains(&byte);
    text.bytes()
        .map(|byte| match plain(byte) {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_cannot_leave_its_segment() {
        assert_eq!(escaped("upper@1.0.0"), "upper@1.0.0");
        assert_eq!(escaped("../a b?é"), "..%2Fa%20b%3F%C3%A9");
    }

    #[test]
    fn a_host_that_is_not_there_is_said_to_be_unreachable() {
        let client = Client::new("http://127.0.0.1:1/", false).expect("a client");
        let failure = client.get("/v1/topics").expect_err("nobody there");
        let Failure::Told {
            exit,
            message,
            hint,
            ..
        } = failure
        else {
            panic!("told");
        };
        assert_eq!(exit, Exit::Unreachable);
        assert!(message.contains("http://127.0.0.1:1 "), "{message}");
        assert!(hint.expect("a hint").contains("millrace serve"));
    }
}
