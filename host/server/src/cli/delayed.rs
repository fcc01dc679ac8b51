//! `delayed`: lists and cancels delayed messages.

use millrace_model::TopicName;
use serde_json::{Value, json};

use super::client::{Client, escaped};
use super::failure::Failure;
use super::table::{cell, items, table, when};

/// Manage delayed messages
#[derive(clap::Subcommand)]
pub(super) enum Verb {
    /// List delayed messages
    #[command(
        after_help = "Examples:\n  millrace produce reminders --delay 1h 'call back'\n  millrace delayed list reminders"
    )]
    List {
        topic: TopicName,
        /// Only those for this partition
        #[arg(long)]
        partition: Option<u32>,
        /// Only those after this id, to continue a list
        #[arg(long, value_name = "ID")]
        after: Option<String>,
        /// Maximum number of messages
        #[arg(long, value_name = "COUNT", default_value_t = 100)]
        max: usize,
    },
    /// Cancel a delayed message: it is never delivered
    #[command(
        after_help = "Example:\n  millrace delayed cancel reminders 0-1795000000000-1a2b3c4d5e6f70-9f8e7d6c\n\nThe id is in the answer of produce and in the list. Exit code 3 if the message was already delivered."
    )]
    Cancel {
        topic: TopicName,
        /// Its id
        id: String,
    },
}

pub(super) fn run(verb: Verb, client: &Client) -> Result<(), Failure> {
    let mut out = client.output();
    match verb {
        Verb::List {
            topic,
            partition,
            after,
            max,
        } => {
            let mut path = format!("/v1/topics/{topic}/delayed?max={max}");
            if let Some(partition) = partition {
                path.push_str(&format!("&partition={partition}"));
            }
            if let Some(after) = after {
                path.push_str(&format!("&after={}", escaped(&after)));
            }
            out.answer(&client.get(&path)?, list)
        }
        Verb::Cancel { topic, id } => {
            client.delete(&format!("/v1/topics/{topic}/delayed/{}", escaped(&id)))?;
            out.answer(&json!({"cancelled": id}), |_| format!("{id} is cancelled"))
        }
    }
}

fn list(answer: &Value) -> String {
    let row = |delayed: &Value| {
        let message = &delayed["message"];
        let either = |text: &str, bytes: &str| match &message[text] {
            Value::Null => cell(&message[bytes]),
            given => cell(given),
        };
        vec![
            when(&delayed["deliver_at"]),
            cell(&delayed["id"]),
            either("key", "key_base64"),
            either("value", "value_base64"),
        ]
    };
    let rows = items(&answer["delayed"]).iter().map(row).collect();
    let headings = ["DELIVERED AT", "ID", "KEY", "VALUE"];
    let listed = table(&headings, rows, "no delayed messages for this topic");
    let more = match answer["has_more"] == true {
        true => "\nthere are more: raise --max, or pass the last id to --after",
        false => "",
    };
    format!("{listed}{more}")
}
