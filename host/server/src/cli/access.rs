//! `access`: principals, what each may do, and the tokens, passwords and identities that prove them.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use millrace_model::{
    Clock as _, Identity, PrincipalName, Right, Rule, SystemClock, Target, TokenName,
};
use serde_json::{Value, json};
use ureq::http::Method;

use super::client::{Client, escaped};
use super::failure::Failure;
use super::secret;
use super::table::{cell, facts, items, table, when};
use super::topic::size_or_none;
use crate::units::{duration_ms, size_text};

const GRANT_HELP: &str = "\
Examples:
  millrace access grant billing 'consumer on topic:orders'
  millrace access grant shop 'producer on topic:orders-*'      all topics whose names begin so
  millrace access grant ops operator                           on everything

A rule is a role or a right, and what it is about.
Roles: viewer, producer, consumer, developer, operator, auditor, admin.
Rights: view, produce, consume, call, read-state, write-state, deploy, operate, redrive, administer,
audit.
Things: topic:, processor:, module:, schedule:, route:, secret: or principal: and a name, which may end with *; host; * is everything.";

const CREATE_HELP: &str = "\
Examples:
  millrace access token create billing --name prod --to billing.token
  millrace access token create shop --name ci --expires-in 30d --only 'producer on topic:test'";

const PASSWORD_HELP: &str = "\
Examples:
  millrace access password set prometheus --to prometheus.password
  millrace access password set prometheus --from chosen.password

A host knows only what a password is checked against. It counts in HTTP's Basic authentication, on the host's own paths.";

/// Manage principals: who may do what, and their tokens and passwords
#[derive(clap::Subcommand)]
pub(super) enum Verb {
    /// Show who this command is to the host
    #[command(name = "self", after_help = "Examples:\n  millrace access self")]
    Oneself,
    /// List principals
    List,
    /// Show a principal: its rules and tokens
    Show {
        /// The principal
        name: PrincipalName,
    },
    /// Give a principal a right; creates the principal if it does not exist
    #[command(after_help = GRANT_HELP)]
    Grant {
        /// The principal
        name: PrincipalName,
        /// Such as `producer on topic:orders-*`
        rule: Rule,
    },
    /// Take a right from a principal
    #[command(
        after_help = "Examples:\n  millrace access withdraw billing 'consumer on topic:orders'"
    )]
    Withdraw {
        /// The principal
        name: PrincipalName,
        /// The rule as `access show` prints it
        rule: Rule,
    },
    /// Limit how much a principal may send, read and ask for in a second; what is not given stays
    #[command(
        after_help = "Examples:\n  millrace access quota shop --produced-bytes 10MiB --requests 500\n  millrace access quota shop --requests none\n\nEach host of a store limits by itself."
    )]
    Quota(Box<QuotaArgs>),
    /// Show who has a right on a thing, and by which rule
    #[command(after_help = "Examples:\n  millrace access check produce topic:orders")]
    Check {
        /// Such as `produce`
        right: Right,
        /// Such as `topic:orders`
        on: Target,
    },
    /// Show the audit log, newest first: what was changed, and what was refused
    #[command(
        after_help = "Examples:\n  millrace access audit --refused\n  millrace access audit --principal billing --max 20\n  millrace consume host.audit --from earliest      all of it, to keep it elsewhere"
    )]
    Audit {
        /// Show only what this principal did
        #[arg(long)]
        principal: Option<PrincipalName>,
        /// Show only refusals
        #[arg(long)]
        refused: bool,
        /// The maximum number of records
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
        max: u32,
        /// Continue before this record, as an earlier answer says
        #[arg(long, value_name = "OFFSET")]
        before: Option<u64>,
    },
    /// Delete a principal; its tokens are refused at once
    Delete {
        /// The principal
        name: PrincipalName,
    },
    /// Make, rotate and revoke tokens
    #[command(subcommand)]
    Token(TokenVerb),
    /// Set and remove passwords, for clients that cannot send a token
    #[command(subcommand)]
    Password(PasswordVerb),
    /// Add and remove identities: who a principal is by its certificate, or as a user of the machine
    #[command(subcommand)]
    Identity(IdentityVerb),
}

