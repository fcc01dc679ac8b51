//! The command line, as a person and as a script would use it.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result};
use guest_artifacts as guests;
use millrace_tests::Host;
use serde_json::Value;

use crate::{MILLRACE, deploy_worker, host};

fn run(host: &Host, arguments: &[&str]) -> Result<Output> {
    Ok(host.command(arguments).output()?)
}

fn json(host: &Host, arguments: &[&str]) -> Result<Value> {
    let output = run(host, &[arguments, &["--json"]].concat())?;
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{arguments:?}: {}", String::from_utf8_lossy(&output.stdout)))
}

#[test]
fn a_whole_pipeline_is_built_used_and_taken_down_from_the_command_line() -> Result<()> {
    let host = host()?;
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), guests::UPPERCASE)?;
    let component = file.path().to_str().context("a text path")?;
    for topic in ["in", "out"] {
        assert!(run(&host, &["topic", "create", topic])?.status.success());
    }
    json(
        &host,
        &["module", "push", component, "--tag", "upper@1.0.0"],
    )?;
    json(
        &host,
        &[
            "processor",
            "deploy",
            "worker",
            "--module",
            "upper@1.0.0",
            "--topic",
            "in",
            "--output",
            "out",
        ],
    )?;
    assert!(
        run(&host, &["produce", "in", "hello", "world"])?
            .status
            .success()
    );
    host.client().wait_for_messages("out", 2)?;
    let read = run(&host, &["consume", "out"])?;
    let text = String::from_utf8(read.stdout)?;
    assert!(text.contains("HELLO") && text.contains("WORLD"), "{text}");
    let listed = json(&host, &["processor", "list"])?;
    assert!(listed.to_string().contains("worker"));
    assert!(
        run(&host, &["processor", "delete", "worker"])?
            .status
            .success()
    );
    assert!(run(&host, &["topic", "delete", "in"])?.status.success());
    Ok(())
}

#[test]
fn lines_are_produced_from_standard_input() -> Result<()> {
    let host = host()?;
    host.client().topic("t", 1)?;
    let mut command = host.command(&["produce", "t", "--ndjson", "--file", "-"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    let mut stdin = child.stdin.take().context("stdin is piped")?;
    for n in 0..5_000 {
        writeln!(stdin, "{{\"key\":\"{n}\",\"value\":\"v{n}\"}}")?;
    }
    drop(stdin);
    assert!(child.wait()?.success());
    assert_eq!(host.client().count("t")?, 5_000);
    Ok(())
}

#[test]
fn exit_codes_tell_what_went_wrong() -> Result<()> {
    let host = host()?;
    assert_eq!(
        run(&host, &["topic", "show", "nope"])?.status.code(),
        Some(3)
    );
    assert_eq!(
        run(&host, &["topic", "create", "a b"])?.status.code(),
        Some(2)
    );
    assert_eq!(run(&host, &["no-such-command"])?.status.code(), Some(2));
    let nobody = Command::new(MILLRACE)
        .args(["topic", "list", "--host", "http://127.0.0.1:1"])
        .output()?;
    assert_eq!(nobody.status.code(), Some(5));
    let says = String::from_utf8_lossy(&nobody.stderr).into_owned();
    assert!(
        says.contains("millrace serve"),
        "it says what to do: {says}"
    );
    Ok(())
}

#[test]
fn an_unknown_configuration_key_is_refused_with_the_nearest_right_name() -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), "lisen = \"127.0.0.1:0\"\n")?;
    let output = Command::new(MILLRACE)
        .args(["serve", "--config"])
        .arg(file.path())
        .output()?;
    assert_eq!(output.status.code(), Some(2));
    let says = String::from_utf8_lossy(&output.stderr);
    assert!(says.contains("lisen") && says.contains("listen"), "{says}");
    Ok(())
}

#[test]
fn settings_in_their_old_spelling_are_read_and_the_log_says_what_they_are_called_now() -> Result<()>
{
    let (old, new) = (
        "MILLRACE_SEGMENT_BYTES",
        "MILLRACE_ENGINE_LOCAL_SEGMENT_BYTES",
    );
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("millrace.toml");
    // The port is taken, so that each host ends by itself.
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    std::fs::write(&file, format!("listen = \"{}\"\n", taken.local_addr()?))?;
    let serve = |variables: &[(&str, &str)]| -> Result<(Option<i32>, String)> {
        let output = Command::new(MILLRACE)
            .args(["serve", "--engine", "memory", "--config"])
            .arg(&file)
            .envs(variables.iter().copied())
            .output()?;
        let says = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok((output.status.code(), says))
    };
    let (code, says) = serve(&[(old, "4096")])?;
    assert_eq!(code, Some(1), "{says}");
    for told in [
        "the key `listen` is called `listen.http.address` now".to_owned(),
        format!("the environment variable {old} is called {new} now"),
        "cannot listen".to_owned(),
    ] {
        assert!(says.contains(&told), "{told} is not in {says}");
    }
    for name in [old, new] {
        let (code, says) = serve(&[(name, "1")])?;
        assert_eq!(code, Some(2), "{says}");
        assert!(
            says.contains("engine.local.segment_bytes cannot be"),
            "{says}"
        );
    }
    let (code, says) = serve(&[(old, "4096"), (new, "4096")])?;
    assert_eq!(code, Some(2), "{says}");
    assert!(says.contains(&format!("keep {new}")), "{says}");
    Ok(())
}

#[test]
fn an_address_that_others_can_reach_is_refused_without_the_explicit_flag() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let output = Command::new(MILLRACE)
        .args(["serve", "--listen", "0.0.0.0:0", "--data-dir"])
        .arg(directory.path())
        .output()?;
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--insecure-no-auth"));
    Ok(())
}

#[test]
fn a_processor_is_deleted_with_the_topics_that_were_made_for_it_if_it_is_said() -> Result<()> {
    let host = host()?;
    let client = host.client();
    client.topic("in", 1)?;
    client.topic("out", 1)?;
    let names = || -> Result<Vec<String>> {
        let topics = client.get("/v1/topics")?.ok()?;
        let names = topics["topics"].as_array().into_iter().flatten();
        Ok(names
            .filter_map(|topic| Some(topic["name"].as_str()?.to_owned()))
            .collect())
    };
    for (flags, left) in [(&["--with-topics"][..], 0), (&[][..], 1)] {
        deploy_worker(&client, guests::PASSTHROUGH, Value::Null)?;
        assert!(
            names()?.contains(&"in.worker.dlq".to_owned()),
            "{:?}",
            names()?
        );
        let deleted = run(&host, &[&["processor", "delete", "worker"], flags].concat())?;
        assert!(deleted.status.success(), "{deleted:?}");
        let own: Vec<String> = names()?;
        let dead = own.iter().filter(|name| name.ends_with(".dlq"));
        assert_eq!(dead.count(), left, "{own:?}");
        assert!(
            own.contains(&"in".to_owned()) && own.contains(&"out".to_owned()),
            "{own:?}"
        );
    }
    Ok(())
}
