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
  millrace route set /search --module search@1.0.0 --grant-http https://api.example.com
  millrace route set /hooks/chat --module chat@1.0.0 --grant-topic chat.in --grant-view counts

The module exports wasi:http/incoming-handler of WASI 0.2. It answers requests to this path and everything under it, unless a longer
route does, each on a fresh instance. The flags are the whole definition: what is omitted gets its default.";

/// Manage routes: HTTP paths that components answer
#[derive(clap::Subcommand)]
pub(super) enum Verb {
    /// Create or change a route
    #[command(after_help = SET_HELP)]
    Set(Box<SetArgs>),
    /// List routes
    List,
    /// Show a route, and what its component logged
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
        let limits = limits.into_iter();
        let limits: Map<String, Value> = limits
            .filter_map(|(field, value)| Some((field.to_owned(), json!(value?))))
            .collect();
        let config = self.config.iter();
        let config: Map<String, Value> = config
            .map(|(key, value)| (key.clone(), json!(value)))
            .collect();
        json!({
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
            "limits": limits,
        })
    }
}

pub(super) fn run(verb: Verb, client: &Client) -> Result<(), Failure> {
    let mut out = client.output();
    let url = |path: &RoutePath| format!("/v1/routes{path}");
    match verb {
        Verb::Set(set) => {
            let answer = client.send(Method::PUT, &url(&set.path), &set.spec())?;
            out.answer(&answer, show)
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
            when(&route["set_at"]),
            cell(&route["problem"]),
        ]
    };
    let rows = items(&answer["routes"]).iter().map(row).collect();
    let headings = ["PATH", "MODULE", "REVISION", "SET", "PROBLEM"];
    table(&headings, rows, "there are no routes")
}

fn show(route: &Value) -> String {
    let mut shown = facts(&[
        ("route", cell(&route["path"])),
        ("module", cell(&route["module"])),
        ("revision", cell(&route["revision"])),
        ("set", when(&route["set_at"])),
        ("set by", cell(&route["set_by"])),
        ("grants", grants(&route["grants"])),
        ("config", cell(&route["config"])),
        ("call", cell(&route["limits"]["call_ms_max"])),
        ("problem", cell(&route["problem"])),
    ]);
    for line in items(&route["lines"]) {
        let (at, level, text) = (when(&line["at"]), cell(&line["level"]), cell(&line["text"]));
        shown.push_str(&format!("\n{at}  {level}  {text}"));
    }
    shown
}
