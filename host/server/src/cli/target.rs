//! Which host a command talks to, and with what it proves who it is: flags first, then variables, then the context, then the host of this
//! machine. A context that a flag names goes before variables. Plain code.

use std::path::PathBuf;

use clap::ArgMatches;
use clap::parser::ValueSource;
use zeroize::Zeroizing;

use super::contexts::{Context, ContextName, Contexts};
use super::failure::Failure;
use super::secret;
use crate::http::settings::ADDRESS_DEFAULT;

/// The variable with the token to send.
const TOKEN_VARIABLE: &str = "MILLRACE_TOKEN";

/// What a user said, with a flag or with a variable.
#[derive(Clone, Debug)]
pub(super) enum Said<T> {
    Flag(T),
    Variable(T),
}

impl<T> Said<T> {
    /// What was said with this argument.
    pub(super) fn of(matches: &ArgMatches, id: &str, value: Option<T>) -> Option<Self> {
        match matches.value_source(id) {
            Some(ValueSource::EnvVariable) => value.map(Self::Variable),
            _ => value.map(Self::Flag),
        }
    }

    pub(super) fn value(&self) -> &T {
        match self {
            Self::Flag(value) | Self::Variable(value) => value,
        }
    }

    pub(super) fn is_flag(&self) -> bool {
        matches!(self, Self::Flag(_))
    }
}

/// What a user said about the host.
#[derive(Clone, Debug, Default)]
pub(super) struct Given {
    pub(super) host: Option<Said<String>>,
    pub(super) context: Option<Said<String>>,
    pub(super) token: Option<Said<TokenPlace>>,
    pub(super) authority: Option<Said<PathBuf>>,
    pub(super) certificate: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
}

/// Where a token is.
#[derive(Clone, Debug)]
pub(super) enum TokenPlace {
    File(PathBuf),
    /// The variable `MILLRACE_TOKEN`.
    Variable,
}

impl TokenPlace {
    /// What the user said: a file, or the variable with the token itself.
    pub(super) fn said(file: Option<Said<PathBuf>>) -> Option<Said<Self>> {
        let file = file.map(|said| match said {
            Said::Flag(file) => Said::Flag(Self::File(file)),
            Said::Variable(file) => Said::Variable(Self::File(file)),
        });
        let is_set = std::env::var_os(TOKEN_VARIABLE).is_some();
        file.or_else(|| is_set.then_some(Said::Variable(Self::Variable)))
    }

    /// The token that is there.
    pub(super) fn read(&self) -> Result<Zeroizing<String>, Failure> {
        let text = match self {
            Self::File(file) => return secret::read(file),
            Self::Variable => std::env::var(TOKEN_VARIABLE).unwrap_or_default(),
        };
        let text = Zeroizing::new(text);
        match text.trim() {
            "" => Err(Failure::usage(format!(
                "there is no token in the variable {TOKEN_VARIABLE}"
            ))
            .with_hint("put one there, as `millrace access token create` prints it, or unset it")),
            token => Ok(Zeroizing::new(token.to_owned())),
        }
    }
}

/// The host that a command talks to.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) url: String,
    pub(super) authority: Option<PathBuf>,
    /// The client's certificate, and its key.
    pub(super) certificate: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    pub(super) token: Option<Credential>,
}

/// A token, or where it is.
#[derive(Debug)]
pub(super) enum Credential {
    Given(TokenPlace),
    Kept(Zeroizing<String>),
}

impl Given {
    /// The context's name, if the user named one. An empty variable is none.
    pub(super) fn context_name(&self) -> Result<Option<ContextName>, Failure> {
        match &self.context {
            None => Ok(None),
            Some(Said::Variable(name)) if name.is_empty() => Ok(None),
            Some(said) => said.value().parse().map(Some).map_err(|error| {
                let name = said.value();
                Failure::usage(format!("--context {name:?}: {error}"))
            }),
        }
    }

    /// Whether the user named a host and no context, so that a file of contexts that is broken must not be in the way.
    pub(super) fn needs_no_context(&self) -> bool {
        self.host.is_some() && self.context.is_none()
    }

    /// The host to talk to.
    pub(super) fn target(&self, contexts: &Contexts) -> Result<Target, Failure> {
        let named = self.context_name()?;
        let context = match &named {
            Some(name) => Some((name, contexts.get(name)?)),
            // Not needed by whoever names a host: a wrong file must not be in the way.
            None if self.host.is_some() => contexts.current().unwrap_or_default(),
            None => contexts.current()?,
        };
        let is_by_flag = named.is_some() && self.context.as_ref().is_some_and(Said::is_flag);
        let url = match (&self.host, context) {
            (Some(Said::Flag(url)), Some((name, context))) if is_by_flag && !context.is_of(url) => {
                let message = format!(
                    "--context {name} is for {}, and --host names {url}",
                    context.host
                );
                return Err(Failure::usage(message).with_hint("leave one of them out"));
            }
            (Some(said), _) if said.is_flag() || !is_by_flag => said.value().clone(),
            (_, Some((_, context))) => context.host.clone(),
            (Some(said), None) => said.value().clone(),
            (None, None) => default_url(),
        };
        let context = context.map(|(_, context)| context);
        let context = context.filter(|context| context.is_of(&url));
        let authority = first(
            is_by_flag,
            self.authority.clone(),
            context.and_then(|context| context.ca.clone()),
        );
        let token = self.token.clone().map(|said| match said {
            Said::Flag(place) => Said::Flag(Credential::Given(place)),
            Said::Variable(place) => Said::Variable(Credential::Given(place)),
        });
        let token = first(is_by_flag, token, context.and_then(kept));
        Ok(Target {
            url,
            authority,
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            token,
        })
    }
}

