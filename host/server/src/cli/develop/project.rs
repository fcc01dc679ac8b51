//! A project: a folder with `millrace.toml`, which says what the component is and how it is built.

use std::path::{Path, PathBuf};

use millrace_component::Kind;
use millrace_model::{ProcessorName, RoutePath, TopicName};
use serde::Deserialize;

use crate::cli::failure::Failure;

/// The file that makes a folder a project.
pub(super) const MANIFEST: &str = "millrace.toml";
/// Characters of a project's name.
const NAME_CHARS_MAX: usize = 40;

/// A project as its file describes it.
#[derive(Clone, Debug)]
pub(super) struct Project {
    pub(super) dir: PathBuf,
    pub(super) name: String,
    pub(super) version: String,
    pub(super) language: String,
    pub(super) kind: Kind,
    pub(super) imports: Vec<String>,
    pub(super) build: Build,
    pub(super) route: Route,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    module: Module,
    #[serde(default)]
    build: Build,
    route: Option<Route>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Module {
    name: String,
    #[serde(default = "first_version")]
    version: String,
    language: String,
    #[serde(default)]
    kind: Option<String>,
    #[serde(default)]
    imports: Option<Vec<String>>,
}

/// How the language's tools are called, if not in the usual way.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Build {
    /// A program and its arguments, run in the project's folder.
    pub(super) command: Option<Vec<String>>,
    /// The core module that it makes.
    pub(super) core: Option<PathBuf>,
    /// Or the component that it makes.
    pub(super) component: Option<PathBuf>,
    /// The source file to begin with.
    pub(super) source: Option<PathBuf>,
}

/// How `millrace dev` sets the route of a component that answers HTTP.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Route {
    /// Its path; by default the component's name.
    pub(super) path: Option<RoutePath>,
    /// Topics that it may send to.
    pub(super) topics: Vec<TopicName>,
    /// Processors whose state it may read.
    pub(super) views: Vec<ProcessorName>,
}

fn first_version() -> String {
    "0.1.0".to_owned()
}

impl Project {
    /// Reads the project in a folder.
    pub(super) fn read(dir: &Path) -> Result<Self, Failure> {
        let file = dir.join(MANIFEST);
        let bytes = std::fs::read(&file).map_err(|error| {
            Failure::usage(format!("{} cannot be read: {error}", file.display()))
                .with_hint("run this in a folder that `millrace new` has made, or name that folder")
        })?;
        let wrong = |what: String| Failure::usage(format!("{}: {what}", file.display()));
        let text = crate::text::whole(&bytes).map_err(wrong)?;
        let Manifest {
            module,
            build,
            route,
        } = toml::from_str(text).map_err(|error| wrong(error.to_string()))?;
        check_name(&module.name).map_err(wrong)?;
        let kind = match &module.kind {
            None => Kind::Processor,
            Some(word) => Kind::of(word).ok_or_else(|| {
                let kinds = Kind::ALL.map(Kind::as_str).join(", ");
                wrong(format!("there is no kind {word:?}; use one of {kinds}"))
            })?,
        };
        if route.is_some() && kind != Kind::Http {
            return Err(wrong(format!(
                "[route] is for the kind http, not for a {kind}"
            )));
        }
        if build.core.is_some() && build.component.is_some() {
            return Err(wrong(
                "[build] names both core and component; give one of them".to_owned(),
            ));
        }
        let usual = || kind.imports_default().iter().map(|&name| name.to_owned());
        Ok(Self {
            dir: dir.to_owned(),
            name: module.name,
            version: module.version,
            language: module.language,
            kind,
            imports: module.imports.unwrap_or_else(|| usual().collect()),
            build,
            route: route.unwrap_or_default(),
        })
    }

    /// The folder for everything that is built.
    pub(super) fn out(&self) -> PathBuf {
        self.dir.join("build")
    }

    /// The finished component.
    pub(super) fn component(&self) -> PathBuf {
        self.out().join(format!("{}.wasm", self.name))
    }
}

/// Names are those of folders, crates, packages and processors alike.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    let fits = name.len() <= NAME_CHARS_MAX
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && !name.ends_with('-')
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    match fits {
        true => Ok(()),
        false => Err(format!(
            "{name:?} is not a name for a module: use 1 to {NAME_CHARS_MAX} of a-z, 0-9 and -, beginning with a letter"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Project, String> {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join(MANIFEST), text).expect("written");
        Project::read(dir.path()).map_err(|failure| failure.to_string())
    }

    #[test]
    fn a_project_has_the_imports_of_its_kind_unless_it_says_others() {
        let text = "[module]\nname = \"a\"\nlanguage = \"go\"\n";
        let project = read(text).expect("a project");
        assert_eq!(project.imports, ["log", "state", "config"]);
        assert_eq!(
            (project.kind, project.version.as_str()),
            (Kind::Processor, "0.1.0")
        );
        let other = format!("{text}kind = \"partitioner\"\nimports = [\"metrics\"]\n");
        assert_eq!(read(&other).expect("a project").imports, ["metrics"]);
    }

    #[test]
    fn what_is_wrong_in_the_file_is_told_with_what_would_be_right() {
        let cases = [
            ("[module]\nname = \"A b\"\nlanguage = \"go\"\n", "a-z"),
            (
                "[module]\nname = \"a\"\nlanguage = \"go\"\nkind = \"sink\"\n",
                "processor, partitioner",
            ),
            (
                "[module]\nname = \"a\"\nlanguage = \"go\"\nkinds = \"x\"\n",
                "kinds",
            ),
            (
                "[module]\nname = \"a\"\nlanguage = \"go\"\n[route]\npath = \"/a\"\n",
                "kind http",
            ),
            (
                "[module]\nname = \"a\"\nlanguage = \"go\"\nkind = \"http\"\n[route]\npath = \"/v1/a\"\n",
                "answers this path itself",
            ),
            (
                "[module]\nname = \"a\"\nlanguage = \"go\"\n[build]\ncore = \"a\"\ncomponent = \"b\"\n",
                "both",
            ),
        ];
        for (text, says) in cases {
            let error = read(text).expect_err("refused");
            assert!(error.contains(says) && error.contains(MANIFEST), "{error}");
        }
    }
}
