//! State of processors over HTTP and with the command line: what is exported can be imported.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::processing::with_uppercase;
use crate::support::{TestHost, program};

const STATE: &str = "/v1/processors/shout/state";

fn run(host: &TestHost, arguments: &[&str], input: &[u8]) -> Output {
    let mut command = program();
    let command = command
        .args(["processor", "state"])
        .args(arguments)
        .args(["shout", "--partition", "0"])
        .env("MILLRACE_HOST", host.url())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary runs");
    let mut stdin = child.stdin.take().expect("a standard input");
    let input = input.to_vec();
    let writing = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().expect("it ends");
    // A reader that takes nothing shows in the exit code.
    let _ = writing.join().expect("written");
    output
}

fn exported(host: &TestHost) -> Vec<u8> {
    let output = run(host, &["export"], b"");
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

fn write(host: &TestHost, entries: &[Value]) {
    let body = json!({"partition": 0, "entries": entries}).to_string();
    let answer = host.post_json(STATE, body);
    assert_eq!(answer.status, 200, "{}", answer.json());
}

#[test]
fn whatever_was_exported_can_be_imported() {
    let host = with_uppercase(TestHost::start());
    // Values that are longest as JSON, each of the largest size; values that are not text; and more
    // of medium size than fit in one request.
    write(
        &host,
        &[json!({"key": "\u{1}".repeat(1 << 10), "value": "\u{1}".repeat(256 << 10)})],
    );
    write(
        &host,
        &[json!({"key_base64": "/w==", "value_base64": "/w==", "ends_at": 9_000_000_000_000_u64})],
    );
    for hundred in 0..20 {
        let entry = |at| json!({"key": format!("k{hundred}-{at}"), "value": "v".repeat(2_000)});
        write(&host, &(0..100).map(entry).collect::<Vec<_>>());
    }
    write(&host, &[json!({"key": "number", "number": -7})]);
    let before = exported(&host);
    assert_eq!(before.split(|&byte| byte == b'\n').count(), 2_004);
    write(&host, &[json!({"key": "afterwards", "value": "gone"})]);
    let imported = run(&host, &["import", "--reset"], &before);
    assert!(imported.status.success(), "{imported:?}");
    assert!(exported(&host) == before, "it is as it was");
}

#[test]
fn an_import_with_a_wrong_line_writes_nothing() {
    let host = with_uppercase(TestHost::start());
    write(&host, &[json!({"key": "kept", "value": "as it was"})]);
    let before = exported(&host);
    let good: String = (0..1_500)
        .map(|at| format!("{}\n", json!({"key": format!("k{at}"), "value": "new"})))
        .collect();
    let long = json!({"key": "k".repeat(1_025), "value": ""}).to_string();
    for wrong in [
        "{",
        r#"{"value":"no key"}"#,
        r#"{"key":"k","more":1}"#,
        &long,
    ] {
        let output = run(
            &host,
            &["import", "--reset"],
            format!("{good}{wrong}\n").as_bytes(),
        );
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            told.contains("line 1501") && told.contains("nothing was written"),
            "{told}"
        );
        assert!(exported(&host) == before, "{wrong}");
    }
}

#[test]
fn an_import_of_nothing_is_told_too_that_there_is_no_such_place() {
    let host = with_uppercase(TestHost::start());
    let output = run(&host, &["import"], b"");
    assert!(output.status.success(), "{output:?}");
    let output = run(&host, &["import", "--topic", "nowhere"], b"");
    assert!(!output.status.success(), "{output:?}");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        told.contains("reads, or has state of, in; name one of them"),
        "{told}"
    );
}

#[test]
fn an_answer_is_bounded_in_bytes_however_many_entries_are_asked_for() {
    let host = with_uppercase(TestHost::start());
    for at in 0..40 {
        let value = "v".repeat(250 << 10);
        write(
            &host,
            &[json!({"key": format!("k{at:02}"), "value": value})],
        );
    }
    let path = format!("{STATE}?partition=0&max=10000");
    let first = host.get(&path);
    assert!(
        first.bytes.len() < 6 * (4 << 20) + 1_000,
        "{}",
        first.bytes.len()
    );
    let first = first.json();
    let shown = first["entries"].as_array().expect("entries").len();
    assert_eq!((first["has_more"].as_bool(), shown), (Some(true), 16));
    let exported = exported(&host);
    assert_eq!(exported.iter().filter(|&&byte| byte == b'\n').count(), 40);
}

/// JSON lines after a common tool; `None` if the machine does not have it.
fn through(tool: &[&str], lines: &[u8]) -> Option<Vec<u8>> {
    let spawned = Command::new(tool[0])
        .args(&tool[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut child) = spawned else {
        eprintln!("skipped: this machine has no {}", tool[0]);
        return None;
    };
    let mut stdin = child.stdin.take().expect("a standard input");
    let lines = lines.to_vec();
    let writing = std::thread::spawn(move || stdin.write_all(&lines));
    let output = child.wait_with_output().expect("it ends");
    writing.join().expect("written").expect("taken");
    assert!(output.status.success(), "{tool:?}: {output:?}");
    Some(output.stdout)
}

#[test]
fn no_value_changes_on_its_way_through_common_tools() {
    let host = with_uppercase(TestHost::start());
    let number = |key: &str, number: i64| json!({"key": key, "number": number.to_string()});
    write(
        &host,
        &[
            number("beyond", 9_007_199_254_740_993),
            number("least", i64::MIN),
            number("most", i64::MAX),
            number("small", 5),
            json!({"key": "letters", "value": "customer"}),
            json!({"key": "lines", "value": "a\nb\tcd\r\n"}),
            json!({"key": "é\u{1f600}", "value": "\u{0}\u{7f}\u{2028}\"\\"}),
            json!({"key_base64": "/w==", "value_base64": "//79/Pv6+fg="}),
            json!({"key": "ends", "value": "v", "ends_at": (u64::MAX - 1).to_string()}),
        ],
    );
    let before = exported(&host);
    let shown = String::from_utf8_lossy(&before).into_owned();
    assert!(shown.contains(r#""value":"customer""#), "{shown}");
    assert!(shown.contains(r#""number":"9007199254740993""#), "{shown}");
    for tool in [
        &["jq", "-c", "."][..],
        &[
            "python3",
            "-c",
            "import sys, json\nfor l in sys.stdin.buffer: print(json.dumps(json.loads(l)))",
        ],
        &[
            "node",
            "-e",
            "require('fs').readFileSync(0, 'utf8').split('\\n').filter(Boolean).forEach(l => console.log(JSON.stringify(JSON.parse(l))))",
        ],
    ] {
        let Some(read) = through(tool, &before) else {
            continue;
        };
        let imported = run(&host, &["import", "--reset"], &read);
        assert!(imported.status.success(), "{tool:?}: {imported:?}");
        assert_eq!(String::from_utf8_lossy(&exported(&host)), shown, "{tool:?}");
    }
    // As earlier versions exported it.
    let old = "{\"key\":\"beyond\",\"number\":9007199254740993}\n{\"key\":\"letters\",\"number\":8243108941040383331}\n";
    let imported = run(&host, &["import"], old.as_bytes());
    assert!(imported.status.success(), "{imported:?}");
    let rounded = "{\"key\":\"most\",\"number\":9223372036854776000}\n";
    assert_eq!(
        run(&host, &["import"], rounded.as_bytes()).status.code(),
        Some(2)
    );
    let after = exported(&host);
    assert!(String::from_utf8_lossy(&after).contains(r#""number":"9007199254740993""#));
}
