//! A real host in this process, on a free port, and a client that shows status and JSON of every answer.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use millrace::config::EngineKind;
use millrace::{Config, Host};
use serde_json::Value;
use tokio::runtime::Runtime;
use ureq::Agent;
use ureq::http::{HeaderMap, Request};

/// A host that stops when the test ends.
pub(crate) struct TestHost {
    runtime: Runtime,
    host: Option<Host>,
    agent: Agent,
    pub(crate) address: SocketAddr,
}

/// The answer to a request.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) bytes: Vec<u8>,
}

impl TestHost {
    pub(crate) fn start() -> Self {
        Self::with(config())
    }

    pub(crate) fn with(config: Config) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let host = runtime.block_on(Host::start(config)).expect("a host");
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_global(Some(Duration::from_secs(60)));
        Self {
            address: host.address(),
            runtime,
            host: Some(host),
            agent: agent.build().new_agent(),
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Vec<u8>>,
    ) -> Answer {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url()));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body: Vec<u8> = body.into();
        let sent = match body.is_empty() && matches!(method, "GET" | "DELETE") {
            true => self.agent.run(request.body(()).expect("a request")),
            false => self.agent.run(request.body(body).expect("a request")),
        };
        let mut response = sent.expect("an answer");
        Answer {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            bytes: response.body_mut().read_to_vec().expect("a body"),
        }
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.call("GET", path, &[], "")
    }

    pub(crate) fn post_json(&self, path: &str, body: impl Into<Vec<u8>>) -> Answer {
        self.call("POST", path, &[("content-type", "application/json")], body)
    }

    pub(crate) fn with_topic(self, name: &str, partitions: u32) -> Self {
        let body = format!(r#"{{"name":"{name}","partitions":{partitions},"durability":"os"}}"#);
        assert_eq!(self.post_json("/v1/topics", body).status, 201);
        self
    }

    /// Sends raw bytes and reads whatever comes until the host closes or falls silent.
    pub(crate) fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).expect("a connection");
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .expect("a timeout");
        stream.write_all(bytes).expect("sent");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    pub(crate) fn stop(mut self) {
        self.stop_now();
    }

    fn stop_now(&mut self) {
        if let Some(host) = self.host.take() {
            self.runtime.block_on(host.stop());
        }
    }
}

impl Drop for TestHost {
    fn drop(&mut self) {
        self.stop_now();
    }
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|_| {
            panic!(
                "no JSON: {} {}",
                self.status,
                String::from_utf8_lossy(&self.bytes)
            )
        })
    }

    /// Checks the status and the error shape, and returns code, message and hint as one text.
    pub(crate) fn refused(&self, status: u16, code: &str) -> String {
        let body = self.json();
        let error = &body["error"];
        assert_eq!(
            (self.status, error["code"].as_str()),
            (status, Some(code)),
            "{body}"
        );
        assert!(
            self.headers.contains_key("x-request-id"),
            "{:?}",
            self.headers
        );
        let text = |field: &str| error[field].as_str().filter(|text| !text.is_empty());
        let message = text("message").expect("a message");
        format!("{message} | {}", text("hint").expect("a hint"))
    }
}

/// The program, without what the user who runs the tests keeps or has set for it.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
    let nowhere = Path::new(env!("CARGO_TARGET_TMPDIR")).join("no-contexts");
    command.env("MILLRACE_CONFIG_DIR", nowhere);
    for name in [
        "MILLRACE_HOST",
        "MILLRACE_CONTEXT",
        "MILLRACE_TOKEN",
        "MILLRACE_TOKEN_FILE",
        "MILLRACE_CA",
    ] {
        command.env_remove(name);
    }
    command
}

/// In memory, on a free port.
pub(crate) fn config() -> Config {
    let mut config = Config {
        compile_program: Some(env!("CARGO_BIN_EXE_millrace").into()),
        ..Config::default()
    };
    config.listen.http.address = "127.0.0.1:0".to_owned();
    config.engine.kind = EngineKind::Memory;
    config
}

/// The same, with its data in a directory.
pub(crate) fn config_in(directory: &Path) -> Config {
    let mut config = config();
    config.engine.kind = EngineKind::Local;
    config.data_dir = directory.to_owned();
    config
}
