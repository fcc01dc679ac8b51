//! Contexts: names for hosts and how to reach them, kept in a file of the user. A change reads, changes and replaces the file under a lock,
//! so that two commands at once lose nothing.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::failure::{Exit, Failure};

/// The variable that names the directory of the file.
const DIRECTORY_VARIABLE: &str = "MILLRACE_CONFIG_DIR";
const FILE: &str = "contexts.toml";
/// Locked while the file is changed. Not the file itself, which a change replaces.
const LOCK: &str = "contexts.lock";
/// Bytes of the file. A larger one is refused.
const CONTEXTS_BYTES_MAX: usize = 1 << 20;
/// Characters of a context's name. A longer one is refused.
const CONTEXT_NAME_CHARS_MAX: usize = 64;
/// What others must not have in the file's mode: any right.
const OTHERS: u32 = 0o077;

/// The name of a context.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct ContextName(String);

/// A text is no name of a context.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "this is no name of a context; use at most {CONTEXT_NAME_CHARS_MAX} letters, digits, '.', '_' and '-'"
)]
pub(super) struct NotAContextName;

impl FromStr for ContextName {
    type Err = NotAContextName;

    fn from_str(text: &str) -> Result<Self, NotAContextName> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let is_name = (1..=CONTEXT_NAME_CHARS_MAX).contains(&text.len()) && text.bytes().all(fits);
        is_name
            .then(|| Self(text.to_owned()))
            .ok_or(NotAContextName)
    }
}

impl TryFrom<String> for ContextName {
    type Error = NotAContextName;

    fn try_from(text: String) -> Result<Self, NotAContextName> {
        text.parse()
    }
}

impl From<ContextName> for String {
    fn from(name: ContextName) -> Self {
        name.0
    }
}

impl fmt::Display for ContextName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A token that is kept for a context. It cannot be printed by accident.
#[derive(Clone, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub(super) struct KeptToken(Zeroizing<String>);

impl KeptToken {
    pub(super) fn new(text: Zeroizing<String>) -> Self {
        Self(text)
    }

    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for KeptToken {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl From<KeptToken> for String {
    fn from(token: KeptToken) -> Self {
        token.0.to_string()
    }
}

impl fmt::Debug for KeptToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeptToken(…)")
    }
}

/// A host, and how to reach it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Context {
    /// The host's URL.
    pub(super) host: String,
    /// The file with the certificates that the host's is checked against; those of the machine if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ca: Option<PathBuf>,
    /// The token to send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) token: Option<KeptToken>,
}

impl Context {
    /// Whether its host has this URL, as far as the text says: what is kept for one host is sent to no other.
    pub(super) fn is_of(&self, url: &str) -> bool {
        let [own, other] = [&self.host, url].map(|url| url.trim_end_matches('/'));
        own.eq_ignore_ascii_case(other)
    }
}

/// All contexts.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Contexts {
    /// The one that commands use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) current: Option<ContextName>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) contexts: BTreeMap<ContextName, Context>,
}

impl Contexts {
    /// A context by its name.
    pub(super) fn get(&self, name: &ContextName) -> Result<&Context, Failure> {
        self.contexts.get(name).ok_or_else(|| unknown(name))
    }

    /// A context by its name, to be changed.
    pub(super) fn get_mut(&mut self, name: &ContextName) -> Result<&mut Context, Failure> {
        self.contexts.get_mut(name).ok_or_else(|| unknown(name))
    }

    /// The current context, if there is one.
    pub(super) fn current(&self) -> Result<Option<(&ContextName, &Context)>, Failure> {
        let with = |name| Ok((name, self.get(name)?));
        self.current.as_ref().map(with).transpose()
    }
}

fn unknown(name: &ContextName) -> Failure {
    let message = format!("there is no context {name}");
    Failure::new(Exit::Unknown, "unknown-context", message).with_hint(
        "`millrace context list` lists them; `millrace login --context NAME --host URL` makes one",
    )
}

/// Where contexts are kept.
pub(super) struct Store {
    /// `None` if nothing says where.
    directory: Option<PathBuf>,
    /// Whether to be silent about what a program does not read.
    json: bool,
}

