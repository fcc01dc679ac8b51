//! What a NATS server says about itself on its monitoring port: settings that break promises, and how the stream of a store is.
//!
//! The fields are those of `/varz`, `/jsz` and `/healthz`. A client of NATS cannot ask for most of them.

use std::time::Duration;

use millrace_engine::findings::{FINDINGS_OF_A_KIND_MAX, Finding, bytes};
use serde_json::Value;

use super::super::failure::{Exit, Failure};
use crate::engine::{quoted, shown};

/// The first version without the faults that a store on it would meet.
const SERVER_VERSION_MIN: (u64, u64) = (2, 15);
/// How long an answer may take.
const ANSWER_DURATION_MAX: Duration = Duration::from_secs(10);
/// Bytes of an answer.
const ANSWER_BYTES_MAX: u64 = 32 << 20;
/// A replica that is behind by so many operations of the stream.
const REPLICA_LAG_MAX: u64 = 1_000;
/// A replica that has not been heard of for so long.
const REPLICA_SILENCE_MAX: Duration = Duration::from_secs(10);
/// Replicas with which the loss of one server loses nothing.
const REPLICAS_MIN: u64 = 3;
/// Less than this part of a limit is left: one tenth.
const LEFT_PARTS_MIN: u64 = 10;
/// Bytes of a message below which a record batch does not fit.
const PAYLOAD_BYTES_MIN: u64 = 1 << 20;