#[derive(clap::Subcommand)]
pub(super) enum PasswordVerb {
    /// Set the password of a principal; the host makes it, and it is shown once
    #[command(after_help = PASSWORD_HELP)]
    Set {
        /// The principal
        principal: PrincipalName,
        /// Set the password in this file, or `-` for standard input, instead of a new one
        #[arg(long, value_name = "FILE", conflicts_with = "to")]
        from: Option<PathBuf>,
        /// Write it to this file, for its owner only, instead of showing it
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
    },
    /// Remove the password of a principal; it is refused at once, and what is under way with it ends
    #[command(after_help = "Examples:\n  millrace access password remove grafana")]
    Remove {
        /// The principal
        principal: PrincipalName,
    },
}

const IDENTITY_HELP: &str = "\
Examples:
  millrace access identity add billing uri:spiffe://prod/billing
  millrace access identity add billing dns:billing.internal
  millrace access identity add ops uid:1000

dns:, uri: and email: are alternative names of a client's certificate, cn: is the common name of its
subject, and uid: the number of a user of the machine, at the host's Unix socket.";

#[derive(clap::Subcommand)]
pub(super) enum IdentityVerb {
    /// Give a principal an identity; it needs no token then
    #[command(after_help = IDENTITY_HELP)]
    Add {
        /// The principal
        principal: PrincipalName,
        /// Such as `dns:billing.internal`
        identity: Identity,
    },
    /// Take an identity from a principal; what is under way with it ends
    #[command(
        after_help = "Examples:\n  millrace access identity remove billing dns:billing.internal"
    )]
    Remove {
        /// The principal
        principal: PrincipalName,
        /// The identity as `access show` prints it
        identity: Identity,
    },
}

// Without a doc comment of its own: it would take the place of the command's.
#[derive(clap::Args)]
pub(super) struct QuotaArgs {
    /// The principal
    name: PrincipalName,
    /// Bytes that it sends; `none` for no limit
    #[arg(long, value_name = "SIZE", value_parser = size_or_none)]
    produced_bytes: Option<Value>,
    /// Messages that it sends
    #[arg(long, value_name = "NUMBER", value_parser = number_or_none)]
    produced_messages: Option<Value>,
    /// Bytes that it reads
    #[arg(long, value_name = "SIZE", value_parser = size_or_none)]
    read_bytes: Option<Value>,
    /// Messages that it reads
    #[arg(long, value_name = "NUMBER", value_parser = number_or_none)]
    read_messages: Option<Value>,
    /// Requests of any kind
    #[arg(long, value_name = "NUMBER", value_parser = number_or_none)]
    requests: Option<Value>,
}

#[derive(clap::Subcommand)]
pub(super) enum TokenVerb {
    /// Make a token; it is shown once
    #[command(after_help = CREATE_HELP)]
    Create {
        /// The principal
        principal: PrincipalName,
        /// The token's name
        #[arg(long)]
        name: TokenName,
        /// When it expires, such as 30d [default: never]
        #[arg(long, value_name = "DURATION", value_parser = duration_ms)]
        expires_in: Option<u64>,
        /// Allow only what this rule allows, too; repeat it for several
        #[arg(long, value_name = "RULE")]
        only: Vec<Rule>,
        /// Write it to this file, for its owner only, instead of showing it
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
    },
    /// Make a new token in place of one, with the same name, rules and lifetime
    #[command(
        after_help = "Examples:\n  millrace access token rotate billing prod --overlap 1h --to billing.token"
    )]
    Rotate {
        /// The principal
        principal: PrincipalName,
        /// The token
        token: TokenName,
        /// How long the old token is still accepted
        #[arg(long, value_name = "DURATION", value_parser = duration_ms, default_value = "0s")]
        overlap: u64,
        /// Write it to this file, for its owner only, instead of showing it
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
    },
    /// Revoke a token; it is refused at once, and what is under way with it ends
    #[command(after_help = "Examples:\n  millrace access token revoke billing prod")]
    Revoke {
        /// The principal
        principal: PrincipalName,
        /// The token
        token: TokenName,
    },
}