impl Store {
    pub(super) fn new(json: bool) -> Self {
        let directory = directory(|name| std::env::var_os(name));
        Self { directory, json }
    }

    /// All contexts; none if there is no file.
    pub(super) fn read(&self) -> Result<Contexts, Failure> {
        let Some(directory) = &self.directory else {
            return Ok(Contexts::default());
        };
        let path = directory.join(FILE);
        let unreadable = |error: io::Error| {
            Failure::usage(format!(
                "the contexts in {} cannot be read: {error}",
                path.display()
            ))
            .with_hint("correct it, or remove the file and log in again: `millrace login`")
        };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Contexts::default());
            }
            Err(error) => return Err(unreadable(error)),
        };
        let mode = file.metadata().map_err(unreadable)?.permissions().mode();
        if mode & OTHERS != 0 && !self.json {
            let path = path.display();
            // Standard error may be closed; that is no reason to stop.
            let _ = writeln!(
                io::stderr(),
                "warning: others can read the tokens in {path}; take that from them: chmod 600 {path}"
            );
        }
        let mut text = Zeroizing::new(String::new());
        let read = file
            .take(CONTEXTS_BYTES_MAX as u64 + 1)
            .read_to_string(&mut text);
        read.map_err(unreadable)?;
        if text.len() > CONTEXTS_BYTES_MAX {
            return Err(unreadable(io::Error::other(format!(
                "it has more than {CONTEXTS_BYTES_MAX} bytes"
            ))));
        }
        understood(&text).map_err(|why| unreadable(io::Error::other(why)))
    }

    /// Changes contexts, unless the change fails.
    pub(super) fn change<T>(
        &self,
        change: impl FnOnce(&mut Contexts) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let Some(directory) = &self.directory else {
            return Err(
                Failure::usage("nothing says in which directory contexts are kept")
                    .with_hint(format!("name one in the variable {DIRECTORY_VARIABLE}")),
            );
        };
        let unwritable = |error: io::Error| {
            let directory = directory.display();
            Failure::failed(format!("contexts cannot be kept in {directory}: {error}")).with_hint(
                format!(
                    "name a directory that can be written to in the variable {DIRECTORY_VARIABLE}"
                ),
            )
        };
        let mut making = DirBuilder::new();
        let made = making.recursive(true).mode(0o700).create(directory);
        made.map_err(unwritable)?;
        let mut locking = OpenOptions::new();
        let lock = locking.write(true).create(true).truncate(false).mode(0o600);
        let lock = lock.open(directory.join(LOCK)).map_err(unwritable)?;
        // Until the end of this function.
        lock.lock().map_err(unwritable)?;
        let mut contexts = self.read()?;
        let changed = change(&mut contexts)?;
        write(directory, &contexts).map_err(unwritable)?;
        Ok(changed)
    }
}

/// Replaces the file, as a whole or not at all.
fn write(directory: &Path, contexts: &Contexts) -> io::Result<()> {
    let text = toml::to_string(contexts).map_err(io::Error::other)?;
    let text = Zeroizing::new(text);
    if text.len() > CONTEXTS_BYTES_MAX {
        let message = format!("they have more than {CONTEXTS_BYTES_MAX} bytes");
        return Err(io::Error::other(message));
    }
    // For its owner only.
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(directory.join(FILE))?;
    Ok(())
}

/// The contexts in a file's text, or where it is wrong. That never says what is there: it may be a token.
fn understood(text: &str) -> Result<Contexts, String> {
    toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        let before = text.get(..at).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let quotes = ['"', '\'', '`'];
        // What is quoted may come from the file.
        let told = error.message().split(quotes).step_by(2).collect::<Vec<_>>();
        format!("line {line} is wrong: {}", told.join("…"))
    })
}

