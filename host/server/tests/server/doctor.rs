//! `doctor` and `segment dump` as the built binary, over a directory that a real host filled.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;

use crate::support::{TestHost, config_in, program};

fn millrace(arguments: &[&str]) -> Output {
    let mut command = program();
    command.args(arguments).env_remove("MILLRACE_DATA_DIR");
    command.output().expect("the binary runs")
}

fn out(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn host(dir: &Path) -> TestHost {
    TestHost::with(config_in(dir))
}

/// A host's directory with three batches in a segment, closed in order.
fn filled() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    let host = host(dir.path()).with_topic("orders", 1);
    for body in [
        r#"{"messages":[{"key":"k","value":"the first","headers":{"a":"1"}}]}"#,
        r#"{"messages":[{"value":"the second"},{"value_base64":"/wAb"}]}"#,
        r#"{"messages":[{"value":"the last"}]}"#,
    ] {
        let produced = host.post_json("/v1/topics/orders/messages", body);
        assert!(produced.status < 300, "{}", produced.json());
    }
    host.stop();
    let topics = fs::read_dir(dir.path().join("topics")).expect("topics");
    let topic = topics.flatten().next().expect("a topic").path();
    let segment = topic.join("0-00000000000000000000.segment");
    assert!(segment.exists());
    (dir, segment)
}

fn hurt(segment: &Path, text: &str) {
    let mut bytes = fs::read(segment).expect("a segment");
    let at = bytes.windows(text.len()).position(|w| w == text.as_bytes());
    bytes[at.expect("the text")] ^= 1;
    fs::write(segment, bytes).expect("written");
}

#[test]
fn doctor_tells_sound_damaged_absent_and_busy_directories_apart_by_exit_code() {
    let (dir, segment) = filled();
    let path = dir.path().to_str().expect("a path");
    let text = out(&millrace(&["doctor", path]), 0);
    assert!(
        text.contains("is sound") && text.contains("4 messages"),
        "{text}"
    );

    hurt(&segment, "the second");
    let damaged = millrace(&["doctor", path]);
    let text = out(&damaged, 1);
    assert!(
        text.contains("damage") && text.contains("offsets 1..3"),
        "{text}"
    );
    let told = String::from_utf8_lossy(&damaged.stderr);
    assert!(told.contains("copy it before"), "{told}");
    let json = out(&millrace(&["doctor", path, "--json"]), 1);
    let json: Value = serde_json::from_str(&json).expect("JSON");
    let findings = json["findings"].as_array().expect("findings");
    let found = findings.iter().find(|f| f["severity"] == "damage");
    let found = found.expect("the damage");
    assert_eq!(
        (&found["topic"], &found["partition"]),
        (&"orders".into(), &0.into())
    );
    assert_eq!(found["offsets"], serde_json::json!({"from": 1, "to": 3}));

    let running = host(dir.path());
    let busy = millrace(&["doctor", path]);
    assert!(out(&busy, 6).is_empty());
    assert!(String::from_utf8_lossy(&busy.stderr).contains("stop the host first"));
    running.stop();

    let nowhere = dir.path().join("nowhere");
    out(&millrace(&["doctor", nowhere.to_str().expect("a path")]), 3);
    let empty = tempfile::tempdir().expect("a directory");
    out(
        &millrace(&["doctor", empty.path().to_str().expect("a path")]),
        3,
    );
}

