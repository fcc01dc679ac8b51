//! `route`: HTTP requests under a path are answered by a component.

use millrace_model::processor::Origin;
use millrace_model::{ProcessorName, RoutePath, SecretName, TopicName};
use serde_json::{Map, Value, json};
use ureq::http::Method;

use super::client::Client;
use super::failure::Failure;
use super::processor::grants;
use super::table::{cell, facts, items, table, when};
use crate::units::{duration_ms, size_bytes};

const SET_HELP: &str = "\
Examples:
  millrace route set /hooks/orders --module orders-hook@1.0.0
  millrace route set /hooks/orders --module orders-hook@1.1.0 --config currency=EUR --call-max 5s
  millrace route set /hooks/orders --module orders-hook@2.0.0 --canary 10
  millrace route set /search --module search@1.0.0 --grant-http https://api.example.com
  millrace route set /hooks/chat --module chat@1.0.0 --grant-topic chat.in --grant-view counts

The module exports wasi:http/incoming-handler of WASI 0.2. It answers requests to this path and everything under it, unless a longer
route does, each on a fresh instance. The flags are the whole definition: what is omitted gets its default.";

const ROLLBACK_HELP: &str = "\
Without --to, a canary is withdrawn if there is one, and the current revision stays.

Examples:
  millrace route rollback /hooks/orders
  millrace route rollback /hooks/orders --to 3";

const CANARY_HELP: &str = "\
Examples:
  millrace route canary /hooks/orders --percent 50
  millrace route canary /hooks/orders --percent 0";

/// Manage routes: HTTP paths that components answer
#[derive(clap::Subcommand)]
pub(super) enum Verb {
    /// Create or change a route
    #[command(after_help = SET_HELP)]
    Set(Box<SetArgs>),
    /// Change a canary's share of the requests
    #[command(after_help = CANARY_HELP)]
    Canary {
        /// The route's path
        path: RoutePath,
        /// 0 to 99; 0 withdraws the canary
        #[arg(long)]
        percent: u32,
    },
    /// Make the canary current
    Promote {
        /// The route's path
        path: RoutePath,
        /// Promote even a canary that is about to be withdrawn
        #[arg(long)]
        force: bool,
    },
    /// Withdraw the canary: the current revision answers all requests again
    Abort {
        /// The route's path
        path: RoutePath,
    },
    /// Return to an earlier revision
    #[command(after_help = ROLLBACK_HELP)]
    Rollback {
        /// The route's path
        path: RoutePath,
        /// The revision to return to [default: the last one before the current one]
        #[arg(long = "to", value_name = "REVISION")]
        revision: Option<u32>,
    },
    /// List routes
    List,
    /// Show a route, its revisions, and what its components logged
    Show {
        /// The route's path
        path: RoutePath,
    },
    /// Delete a route
    Delete {
        /// The route's path
        path: RoutePath,
    },
}

