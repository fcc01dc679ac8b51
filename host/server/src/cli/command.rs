//! The command line as a whole: settings that apply to every command.

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches};

use super::Cli;
use super::failure::Failure;
use super::target::{Given, Said, TokenPlace};

/// Commands that talk to no host, and the hint for users who name one.
const LOCAL: [(&str, &str); 14] = [
    (
        "serve",
        "use `--listen ADDRESS:PORT` to set where the host listens",
    ),
    (
        "demo",
        "the demo starts a host of its own; leave the flag out",
    ),
    ("new", "leave the flag out"),
    ("build", "leave the flag out"),
    (
        "test",
        "test needs no host; to run the component on one, use `millrace module push` and `millrace processor deploy`",
    ),
    (
        "dev",
        "dev starts a host of its own; use `--listen ADDRESS:PORT` to set where it listens",
    ),
    (
        "doctor",
        "doctor reads a data directory, a database or a NATS server; for a running host use `millrace status`",
    ),
    (
        "restore",
        "restore writes a data directory; leave the flag out",
    ),
    (
        "copy",
        "copy reads and writes stores without a host; leave the flag out",
    ),
    ("segment", "segment reads a file; leave the flag out"),
    (
        "logout",
        "name the context: `millrace logout NAME`; the host is not asked",
    ),
    (
        "context",
        "`millrace login --context NAME --host URL` makes or changes a context",
    ),
    ("completions", "leave the flag out"),
    ("man", "leave the flag out"),
];

/// What the positional name means in each group of commands.
const WHAT_IS_NAMED: [(&str, &str); 8] = [
    ("topic", "The topic"),
    ("schedule", "The schedule"),
    ("processor", "The processor"),
    ("delayed", "The topic"),
    ("consume", "The topic"),
    ("consumer", "The consumer"),
    ("damage", "The topic"),
    ("segment", "The segment file"),
];

/// Flags of all commands that talk to a host: their names in the code and on the command line.
const ASKING: [(&str, &str); 7] = [
    ("host", "host"),
    ("context", "context"),
    ("retry_for", "retry-for"),
    ("token_file", "token-file"),
    ("authority", "ca"),
    ("client_certificate", "client-certificate"),
    ("client_key", "client-key"),
];

/// The command line: help is wrapped by paragraphs, and commands that talk to no host do not offer flags that name one.
pub(super) fn command() -> Command {
    let local = LOCAL.iter().fold(Cli::command(), |whole, (name, _)| {
        whole.mut_subcommand(name, |command| {
            // An argument of the same name hides the global one.
            command.args(
                ASKING.map(|(id, long)| Arg::new(id).long(long).action(ArgAction::Set).hide(true)),
            )
        })
    });
    let described = WHAT_IS_NAMED.iter().fold(local, |whole, (group, what)| {
        whole.mut_subcommand(group, |command| described(command, what))
    });
    wrapped(described)
}

/// Adds help texts to positional arguments, where they are the same for all commands of a group.
fn described(command: Command, what: &'static str) -> Command {
    let command = command.mut_args(|arg| {
        let is_bare = arg.is_positional() && arg.get_help().is_none();
        match arg.get_id().as_str() {
            "name" if is_bare => arg.help(what),
            "topic" if is_bare => arg.help("The topic"),
            "partition" if is_bare => arg.help("The partition"),
            "file" if is_bare => arg.help("The file"),
            _ => arg,
        }
    });
    command.mut_subcommands(|command| described(command, what))
}

/// The parsed command line. A flag that has no effect is refused before anything else is parsed: its value has no type yet.
pub(super) fn understood(matches: &ArgMatches) -> Result<clap::error::Result<Cli>, Failure> {
    refuse_idle_flags(matches)?;
    Ok(Cli::from_arg_matches(matches).map(|cli| cli.with_given(matches)))
}

impl Cli {
    /// With what the user said about the host, and where.
    fn with_given(mut self, matches: &ArgMatches) -> Self {
        let file = Said::of(matches, "token_file", self.token_file.clone());
        self.given = Given {
            host: Said::of(matches, "host", self.host.clone()),
            context: Said::of(matches, "context", self.context.clone()),
            token: TokenPlace::said(file),
            authority: Said::of(matches, "authority", self.authority.clone()),
            certificate: self.client_certificate.clone(),
            key: self.client_key.clone(),
        };
        self
    }
}