#[test]
fn a_segment_is_dumped_and_damage_in_it_does_not_end_the_dump() {
    let (dir, segment) = filled();
    let path = segment.to_str().expect("a path");
    let text = out(&millrace(&["segment", "dump", path]), 0);
    assert!(text.contains("batch at byte 0: offsets 0..1"), "{text}");
    assert!(
        text.contains(r#"key "k"  value "the first"  "a"="1""#),
        "{text}"
    );
    assert!(text.contains("0xff001b"), "{text}");
    assert!(
        text.contains("3 batches, 4 messages shown, 0 damaged ranges"),
        "{text}"
    );
    let one = out(
        &millrace(&[
            "segment", "dump", path, "--from", "2", "--max", "1", "--json",
        ]),
        0,
    );
    let one: Vec<Value> = one
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(one.len(), 2, "{one:?}");
    assert_eq!(one[0]["base_offset"], 1);
    assert_eq!(
        (&one[1]["offset"], &one[1]["value_base64"]),
        (&2.into(), &"/wAb".into())
    );

    hurt(&segment, "the second");
    let text = out(&millrace(&["segment", "dump", path]), 0);
    assert!(
        text.contains("offsets 1 to 3 (exclusive) cannot be read"),
        "{text}"
    );
    assert!(
        text.contains("the first") && text.contains("the last"),
        "{text}"
    );

    let checkpoint = dir.path().join("checkpoint.sqlite");
    let refused = millrace(&["segment", "dump", checkpoint.to_str().expect("a path")]);
    assert!(out(&refused, 4).is_empty());
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(
        told.contains("is not a segment") && told.contains("OFFSET.segment"),
        "{told}"
    );
    out(
        &millrace(&["segment", "dump", &format!("{path}.absent")]),
        3,
    );
}

#[test]
fn a_repair_is_only_told_until_it_is_meant_and_then_moves_what_makes_way() {
    let (dir, _) = filled();
    let stray = dir.path().join("notes.txt");
    fs::write(&stray, "mine").expect("written");
    fs::remove_file(dir.path().join("checkpoint.sqlite")).expect("removed");
    let path = dir.path().to_str().expect("text");
    let told = out(&millrace(&["doctor", path, "--repair"]), 1);
    assert!(told.contains("A REPAIR WOULD"), "{told}");
    assert!(told.contains("nothing was changed"), "{told}");
    assert!(stray.exists());
    let done = out(
        &millrace(&["doctor", path, "--repair", "--yes", "--json"]),
        0,
    );
    let done: Value = serde_json::from_str(&done).expect("JSON");
    assert_eq!(done["repaired"].as_array().map(Vec::len), Some(2), "{done}");
    assert!(!stray.exists());
    let host = host(dir.path());
    let messages = host.get("/v1/topics/orders/partitions/0/messages").json();
    assert_eq!(messages["messages"].as_array().map(Vec::len), Some(4));
    let busy = millrace(&["doctor", path, "--repair", "--yes"]);
    assert_eq!(busy.status.code(), Some(6), "{busy:?}");
}

#[test]
fn flags_of_data_directories_are_refused_where_they_would_do_nothing() {
    let database = "postgres://ada:s3cret@127.0.0.1:1/queue";
    for (store, flags, words) in [
        (
            database,
            &["--repair", "--yes"][..],
            "--repair is for data directories",
        ),
        (
            database,
            &["--encryption-key-file", "keys"],
            "--encryption-key-file is for data directories",
        ),
        ("nats://127.0.0.1:4222", &[], "doctor --monitoring http://"),
    ] {
        let refused = millrace(&[&["doctor", store][..], flags].concat());
        out(&refused, 2);
        let told = String::from_utf8_lossy(&refused.stderr);
        assert!(told.contains(words) && !told.contains("s3cret"), "{told}");
    }
    // A variable is for whatever is examined, and forbids nothing.
    for arguments in [
        &["doctor", "--monitoring", "http://ada:s3cret@127.0.0.1:1"][..],
        &["doctor", database],
    ] {
        let mut command = program();
        command.args(arguments);
        command.env("MILLRACE_ENCRYPTION_KEY_FILE", "keys");
        let silent = command.output().expect("the binary runs");
        out(&silent, 5);
        let told = String::from_utf8_lossy(&silent.stderr);
        assert!(!told.contains("s3cret"), "{told}");
    }
}

#[test]
fn messages_of_a_compressed_topic_are_served_and_its_segment_is_dumped() {
    let dir = tempfile::tempdir().expect("a directory");
    let host = host(dir.path());
    let topic = r#"{"name":"orders","settings":{"compression":"zstd"}}"#;
    let made = host.post_json("/v1/topics", topic);
    assert_eq!(made.status, 201, "{}", made.json());
    assert_eq!(made.json()["settings"]["compression"], "zstd");
    assert_eq!(host.post_json("/v1/topics", topic).status, 200);
    let plain = host.post_json("/v1/topics", r#"{"name":"orders"}"#);
    assert_eq!(plain.status, 409, "the same name, other settings");
    let unknown = r#"{"name":"other","settings":{"compression":"rar"}}"#;
    assert_eq!(host.post_json("/v1/topics", unknown).status, 400);

    let value = "the same again and again ".repeat(100);
    let body = serde_json::json!({"messages": [{"key": "k", "value": value}, {"value": "last"}]});
    let produced = host.post_json("/v1/topics/orders/messages", body.to_string());
    assert!(produced.status < 300, "{}", produced.json());
    let fetched = host.get("/v1/topics/orders/partitions/0/messages?from=0");
    let messages = &fetched.json()["messages"];
    assert_eq!(messages[0]["value"], value);
    assert_eq!(messages[1]["value"], "last");
    host.stop();

    let segment = dir.path().join("topics");
    let topic = fs::read_dir(segment).expect("topics").flatten().next();
    let segment = topic.expect("a topic").path();
    let segment = segment.join("0-00000000000000000000.segment");
    assert!(fs::metadata(&segment).expect("a segment").len() < 1000);
    let dump = ["segment", "dump", segment.to_str().expect("a path")];
    let text = out(&millrace(&dump), 0);
    assert!(text.contains("compression zstd"), "{text}");
    assert!(
        text.contains("last") && text.contains("2 messages shown"),
        "{text}"
    );
}

#[test]
fn an_encrypted_host_serves_and_its_files_are_read_with_the_key_file_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("a directory");
    let keys = tempfile::tempdir().expect("a directory");
    let key_file = keys.path().join("keys");
    let key = "0123456789abcdef".repeat(4);
    fs::write(&key_file, format!("# of this test\n3:{key}\n")).expect("written");
    let allow = |mode| fs::set_permissions(&key_file, fs::Permissions::from_mode(mode));
    allow(0o600).expect("owned");
    let mut config = config_in(dir.path());
    config.encryption.key_file = Some(key_file.clone());
    let host = TestHost::with(config);
    let host = host.with_topic("orders", 1);
    let body = r#"{"messages":[{"key":"k","value":"nobody may read this"}]}"#;
    assert!(host.post_json("/v1/topics/orders/messages", body).status < 300);
    let fetched = host.get("/v1/topics/orders/partitions/0/messages?from=0");
    assert_eq!(
        fetched.json()["messages"][0]["value"],
        "nobody may read this"
    );
    let metrics = host.get("/metrics").bytes;
    assert!(
        !metrics
            .windows(16)
            .any(|text| text == &key.as_bytes()[..16])
    );
    host.stop();

    let path = dir.path().to_str().expect("a path");
    let text = out(&millrace(&["doctor", path]), 0);
    assert!(text.contains("still needed: key 3"), "{text}");
    let key_path = key_file.to_str().expect("a path");
    let with_key = ["--encryption-key-file", key_path];
    out(&millrace(&[&["doctor", path][..], &with_key].concat()), 0);
    let findings = |arguments: &[&str]| {
        let all = [&["doctor", "--json"], arguments].concat();
        let answer: Value = serde_json::from_str(&out(&millrace(&all), 0)).expect("JSON");
        let mut all = answer["findings"].as_array().cloned().expect("findings");
        // Other programs use the disk as well.
        all.retain(|one| {
            let meaning = one["meaning"].as_str().unwrap_or_default();
            !meaning.contains("free on this disk")
        });
        all
    };
    let config_file = keys.path().join("millrace.toml");
    let config = format!("config:{}", config_file.display());
    let write = |key_path: &str| {
        let settings = format!("data_dir = {path:?}\n[encryption]\nkey_file = {key_path:?}\n");
        fs::write(&config_file, settings).expect("written");
    };
    write(key_path);
    assert_eq!(
        findings(&[&config]),
        findings(&[path, with_key[0], key_path])
    );
    write(&format!("{key_path}.missing"));
    let refused = millrace(&["doctor", &config]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(told.contains(".missing cannot be read"), "{told}");
    let mut segments = Vec::new();
    find(&dir.path().join("topics"), &mut segments);
    let segment = segments.iter().find(|path| path.ends_with(".segment"));
    let dump = ["segment", "dump", segment.expect("a segment")];
    let blind = out(&millrace(&dump), 0);
    assert!(
        blind.contains("encrypted with key 3") && !blind.contains("nobody"),
        "{blind}"
    );
    let seeing = out(&millrace(&[&dump[..], &with_key].concat()), 0);
    assert!(seeing.contains("nobody may read this"), "{seeing}");

    let serve = ["serve", "--listen", "127.0.0.1:0", "--data-dir", path];
    let without = millrace(&serve);
    assert_eq!(without.status.code(), Some(1), "{without:?}");
    let told = String::from_utf8_lossy(&without.stderr).into_owned();
    assert!(told.contains("it is encrypted with key 3"), "{told}");
    allow(0o644).expect("owned");
    let exposed = millrace(&[&serve[..], &with_key].concat());
    assert_eq!(exposed.status.code(), Some(2), "{exposed:?}");
    let told = String::from_utf8_lossy(&exposed.stderr).into_owned();
    assert!(told.contains("chmod 600") && !told.contains(&key), "{told}");
    let mut help = program();
    help.args(["serve", "--help"])
        .env("MILLRACE_ENCRYPTION_KEY", format!("1:{key}"));
    let help = out(&help.output().expect("the binary runs"), 0);
    assert!(
        help.contains("MILLRACE_ENCRYPTION_KEY") && !help.contains(&key),
        "{help}"
    );
}

fn find(dir: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).expect("a directory").flatten() {
        match entry.path() {
            path if path.is_dir() => find(&path, found),
            path => found.push(path.to_str().expect("a path").to_owned()),
        }
    }
}