/// Where contexts are kept, by these variables.
fn directory(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |name| variable(name).filter(|value| !value.is_empty());
    if let Some(own) = set(DIRECTORY_VARIABLE) {
        return Some(own.into());
    }
    // A relative one counts for nothing, as the specification of these directories says.
    let of_user = set("XDG_CONFIG_HOME").map(PathBuf::from);
    let of_user = of_user.filter(|path| path.is_absolute());
    let of_user = of_user.or_else(|| Some(PathBuf::from(set("HOME")?).join(".config")));
    Some(of_user?.join("millrace"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &str = r#"current = "prod"

[contexts.local]
host = "http://127.0.0.1:7400"

[contexts.prod]
host = "https://mill.example"
ca = "ca.crt"
token = "mr_aaaaaaaaaa_secret"
"#;

    #[test]
    fn a_file_is_read_as_it_was_written() {
        let contexts = understood(FULL).expect("contexts");
        assert_eq!(toml::to_string(&contexts).expect("text"), FULL);
        let printed = format!("{contexts:?}");
        assert!(!printed.contains("secret"), "{printed}");
    }

    #[test]
    fn a_broken_file_says_its_line_and_nothing_of_a_token() {
        for (broken, line) in [
            (
                FULL.replace("token = \"mr_aaaaaaaaaa_secret\"", "token = mr_secret"),
                9,
            ),
            (
                FULL.replace("token = \"mr_aaaaaaaaaa_secret\"", "token = \"mr_secret"),
                9,
            ),
            (FULL.replace("token", "mr_secret"), 9),
            (
                FULL.replace("[contexts.prod]", "[contexts.\"mr_secret/\"]"),
                6,
            ),
            (
                FULL.replace("current = \"prod\"", "current = \"mr_secret/\""),
                1,
            ),
            (
                FULL.replace("host = \"https://mill.example\"", "host = 7"),
                7,
            ),
            (FULL.replace("[contexts.local]", "[contexts.local"), 3),
        ] {
            let why = understood(&broken).expect_err("broken");
            assert!(why.starts_with(&format!("line {line} ")), "{why}\n{broken}");
            assert!(!why.contains("secret"), "{why}");
        }
    }

    #[test]
    fn the_directory_is_the_named_one_or_that_of_the_user() {
        let of = |variables: &[(&str, &str)]| {
            let found = directory(|name| {
                let mut all = variables.iter().filter(|(set, _)| *set == name);
                all.next().map(|(_, value)| OsString::from(value))
            });
            found.map(|path| path.display().to_string())
        };
        let all = [
            ("HOME", "/ada"),
            ("XDG_CONFIG_HOME", "/config"),
            ("MILLRACE_CONFIG_DIR", "own"),
        ];
        assert_eq!(of(&all).as_deref(), Some("own"));
        assert_eq!(of(&all[..2]).as_deref(), Some("/config/millrace"));
        assert_eq!(of(&all[..1]).as_deref(), Some("/ada/.config/millrace"));
        let relative = [
            ("HOME", "/ada"),
            ("XDG_CONFIG_HOME", "config"),
            ("MILLRACE_CONFIG_DIR", ""),
        ];
        assert_eq!(of(&relative).as_deref(), Some("/ada/.config/millrace"));
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn changes_at_once_lose_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("deep/er");
        std::thread::scope(|scope| {
            for at in 0..16 {
                let path = &path;
                scope.spawn(move || {
                    let store = Store {
                        directory: Some(path.clone()),
                        json: false,
                    };
                    let added = store.change(|contexts| {
                        let name = format!("host-{at}").parse().expect("a name");
                        let context = Context {
                            host: format!("http://127.0.0.1:{at}"),
                            ca: None,
                            token: None,
                        };
                        contexts.contexts.insert(name, context);
                        Ok(())
                    });
                    added.expect("added");
                });
            }
        });
        let store = Store {
            directory: Some(path.clone()),
            json: false,
        };
        assert_eq!(store.read().expect("contexts").contexts.len(), 16);
        let mode = |path: &Path| {
            let metadata = std::fs::metadata(path).expect("it is there");
            metadata.permissions().mode() & 0o777
        };
        assert_eq!((mode(&path), mode(&path.join(FILE))), (0o700, 0o600));
    }

    #[test]
    fn a_change_that_fails_changes_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store {
            directory: Some(directory.path().to_owned()),
            json: false,
        };
        let failed = store.change(|contexts| {
            contexts.current = "gone".parse().ok();
            contexts.get(&"gone".parse().expect("a name")).map(|_| ())
        });
        assert!(failed.is_err());
        assert!(store.read().expect("contexts").current.is_none());
    }
}