pub(super) fn run(verb: Verb, client: &Client) -> Result<(), Failure> {
    let mut out = client.output();
    let path = |name: &PrincipalName| format!("/v1/access/principals/{name}");
    let change = |name: &PrincipalName, verb: &str, rule: &Rule| {
        let path = format!("/v1/access/principals/{name}/{verb}");
        client.send_again(Method::POST, &path, &json!({ "rule": rule }))
    };
    match verb {
        Verb::Oneself => out.answer(&client.get("/v1/access/self")?, oneself),
        Verb::List => out.answer(&client.get("/v1/access/principals")?, list),
        Verb::Show { name } => out.answer(&client.get(&path(&name))?, show),
        Verb::Grant { name, rule } => out.answer(&change(&name, "grant", &rule)?, show),
        Verb::Withdraw { name, rule } => out.answer(&change(&name, "withdraw", &rule)?, show),
        Verb::Quota(args) => {
            let QuotaArgs {
                name,
                produced_bytes,
                produced_messages,
                read_bytes,
                read_messages,
                requests,
            } = *args;
            let given = [
                ("produced_bytes", produced_bytes),
                ("produced_messages", produced_messages),
                ("read_bytes", read_bytes),
                ("read_messages", read_messages),
                ("requests", requests),
            ];
            let given: serde_json::Map<String, Value> = given
                .into_iter()
                .filter_map(|(quota, limit)| Some((quota.to_owned(), limit?)))
                .collect();
            let path = format!("{}/quotas", path(&name));
            let changed = client.send_again(Method::PATCH, &path, &Value::Object(given))?;
            out.answer(&changed, show)
        }
        Verb::Check { right, on } => {
            let on = on.to_string();
            let on = escaped(&on);
            let answer = client.get(&format!("/v1/access/check?right={right}&on={on}"))?;
            out.answer(&answer, checked)
        }
        Verb::Audit {
            principal,
            refused,
            max,
            before,
        } => {
            let mut path = format!("/v1/access/audit?max={max}&refused={refused}");
            if let Some(principal) = principal {
                path = format!("{path}&principal={principal}");
            }
            if let Some(before) = before {
                path = format!("{path}&before={before}");
            }
            out.answer(&client.get(&path)?, audited)
        }
        Verb::Delete { name } => {
            client.delete(&path(&name))?;
            let gone = json!({"deleted": name});
            out.answer(&gone, |_| {
                format!("principal {name} is deleted, and its tokens with it")
            })
        }
        Verb::Token(verb) => token(verb, client),
        Verb::Password(verb) => password(verb, client),
        Verb::Identity(verb) => identity(verb, client),
    }
}

fn password(verb: PasswordVerb, client: &Client) -> Result<(), Failure> {
    let mut out = client.output();
    let path = |principal: &PrincipalName| format!("/v1/access/principals/{principal}/password");
    match verb {
        PasswordVerb::Set {
            principal,
            from,
            to,
        } => {
            let chosen = from.as_deref().map(secret::read).transpose()?;
            let body = json!({"password": chosen.as_ref().map(|text| text.as_str())});
            let place = Place::prepare(to.as_deref())?;
            let set = client.send(Method::PUT, &path(&principal), &body)?;
            out.answer(&place.keep(set)?, |set| {
                match (&set["secret"], &set["file"]) {
                    (Value::String(secret), _) => {
                        format!("{secret}\n\nThis is the only time that it is shown.")
                    }
                    (_, Value::String(file)) => format!("the password is in {file}"),
                    _ => format!("the password of principal {principal} is set"),
                }
            })
        }
        PasswordVerb::Remove { principal } => {
            client.delete(&path(&principal))?;
            let gone = json!({"removed": principal});
            out.answer(&gone, |_| format!("principal {principal} has no password"))
        }
    }
}

fn identity(verb: IdentityVerb, client: &Client) -> Result<(), Failure> {
    let mut out = client.output();
    let path = |principal: &PrincipalName, identity: &Identity| {
        let identity = escaped(&identity.to_string());
        format!("/v1/access/principals/{principal}/identities/{identity}")
    };
    match verb {
        IdentityVerb::Add {
            principal,
            identity,
        } => {
            let path = path(&principal, &identity);
            let changed = client.send_again(Method::PUT, &path, &Value::Null)?;
            out.answer(&changed, show)
        }
        IdentityVerb::Remove {
            principal,
            identity,
        } => {
            client.delete(&path(&principal, &identity))?;
            let gone = json!({"removed": identity, "principal": principal});
            out.answer(&gone, |_| {
                format!("principal {principal} does not have the identity {identity} any more")
            })
        }
    }
}

