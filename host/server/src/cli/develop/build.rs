//! `build`: runs the language's tools, makes the component, and says what it needs.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use millrace_component::{Making, Surface, make, stripped, surface};
use millrace_model::Digest;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::carried;
use super::project::Project;
use super::toolchain::{self, Built};
use crate::cli::failure::Failure;
use crate::cli::output::Output;
use crate::cli::table::{cell, facts, items};

const AFTER_HELP: &str = "\
Examples:
  millrace build                       the project in this folder
  millrace build handlers/greeter
  millrace build --json | jq -r .digest

Runs the tools of the project's language, makes the component build/NAME.wasm, and prints what it imports and exports, and which
grants a processor with it needs. Debug information is removed; names of functions stay for backtraces. Any language can be built
with [build] in millrace.toml: command = [\"PROGRAM\", …], and core = \"FILE\" or component = \"FILE\" for what the command makes.";

/// Bytes of what a toolchain makes, with debug information that is removed later. A larger file is refused.
const CORE_BYTES_MAX: u64 = 1 << 30;

/// Build a project's component
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(in crate::cli) struct Args {
    /// The project's folder
    #[arg(value_name = "FOLDER", default_value = ".")]
    dir: PathBuf,
}

/// A built component.
#[derive(Clone, Debug)]
pub(super) struct Component {
    pub(super) file: PathBuf,
    pub(super) bytes: Vec<u8>,
    pub(super) digest: Digest,
    pub(super) imports: Vec<String>,
    exports: Vec<String>,
}

pub(in crate::cli) fn run(args: &Args, json: bool) -> Result<(), Failure> {
    let project = Project::read(&args.dir)?;
    let component = build(&project)?;
    Output::new(json).answer(&component.shown(&project), for_people)
}

/// Builds the project.
pub(super) fn build(project: &Project) -> Result<Component, Failure> {
    let made = match toolchain::run(project)? {
        Built::Component(file) => read(&file)?,
        Built::Core(file) => component_of(project, &read(&file)?)?,
    };
    let bytes = stripped(&made).map_err(|error| Failure::failed(error.to_string()))?;
    std::fs::write(project.component(), &bytes)?;
    check(project, bytes)
}

/// The component of the last build.
pub(super) fn built(project: &Project) -> Result<Component, Failure> {
    let bytes = std::fs::read(project.component()).map_err(|error| {
        let file = project.component();
        Failure::usage(format!("{} cannot be read: {error}", file.display()))
            .with_hint("run `millrace build` first")
    })?;
    check(project, bytes)
}

/// What the toolchain made. The name is the project's, which may be another's.
fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    let unreadable = |error: io::Error| {
        Failure::failed(format!(
            "the toolchain said that it is done, but {} cannot be read: {error}",
            file.display()
        ))
    };
    let about = std::fs::metadata(file).map_err(unreadable)?;
    if !about.is_file() {
        return Err(unreadable(io::Error::other("it is not a regular file")));
    }
    if about.len() > CORE_BYTES_MAX {
        let message = format!(
            "{} has {} bytes; no host takes such a module",
            file.display(),
            about.len()
        );
        let hint = "build without debug information, or for size";
        return Err(Failure::failed(message).with_hint(hint));
    }
    let mut bytes = Vec::new();
    // No more than it had a moment ago.
    let mut opened = File::open(file).map_err(unreadable)?.take(about.len());
    opened.read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}

fn component_of(project: &Project, core: &[u8]) -> Result<Vec<u8>, Failure> {
    let made = carried::with_contract(|contract| {
        make(&Making {
            core,
            contract,
            kind: project.kind,
            imports: &project.imports,
            adapters: &carried::adapters(),
        })
    });
    made.map(|made| made.bytes).map_err(|error| {
        let failure = Failure::failed(error.to_string());
        match error.hint() {
            Some(hint) => failure.with_hint(hint),
            None => failure,
        }
    })
}

