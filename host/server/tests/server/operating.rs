//! What an operator asks a host: what runs there, its metrics, and the changes that were made.

use serde_json::json;

use crate::support::{TestHost, config, program};

fn metrics(host: &TestHost) -> String {
    String::from_utf8(host.get("/metrics").bytes).expect("text")
}

/// The lines of series that are about a topic.
fn about(text: &str, topic: &str) -> Vec<String> {
    let label = format!("topic=\"{topic}\"");
    let about = text.lines().filter(|line| line.contains(&label));
    about.map(str::to_owned).collect()
}

#[test]
fn a_host_says_its_version_its_counts_its_limits_and_its_settings() {
    let mut config = config();
    config.modules.module_bytes_max = 1 << 20;
    let host = TestHost::with(config).with_topic("orders", 3);
    let said = host.get("/v1/host").json();
    assert_eq!(said["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(said["pid"], std::process::id());
    assert_eq!(said["engine"], "memory");
    assert_eq!(said["ready"], true);
    assert_eq!(said["counts"]["topics"], 1);
    assert_eq!(said["counts"]["partitions"], 3);
    assert_eq!(said["limits"]["module_bytes_max"], 1 << 20);
    assert_eq!(said["settings"]["listen.http.connections_max"], 1_024);
    let told = host.call("POST", "/v1/modules", &[], vec![0; (1 << 20) + 1]);
    let told = told.refused(413, "too-large");
    assert!(
        told.contains("setting module_bytes_max = 1048576"),
        "{told}"
    );
}

#[test]
fn metrics_of_a_deleted_topic_go_and_begin_at_nothing_when_it_comes_again() {
    let host = TestHost::start().with_topic("measured-once", 1);
    let produce = || {
        let answer = host.post_json("/v1/topics/measured-once/messages", r#"{"value":"v"}"#);
        assert_eq!(answer.status, 200);
    };
    (0..3).for_each(|_| produce());
    let total = "millrace_messages_in_total{topic=\"measured-once\"}";
    let text = metrics(&host);
    assert!(text.contains(&format!("{total} 3\n")), "{text}");
    host.call("DELETE", "/v1/topics/measured-once", &[], "");
    assert_eq!(about(&metrics(&host), "measured-once"), [""; 0]);
    let body = r#"{"name":"measured-once","partitions":1,"durability":"os"}"#;
    assert_eq!(host.post_json("/v1/topics", body).status, 201);
    produce();
    let text = metrics(&host);
    assert!(text.contains(&format!("{total} 1\n")), "{text}");
}

#[test]
fn a_components_metrics_go_with_its_processor_and_begin_at_nothing_when_it_comes_again() {
    let host = TestHost::start().with_topic("counted-in", 1);
    let host = host.with_topic("counted-out", 1);
    let module = host.call(
        "POST",
        "/v1/modules",
        &[],
        guest_artifacts::BLABBER.to_vec(),
    );
    let spec = json!({
        "topics": ["counted-in"], "module": module.json()["digest"], "output": "counted-out",
        "grants": {"metrics": true, "secrets": ["token"]},
    });
    let series = "guest_handled_total{processor=\"counting\",by=\"blabber\"}";
    let shown = || {
        let text = metrics(&host);
        let line = text.lines().find(|line| line.starts_with(series));
        line.map(|line| line[series.len()..].trim().to_owned())
    };
    let counted = |value: &str| {
        let answer = host.post_json(
            "/v1/topics/counted-in/messages?wait=counting",
            r#"{"value":"count handled"}"#,
        );
        assert_eq!(answer.status, 200, "{}", answer.json());
        assert_eq!(shown().as_deref(), Some(value), "{}", metrics(&host));
    };
    let deploy = || {
        let deployed = host.call("PUT", "/v1/processors/counting", &[], spec.to_string());
        assert_eq!(deployed.status, 201, "{}", deployed.json());
    };
    deploy();
    counted("2");
    counted("4");
    host.call("DELETE", "/v1/processors/counting", &[], "");
    assert_eq!(shown(), None);
    deploy();
    counted("2");
}

#[test]
fn requests_are_measured_by_route_and_code_and_the_process_by_its_usual_names() {
    let host = TestHost::start();
    host.get("/v1/topics/none-of-this-name");
    let odd = host.raw(b"BREW /coffee HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    assert!(odd.starts_with("HTTP/1.1 404"), "{odd}");
    let text = metrics(&host);
    for part in [
        "millrace_http_requests_total{method=\"GET\",route=\"/v1/topics/{topic}\",code=\"404\"} ",
        "millrace_http_requests_total{method=\"other\",route=\"none\",code=\"404\"} ",
        "millrace_http_request_seconds_count{method=\"GET\",route=\"/v1/topics/{topic}\"} ",
        "millrace_build_info{version=\"",
        "process_resident_memory_bytes ",
        "process_start_time_seconds ",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("none-of-this-name"), "names make no labels");
}

#[test]
fn names_that_look_like_flags_or_like_a_processor_s_own_are_not_taken() {
    let host = TestHost::start();
    for name in ["-rf", "--help", "orders.DLQ", "orders.Redrive"] {
        let body = format!(r#"{{"name":"{name}","partitions":1}}"#);
        host.post_json("/v1/topics", body)
            .refused(422, "reserved-name");
    }
}

#[test]
fn shells_and_manuals_know_every_command_but_none_of_the_host_s_own() {
    let millrace = |arguments: &[&str]| {
        let output = program().args(arguments).output().expect("the binary runs");
        let said = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    };
    for shell in ["bash", "zsh", "fish"] {
        let (ok, script) = millrace(&["completions", shell]);
        assert!(ok && script.contains("consume"), "{script}");
        assert!(!script.contains("compile-module"), "{shell}");
    }
    let (ok, page) = millrace(&["man"]);
    assert!(ok && page.contains(".TH"), "{page}");
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().to_str().expect("a path");
    assert!(millrace(&["man", "--dir", path]).0);
    assert!(directory.path().join("millrace-topic-create.1").exists());
    for mistake in ["compile-modul", "compile"] {
        let (ok, said) = millrace(&[mistake]);
        assert!(!ok && !said.contains("compile-module"), "{said}");
    }
    let (_, help) = millrace(&["--help"]);
    assert!(!help.contains("compile-module"), "{help}");
}
