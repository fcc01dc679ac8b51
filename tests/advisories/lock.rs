//! `Cargo.lock`: what is depended on, and what of it by our own crates.

use semver::Version;
use serde::Deserialize;

/// A `Cargo.lock`.
pub(crate) struct Lock {
    /// The path from the repository's root, with forward slashes.
    pub(crate) path: String,
    /// The packages of others.
    pub(crate) packages: Vec<Package>,
}

/// A package of others.
#[derive(Debug)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: Version,
    /// Whether one of our own packages depends on it.
    pub(crate) chosen: bool,
}

#[derive(Deserialize)]
struct Content {
    package: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    name: String,
    version: String,
    /// Where it came from; our own packages have none.
    source: Option<String>,
    /// Each as `name`, and with ` version` or ` version (source)` where several have that name.
    #[serde(default)]
    dependencies: Vec<String>,
}

impl Lock {
    /// The content of the file at that path.
    ///
    /// # Errors
    /// What is not in Cargo's format.
    pub(crate) fn parse(path: String, text: &str) -> Result<Self, String> {
        let content: Content = toml::from_str(text).map_err(|e| format!("{path}: {e}"))?;
        let (ours, others): (Vec<Listed>, Vec<Listed>) = content
            .package
            .into_iter()
            .partition(|it| it.source.is_none());
        let packages = others.into_iter().map(|listed| {
            let Listed { name, version, .. } = listed;
            let chosen = ours
                .iter()
                .flat_map(|it| &it.dependencies)
                .any(|dependency| {
                    let mut words = dependency.split(' ');
                    words.next() == Some(&name) && words.next().is_none_or(|it| it == version)
                });
            let version = Version::parse(&version).map_err(|e| format!("{path}: {name}: {e}"))?;
            Ok(Package {
                name,
                version,
                chosen,
            })
        });
        let packages = packages.collect::<Result<_, String>>()?;
        Ok(Self { path, packages })
    }
}