fn token(verb: TokenVerb, client: &Client) -> Result<(), Failure> {
    let mut out = client.output();
    let tokens = |principal: &PrincipalName| format!("/v1/access/principals/{principal}/tokens");
    match verb {
        TokenVerb::Create {
            principal,
            name,
            expires_in,
            only,
            to,
        } => {
            let now = SystemClock::new().wall();
            let expires_at = expires_in.map(|ms| now.0.saturating_add(ms));
            let rules = (!only.is_empty()).then_some(only);
            let body = json!({"name": name, "rules": rules, "expires_at": expires_at});
            let place = Place::prepare(to.as_deref())?;
            let made = client.send(Method::POST, &tokens(&principal), &body)?;
            out.answer(&place.keep(made)?, made_token)
        }
        TokenVerb::Rotate {
            principal,
            token,
            overlap,
            to,
        } => {
            let path = format!("{}/{token}/rotate", tokens(&principal));
            let place = Place::prepare(to.as_deref())?;
            let made = client.send(Method::POST, &path, &json!({ "overlap_ms": overlap }))?;
            out.answer(&place.keep(made)?, made_token)
        }
        TokenVerb::Revoke { principal, token } => {
            client.delete(&format!("{}/{token}", tokens(&principal)))?;
            let gone = json!({"revoked": token, "principal": principal});
            out.answer(&gone, |_| {
                format!("token {token} of principal {principal} is revoked")
            })
        }
    }
}

/// Where a token goes.
struct Place<'a>(Option<(&'a Path, std::fs::File)>);

impl<'a> Place<'a> {
    /// Opens the file before the token is made: a token that cannot be written would be lost.
    fn prepare(to: Option<&'a Path>) -> Result<Self, Failure> {
        let Some(path) = to else {
            return Ok(Self(None));
        };
        let mut options = std::fs::OpenOptions::new();
        let opened = options.write(true).create_new(true).mode(0o600).open(path);
        let file = opened.map_err(|error| {
            let failure = Failure::usage(format!("{} cannot be created: {error}", path.display()));
            failure.with_hint("name a file that does not exist yet")
        })?;
        Ok(Self(Some((path, file))))
    }

    /// The answer, without the secret if that is in the file.
    fn keep(self, mut made: Value) -> Result<Value, Failure> {
        if let Some((path, mut file)) = self.0 {
            let secret = made["secret"].as_str().unwrap_or_default();
            writeln!(file, "{secret}")?;
            file.sync_all()?;
            made["secret"] = Value::Null;
            made["file"] = json!(path);
        }
        Ok(made)
    }
}

fn made_token(made: &Value) -> String {
    let expires = match &made["token"]["expires_at"] {
        Value::Null => "it does not expire".to_owned(),
        at => format!("it expires {}", when(at)),
    };
    match (&made["secret"], &made["file"]) {
        (Value::String(secret), _) => {
            format!("{secret}\n\nThis is the only time that it is shown; {expires}.")
        }
        (_, file) => format!("the token is in {}; {expires}", cell(file)),
    }
}

fn rules(rules: &Value) -> String {
    listed(rules, "; ")
}

fn listed(all: &Value, between: &str) -> String {
    let all: Vec<String> = items(all).iter().map(cell).collect();
    match all.is_empty() {
        true => "none".to_owned(),
        false => all.join(between),
    }
}

// Without a doc comment of its own: it would take the place of the command's.
fn quotas(quotas: &Value) -> String {
    let limit = |quota: &str| quotas[quota].as_u64();
    let shown = [
        limit("produced_bytes").map(|limit| format!("{} sent", size_text(limit))),
        limit("produced_messages").map(|limit| format!("{limit} messages sent")),
        limit("read_bytes").map(|limit| format!("{} read", size_text(limit))),
        limit("read_messages").map(|limit| format!("{limit} messages read")),
        limit("requests").map(|limit| format!("{limit} requests")),
    ];
    let shown: Vec<String> = shown.into_iter().flatten().collect();
    match shown.is_empty() {
        true => "none".to_owned(),
        false => format!("{} a second", shown.join(", ")),
    }
}

fn number_or_none(text: &str) -> Result<Value, String> {
    match text {
        "none" => Ok(Value::Null),
        text => text
            .parse::<u64>()
            .map(Value::from)
            .map_err(|_| format!("{text:?} is neither a number nor `none`")),
    }
}

fn list(answer: &Value) -> String {
    let row = |principal: &Value| {
        vec![
            cell(&principal["name"]),
            rules(&principal["rules"]),
            items(&principal["tokens"]).len().to_string(),
            items(&principal["identities"]).len().to_string(),
        ]
    };
    let rows = items(&answer["principals"]).iter().map(row).collect();
    table(
        &["NAME", "RULES", "TOKENS", "IDENTITIES"],
        rows,
        "there are no principals",
    )
}

