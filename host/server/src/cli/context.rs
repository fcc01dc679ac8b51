//! `context`: shows and changes the contexts that `login` made. What they print has no tokens.

use serde_json::{Value, json};

use super::contexts::{Context, ContextName, Contexts, Store};
use super::failure::{Exit, Failure};
use super::output::Output;
use super::table::{cell, facts, items, table};

const LIST_HELP: &str = "Examples:\n  millrace context list";
const USE_HELP: &str = "Examples:\n  millrace context use prod";

/// Manage contexts: names for hosts, and how to reach them
#[derive(clap::Subcommand)]
pub(super) enum Verb {
    /// List contexts; * marks the current one
    #[command(after_help = LIST_HELP)]
    List,
    /// Use a context in all commands that name none
    #[command(after_help = USE_HELP)]
    Use {
        /// The context
        name: ContextName,
    },
    /// Show a context
    Show {
        /// The context [default: the current one]
        name: Option<ContextName>,
    },
    /// Remove a context, with the token that is kept for it
    Remove {
        /// The context
        name: ContextName,
    },
}

/// Forgets a token.
#[derive(clap::Args)]
pub(super) struct LogoutArgs {
    /// The context [default: the current one]
    name: Option<ContextName>,
}

pub(super) fn run(verb: Verb, json: bool) -> Result<(), Failure> {
    let (store, mut out) = (Store::new(json), Output::new(json));
    match verb {
        Verb::List => {
            let contexts = store.read()?;
            let all = contexts.contexts.iter();
            let all: Vec<Value> = all
                .map(|(name, context)| shown(&contexts, name, context))
                .collect();
            out.answer(&json!({ "contexts": all }), list)
        }
        Verb::Use { name } => {
            let context = store.change(|contexts| {
                let context = contexts.get(&name)?.clone();
                contexts.current = Some(name.clone());
                Ok(context)
            })?;
            let used = json!({"current": name, "host": context.host});
            out.answer(&used, |_| {
                format!("context {name} is used from now on: {}", context.host)
            })
        }
        Verb::Show { name } => {
            let contexts = store.read()?;
            let name = named(&contexts, name)?;
            let shown = shown(&contexts, &name, contexts.get(&name)?);
            out.answer(&shown, show)
        }
        Verb::Remove { name } => {
            store.change(|contexts| {
                contexts.get(&name)?;
                contexts.contexts.remove(&name);
                contexts.current.take_if(|current| *current == name);
                Ok(())
            })?;
            let gone = json!({"removed": name});
            out.answer(&gone, |_| format!("context {name} is removed"))
        }
    }
}

/// Forgets the token of a context.
pub(super) fn logout(args: LogoutArgs, json: bool) -> Result<(), Failure> {
    let name = Store::new(json).change(|contexts| {
        let name = named(contexts, args.name)?;
        contexts.get_mut(&name)?.token = None;
        Ok(name)
    })?;
    let done = json!({"logged_out": name});
    Output::new(json).answer(&done, |_| {
        format!(
            "the token of context {name} is forgotten here; the host takes it until it is revoked (millrace access token revoke)"
        )
    })
}

fn named(contexts: &Contexts, name: Option<ContextName>) -> Result<ContextName, Failure> {
    name.or_else(|| contexts.current.clone()).ok_or_else(|| {
        Failure::new(Exit::Unknown, "unknown-context", "no context is in use")
            .with_hint("name one; `millrace context list` lists them, `millrace login` makes one")
    })
}

fn shown(contexts: &Contexts, name: &ContextName, context: &Context) -> Value {
    json!({
        "name": name,
        "host": context.host,
        "ca": context.ca,
        "has_token": context.token.is_some(),
        "current": contexts.current.as_ref() == Some(name),
    })
}

fn list(answer: &Value) -> String {
    let row = |context: &Value| {
        let mark = if context["current"] == true { "*" } else { "" };
        vec![
            mark.to_owned(),
            cell(&context["name"]),
            cell(&context["host"]),
            token(context).to_owned(),
        ]
    };
    let rows = items(&answer["contexts"]).iter().map(row).collect();
    let headings = ["", "NAME", "HOST", "TOKEN"];
    table(
        &headings,
        rows,
        "there are no contexts; `millrace login` makes one",
    )
}

fn show(context: &Value) -> String {
    let is_current = if context["current"] == true {
        "yes"
    } else {
        "no"
    };
    let authority = match &context["ca"] {
        Value::Null => "those of this machine".to_owned(),
        file => cell(file),
    };
    facts(&[
        ("context", cell(&context["name"])),
        ("host", cell(&context["host"])),
        ("certificates", authority),
        ("token", token(context).to_owned()),
        ("in use", is_current.to_owned()),
    ])
}

fn token(context: &Value) -> &'static str {
    match context["has_token"] == true {
        true => "kept",
        false => "none",
    }
}