#[derive(clap::Args)]
pub(super) struct SetArgs {
    /// The path, such as /hooks/orders
    path: RoutePath,
    /// The module, by digest or tag
    #[arg(long)]
    module: String,
    /// A topic that it may send messages to; repeat it for several
    #[arg(long = "grant-topic", value_name = "TOPIC")]
    grant_topics: Vec<TopicName>,
    /// A processor whose state it may read; repeat it for several
    #[arg(long = "grant-view", value_name = "PROCESSOR")]
    grant_views: Vec<ProcessorName>,
    /// Let it have metrics of its own
    #[arg(long)]
    grant_metrics: bool,
    /// A secret of the host that it may read; repeat it for several
    #[arg(long = "grant-secret", value_name = "SECRET")]
    grant_secrets: Vec<SecretName>,
    /// A server that it may send HTTP requests to, such as https://api.example.com; repeat it for several
    #[arg(long = "grant-http", value_name = "ORIGIN")]
    grant_http: Vec<Origin>,
    /// Let names of these servers resolve to private addresses
    #[arg(long)]
    grant_http_private: bool,
    /// A setting that the component reads; repeat it for several
    #[arg(long = "config", value_name = "KEY=VALUE", value_parser = pair)]
    config: Vec<(String, String)>,
    /// Maximum memory of an instance, such as 128MiB
    #[arg(long, value_name = "SIZE", value_parser = size_bytes)]
    memory_max: Option<u64>,
    /// Maximum duration of a request, such as 5s
    #[arg(long, value_name = "DURATION", value_parser = duration_ms)]
    call_max: Option<u64>,
    /// Maximum size of an answer, such as 16MiB
    #[arg(long, value_name = "SIZE", value_parser = size_bytes)]
    answer_bytes_max: Option<u64>,
    /// Let everyone call it, also without a token
    #[arg(long)]
    public: bool,
    /// Make it a canary: it answers this percentage of the requests, 1 to 99, and the current revision the others
    #[arg(long, value_name = "PERCENT")]
    canary: Option<u32>,
    /// Failed requests of the canary in a row that withdraw it [default: 5]
    #[arg(long, value_name = "REQUESTS")]
    failures_min: Option<u32>,
    /// Percentage of the canary's latest requests whose failure withdraws it [default: 50]
    #[arg(long, value_name = "PERCENT")]
    failed_percent: Option<u32>,
    /// Requests that count as the latest [default: 20]
    #[arg(long, value_name = "REQUESTS")]
    window_requests: Option<u32>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').ok_or("write KEY=VALUE")?;
    Ok((pair.0.to_owned(), pair.1.to_owned()))
}

impl SetArgs {
    fn spec(&self) -> Value {
        let limits = [
            ("memory_bytes_max", self.memory_max),
            ("call_ms_max", self.call_max),
            ("answer_bytes_max", self.answer_bytes_max),
        ];
        let breaker = [
            ("failures_min", self.failures_min),
            ("failed_percent", self.failed_percent),
            ("window_requests", self.window_requests),
        ];
        let breaker = breaker.map(|(field, value)| (field, value.map(u64::from)));
        let config = self.config.iter();
        let config: Map<String, Value> = config
            .map(|(key, value)| (key.clone(), json!(value)))
            .collect();
        let mut spec = json!({
            "module": self.module,
            "grants": {
                "topics": self.grant_topics,
                "metrics": self.grant_metrics,
                "secrets": self.grant_secrets,
                "http": self.grant_http,
                "http_private": self.grant_http_private,
                "views": self.grant_views,
            },
            "config": config,
            "limits": given(limits),
            "breaker": given(breaker),
        });
        if self.public {
            spec["public"] = json!(true);
        }
        spec
    }
}

/// The fields that have a value.
fn given(fields: [(&str, Option<u64>); 3]) -> Map<String, Value> {
    let fields = fields.into_iter();
    let fields = fields.filter_map(|(field, value)| Some((field.to_owned(), json!(value?))));
    fields.collect()
}

pub(super) fn run(verb: Verb, client: &Client) -> Result<(), Failure> {
    let mut out = client.output();
    let url = |path: &RoutePath| format!("/v1/routes{path}");
    match verb {
        Verb::Set(set) => {
            let canary = set.canary.map(|percent| format!("?canary={percent}"));
            let url = url(&set.path) + &canary.unwrap_or_default();
            out.answer(&client.send(Method::PUT, &url, &set.spec())?, show)
        }
        Verb::Canary { path, percent } => {
            let body = json!({ "percent": percent });
            out.answer(
                &client.send(Method::POST, &(url(&path) + "/canary"), &body)?,
                show,
            )
        }
        Verb::Abort { path } => {
            let body = json!({ "percent": 0 });
            out.answer(
                &client.send(Method::POST, &(url(&path) + "/canary"), &body)?,
                show,
            )
        }
        Verb::Promote { path, force } => {
            let body = json!({ "force": force });
            out.answer(
                &client.send(Method::POST, &(url(&path) + "/promote"), &body)?,
                show,
            )
        }
        Verb::Rollback { path, revision } => {
            let now = client.get(&url(&path))?;
            // So that a repeated command goes one step and not two.
            let taken_back = match &now["canary"]["revision"] {
                Value::Null => &now["revision"],
                canary => canary,
            };
            let body = json!({ "revision": revision, "expected_revision": taken_back });
            out.answer(
                &client.send(Method::POST, &(url(&path) + "/rollback"), &body)?,
                show,
            )
        }
        Verb::List => out.answer(&client.get("/v1/routes")?, list),
        Verb::Show { path } => out.answer(&client.get(&url(&path))?, show),
        Verb::Delete { path } => {
            client.delete(&url(&path))?;
            let gone = json!({"deleted": path});
            out.answer(&gone, |_| format!("route {path} is deleted"))
        }
    }
}