/// Examines the server at this monitoring address, such as `http://127.0.0.1:8222`, and the stream with this name on it.
pub(crate) fn examine(address: &str, stream: &str) -> Result<Vec<Finding>, Failure> {
    let address = address.trim_end_matches('/');
    if !address.starts_with("http://") && !address.starts_with("https://") {
        let failure = Failure::usage(format!(
            "{} is not the address of a monitoring port",
            quoted(address)
        ));
        return Err(failure.with_hint("write it like http://127.0.0.1:8222"));
    }
    let shown = shown(address);
    let agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(ANSWER_DURATION_MAX))
        .build()
        .new_agent();
    let get = |path: &str| -> Result<Value, Failure> {
        let url = format!("{address}{path}");
        let silent = |why: String| {
            Failure::new(
                Exit::Unreachable,
                "unreachable",
                format!("{shown}{path}: {why}"),
            )
            .with_hint("NATS answers there if its configuration has `http: \"127.0.0.1:8222\"`")
        };
        let answer = agent.get(&url).call();
        let answer = answer.map_err(|error| match error {
            // Such an error quotes the address, and its password.
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                silent("the address cannot be read".to_owned())
            }
            error => silent(error.to_string()),
        });
        let mut answer = answer?;
        let body = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX);
        let body = body.read_to_vec();
        let body = body.map_err(|error| silent(error.to_string()))?;
        serde_json::from_slice(&body).map_err(|_| silent("it does not answer as NATS does".into()))
    };
    let server = get("/varz")?;
    if server["server_id"].as_str().is_none() {
        let message = format!("{shown}/varz does not answer as NATS does");
        return Err(Failure::failed(message));
    }
    let store = get("/jsz?accounts=true&streams=true&config=true")?;
    let health = get("/healthz")?;
    let mut findings = of_server(&server);
    findings.extend(of_health(&health));
    findings.extend(of_store(&server, &store));
    findings.extend(of_stream(&store, stream));
    Ok(findings)
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// Bytes for people.
fn size(count: u64) -> String {
    bytes(i64::try_from(count).unwrap_or(i64::MAX))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

/// Major and minor version.
fn version(text: &str) -> Option<(u64, u64)> {
    let mut parts = text.split(['.', '-']);
    let major = parts.next()?.parse().ok()?;
    Some((major, parts.next()?.parse().ok()?))
}

fn of_server(server: &Value) -> Vec<Finding> {
    let found = text(&server["version"]);
    let place = format!("server {}", text(&server["server_name"]));
    let (major, minor) = SERVER_VERSION_MIN;
    let is_new = version(found).is_some_and(|version| version >= SERVER_VERSION_MIN);
    let mut findings = vec![match is_new {
        true => Finding::ok(&*place, format!("NATS {found}")),
        false => Finding::fault(
            &*place,
            format!("NATS {found} is too old: it has faults that lose or repeat messages"),
        )
        .advise(format!("upgrade all servers to {major}.{minor} or newer")),
    }];
    let payload = number(&server["max_payload"]);
    if payload < PAYLOAD_BYTES_MIN {
        findings.push(
            Finding::fault(
                "max_payload",
                format!(
                    "it is {}, which is less than a record batch needs",
                    size(payload)
                ),
            )
            .advise("set max_payload to at least 1MB"),
        );
    }
    let slow = number(&server["slow_consumers"]);
    if slow > 0 {
        findings.push(Finding::note(
            "slow_consumers",
            format!("{slow} clients were cut off because they read too slowly"),
        ));
    }
    let (used, max) = (
        number(&server["connections"]),
        number(&server["max_connections"]),
    );
    if max > 0 && max.saturating_sub(used) < max / LEFT_PARTS_MIN {
        findings.push(
            Finding::fault(
                "max_connections",
                format!("{used} of {max} connections are used"),
            )
            .advise("raise max_connections"),
        );
    }
    findings
}

fn of_health(health: &Value) -> Option<Finding> {
    match text(&health["status"]) {
        "ok" => Some(Finding::ok("healthz", "the server is healthy")),
        status => {
            let error = health["error"].as_str().unwrap_or(status);
            Some(
                Finding::fault("healthz", format!("the server is not healthy: {error}"))
                    .advise("wait until it has caught up; otherwise look into its log"),
            )
        }
    }
}

fn of_store(server: &Value, store: &Value) -> Vec<Finding> {
    let config = &store["config"];
    if store["disabled"].as_bool() == Some(true) || config["store_dir"].as_str().is_none() {
        return vec![
            Finding::fault("jetstream", "it is off")
                .advise("add a `jetstream` section to the configuration"),
        ];
    }
    let interval = Duration::from_nanos(number(&config["sync_interval"]));
    let is_always = config["sync_always"].as_bool().unwrap_or(false);
    let clustered = server["cluster"]["name"].as_str().is_some();
    let seconds = interval.as_secs();
    let mut findings = vec![match (is_always, clustered) {
        (true, _) => Finding::ok("sync_interval", "always: what is acknowledged is on the disk"),
        (false, true) => Finding::fault("sync_interval", format!("it is {seconds} s: if the machines of a majority stop at once, messages of that time are lost"))
            .advise("set sync_interval: always in the `jetstream` section of every server"),
        (false, false) => Finding::fault("sync_interval", format!("it is {seconds} s: if the machine stops, messages of that time are lost"))
            .advise("set sync_interval: always in the `jetstream` section"),
    }];
    let (used, max) = (number(&store["storage"]), number(&config["max_storage"]));
    let reserved = match number(&store["reserved_storage"]) {
        u64::MAX => 0,
        reserved => reserved,
    };
    let used = used.max(reserved);
    let meaning = format!("{} of {} are used or reserved", size(used), size(max));
    findings.push(match max.saturating_sub(used) < max / LEFT_PARTS_MIN {
        true => Finding::fault(
            "max_file_store",
            format!("{meaning}: soon nothing more is taken"),
        )
        .advise("raise max_file_store if the disk has space, or shorten retention"),
        false => Finding::ok("max_file_store", meaning),
    });
    let pending = number(&store["meta_cluster"]["pending"]);
    if clustered
        && store["meta_cluster"]["leader"]
            .as_str()
            .unwrap_or("")
            .is_empty()
    {
        findings.push(
            Finding::fault(
                "meta leader",
                "the cluster has none: streams cannot be made or moved",
            )
            .advise("start enough servers for a majority"),
        );
    }
    if pending > REPLICA_LAG_MAX {
        findings.push(Finding::note(
            "meta leader",
            format!("{pending} changes wait for it"),
        ));
    }
    findings
}

fn of_stream(store: &Value, name: &str) -> Vec<Finding> {
    let accounts = store["account_details"].as_array();
    let accounts = accounts.map(Vec::as_slice).unwrap_or_default();
    let streams = accounts.iter().flat_map(|account| {
        let streams = account["stream_detail"].as_array();
        streams.map(Vec::as_slice).unwrap_or_default()
    });
    let found: Vec<&Value> = streams.filter(|stream| stream["name"] == name).collect();
    if found.is_empty() {
        let meaning = "this server has no such stream: no host has started on it yet, or the stream is on other servers";
        return vec![Finding::note(format!("stream {name}"), meaning)];
    }
    found
        .into_iter()
        .flat_map(|stream| of_one(stream, name))
        .collect()
}

fn of_one(stream: &Value, name: &str) -> Vec<Finding> {
    let place = format!("stream {name}");
    let (config, state, cluster) = (&stream["config"], &stream["state"], &stream["cluster"]);
    let (messages, used) = (number(&state["messages"]), number(&state["bytes"]));
    let mut findings = vec![Finding::ok(
        &*place,
        format!("{messages} messages, {}", size(used)),
    )];
    let replicas = number(&config["num_replicas"]);
    findings.push(match replicas >= REPLICAS_MIN {
        true => Finding::ok(&*place, format!("{replicas} replicas")),
        false => Finding::note(
            &*place,
            format!("{replicas} replicas: the loss of one server loses what is on it"),
        )
        .advise("run three servers, and set three replicas"),
    });
    if config["storage"] != "file" {
        findings.push(
            Finding::fault(
                &*place,
                format!(
                    "its storage is {}: it is lost with the servers",
                    text(&config["storage"])
                ),
            )
            .advise("make the stream again with file storage"),
        );
    }
    // Whatever the server removes by itself is lost for the hosts.
    for (limit, what) in [
        ("max_msgs", "messages"),
        ("max_age", "time"),
        ("max_msgs_per_subject", "messages of a subject"),
        ("max_bytes", "bytes"),
    ] {
        let max = config[limit].as_i64().unwrap_or(0);
        if max <= 0 {
            continue;
        }
        let refuses = config["discard"] == "new" && limit != "max_age";
        findings.push(match refuses {
            false => Finding::fault(
                &*place,
                format!("{limit} is set, so the server removes what a host still needs"),
            )
            .advise(format!(
                "remove the limit on {what}; retention is a setting of topics"
            )),
            true => Finding::note(
                &*place,
                format!("{limit} is {max}: at the limit on {what}, nothing more is taken"),
            ),
        });
        let left = u64::try_from(max).unwrap_or(0).saturating_sub(used);
        if limit == "max_bytes" && left < max as u64 / LEFT_PARTS_MIN {
            findings.push(
                Finding::fault(
                    &*place,
                    format!("{} of {} are used", size(used), size(max as u64)),
                )
                .advise("raise max_bytes, or shorten retention"),
            );
        }
    }
    if replicas > 1 && cluster["leader"].as_str().unwrap_or("").is_empty() {
        findings.push(
            Finding::fault(
                &*place,
                "it has no leader: nothing is taken until a majority of its servers runs",
            )
            .advise("start the servers that are down"),
        );
    }
    let others = cluster["replicas"].as_array();
    let others = others.map(Vec::as_slice).unwrap_or_default();
    findings.extend(others.iter().take(FINDINGS_OF_A_KIND_MAX).map(of_replica));
    let lost = state["lost"]["msgs"].as_array().map_or(0, Vec::len);
    if lost > 0 {
        findings.push(
            Finding::fault(
                &*place,
                format!("the server says that it has lost {lost} messages"),
            )
            .advise("look into its log, and at its disk"),
        );
    }
    findings
}

fn of_replica(replica: &Value) -> Finding {
    let place = format!("replica on {}", text(&replica["name"]));
    let lag = number(&replica["lag"]);
    let silence = Duration::from_nanos(number(&replica["active"]));
    let meaning = format!(
        "{lag} operations behind, heard of {} ms ago",
        silence.as_millis()
    );
    let is_offline = replica["offline"].as_bool().unwrap_or(false);
    if is_offline || silence > REPLICA_SILENCE_MAX {
        return Finding::fault(place, format!("it is offline; {meaning}"))
            .advise("start it before another server stops");
    }
    let is_current = replica["current"].as_bool().unwrap_or(true);
    match !is_current || lag > REPLICA_LAG_MAX {
        true => Finding::note(place, format!("it catches up; {meaning}")),
        false => Finding::ok(place, meaning),
    }
}

#[cfg(test)]
mod tests {
    use millrace_engine::findings::{Severity, worst};
    use serde_json::json;

    use super::*;

    /// As a healthy cluster answers, with this change.
    fn stream(path: &str, value: Value) -> Value {
        let mut detail = json!({
            "name": "millrace",
            "cluster": {"leader": "a", "replicas": [
                {"name": "b", "current": true, "active": 900_000, "lag": 3},
                {"name": "c", "current": true, "active": 1_000_000},
            ]},
            "config": {
                "num_replicas": 3, "storage": "file", "discard": "old",
                "max_msgs": -1, "max_bytes": -1, "max_age": 0, "max_msgs_per_subject": -1,
            },
            "state": {"messages": 5, "bytes": 4096},
        });
        if let Some(place) = detail.pointer_mut(path) {
            *place = value;
        }
        json!({"account_details": [{"name": "$G", "stream_detail": [detail]}]})
    }

    fn told(path: &str, value: Value) -> (Severity, String) {
        let findings = of_stream(&stream(path, value), "millrace");
        let severity = worst(&findings);
        let worst = findings.into_iter().find(|f| f.severity == severity);
        (severity, worst.map_or_else(String::new, |f| f.meaning))
    }

    #[test]
    fn a_stream_is_judged_by_what_its_server_says() {
        assert_eq!(
            told("", stream("", json!(null))["none"].clone()).0,
            Severity::Note
        );
        assert_eq!(told("/state/bytes", json!(1)).0, Severity::Ok);
        for (path, value, severity, words) in [
            (
                "/config/num_replicas",
                json!(1),
                Severity::Note,
                "the loss of one server",
            ),
            (
                "/config/storage",
                json!("memory"),
                Severity::Fault,
                "storage is memory",
            ),
            (
                "/config/max_age",
                json!(1_000_000),
                Severity::Fault,
                "max_age is set",
            ),
            (
                "/config/max_bytes",
                json!(4_200),
                Severity::Fault,
                "max_bytes is set",
            ),
            ("/cluster/leader", json!(""), Severity::Fault, "no leader"),
            (
                "/cluster/replicas/0/lag",
                json!(5_000),
                Severity::Note,
                "5000 operations behind",
            ),
            (
                "/cluster/replicas/0/current",
                json!(false),
                Severity::Note,
                "catches up",
            ),
            (
                "/cluster/replicas/1/active",
                json!(60_000_000_000_u64),
                Severity::Fault,
                "offline",
            ),
        ] {
            let (found, meaning) = told(path, value);
            assert_eq!(found, severity, "{path}: {meaning}");
            assert!(meaning.contains(words), "{path}: {meaning}");
        }
        let absent = of_stream(&json!({}), "millrace");
        assert!(absent[0].meaning.contains("no such stream"));
    }

    #[test]
    fn no_password_of_a_monitoring_port_is_shown() {
        for address in [
            "http://ada:s3cret@127.0.0.1:1",
            "ada:s3cret@127.0.0.1:1",
            "http://ada:s3 cret@127.0.0.1:1",
        ] {
            let failure = examine(address, "millrace").expect_err("nobody answers there");
            let told = format!("{failure:?}");
            assert!(!told.contains("s3") && !told.contains("cret"), "{told}");
        }
    }

    #[test]
    fn old_servers_and_those_that_sync_late_are_faults() {
        let server = |version: &str| {
            of_server(&json!({"version": version, "max_payload": 1 << 20}))[0].severity
        };
        assert_eq!(server("2.15.1"), Severity::Ok);
        assert_eq!(server("3.0.0-beta.1"), Severity::Ok);
        for old in ["2.14.3", "1.99", "strange", ""] {
            assert_eq!(server(old), Severity::Fault, "{old}");
        }
        let store = |config: Value| {
            worst(&of_store(
                &json!({}),
                &json!({"config": config, "storage": 95}),
            ))
        };
        let always = json!({"store_dir": "d", "sync_always": true, "max_storage": 1000});
        assert_eq!(store(always), Severity::Ok);
        let late =
            json!({"store_dir": "d", "sync_interval": 120_000_000_000_u64, "max_storage": 1000});
        assert_eq!(store(late), Severity::Fault);
        let full = json!({"store_dir": "d", "sync_always": true, "max_storage": 100});
        assert_eq!(store(full), Severity::Fault);
        assert_eq!(store(json!({})), Severity::Fault);
    }
}
