//! Tags of modules: `name@version`, given and taken back, and how the versions of a name may follow each other.

use millrace_engine::{EntryKind, EntryWrite};
use millrace_model::Digest;
use semver::Version;
use serde::{Deserialize, Serialize};

use crate::catalogue::entries::entry;
use crate::catalogue::handle::Catalogue;
use crate::catalogue::modules::{Module, ModuleError};
use crate::ground::verbs::Verb;

/// Maximum length of a tag.
pub(super) const TAG_CHARS_MAX: usize = 128;
/// Maximum number of tags of a module.
pub(super) const MODULE_TAGS_MAX: usize = 100;

/// How the versions of a name may follow each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VersionOrder {
    /// In any order, and a version may be any word.
    #[default]
    Any,
    /// Versions are semantic, and each is newer than every earlier one of the name. Versions that were taken back or deleted count.
    Monotonic,
}

/// The newest version that a name has had, in its entry.
#[derive(Serialize, Deserialize)]
struct Newest {
    version: String,
}

/// The name and the version of a tag.
pub(super) fn parts_of(tag: &str) -> Option<(&str, &str)> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let word = |word: &str| !word.is_empty() && word.chars().all(plain);
    let (name, version) = tag.split_once('@')?;
    (tag.len() <= TAG_CHARS_MAX && word(name) && word(version)).then_some((name, version))
}

/// Whether a text is a tag: `name@version`.
#[must_use]
pub fn is_tag(text: &str) -> bool {
    parts_of(text).is_some()
}

/// The name in a tag, for rules.
pub(super) fn name_of(tag: &str) -> &str {
    tag.split_once('@').map_or(tag, |(name, _)| name)
}

impl Module {
    /// What rules may call it: the names in its tags; without tags, its digest.
    pub(super) fn names(&self) -> impl Iterator<Item = String> {
        let digest = self.tag.is_none().then(|| self.facts.digest.to_string());
        let names = self.tags().map(|tag| name_of(tag).to_owned());
        names.chain(digest)
    }

    /// All its tags, in the order in which they were given.
    pub fn tags(&self) -> impl Iterator<Item = &str> {
        self.tag.iter().chain(&self.more_tags).map(String::as_str)
    }

    pub(super) fn has_tag(&self, tag: &str) -> bool {
        self.tags().any(|known| known == tag)
    }

    /// Adds a tag, if its signature allows it and there is room for it.
    pub(super) fn add_tag(&mut self, tag: &str) -> Result<(), ModuleError> {
        if let Some(signature) = &self.signature {
            signature.check_tag(tag)?;
        }
        match &self.tag {
            None => self.tag = Some(tag.to_owned()),
            Some(_) if self.more_tags.len() + 1 >= MODULE_TAGS_MAX => {
                return Err(ModuleError::TooManyTags(self.facts.digest));
            }
            Some(_) => self.more_tags.push(tag.to_owned()),
        }
        Ok(())
    }

    fn remove_tag(&mut self, tag: &str) {
        self.more_tags.retain(|known| known != tag);
        if self.tag.as_deref() == Some(tag) {
            let first = (!self.more_tags.is_empty()).then(|| self.more_tags.remove(0));
            self.tag = first;
        }
    }
}

impl Catalogue {
    /// Gives a module a further tag. A tag that it has already changes nothing; a tag of another module does not move.
    ///
    /// # Errors
    /// [`ModuleError`]; nothing has changed.
    pub async fn tag_module(&self, digest: Digest, tag: &str) -> Result<Module, ModuleError> {
        self.caller.may(Verb::TagModule, name_of(tag))?;
        self.decide(|| self.tag_module_now(digest, tag)).await
    }

    async fn tag_module_now(&self, digest: Digest, tag: &str) -> Result<Module, ModuleError> {
        let expects = vec![self.modules_as_now()];
        let unknown = || ModuleError::Unknown(digest.to_string());
        let mut module = self.module_of(digest).ok_or_else(unknown)?;
        self.check_tag(tag, digest)?;
        if !module.has_tag(tag) {
            module.add_tag(tag)?;
            self.write_module(&module, Some(tag), expects).await?;
        }
        Ok(module)
    }

