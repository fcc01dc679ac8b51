//! A small HTTP client with what a user does.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::wait_for;

/// Longer than anything that a host bounds, even on a shared machine; the longest is a compilation
/// until it is given up.
const TIMEOUT: Duration = Duration::from_secs(240);
const READ_BYTES_MAX: u64 = 64 << 20;

/// A client of one host. Cheap to clone: clones share a connection pool.
#[derive(Clone)]
pub struct Client {
    url: String,
    agent: ureq::Agent,
}

/// An answer of the host.
#[derive(Debug)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

/// A message as read over HTTP.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Message {
    /// Its partition.
    pub partition: u32,
    /// Its offset.
    pub offset: u64,
    /// Its key, if it is text.
    #[serde(default)]
    pub key: Option<String>,
    /// Its value, if it is text.
    #[serde(default)]
    pub value: Option<String>,
    /// Its headers that are text.
    #[serde(default)]
    pub headers: BTreeMap<String, Value>,
}

/// A processor to deploy; fields beyond the usual ones go into `more`.
pub struct Deploy<'a> {
    /// Its name.
    pub name: &'a str,
    /// The digest of the module.
    pub module: &'a str,
    /// The input topic.
    pub topic: &'a str,
    /// The output topic.
    pub output: &'a str,
    /// Fields to merge over the rest of the specification.
    pub more: Value,
}

impl Message {
    /// The value of a header that is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.as_str()
    }

    /// The value, or an empty text if there is none.
    #[must_use]
    pub fn text(&self) -> &str {
        self.value.as_deref().unwrap_or_default()
    }
}

impl Reply {
    /// The body as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("not JSON: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The body as JSON, if the status is a success.
    pub fn ok(self) -> Result<Value> {
        ensure!(
            (200..300).contains(&self.status),
            "{}: {}",
            self.status,
            String::from_utf8_lossy(&self.body)
        );
        if self.body.is_empty() {
            return Ok(Value::Null);
        }
        self.json()
    }

    /// Code, message and hint of an error answer; all three must be present.
    pub fn error(&self) -> Result<(String, String, String)> {
        let json = self.json()?;
        let part = |name: &str| {
            json["error"][name]
                .as_str()
                .map(str::to_owned)
                .with_context(|| format!("no error.{name} in {json}"))
        };
        Ok((part("code")?, part("message")?, part("hint")?))
    }
}

impl Client {
    /// A client of the host at `url`.
    #[must_use]
    pub fn new(url: &str) -> Self {
        Self::with_timeout(url, TIMEOUT)
    }