fn list(answer: &Value) -> String {
    let row = |route: &Value| {
        vec![
            cell(&route["path"]),
            cell(&route["module"]),
            cell(&route["revision"]),
            canary(&route["canary"]),
            when(&route["set_at"]),
            cell(&route["problem"]),
        ]
    };
    let rows = items(&answer["routes"]).iter().map(row).collect();
    let headings = ["PATH", "MODULE", "REVISION", "CANARY", "SET", "PROBLEM"];
    table(&headings, rows, "there are no routes")
}

/// A canary in a word: its revision and its share.
fn canary(canary: &Value) -> String {
    match canary.is_null() {
        true => cell(canary),
        false => format!(
            "{} ({} %)",
            cell(&canary["revision"]),
            cell(&canary["percent"])
        ),
    }
}

fn show(route: &Value) -> String {
    let mut pairs = vec![
        ("route", cell(&route["path"])),
        ("module", cell(&route["module"])),
        ("revision", cell(&route["revision"])),
        ("way back", cell(&route["way_back"])),
        ("set", when(&route["set_at"])),
        ("set by", cell(&route["set_by"])),
        ("grants", grants(&route["grants"])),
        ("config", cell(&route["config"])),
        ("call", cell(&route["limits"]["call_ms_max"])),
        ("public", cell(&route["public"])),
        ("problem", cell(&route["problem"])),
    ];
    let tried = &route["canary"];
    if !tried.is_null() {
        let side = |side: &Value| {
            let (requests, failed) = (cell(&side["requests"]), cell(&side["failed"]));
            format!("{failed} of {requests} requests failed")
        };
        pairs.extend([
            ("canary", canary(tried)),
            ("canary's problem", cell(&tried["problem"])),
            ("canary's trouble", cell(&tried["trouble"])),
            ("canary so far", side(&tried["canary"])),
            ("current so far", side(&tried["current"])),
        ]);
    }
    let mut shown = facts(&pairs);
    let revisions = items(&route["revisions"]);
    if !revisions.is_empty() {
        let row = |revision: &Value| {
            let what = match () {
                () if revision["number"] == route["revision"] => "current",
                () if revision["number"] == tried["revision"] => "canary",
                () if revision["voided"] == true => "taken back",
                () => "-",
            };
            let cells =
                ["number", "module", "set_by", "config"].map(|field| cell(&revision[field]));
            let [number, module, set_by, config] = cells;
            let set = when(&revision["set_at"]);
            vec![number, what.to_owned(), module, set, set_by, config]
        };
        let headings = ["REVISION", "", "MODULE", "SET", "BY", "CONFIG"];
        let rows = revisions.iter().map(row).collect();
        shown.push_str(&format!("\n\n{}", table(&headings, rows, "")));
        let row = |change: &Value| {
            let [by, what, revision, text] =
                ["by", "what", "revision", "text"].map(|field| cell(&change[field]));
            vec![when(&change["at"]), by, what, revision, text]
        };
        let headings = ["CHANGED", "BY", "WHAT", "REVISION", ""];
        let rows = items(&route["changes"]).iter().map(row).collect();
        shown.push_str(&format!(
            "\n\n{}",
            table(&headings, rows, "no change is kept")
        ));
    }
    for (place, line) in items(&route["lines"]).iter().enumerate() {
        let [level, revision, text] = ["level", "revision", "text"].map(|field| cell(&line[field]));
        let gap = if place == 0 { "\n\n" } else { "\n" };
        let host = line["host"].as_str();
        let host = host.map_or_else(String::new, |_| format!("{}  ", cell(&line["host"])));
        shown.push_str(&format!(
            "{gap}{}  {revision}  {level}  {host}{text}",
            when(&line["at"])
        ));
    }
    shown
}