    /// Takes a tag back. The module stays, also if it has no other tag; what is deployed keeps its module, since specifications name
    /// digests.
    ///
    /// # Errors
    /// [`ModuleError`]; nothing has changed.
    pub async fn untag_module(&self, tag: &str) -> Result<Module, ModuleError> {
        self.caller.may(Verb::TagModule, name_of(tag))?;
        self.decide(|| self.untag_module_now(tag)).await
    }

    async fn untag_module_now(&self, tag: &str) -> Result<Module, ModuleError> {
        let expects = vec![self.modules_as_now()];
        let tagged = self
            .modules()
            .into_iter()
            .find(|module| module.has_tag(tag));
        let mut module = tagged.ok_or_else(|| ModuleError::UnknownTag(tag.to_owned()))?;
        module.remove_tag(tag);
        self.write_module(&module, Some(tag), expects).await?;
        Ok(module)
    }

    /// Checks that a module may have this tag.
    pub(super) fn check_tag(&self, tag: &str, digest: Digest) -> Result<(), ModuleError> {
        let parts = parts_of(tag).ok_or_else(|| ModuleError::Tag(tag.to_owned()))?;
        let modules = self.modules();
        match modules.iter().find(|module| module.has_tag(tag)) {
            Some(module) if module.facts.digest == digest => Ok(()),
            Some(module) => Err(ModuleError::TagTaken {
                tag: tag.to_owned(),
                digest: module.facts.digest,
            }),
            None if self.inner.policy.versions == VersionOrder::Monotonic => {
                self.check_newer(tag, parts, &modules)
            }
            None => Ok(()),
        }
    }

    fn check_newer(
        &self,
        tag: &str,
        (name, version): (&str, &str),
        modules: &[Module],
    ) -> Result<(), ModuleError> {
        let Ok(version) = Version::parse(version) else {
            return Err(ModuleError::NotSemantic(tag.to_owned()));
        };
        match self.newest_of(name, modules) {
            Some(newest) if version <= newest => Err(ModuleError::NotNewer {
                tag: tag.to_owned(),
                newest: format!("{name}@{newest}"),
            }),
            _ => Ok(()),
        }
    }

    /// The newest version that a name has or had.
    fn newest_of(&self, name: &str, modules: &[Module]) -> Option<Version> {
        let stored = self.inner.engine.entry(EntryKind::Newest, name);
        let stored = stored.and_then(|entry| {
            let read = serde_json::from_slice::<Newest>(&entry.value);
            let parsed = read.map(|newest| Version::parse(&newest.version));
            if !matches!(parsed, Ok(Ok(_))) {
                tracing::error!(
                    name,
                    "the catalogue's entry of a module's newest version cannot be read"
                );
            }
            parsed.ok()?.ok()
        });
        let tags = modules.iter().flat_map(Module::tags);
        let of_name = tags.filter_map(|tag| {
            let (of, version) = parts_of(tag)?;
            (of == name).then(|| Version::parse(version).ok()).flatten()
        });
        of_name.chain(stored).max()
    }

    /// The entries that remember the newest version of each of these tags' names, where versions must rise.
    pub(super) fn newest_entries<'a>(
        &self,
        tags: impl IntoIterator<Item = &'a str>,
    ) -> Vec<EntryWrite> {
        if self.inner.policy.versions != VersionOrder::Monotonic {
            return Vec::new();
        }
        let modules = self.modules();
        let newest = |tag: &str| {
            let (name, version) = parts_of(tag)?;
            let version = Version::parse(version).ok()?;
            let newest = self.newest_of(name, &modules).max(Some(version))?;
            let value = Newest {
                version: newest.to_string(),
            };
            Some(entry(EntryKind::Newest, name.to_owned(), Some(&value)))
        };
        let mut entries: Vec<EntryWrite> = tags.into_iter().filter_map(newest).collect();
        // Tags of one name lead to the same entry.
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        entries.dedup_by(|a, b| a.key == b.key);
        entries
    }
}