/// Refuses a flag that names a host in a command that talks to none: `serve --host 0.0.0.0` must not silently listen on this machine
/// only.
fn refuse_idle_flags(matches: &ArgMatches) -> Result<(), Failure> {
    let Some((name, given)) = matches.subcommand() else {
        return Ok(());
    };
    let Some((_, hint)) = LOCAL.iter().find(|(local, _)| *local == name) else {
        return Ok(());
    };
    let said = |(id, _): &&(&str, &str)| {
        let within = |matches: &ArgMatches| {
            matches.try_contains_id(id).is_ok()
                && matches.value_source(id) == Some(ValueSource::CommandLine)
        };
        within(matches) || within(given)
    };
    match ASKING.iter().find(said) {
        None => Ok(()),
        Some((_, flag)) => {
            let message =
                format!("`millrace {name}` does not talk to a host: --{flag} has no effect");
            Err(Failure::usage(message).with_hint(*hint))
        }
    }
}

/// Lets the terminal's width wrap the text after the help of each command, instead of the source's line breaks.
fn wrapped(command: Command) -> Command {
    let after = command
        .get_after_help()
        .map(|text| paragraphs(&text.to_string()));
    let command = match after {
        Some(after) => command.after_help(after),
        None => command,
    };
    command.mut_subcommands(wrapped)
}

/// Joins the lines of a paragraph. Indented lines, such as examples, and headings above them stay as they are.
fn paragraphs(text: &str) -> String {
    let mut joined = String::with_capacity(text.len());
    let mut before = "";
    for line in text.lines() {
        let goes_on = !before.is_empty()
            && !before.starts_with(' ')
            && !before.ends_with(':')
            && !line.is_empty()
            && !line.starts_with(' ');
        if !joined.is_empty() {
            joined.push(if goes_on { ' ' } else { '\n' });
        }
        joined.push_str(line);
        before = line;
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Columns of a terminal that examples have to fit into.
    const COLUMNS: usize = 100;

    fn each(command: &Command, path: &str, look: &mut impl FnMut(&str, &Command)) {
        look(path, command);
        for sub in command.get_subcommands() {
            each(sub, &format!("{path} {}", sub.get_name()), look);
        }
    }

    #[test]
    fn every_argument_of_every_command_has_a_description() {
        let mut without = Vec::new();
        each(&command(), "millrace", &mut |path, command| {
            let shown = command.get_arguments().filter(|arg| !arg.is_hide_set());
            let bare = shown.filter(|arg| {
                arg.get_help()
                    .is_none_or(|help| help.to_string().is_empty())
            });
            without.extend(bare.map(|arg| format!("{path}: {}", arg.get_id())));
        });
        assert!(without.is_empty(), "{without:#?}");
    }

    #[test]
    fn no_line_of_an_example_is_torn() {
        let mut torn = Vec::new();
        each(&command(), "millrace", &mut |path, command| {
            let after = command.get_after_help().map(ToString::to_string);
            let lines = after.iter().flat_map(|text| text.lines());
            let long = lines.filter(|line| line.starts_with(' ') && line.chars().count() > COLUMNS);
            torn.extend(long.map(|line| format!("{path}: {line}")));
        });
        assert!(torn.is_empty(), "{torn:#?}");
    }

    #[test]
    fn a_paragraph_is_one_line_and_examples_stay_as_they_are() {
        let text = "Examples:\n  millrace one\n  millrace two\n\nFirst half,\nsecond half.\n\nExit codes: 0 done,\n            1 failed";
        let joined = "Examples:\n  millrace one\n  millrace two\n\nFirst half, second half.\n\nExit codes: 0 done,\n            1 failed";
        assert_eq!(paragraphs(text), joined);
    }

    #[test]
    fn who_asks_no_host_refuses_a_flag_that_names_one() {
        let told = |words: &[&str]| {
            let matches = command()
                .try_get_matches_from(words)
                .expect("it is understood");
            match understood(&matches) {
                Err(failure) => Some(format!("{failure:?}")),
                Ok(cli) => {
                    assert!(cli.is_ok(), "{words:?}: {:?}", cli.err());
                    None
                }
            }
        };
        for words in [
            &["millrace", "serve", "--host", "0.0.0.0"][..],
            &["millrace", "--host", "0.0.0.0", "serve"],
            &["millrace", "doctor", "--retry-for", "3"],
            &["millrace", "doctor", "--retry-for", "soon"],
            &["millrace", "--retry-for", "3", "doctor"],
            &[
                "millrace",
                "context",
                "--host",
                "http://127.0.0.1:1",
                "list",
            ],
            &["millrace", "logout", "--context", "prod"],
        ] {
            let refusal = told(words).expect("it is refused");
            assert!(refusal.contains("does not talk to a host"), "{refusal}");
        }
        for words in [
            &["millrace", "serve"][..],
            &["millrace", "doctor", "--json"],
            &["millrace", "man"],
            &["millrace", "context", "show", "prod", "--json"],
            &["millrace", "login", "--context", "prod"],
            &["millrace", "topic", "list", "--host", "http://127.0.0.1:1"],
            &["millrace", "--retry-for", "3", "topic", "list"],
        ] {
            assert_eq!(told(words), None);
        }
    }
}
