//! Settings from flags and variables: every field of every section has a flag, and a variable named
//! after its path.
//!
//! No code merges them with the file: clap updates only the fields that were given.

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use super::error::ConfigError;
use super::names::{
    KEY_VARIABLE, PREFIX, RETIRED, SECRET_PREFIX, is_set, old_variable, variable, variable_read,
    variables,
};
use super::sections::Config;

/// The settings of a command line and its environment.
#[derive(Clone, Debug)]
pub struct Settings {
    given: ArgMatches,
}

impl Settings {
    pub(super) fn given(&self) -> &ArgMatches {
        &self.given
    }
}

impl Args for Settings {
    fn augment_args(command: Command) -> Command {
        let paths = paths();
        let with_variable = |argument: Arg| {
            let path = argument.get_id().as_str().to_owned();
            match paths.contains(&path) {
                true => argument.env(variable_read(&path, is_set)),
                false => argument,
            }
        };
        // Nothing is required for an update.
        Config::augment_args_for_update(command).mut_args(with_variable)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Settings {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = matches.clone();
        Ok(Self { given })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.given = matches.clone();
        Ok(())
    }
}

/// The paths of all settings.
pub(super) fn paths() -> Vec<String> {
    let command = Config::augment_args_for_update(Command::new("settings"));
    let ids = command.get_arguments().map(|argument| argument.get_id());
    ids.map(|id| id.as_str().to_owned()).collect()
}

/// Hints about the old variables that are set.
///
/// # Errors
/// [`ConfigError::VariablesTwice`] if the new one is set as well.
pub(super) fn check_variables(is_set: impl Fn(&str) -> bool) -> Result<Vec<String>, ConfigError> {
    let mut hints = Vec::new();
    for (_, path) in RETIRED {
        let new = variable(path);
        let Some(old) = old_variable(path).filter(|old| is_set(old)) else {
            continue;
        };
        if is_set(&new) {
            return Err(ConfigError::VariablesTwice { old, new });
        }
        hints.push(format!(
            "the environment variable {old} is called {new} now; the old name is still read"
        ));
    }
    Ok(hints)
}

/// Variables that begin with `MILLRACE_` but are not settings. The host warns about them instead of
/// refusing them, because container platforms set such variables for a service of that name.
pub fn unknown_variables(names: impl IntoIterator<Item = String>) -> Vec<String> {
    let others = [
        "MILLRACE_CONFIG",
        "MILLRACE_HOST",
        "MILLRACE_CA",
        "MILLRACE_CLIENT_CERTIFICATE",
        "MILLRACE_CLIENT_KEY",
        "MILLRACE_TOKEN",
        "MILLRACE_TOKEN_FILE",
        "MILLRACE_CONTEXT",
        "MILLRACE_CONFIG_DIR",
        "MILLRACE_COPY_FROM",
        "MILLRACE_COPY_TO",
        KEY_VARIABLE,
    ];
    let of_settings = paths();
    let of_settings = of_settings.iter().flat_map(|path| variables(path));
    let known: Vec<String> = of_settings.chain(others.map(str::to_owned)).collect();
    names
        .into_iter()
        .filter(|name| name.starts_with(PREFIX) && !known.contains(name))
        .filter(|name| !name.starts_with(SECRET_PREFIX))
        .collect()
}
