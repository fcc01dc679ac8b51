//! `host`: shows the hosts that share a store.

use serde_json::Value;

use super::client::Client;
use super::failure::Failure;
use super::table::{cell, items, table};

const LIST_HELP: &str = "\
Examples:
  millrace host list
  millrace host list --json | jq -r '.hosts[].address'

One that ended without notice may be listed for some seconds.";

/// Show hosts
#[derive(clap::Subcommand)]
pub(super) enum Verb {
    /// List the hosts that live on the same store, each with the address that it gave
    #[command(after_help = LIST_HELP)]
    List,
}

pub(super) fn run(verb: Verb, client: &Client) -> Result<(), Failure> {
    match verb {
        Verb::List => client.output().answer(&client.get("/v1/hosts")?, list),
    }
}

fn list(hosts: &Value) -> String {
    let row = |host: &Value| {
        let note = match host["is_this"] == true {
            true => "answers now",
            false => "",
        };
        vec![cell(&host["id"]), cell(&host["address"]), note.to_owned()]
    };
    let rows = items(&hosts["hosts"]).iter().map(row).collect();
    table(&["HOST", "ADDRESS", ""], rows, "no host is listed yet")
}
