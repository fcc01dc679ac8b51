//! Bad requests: each gets the one error shape with a code, a message and a hint, and loses
//! nothing.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::Result;
use millrace_tests::{Client, Reply};
use serde_json::json;

use crate::host;

fn refused(reply: &Reply, status: u16, code: &str) -> Result<String> {
    let (found, message, hint) = reply.error()?;
    assert_eq!((reply.status, found.as_str()), (status, code), "{message}");
    assert!(!message.is_empty() && !hint.is_empty());
    Ok(message)
}

fn post(client: &Client, body: &str) -> Result<Reply> {
    client.post("/v1/topics/t/messages", "application/json", body.as_bytes())
}

#[test]
fn malformed_json_is_refused_with_its_place() -> Result<()> {
    let host = host()?;
    let client = host.client();
    client.topic("t", 1)?;
    let message = refused(&post(&client, "{\"value\": \n oops}")?, 400, "malformed")?;
    assert!(message.contains("line 2"), "{message}");
    let unknown = refused(&post(&client, r#"{"vlaue": "x"}"#)?, 400, "malformed")?;
    assert!(unknown.contains("value"), "{unknown}");
    assert_eq!(client.count("t")?, 0);
    Ok(())
}

#[test]
fn one_bad_line_refuses_the_whole_request_and_names_the_line() -> Result<()> {
    let host = host()?;
    let client = host.client();
    client.topic("t", 1)?;
    let lines = "{\"value\":1}\n{\"value\":2}\n{\"value\":\n{\"value\":4}\n";
    let reply = client.post(
        "/v1/topics/t/messages",
        "application/x-ndjson",
        lines.as_bytes(),
    )?;
    let message = refused(&reply, 400, "malformed")?;
    assert!(message.contains("line 3"), "{message}");
    assert_eq!(client.count("t")?, 0, "a request is one commit");
    Ok(())
}

#[test]
fn what_does_not_exist_is_said_to_be_unknown() -> Result<()> {
    let host = host()?;
    let client = host.client();
    client.topic("t", 1)?;
    let send = json!({"value": "x"});
    refused(
        &client.post_json("/v1/topics/nope/messages", &send)?,
        404,
        "unknown-topic",
    )?;
    refused(&client.get("/v1/topics/nope")?, 404, "unknown-topic")?;
    refused(
        &client.get("/v1/topics/t/partitions/7/messages")?,
        404,
        "unknown-partition",
    )?;
    refused(
        &client.post_json(
            "/v1/topics/t/messages",
            &json!({"value": "x", "partition": 9}),
        )?,
        404,
        "unknown-partition",
    )?;
    refused(
        &client.get("/v1/modules/0123456789")?,
        404,
        "unknown-module",
    )?;
    refused(
        &client.get("/v1/processors/nobody")?,
        404,
        "unknown-processor",
    )?;
    refused(&client.get("/v2/anything")?, 404, "unknown-route")?;
    Ok(())
}

#[test]
fn a_message_above_the_bound_is_refused_and_nothing_of_its_request_is_stored() -> Result<()> {
    let host = host()?;
    let client = host.client();
    client.topic("t", 1)?;
    let huge = "x".repeat((8 << 20) + 1);
    let body = json!({"messages": [{"value": "small"}, {"value": huge}]}).to_string();
    refused(&post(&client, &body)?, 413, "too-large")?;
    assert_eq!(client.count("t")?, 0);
    Ok(())
}

#[test]
fn bad_names_are_refused() -> Result<()> {
    let host = host()?;
    let client = host.client();
    for name in ["", "..", "a/b", "a b", "ümlaut", &"x".repeat(250)] {
        let reply = client.post_json("/v1/topics", &json!({"name": name}))?;
        assert!(refused(&reply, 400, "malformed")?.contains("name"));
    }
    let path = client.get("/v1/topics/a%20b")?;
    refused(&path, 400, "malformed")?;
    let taken = client.post_json("/v1/topics", &json!({"name": "a.worker.dlq"}))?;
    assert!(
        (400..500).contains(&taken.status),
        "names of dead-letter topics are the host's"
    );
    let none = client.post_json("/v1/topics", &json!({"name": "ok", "partitions": 0}))?;
    assert!((400..500).contains(&none.status));
    assert_eq!(client.get("/v1/topics")?.ok()?["topics"], json!([]));
    Ok(())
}

#[test]
fn offsets_outside_the_partition_are_refused_with_where_it_begins_and_ends() -> Result<()> {
    let host = host()?;
    let client = host.client();
    client.topic("t", 1)?;
    client.produce("t", &[json!({"value": "x"})])?;
    let path = |from: &str| format!("/v1/topics/t/partitions/0/messages?from={from}");
    refused(&client.get(&path("17"))?, 404, "offset-past-end")?;
    assert_eq!(client.get(&path("yesterday"))?.status, 400);
    assert_eq!(client.get(&path("1"))?.ok()?["messages"], json!([]));
    Ok(())
}

#[test]
fn a_page_of_another_origin_cannot_drive_the_host() -> Result<()> {
    let host = host()?;
    let status = raw(
        host.url(),
        "POST /v1/topics HTTP/1.1\r\nhost: localhost\r\norigin: https://evil.example\r\ncontent-type: application/json\r\ncontent-length: 12\r\nconnection: close\r\n\r\n{\"name\":\"x\"}",
    )?;
    assert!(status.starts_with("HTTP/1.1 403"), "{status}");
    assert_eq!(host.client().get("/v1/topics")?.ok()?["topics"], json!([]));
    Ok(())
}

#[test]
fn bytes_that_are_no_http_end_the_connection_and_nothing_else() -> Result<()> {
    let host = host()?;
    raw(host.url(), "\x16\x03\x01 this is not http at all\r\n\r\n")?;
    assert_eq!(host.client().get("/health/live")?.status, 200);
    Ok(())
}

fn raw(url: &str, request: &str) -> Result<String> {
    let mut stream = TcpStream::connect(url.trim_start_matches("http://"))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