    /// A client that gives up a request after `timeout`.
    #[must_use]
    pub fn with_timeout(url: &str, timeout: Duration) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(timeout))
            .build();
        Self {
            url: url.to_owned(),
            agent: config.new_agent(),
        }
    }

    /// The address of the host.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Sends a GET.
    pub fn get(&self, path: &str) -> Result<Reply> {
        read(self.agent.get(self.at(path)).call()?)
    }

    /// Sends a DELETE.
    pub fn delete(&self, path: &str) -> Result<Reply> {
        read(self.agent.delete(self.at(path)).call()?)
    }

    /// Sends a POST with bytes of a content type.
    pub fn post(&self, path: &str, content_type: &str, body: &[u8]) -> Result<Reply> {
        let request = self.agent.post(self.at(path));
        read(request.header("content-type", content_type).send(body)?)
    }

    /// Sends a POST with these headers.
    pub fn post_with(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Reply> {
        let mut request = self.agent.post(self.at(path));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        read(request.send(body)?)
    }

    /// Sends a POST with JSON.
    pub fn post_json(&self, path: &str, body: &Value) -> Result<Reply> {
        self.post(path, "application/json", body.to_string().as_bytes())
    }

    /// POST of JSON with an idempotency key, so that it may be sent again.
    pub fn post_json_once(&self, path: &str, key: &str, body: &Value) -> Result<Reply> {
        let request = self.agent.post(self.at(path));
        let request = request.header("content-type", "application/json");
        let request = request.header("idempotency-key", key);
        read(request.send(body.to_string().as_bytes())?)
    }

    /// Sends a PATCH with JSON.
    pub fn patch_json(&self, path: &str, body: &Value) -> Result<Reply> {
        let request = self.agent.patch(self.at(path));
        let request = request.header("content-type", "application/json");
        read(request.send(body.to_string().as_bytes())?)
    }

    /// Sends a PUT with JSON.
    pub fn put_json(&self, path: &str, body: &Value) -> Result<Reply> {
        let request = self.agent.put(self.at(path));
        let request = request.header("content-type", "application/json");
        read(request.send(body.to_string().as_bytes())?)
    }

    /// Creates a topic whose messages are acknowledged from the page cache.
    pub fn topic(&self, name: &str, partitions: u32) -> Result<()> {
        let body = json!({"name": name, "partitions": partitions, "durability": "os"});
        self.post_json("/v1/topics", &body)?.ok().map(drop)
    }

    /// Produces messages in one atomic request.
    pub fn produce(&self, topic: &str, messages: &[Value]) -> Result<()> {
        let path = format!("/v1/topics/{topic}/messages");
        self.post_json(&path, &json!({"messages": messages}))?
            .ok()
            .map(drop)
    }

    /// As [`Client::produce`], with an idempotency key, so that it may be retried. Returns the
    /// partition and offset of each message.
    pub fn produce_once(
        &self,
        topic: &str,
        key: &str,
        messages: &[Value],
    ) -> Result<Vec<(u32, u64)>> {
        let path = format!("/v1/topics/{topic}/messages");
        let body = json!({"messages": messages});
        let answer = self.post_json_once(&path, key, &body)?.ok()?;
        let place = |place: &Value| {
            let partition = place["partition"].as_u64().context("no partition")?;
            Ok((
                partition as u32,
                place["offset"].as_u64().context("no offset")?,
            ))
        };
        let placed = answer["placed"].as_array().context("no placed")?;
        placed.iter().map(place).collect()
    }

    /// All messages of a topic, partition by partition.
    pub fn read(&self, topic: &str) -> Result<Vec<Message>> {
        let described = self.get(&format!("/v1/topics/{topic}"))?.ok()?;
        let partitions = described["ends"].as_array().context("no ends")?.len();
        let mut messages = Vec::new();
        for partition in 0..partitions {
            self.read_partition(topic, partition, &mut messages)?;
        }
        Ok(messages)
    }

    fn read_partition(&self, topic: &str, partition: usize, into: &mut Vec<Message>) -> Result<()> {
        let mut from = "earliest".to_owned();
        loop {
            let page = self
                .get(&format!(
                    "/v1/topics/{topic}/partitions/{partition}/messages?from={from}&max=10000&max_bytes=8000000"
                ))?
                .ok()?;
            let found: Vec<Message> = serde_json::from_value(page["messages"].clone())?;
            let next = page["next"].as_u64().context("no next")?;
            into.extend(found);
            if next >= page["end"].as_u64().context("no end")? {
                return Ok(());
            }
            from = next.to_string();
        }
    }

    /// How many messages a topic's partitions hold together, as the distance from start to end of
    /// each.
    pub fn count(&self, topic: &str) -> Result<u64> {
        let described = self.get(&format!("/v1/topics/{topic}"))?.ok()?;
        let ends = described["ends"].as_array().context("no ends")?;
        Ok(ends
            .iter()
            .map(|end| end["end"].as_u64().unwrap_or(0) - end["start"].as_u64().unwrap_or(0))
            .sum())
    }

    /// Waits until the topic has at least `count` messages, and reads them.
    pub fn wait_for_messages(&self, topic: &str, count: usize) -> Result<Vec<Message>> {
        wait_for(&format!("{count} messages in {topic}"), || {
            Ok((self.count(topic)? >= count as u64).then_some(()))
        })?;
        self.read(topic)
    }

    /// Uploads a component; returns its digest.
    pub fn push(&self, component: &[u8]) -> Result<String> {
        digest_of(&self.upload(component)?.ok()?)
    }

    /// Uploads a component, and returns what became of it, however long it is compiled.
    pub fn upload(&self, component: &[u8]) -> Result<Reply> {
        let mut reply = self.post("/v1/modules", "application/wasm", component)?;
        while reply.status == 202 {
            let shown: Value = serde_json::from_slice(&reply.body)?;
            let digest = digest_of(&shown)?;
            std::thread::sleep(Duration::from_millis(200));
            reply = self.get(&format!("/v1/modules/{digest}"))?;
        }
        Ok(reply)
    }

    /// Deploys a processor or its next revision; returns the number of the current revision.
    pub fn deploy(&self, deploy: &Deploy<'_>) -> Result<u64> {
        let mut body = json!({
            "module": deploy.module, "topics": [deploy.topic], "output": deploy.output,
        });
        if let (Some(body), Some(more)) = (body.as_object_mut(), deploy.more.as_object()) {
            body.extend(more.clone());
        }
        // The defaults retry for minutes, and a scenario waits for the last attempt.
        let quick = json!({"attempts_max": 5, "delay_first_ms": 100, "delay_max_ms": 30_000});
        for (field, value) in quick.as_object().into_iter().flatten() {
            let said = &mut body["retry"][field];
            if said.is_null() {
                *said = value.clone();
            }
        }
        let processor = self
            .put_json(&format!("/v1/processors/{}", deploy.name), &body)?
            .ok()?;
        processor["current"].as_u64().context("no current")
    }

    /// Messages that the processor has parked or not read yet.
    pub fn backlog(&self, processor: &str) -> Result<u64> {
        let status = self.get(&format!("/v1/processors/{processor}"))?.ok()?;
        let partitions = status["partitions"].as_array().context("no partitions")?;
        Ok(partitions
            .iter()
            .map(|at| at["lag"].as_u64().unwrap_or(0) + at["parked"].as_u64().unwrap_or(0))
            .sum())
    }

    /// Waits until the processor has nothing left to do; the error tells its progress.
    pub fn wait_until_idle(&self, processor: &str) -> Result<()> {
        wait_for(&format!("{processor} to have nothing left"), || {
            Ok((self.backlog(processor)? == 0).then_some(()))
        })
        .with_context(|| {
            let status = self.get(&format!("/v1/processors/{processor}"));
            let status = status.and_then(|reply| reply.json());
            status.map_or_else(
                |error| error.to_string(),
                |json| json["partitions"].to_string(),
            )
        })
    }

    /// The processor's dead letters.
    pub fn dead_letters(&self, processor: &str) -> Result<Vec<Value>> {
        let path = format!("/v1/processors/{processor}/dead-letters?redriven=also&max=10000");
        let answer = self.get(&path)?.ok()?;
        answer["dead_letters"]
            .as_array()
            .cloned()
            .context("no dead_letters")
    }

    /// The value of a metric, summed over its labels.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let reply = self.get("/metrics")?;
        let text = String::from_utf8(reply.body)?;
        let found: Vec<f64> = text
            .lines()
            .filter(|line| line.split(['{', ' ']).next() == Some(name))
            .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
            .collect();
        if found.is_empty() {
            bail!("no metric {name}");
        }
        Ok(found.iter().sum())
    }

    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }
}

fn digest_of(module: &Value) -> Result<String> {
    let digest = module["digest"].as_str();
    let digest = digest.or_else(|| module["facts"]["digest"].as_str());
    digest
        .map(str::to_owned)
        .with_context(|| format!("no digest in {module}"))
}

fn read(mut response: ureq::http::Response<ureq::Body>) -> Result<Reply> {
    let status = response.status().as_u16();
    let body = response
        .body_mut()
        .with_config()
        .limit(READ_BYTES_MAX)
        .read_to_vec()?;
    Ok(Reply { status, body })
}
