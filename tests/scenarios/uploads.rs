//! Bad uploads: each is refused with a reason and a hint, and leaves nothing behind.

use std::time::{Duration, Instant};

use anyhow::Result;
use guest_artifacts as guests;
use serde_json::{Value, json};

use crate::{deploy_worker, host};

/// The smallest core module: magic and version.
const CORE_MODULE: &[u8] = b"\0asm\x01\0\0\0";
/// The smallest component, exporting nothing.
const EMPTY_COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

fn refused(component: &[u8], status: u16, code: &str, says: &[&str]) -> Result<()> {
    let host = host()?;
    let client = host.client();
    let reply = client.upload(component)?;
    assert_eq!(
        reply.status,
        status,
        "{}",
        String::from_utf8_lossy(&reply.body)
    );
    let (found, message, hint) = reply.error()?;
    assert_eq!(found, code, "{message}");
    assert!(!hint.is_empty());
    for part in says {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
    assert_eq!(client.get("/v1/modules")?.ok()?["modules"], json!([]));
    assert!(
        client.push(guests::UPPERCASE).is_ok(),
        "the next upload is welcome"
    );
    Ok(())
}

#[test]
fn an_upload_that_is_no_wasm_is_refused() -> Result<()> {
    refused(
        b"#!/bin/sh\necho hello\n",
        422,
        "not-a-component",
        &["component"],
    )
}

#[test]
fn an_empty_upload_is_refused() -> Result<()> {
    refused(b"", 422, "not-a-component", &["empty"])
}

#[test]
fn a_core_module_is_refused_and_told_how_to_become_a_component() -> Result<()> {
    refused(
        CORE_MODULE,
        422,
        "not-a-component",
        &["core WebAssembly module", "wasm32-wasip2"],
    )
}

#[test]
fn a_component_without_our_exports_is_refused_and_told_which_are_missing() -> Result<()> {
    refused(
        EMPTY_COMPONENT,
        422,
        "missing-export",
        &["message-processor"],
    )
}

#[test]
fn a_component_that_wants_what_no_host_has_is_refused_and_told_which_import() -> Result<()> {
    let named = "outside:places/telephone@1.0.0";
    refused(guests::OUTSIDER, 422, "ungranted-import", &[named])
}

#[test]
fn a_component_that_traps_while_it_starts_is_refused() -> Result<()> {
    refused(guests::START_TRAP, 422, "does-not-start", &["start"])
}

#[test]
fn a_truncated_component_is_refused() -> Result<()> {
    let half = &guests::UPPERCASE[..guests::UPPERCASE.len() / 2];
    refused(half, 422, "invalid-component", &[])
}

#[test]
fn a_component_above_the_size_bound_is_refused() -> Result<()> {
    let huge = vec![0_u8; (64 << 20) + 1];
    let setting = "module_bytes_max = 67108864";
    refused(&huge, 413, "too-large", &[setting])
}

#[test]
fn a_compile_bomb_is_refused_in_bounded_time_while_the_host_answers() -> Result<()> {
    let host = host()?;
    let client = host.client();
    let bomb = crate::guests::compile_bomb();
    let began = Instant::now();
    client.push(guests::UPPERCASE)?;
    // On a shared machine everything takes longer, also the bomb.
    let usual = began.elapsed();
    let began = Instant::now();
    let reply = client.upload(&bomb)?;
    assert_eq!(
        reply.status,
        422,
        "{}",
        String::from_utf8_lossy(&reply.body)
    );
    let (code, message, _) = reply.error()?;
    assert!(
        ["compile-limit", "invalid-component"].contains(&code.as_str()),
        "{code}: {message}"
    );
    let took = began.elapsed();
    assert!(
        took < Duration::from_secs(60) + 20 * usual,
        "{took:?}, where an upload takes {usual:?}"
    );
    assert_eq!(client.get("/health/ready")?.status, 200);
    Ok(())
}

#[test]
fn a_module_is_uploaded_once_and_found_by_digest_prefix_and_tag() -> Result<()> {
    let host = host()?;
    let client = host.client();
    let first = client.post(
        "/v1/modules?tag=upper@1.0.0",
        "application/wasm",
        guests::UPPERCASE,
    )?;
    assert_eq!(first.status, 201);
    let second = client.post("/v1/modules", "application/wasm", guests::UPPERCASE)?;
    assert_eq!(second.status, 200);
    let listed = client.get("/v1/modules")?.ok()?;
    assert_eq!(listed["modules"].as_array().map(Vec::len), Some(1));
    let digest = client.push(guests::UPPERCASE)?;
    for reference in [digest.as_str(), &digest[..10], "upper@1.0.0"] {
        assert_eq!(
            client.get(&format!("/v1/modules/{reference}"))?.status,
            200,
            "{reference}"
        );
    }
    Ok(())
}

#[test]
fn a_module_in_use_cannot_be_deleted() -> Result<()> {
    let host = host()?;
    let client = host.client();
    client.topic("in", 1)?;
    client.topic("out", 1)?;
    let digest = client.push(guests::UPPERCASE)?;
    let spec = json!({"module": digest, "topics": ["in"], "output": "out"});
    client.put_json("/v1/processors/worker", &spec)?.ok()?;
    let path = format!("/v1/modules/{digest}");
    assert_eq!(client.delete(&path)?.status, 409);
    client.delete("/v1/processors/worker")?;
    assert_eq!(client.delete(&path)?.status, 204);
    assert_eq!(
        client.get("/v1/modules")?.ok()?["modules"],
        Value::Array(Vec::new())
    );
    Ok(())
}

#[test]
fn a_revision_that_cannot_be_deployed_changes_nothing() -> Result<()> {
    let host = host()?;
    let client = host.client();
    client.topic("in", 1)?;
    client.topic("out", 1)?;
    let upper = client.push(guests::UPPERCASE)?;
    let partitioner = client.push(guests::REGION_PARTITIONER)?;
    let spec = |module: &str| json!({"module": module, "topics": ["in"], "output": "out"});
    client
        .put_json("/v1/processors/worker", &spec(&upper))?
        .ok()?;
    let wrong = client.put_json("/v1/processors/worker", &spec(&partitioner))?;
    assert_eq!(wrong.status, 422);
    let (code, message, _) = wrong.error()?;
    assert_eq!(code, "wrong-interface", "{message}");
    let processor = client.get("/v1/processors/worker")?.ok()?;
    assert_eq!(processor["current"], 1);
    client.produce("in", &[json!({"value": "still"})])?;
    assert_eq!(client.wait_for_messages("out", 1)?[0].text(), "STILL");
    Ok(())
}

#[test]
fn a_component_that_begins_large_is_admitted_and_its_specification_decides() -> Result<()> {
    let host = host()?;
    let client = host.client();
    client.topic("in", 1)?;
    client.topic("out", 1)?;
    let refused = deploy_worker(&client, guests::BEGINS_LARGE, json!({}));
    let refused = refused.expect_err("the default is less").to_string();
    assert!(refused.contains("memory_bytes_max"), "{refused}");
    let more = json!({"limits": {"memory_bytes_max": 128 << 20}});
    deploy_worker(&client, guests::BEGINS_LARGE, more)?;
    client.produce("in", &[json!({"value": "v"})])?;
    client.wait_for_messages("out", 1)?;
    Ok(())
}

#[test]
fn what_a_component_writes_without_a_line_end_is_a_line_of_its_own_message() -> Result<()> {
    let host = host()?;
    let client = host.client();
    client.topic("in", 1)?;
    client.topic("out", 1)?;
    deploy_worker(
        &client,
        guests::MUMBLE,
        json!({"batch": {"messages_max": 1}}),
    )?;
    client.produce(
        "in",
        &[json!({"value": "err one"}), json!({"value": "out two"})],
    )?;
    client.wait_for_messages("out", 2)?;
    let logs = client.get("/v1/processors/worker/logs")?.ok()?;
    let lines = logs["lines"].as_array().cloned().unwrap_or_default();
    let texts: Vec<&str> = lines
        .iter()
        .filter_map(|line| line["text"].as_str())
        .collect();
    assert_eq!(texts, ["one", "two"]);
    Ok(())
}