fn kept(context: &Context) -> Option<Credential> {
    let token = context.token.as_ref()?;
    Some(Credential::Kept(Zeroizing::new(token.reveal().to_owned())))
}

/// The first that there is of a flag, a context that a flag names, a variable, and any other context.
fn first<T>(is_by_flag: bool, said: Option<Said<T>>, of_context: Option<T>) -> Option<T> {
    match said {
        Some(Said::Flag(value)) => Some(value),
        Some(Said::Variable(value)) if is_by_flag => of_context.or(Some(value)),
        Some(Said::Variable(value)) => Some(value),
        None => of_context,
    }
}

/// The host of this machine.
pub(super) fn default_url() -> String {
    format!("http://{ADDRESS_DEFAULT}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXTS: &str = r#"
        current = "prod"
        contexts.prod = { host = "https://prod.example", ca = "prod.crt", token = "mr_prod" }
        contexts.test = { host = "https://test.example/", token = "mr_test" }
    "#;

    fn flag(text: &str) -> Option<Said<String>> {
        Some(Said::Flag(text.to_owned()))
    }

    fn variable(text: &str) -> Option<Said<String>> {
        Some(Said::Variable(text.to_owned()))
    }

    /// The URL, the file of the authority, and the token.
    fn target(given: &Given) -> (String, String, String) {
        let contexts = toml::from_str(CONTEXTS).expect("contexts");
        let target = given.target(&contexts).expect("a target");
        let token = match target.token {
            None => String::new(),
            Some(Credential::Given(TokenPlace::Variable)) => "variable".to_owned(),
            Some(Credential::Given(TokenPlace::File(file))) => file.display().to_string(),
            Some(Credential::Kept(token)) => token.to_string(),
        };
        let authority = target.authority.unwrap_or_default();
        (target.url, authority.display().to_string(), token)
    }

    fn is(given: &Given, url: &str, authority: &str, token: &str) {
        let expected = (url.to_owned(), authority.to_owned(), token.to_owned());
        assert_eq!(target(given), expected, "{given:?}");
    }

    #[test]
    fn flags_go_before_variables_and_variables_before_the_context() {
        let mut given = Given::default();
        is(&given, "https://prod.example", "prod.crt", "mr_prod");
        given.token = Some(Said::Variable(TokenPlace::Variable));
        given.authority = Some(Said::Variable("v.crt".into()));
        is(&given, "https://prod.example", "v.crt", "variable");
        given.context = variable("test");
        is(&given, "https://test.example/", "v.crt", "variable");
        given.context = flag("test");
        is(&given, "https://test.example/", "v.crt", "mr_test");
        given.host = variable("http://other.example");
        is(&given, "https://test.example/", "v.crt", "mr_test");
        given.context = variable("test");
        is(&given, "http://other.example", "v.crt", "variable");
        given.token = Some(Said::Flag(TokenPlace::File("t".into())));
        given.host = flag("http://flag.example");
        is(&given, "http://flag.example", "v.crt", "t");
    }

    #[test]
    fn what_is_kept_for_one_host_is_sent_to_no_other() {
        let of = |host| Given {
            host,
            ..Given::default()
        };
        for other in [
            "http://prod.example",
            "https://prod.example:444",
            "https://test.example",
        ] {
            is(&of(flag(other)), other, "", "");
            is(&of(variable(other)), other, "", "");
        }
        let same = "HTTPS://prod.example/";
        is(&of(flag(same)), same, "prod.crt", "mr_prod");
    }

    #[test]
    fn a_host_and_a_context_that_differ_are_not_both_meant() {
        let contexts = toml::from_str(CONTEXTS).expect("contexts");
        let both = Given {
            host: flag("https://other.example"),
            context: flag("test"),
            ..Given::default()
        };
        let refused = both.target(&contexts).expect_err("refused").to_string();
        assert!(
            refused.contains("other.example") && refused.contains("test.example"),
            "{refused}"
        );
        let same = Given {
            host: flag("https://test.example"),
            ..both
        };
        is(&same, "https://test.example", "", "mr_test");
    }

    #[test]
    fn without_contexts_it_is_the_host_of_this_machine() {
        let target = Given::default().target(&Contexts::default()).expect("one");
        assert_eq!(target.url, default_url());
        let empty = Given {
            context: variable(""),
            ..Given::default()
        };
        assert!(empty.target(&Contexts::default()).is_ok());
        for name in ["none", "no name"] {
            let named = Given {
                context: flag(name),
                ..Given::default()
            };
            assert!(named.target(&Contexts::default()).is_err(), "{name}");
        }
    }
}
