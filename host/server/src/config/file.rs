//! The configuration file: read within a bound, keys in their old spelling moved into their
//! sections, and parsed with errors that name the line.

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::ConfigError;
use super::names::RETIRED;
use super::sections::Config;
use super::settings::paths;
use crate::nearest::{hint_of, in_plain_words, nearest};

/// Bytes of a configuration file; a larger one is refused.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Settings that are lists of tables, for which there are no flags.
const IN_FILES_ONLY: [&str; 1] = ["access.providers"];

/// What is wrong in a file, and where.
struct Wrong {
    at: usize,
    message: String,
}

/// The defaults with the file's settings over them, and hints about keys in their old spelling.
pub(super) fn read(path: &Path) -> Result<(Config, Vec<String>), ConfigError> {
    let unreadable = |source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let bytes = std::fs::metadata(path).map_err(unreadable)?.len();
    if bytes > FILE_BYTES_MAX {
        let why = std::io::Error::other(format!("{bytes} bytes, at most {FILE_BYTES_MAX}"));
        return Err(unreadable(why));
    }
    let read = std::fs::read(path).map_err(unreadable)?;
    let text = crate::text::whole(&read);
    let text = text.map_err(|why| unreadable(std::io::Error::other(why)))?;
    understood(text).map_err(|wrong| {
        let before = text.get(..wrong.at).unwrap_or_default();
        ConfigError::File {
            path: path.to_owned(),
            line: before.matches('\n').count() + 1,
            message: wrong.message,
        }
    })
}

fn understood(text: &str) -> Result<(Config, Vec<String>), Wrong> {
    let refused = |error: toml::de::Error| not_understood(text, &error);
    let parsed = DeTable::parse(text).map_err(refused)?;
    let whole = parsed.span();
    let mut table = parsed.into_inner();
    let hints = moved(&mut table)?;
    known(&table, "", &paths())?;
    let reader = toml::Deserializer::from(Spanned::new(whole, table));
    let config = Config::deserialize(reader).map_err(refused)?;
    Ok((config, hints))
}

/// Moves keys in their old spelling into their sections.
fn moved(table: &mut DeTable<'_>) -> Result<Vec<String>, Wrong> {
    let mut hints = Vec::new();
    for (old, new) in RETIRED {
        // Two of the old keys are now names of sections.
        let is_old = |value: &Spanned<DeValue<'_>>| !matches!(value.get_ref(), DeValue::Table(_));
        if !table.get(old).is_some_and(is_old) {
            continue;
        }
        let Some(value) = table.remove(old) else {
            continue;
        };
        let at = value.span();
        if !put(table, new, value) {
            return Err(Wrong {
                at: at.start,
                message: format!(
                    "`{old}` and `{new}` are the same setting; keep `{new}`, and leave the other one out"
                ),
            });
        }
        hints.push(format!(
            "the key `{old}` is called `{new}` now; the old name is still read"
        ));
    }
    Ok(hints)
}

/// Puts a value at a path; false if the path already has one.
fn put<'i>(table: &mut DeTable<'i>, path: &'static str, value: Spanned<DeValue<'i>>) -> bool {
    let span = value.span();
    let key =
        |name: &'static str, span: &Range<usize>| Spanned::new(span.clone(), Cow::Borrowed(name));
    let Some((section, rest)) = path.split_once('.') else {
        let is_free = !table.contains_key(path);
        if is_free {
            table.insert(key(path, &span), value);
        }
        return is_free;
    };
    if !table.contains_key(section) {
        let empty = DeValue::Table(DeTable::new());
        table.insert(key(section, &span), Spanned::new(span, empty));
    }
    match table.get_mut(section).map(Spanned::get_mut) {
        Some(DeValue::Table(within)) => put(within, rest, value),
        // Refused where the section is read.
        _ => true,
    }
}

/// Refuses an unknown key and names the most similar setting.
fn known(table: &DeTable<'_>, before: &str, paths: &[String]) -> Result<(), Wrong> {
    for (key, value) in table {
        let name = key.get_ref();
        let path = match before {
            "" => name.to_string(),
            before => format!("{before}.{name}"),
        };
        let section = format!("{path}.");
        match value.get_ref() {
            // Its own reader knows what is in it.
            DeValue::Array(_) if IN_FILES_ONLY.contains(&&*path) => {}
            _ if paths.contains(&path) => {}
            DeValue::Table(within) => known(within, &path, paths)?,
            _ if paths.iter().any(|known| known.starts_with(&section)) => {}
            _ => {
                let hint = most_like(&path, paths);
                let hint =
                    hint.map_or_else(String::new, |hint| format!("; did you mean `{hint}`?"));
                return Err(Wrong {
                    at: key.span().start,
                    message: format!("unknown key `{path}`{hint}"),
                });
            }
        }
    }
    Ok(())
}

/// The setting most similar to a path: by its path, by its last word, or by its old spelling.
fn most_like<'a>(wrong: &str, paths: &'a [String]) -> Option<&'a str> {
    let whole = paths.iter().map(|path| (path.as_str(), path.as_str()));
    let last = paths.iter().map(|path| {
        let last = path
            .rsplit_once('.')
            .map_or(path.as_str(), |(_, last)| last);
        (last, path.as_str())
    });
    let names: Vec<(&str, &str)> = RETIRED.into_iter().chain(last).chain(whole).collect();
    let found = nearest(wrong, names.iter().map(|(name, _)| *name))?;
    let (_, path) = names.iter().find(|(name, _)| *name == found)?;
    Some(path)
}

fn not_understood(text: &str, error: &toml::de::Error) -> Wrong {
    let hint = hint_of(error.message())
        .or_else(|| both_spellings(text, error.message()))
        .or_else(|| {
            // If the parser expects a number or a date, the value is usually a text without quotes.
            let is_syntax =
                error.message().starts_with("invalid") && !error.message().contains("type");
            is_syntax.then(|| {
                "write texts in quotes, as address = \"127.0.0.1:7400\", and numbers without"
                    .to_owned()
            })
        });
    let hint = hint.map_or_else(String::new, |hint| format!("; {hint}"));
    Wrong {
        at: error.span().map_or(0, |span| span.start),
        message: format!("{}{hint}", in_plain_words(error.message())),
    }
}

/// A hint for a file that has both an old key and the section that now has its name, which no TOML
/// parser accepts.
fn both_spellings(text: &str, message: &str) -> Option<String> {
    if !(message.contains("duplicate") || message.contains("cannot extend")) {
        return None;
    }
    let begins = |line: &str, name: &str| {
        let rest = line.trim_start().strip_prefix(name);
        rest.is_some_and(|rest| rest.trim_start().starts_with('='))
    };
    let is_section = |old: &str, new: &str| new.split('.').next() == Some(old);
    let twice = RETIRED
        .into_iter()
        .find(|(old, new)| is_section(old, new) && text.lines().any(|line| begins(line, old)));
    twice.map(|(old, new)| {
        format!("`{old} = …` is `{new}` now, and `{old}` a section; keep `{new}`, and leave the other one out")
    })
}
