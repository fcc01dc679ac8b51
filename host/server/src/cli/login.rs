//! `login`: finds out whether a host takes a token, keeps it in a context, and makes that the current one.

use std::io::{self, Write as _};
use std::path::PathBuf;

use serde_json::{Value, json};
use ureq::http::Uri;
use zeroize::Zeroizing;

use super::client::{Client, TlsFiles};
use super::contexts::{Context, ContextName, Contexts, KeptToken, Store};
use super::failure::Failure;
use super::output::Output;
use super::secret;
use super::target::{Given, Said, TokenPlace, default_url};

pub(super) const HELP: &str = "\
Examples:
  millrace login --host https://mill.example.com:7400
  millrace login --context prod --host https://mill.example.com --token-file prod.token --ca ca.crt
  millrace login --context prod < prod.token              another token for the same host

The token is that of --token-file, or else comes from standard input; a terminal asks for it and does not show it.
A host that asks nobody for a token needs none.
The context is named after the host unless --context names it.";

pub(super) fn run(given: &Given, json: bool, retry_for: Option<u64>) -> Result<(), Failure> {
    let store = Store::new(json);
    let place = Place::of(given, &store.read()?)?;
    // Before anybody is asked for a token.
    let client = Client::new(&place.url, place.files(given), json, retry_for)?;
    let token = match &given.token {
        Some(
            Said::Flag(place @ TokenPlace::File(_)) | Said::Variable(place @ TokenPlace::File(_)),
        ) => place.read()?,
        other => {
            if other.is_some() && !json {
                // Standard error may be closed; that is no reason to stop.
                let _ = writeln!(
                    io::stderr(),
                    "note: the variable MILLRACE_TOKEN is set; commands send that token and not the one of a context"
                );
            }
            secret::asked(&format!("Token for {}: ", place.url))?
        }
    };
    let token = (!token.is_empty()).then_some(token);
    let client = match &token {
        Some(token) => client.with_token(token)?,
        None => client,
    };
    let told = client.get("/v1/access/self")?;
    check(&told, token.as_ref(), &place.url)?;
    let Place {
        name,
        url,
        authority,
    } = place;
    store.change(|contexts| {
        let context = Context {
            host: url.clone(),
            ca: authority,
            token: token.map(KeptToken::new),
        };
        contexts.contexts.insert(name.clone(), context);
        contexts.current = Some(name.clone());
        Ok(())
    })?;
    let done = json!({"context": name, "host": url, "principal": told["principal"], "everything": told["everything"]});
    Output::new(json).answer(&done, |_| {
        let who = match told["principal"].as_str() {
            Some(principal) => format!("you are {principal} at {url}"),
            None => format!("{url} asks nobody for a token"),
        };
        format!("{who}; context {name} is used from now on")
    })
}

/// What will be kept.
struct Place {
    name: ContextName,
    url: String,
    authority: Option<PathBuf>,
}

impl Place {
    /// What TLS needs. A certificate is not kept: it says who the user is without a token.
    fn files<'a>(&'a self, given: &'a Given) -> TlsFiles<'a> {
        TlsFiles {
            authority: self.authority.as_deref(),
            certificate: given.certificate.as_deref(),
            key: given.key.as_deref(),
        }
    }

    fn of(given: &Given, contexts: &Contexts) -> Result<Self, Failure> {
        let named = given.context_name()?;
        let known = match &named {
            Some(name) => contexts.contexts.get(name),
            None => contexts
                .current()
                .unwrap_or_default()
                .map(|(_, known)| known),
        };
        let is_by_flag = named.is_some() && given.context.as_ref().is_some_and(Said::is_flag);
        let of_context = known.filter(|_| is_by_flag).map(|known| &known.host);
        let url = match (&given.host, of_context) {
            (Some(Said::Variable(_)), Some(url)) => url.clone(),
            (Some(said), _) => said.value().clone(),
            (None, _) => match (known, &named) {
                (Some(known), _) => known.host.clone(),
                (None, Some(name)) => {
                    return Err(Failure::usage(format!(
                        "context {name} does not exist yet, so its host must be named"
                    ))
                    .with_hint(format!(
                        "`millrace login --context {name} --host URL` makes it"
                    )));
                }
                (None, None) => default_url(),
            },
        };
        let url = url.trim_end_matches('/').to_owned();
        let known = known.filter(|known| known.is_of(&url));
        let authority = given.authority.as_ref().map(Said::value).cloned();
        let authority = authority.or_else(|| known.and_then(|known| known.ca.clone()));
        // Later commands are given in other directories.
        let authority = authority.map(std::path::absolute).transpose()?;
        let current = contexts.current.clone().filter(|_| known.is_some());
        let name = match named.or(current) {
            Some(name) => name,
            None => name_of(&url)?,
        };
        Ok(Self {
            name,
            url,
            authority,
        })
    }
}

/// The name of a context for this host: the host's, with its port if that is not the usual one.
fn name_of(url: &str) -> Result<ContextName, Failure> {
    let uri: Option<Uri> = url.parse().ok();
    let host = uri.as_ref().and_then(Uri::host).unwrap_or_default();
    let host = host.trim_matches(['[', ']']).replace(':', "-");
    let port = uri.as_ref().and_then(Uri::port_u16);
    let name = match port {
        None | Some(443 | 7400) => host,
        Some(port) => format!("{host}-{port}"),
    };
    name.parse().map_err(|_| {
        let message = format!("no context can be named after {url}");
        Failure::usage(message).with_hint("name it yourself: `millrace login --context NAME`")
    })
}

/// Whether the host knows who sends the token, or asks for none.
fn check(told: &Value, token: Option<&Zeroizing<String>>, url: &str) -> Result<(), Failure> {
    let is_known = told["principal"].is_string();
    match token {
        Some(_) if is_known => Ok(()),
        None if told["everything"] == true => Ok(()),
        Some(_) => {
            let message = format!("{url} does not know this token; nothing was kept");
            Err(Failure::refused(message).with_hint(
                "ask for one: `millrace access token create` makes it. On a host that asks nobody for a token, log in without one",
            ))
        }
        None => {
            let message = format!("{url} asks for a token, and none was given; nothing was kept");
            Err(Failure::refused(message)
                .with_hint("type it at the prompt, or name a file with --token-file"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_named_after_its_host() {
        let name = |url| name_of(url).map(|name| name.to_string()).ok();
        assert_eq!(
            name("https://mill.example.com").as_deref(),
            Some("mill.example.com")
        );
        assert_eq!(name("http://127.0.0.1:7400").as_deref(), Some("127.0.0.1"));
        assert_eq!(
            name("http://localhost:8080").as_deref(),
            Some("localhost-8080")
        );
        assert_eq!(name("http://[::1]:7400").as_deref(), Some("--1"));
        assert_eq!(name("no url"), None);
    }
}