fn show(principal: &Value) -> String {
    let row = |token: &Value| {
        let expires = match &token["expires_at"] {
            Value::Null => "never".to_owned(),
            at => when(at),
        };
        let only = match &token["rules"] {
            Value::Null => String::new(),
            only => rules(only),
        };
        vec![
            cell(&token["name"]),
            format!("mr_{}…", cell(&token["id"])),
            expires,
            only,
            format!(
                "{}, by {}",
                when(&token["made_at"]),
                cell(&token["made_by"])
            ),
        ]
    };
    let tokens = items(&principal["tokens"]).iter().map(row).collect();
    let facts = facts(&[
        ("principal", cell(&principal["name"])),
        ("may", rules(&principal["rules"])),
        ("quotas", quotas(&principal["quotas"])),
        ("identities", listed(&principal["identities"], ", ")),
        (
            "made",
            format!(
                "{}, by {}",
                when(&principal["made_at"]),
                cell(&principal["made_by"])
            ),
        ),
        (
            "password",
            match &principal["password"] {
                Value::Null => "none".to_owned(),
                set => format!("set {}, by {}", when(&set["set_at"]), cell(&set["set_by"])),
            },
        ),
    ]);
    let headings = ["TOKEN", "BEGINS", "EXPIRES", "ONLY", "MADE"];
    format!(
        "{facts}\n\n{}",
        table(&headings, tokens, "it has no tokens")
    )
}

fn oneself(answer: &Value) -> String {
    if answer["everything"] == true && answer["credentials"] == "user" {
        return "at the Unix socket, the host's own user and root may do everything".to_owned();
    }
    if answer["everything"] == true {
        return "this host asks nobody for a token: everyone who can connect may do everything"
            .to_owned();
    }
    match &answer["principal"] {
        Value::Null if !items(&answer["identities"]).is_empty() => format!(
            "nobody: this command sends no token (--token-file, MILLRACE_TOKEN), and no principal has one of the identities {}",
            listed(&answer["identities"], ", ")
        ),
        Value::Null => {
            "nobody: this command sends no token (millrace login, --token-file, MILLRACE_TOKEN)"
                .to_owned()
        }
        name => {
            let mut lines = vec![("principal", cell(name)), ("may", rules(&answer["rules"]))];
            if !items(&answer["identities"]).is_empty() {
                lines.push(("known by", listed(&answer["identities"], ", ")));
            }
            if !answer["token_rules"].is_null() {
                lines.push(("with this token only", rules(&answer["token_rules"])));
            }
            if !answer["subject"].is_null() {
                lines.push(("for", cell(&answer["subject"])));
            }
            if !answer["keys"].is_null() {
                let keys: Vec<String> = items(&answer["keys"]).iter().map(cell).collect();
                lines.push(("with these keys only", keys.join(", ")));
            }
            facts(&lines)
        }
    }
}

fn audited(answer: &Value) -> String {
    let row = |record: &Value| {
        let who = match &record["principal"] {
            Value::Null => format!("({})", cell(&record["by"])),
            name => match &record["by"] {
                Value::Null => cell(name),
                user => format!("{}/{}", cell(name), cell(user)),
            },
        };
        let result = match &record["code"] {
            Value::Null => cell(&record["result"]),
            code => format!("{}: {}", cell(&record["result"]), cell(code)),
        };
        let times = match record["count"].as_u64() {
            None | Some(1) => String::new(),
            Some(count) => format!("{count} ×"),
        };
        vec![
            when(&record["at"]),
            who,
            cell(&record["from"]),
            cell(&record["verb"]),
            cell(&record["on"]),
            result,
            times,
            cell(&record["request"]),
        ]
    };
    let rows = items(&answer["records"]).iter().map(row).collect();
    let headings = [
        "WHEN", "WHO", "FROM", "VERB", "ON", "RESULT", "TIMES", "REQUEST",
    ];
    let shown = table(&headings, rows, "there are no such records");
    match answer["next"].as_u64() {
        None => shown,
        Some(next) => format!("{shown}\n\nthere are earlier ones: --before {next}"),
    }
}

fn checked(answer: &Value) -> String {
    let row = |allowed: &Value| vec![cell(&allowed["principal"]), cell(&allowed["rule"])];
    let rows = items(&answer["allowed"]).iter().map(row).collect();
    table(
        &["PRINCIPAL", "BY THE RULE"],
        rows,
        "no principal has that right",
    )
}