/// Whether the component is of the project's kind.
fn check(project: &Project, bytes: Vec<u8>) -> Result<Component, Failure> {
    let shown = surface(&bytes).map_err(|error| Failure::failed(error.to_string()))?;
    let Surface {
        is_component,
        imports,
        exports,
        ..
    } = shown;
    if !is_component {
        return Err(Failure::failed("the toolchain made a core module, not a component")
            .with_hint("write `core = \"FILE\"` instead of `component = \"FILE\"` in [build] of millrace.toml"));
    }
    let wanted = carried::with_contract(|contract| project.kind.export(&contract));
    let name = wanted.split('@').next().unwrap_or(&wanted);
    let is_it = |export: &String| export.split('@').next() == Some(name);
    if !exports.iter().any(is_it) {
        let found = exports.join(", ");
        let message = format!(
            "the component does not export {wanted}, which a {} has",
            project.kind
        );
        return Err(Failure::failed(message).with_hint(format!(
            "it exports {}; do the kind in millrace.toml and the source agree?",
            if found.is_empty() { "nothing" } else { &found }
        )));
    }
    Ok(Component {
        file: project.component(),
        digest: Digest(Sha256::digest(&bytes).into()),
        bytes,
        imports: imports.into_iter().map(|(name, _)| name).collect(),
        exports,
    })
}

impl Component {
    /// The flags of a deployment that it needs beyond the default.
    pub(super) fn grants(&self) -> Vec<&'static str> {
        let flags = [
            ("millrace:broker/metrics", "--grant-metrics"),
            ("millrace:broker/secrets", "--grant-secret NAME"),
            ("wasi:http/outgoing-handler", "--grant-http ORIGIN"),
            ("millrace:broker/producer", "--grant-topic TOPIC"),
            ("millrace:broker/views", "--grant-view PROCESSOR"),
        ];
        let is_imported = |name: &str| self.imports(name);
        let needed = flags.into_iter().filter(|(name, _)| is_imported(name));
        needed.map(|(_, flag)| flag).collect()
    }

    /// Whether it imports an interface, in whatever version.
    pub(super) fn imports(&self, interface: &str) -> bool {
        let mut names = self.imports.iter().map(|import| import.split('@').next());
        names.any(|name| name == Some(interface))
    }

    fn shown(&self, project: &Project) -> Value {
        let tag = format!("{}@{}", project.name, project.version);
        json!({
            "name": project.name, "version": project.version, "language": project.language,
            "kind": project.kind.as_str(), "file": self.file.display().to_string(),
            "bytes": self.bytes.len(), "digest": self.digest.to_string(),
            "imports": self.imports, "exports": self.exports, "grants": self.grants(),
            "push": format!("millrace module push {} --tag {tag}", self.file.display()),
        })
    }
}

fn for_people(answer: &Value) -> String {
    let lines = |field: &str| {
        let names: Vec<String> = items(&answer[field]).iter().map(cell).collect();
        match names.is_empty() {
            true => "-".to_owned(),
            false => names.join("\n"),
        }
    };
    facts(&[
        ("component", cell(&answer["file"])),
        ("bytes", cell(&answer["bytes"])),
        ("digest", cell(&answer["digest"])),
        ("exports", lines("exports")),
        ("imports", lines("imports")),
        ("grants", lines("grants")),
        ("upload", cell(&answer["push"])),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_end_or_is_too_large_is_not_read() {
        let failure = read(Path::new("/dev/zero")).expect_err("no file");
        assert!(
            failure.to_string().contains("not a regular file"),
            "{failure}"
        );
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("core.wasm");
        let sparse = File::create(&file).expect("created");
        sparse.set_len(CORE_BYTES_MAX + 1).expect("long");
        let failure = read(&file).expect_err("too large");
        assert!(failure.to_string().contains("no host takes"), "{failure}");
        sparse.set_len(3).expect("short");
        assert_eq!(read(&file).expect("read"), [0, 0, 0]);
    }
}
