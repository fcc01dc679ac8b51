//! The copy of the database: one Markdown file for each advisory, which opens with TOML between fences. The format is that of the
//! README of the RustSec advisory database.
//!
//! The crate `rustsec` reads it too, but makes `semver` and `url` be built with more features, so that most of the host would be
//! built once more for this.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use semver::VersionReq;
use serde::Deserialize;

use crate::lock::Package;

/// The copy of the database.
pub(crate) struct Copy {
    /// The advisories that count: those that were withdrawn do not.
    pub(crate) advisories: Vec<Advisory>,
    /// What the copy is of.
    pub(crate) description: Description,
}

/// `database/copy.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Description {
    /// The commit of the database that was copied.
    pub(crate) commit: String,
    /// When that commit was made, in seconds since 1970.
    pub(crate) committed_at_s: u64,
    /// Crates with advisories that were left out, because nothing depended on them.
    pub(crate) not_copied: Vec<String>,
}

/// What is known about some versions of a crate.
pub(crate) struct Advisory {
    pub(crate) id: String,
    package: String,
    pub(crate) kind: Kind,
    title: String,
    patched: Vec<VersionReq>,
    unaffected: Vec<VersionReq>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// An advisory that does not say that it is informational.
    #[serde(skip)]
    Vulnerable,
    Unsound,
    Unmaintained,
    Notice,
}

/// The TOML of an advisory, as far as it is read here.
#[derive(Deserialize)]
struct Front {
    advisory: Metadata,
    versions: Versions,
}

#[derive(Deserialize)]
struct Metadata {
    id: String,
    package: String,
    informational: Option<Kind>,
    withdrawn: Option<String>,
}

#[derive(Deserialize)]
struct Versions {
    patched: Vec<String>,
    #[serde(default)]
    unaffected: Vec<String>,
}

impl Copy {
    /// Reads a copy.
    ///
    /// # Errors
    /// A file that cannot be read, or is not in the format, by its path.
    pub(crate) fn read(directory: &Path) -> Result<Self, String> {
        let description = directory.join("copy.toml");
        let text = fs::read_to_string(&description).map_err(|e| at(&description, e))?;
        let mut copy = Self {
            advisories: Vec::new(),
            description: toml::from_str(&text).map_err(|e| at(&description, e))?,
        };
        for of_crate in entries(&directory.join("crates"))? {
            for path in entries(&of_crate)? {
                let text = fs::read_to_string(&path).map_err(|e| at(&path, e))?;
                copy.advisories
                    .extend(Advisory::parse(&text).map_err(|e| at(&path, e))?);
            }
        }
        Ok(copy)
    }
}

impl Advisory {
    /// An advisory, unless it was withdrawn.
    ///
    /// # Errors
    /// What is not in the format.
    pub(crate) fn parse(text: &str) -> Result<Option<Self>, String> {
        let fenced = text.strip_prefix("```toml\n");
        let (front, body) = fenced
            .and_then(|fenced| fenced.split_once("\n```\n"))
            .ok_or("it does not open with TOML between fences")?;
        let front: Front = toml::from_str(front).map_err(|e| e.to_string())?;
        let title = body.lines().find_map(|line| line.strip_prefix("# "));
        let title = title.ok_or("it has no title")?.trim().to_owned();
        let metadata = front.advisory;
        if metadata.withdrawn.is_some() {
            return Ok(None);
        }
        Ok(Some(Self {
            id: metadata.id,
            package: metadata.package,
            kind: metadata.informational.unwrap_or(Kind::Vulnerable),
            title,
            patched: ranges(&front.versions.patched)?,
            unaffected: ranges(&front.versions.unaffected)?,
        }))
    }

    /// Whether it is about this crate in this version. A prerelease counts as affected unless a range names a prerelease of the same
    /// version: whether it has a fix, its number does not tell.
    pub(crate) fn affects(&self, package: &Package) -> bool {
        self.package == package.name && !self.good().any(|range| range.matches(&package.version))
    }

    fn good(&self) -> impl Iterator<Item = &VersionReq> {
        self.patched.iter().chain(&self.unaffected)
    }

    /// The versions to go to.
    fn way_out(&self) -> String {
        let good: Vec<String> = self.good().map(|range| format!("`{range}`")).collect();
        if good.is_empty() {
            return "no version is free of it: use another crate, or give .deny.toml an exception with the reason".to_owned();
        }
        format!("go to {}", good.join(" or "))
    }
}

impl fmt::Display for Advisory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Vulnerable => "vulnerable",
            Kind::Unsound => "unsound",
            Kind::Unmaintained => "unmaintained",
            Kind::Notice => "notice",
        };
        let way_out = self.way_out();
        write!(f, "{}, {kind}: {}; {way_out}", self.id, self.title)
    }
}

fn ranges(texts: &[String]) -> Result<Vec<VersionReq>, String> {
    let ranges = texts.iter().map(|text| {
        let range = VersionReq::parse(text);
        range.map_err(|e| format!("`{text}` is no range of versions: {e}"))
    });
    ranges.collect()
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(directory).map_err(|e| at(directory, e))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    paths
        .collect::<Result<_, _>>()
        .map_err(|e| at(directory, e))
}

fn at(path: &Path, what: impl fmt::Display) -> String {
    format!("{}: {what}", path.display())
}
