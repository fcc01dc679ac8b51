//! `new`: writes a project from a template. The binary carries everything, so it needs neither a network nor a checkout.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::json;

use super::carried;
use super::project::{MANIFEST, check_name};
use crate::cli::failure::Failure;
use crate::cli::output::Output;

const AFTER_HELP: &str = "\
Examples:
  millrace new greeter --lang rust
  millrace new router --lang go --kind partitioner
  millrace new patience --lang python --kind error-handler --dir handlers/patience

Writes a project that builds and passes its test as it is. It contains the SDK of its language, so it needs nothing but the
language's toolchain. A folder that exists is left as it is.";

/// Write a project from a template
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(in crate::cli) struct Args {
    /// The name of the component: a-z, 0-9 and -
    name: String,
    /// The language
    #[arg(long, value_name = "LANGUAGE")]
    lang: String,
    /// What the component is: processor, partitioner, error-handler or http
    #[arg(long, value_name = "KIND", default_value = "processor")]
    kind: String,
    /// The folder to create [default: the name]
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
}

/// `template.toml` of a language.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct About {
    /// The folder of the SDK.
    sdk: Option<String>,
    /// Where the SDK is written.
    into: Option<String>,
    /// Files and folders of the SDK that projects do not need.
    skip: Vec<String>,
    /// Other files that are written: from where, to where.
    files: Vec<[String; 2]>,
    /// Where the contract is written, if the SDK reads it.
    wit: Option<String>,
    /// Texts of the SDK that differ in a project.
    replace: Vec<Replace>,
    /// Commands before the first build.
    setup: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Replace {
    file: String,
    from: String,
    to: String,
}

/// A file to write: its path in the project and its bytes.
type Written = (String, Vec<u8>);

pub(in crate::cli) fn run(args: Args, json: bool) -> Result<(), Failure> {
    check_name(&args.name).map_err(Failure::usage)?;
    let kinds = kinds_of(&args.lang)?;
    if !kinds.contains(&args.kind.as_str()) {
        let message = format!("there is no template for a {} in {}", args.kind, args.lang);
        let hint = format!("{} has templates for {}", args.lang, kinds.join(", "));
        return Err(Failure::usage(message).with_hint(hint));
    }
    let about = about(&args.lang)?;
    let files = files(&args, &about)?;
    let dir = args
        .dir
        .clone()
        .unwrap_or_else(|| PathBuf::from(&args.name));
    write(&dir, &files)?;
    let next = next(&dir, &about.setup);
    let answer = json!({
        "name": args.name, "language": args.lang, "kind": args.kind, "dir": dir.display().to_string(),
        "files": files.iter().map(|(path, _)| path).collect::<Vec<_>>(), "next": next,
    });
    Output::new(json).answer(&answer, |_| {
        let commands: Vec<String> = next.iter().map(|line| format!("  {line}")).collect();
        format!(
            "{} is written to {}: {} files. What comes next:\n{}",
            args.name,
            dir.display(),
            files.len(),
            commands.join("\n")
        )
    })
}

fn kinds_of(language: &str) -> Result<Vec<&'static str>, Failure> {
    let kinds = carried::kinds(language);
    match kinds.is_empty() {
        false => Ok(kinds),
        true => {
            let known = carried::languages().join(", ");
            Err(
                Failure::usage(format!("there is no template in the language {language:?}"))
                    .with_hint(format!(
                        "there are templates in {known}; any other language that makes WebAssembly works with [build] in {MANIFEST}"
                    )),
            )
        }
    }
}

fn about(language: &str) -> Result<About, Failure> {
    let name = format!("{}/template.toml", carried::templates_of(language));
    let Some(bytes) = carried::file(&name) else {
        return Ok(About::default());
    };
    let text = crate::text::whole(bytes).map_err(Failure::failed)?;
    toml::from_str(text).map_err(|error| Failure::failed(format!("{name}: {error}")))
}

/// Everything that is written: the SDK, then the language's files, then those of the kind. A later file replaces an earlier one.
fn files(args: &Args, about: &About) -> Result<Vec<Written>, Failure> {
    let mut files: Vec<Written> = Vec::new();
    let into = about.into.as_deref().unwrap_or("sdk");
    let sdk = about
        .sdk
        .as_deref()
        .map(carried::below)
        .into_iter()
        .flatten();
    for (inside, bytes) in sdk {
        let is_skipped = |skipped: &String| {
            let rest = inside.strip_prefix(skipped.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if !about.skip.iter().any(is_skipped) {
            put(&mut files, joined(into, inside), bytes.to_vec());
        }
    }
    for replace in &about.replace {
        let file = files.iter_mut().find(|(path, _)| *path == replace.file);
        let text =
            file.and_then(|(_, bytes)| Some((str::from_utf8(bytes).ok()?.to_owned(), bytes)));
        match text.filter(|(text, _)| text.contains(&replace.from)) {
            Some((text, bytes)) => *bytes = text.replace(&replace.from, &replace.to).into_bytes(),
            None => {
                let message = format!("{} does not contain {:?}", replace.file, replace.from);
                return Err(Failure::failed(format!("the template is wrong: {message}")));
            }
        }
    }
    for [from, to] in &about.files {
        let missing = || Failure::failed(format!("the template is wrong: there is no {from}"));
        let bytes = carried::file(from).ok_or_else(missing)?;
        put(&mut files, to.clone(), bytes.to_vec());
    }
    if let Some(wit) = &about.wit {
        for (name, text) in carried::contract_files() {
            put(&mut files, joined(wit, name), text.as_bytes().to_vec());
        }
    }
    for part in [carried::COMMON, &args.kind] {
        let folder = format!("{}/{part}", carried::templates_of(&args.lang));
        for (inside, bytes) in carried::below(&folder) {
            put(
                &mut files,
                named(inside, &args.name),
                filled(bytes, &args.name),
            );
        }
    }
    Ok(files)
}

fn joined(folder: &str, inside: &str) -> String {
    match folder {
        "" | "." => inside.to_owned(),
        folder => format!("{folder}/{inside}"),
    }
}

fn put(files: &mut Vec<Written>, path: String, bytes: Vec<u8>) {
    files.retain(|(known, _)| *known != path);
    files.push((path, bytes));
}

/// The path of a template's file in a project.
fn named(inside: &str, name: &str) -> String {
    let part = |part: &str| match part.strip_prefix("dot-") {
        Some(rest) => format!(".{rest}"),
        None => part.to_owned(),
    };
    let parts: Vec<String> = inside.split('/').map(part).collect();
    with_name(&parts.join("/"), name)
}

/// A template's text with the project's name; bytes that are no text stay.
fn filled(bytes: &[u8], name: &str) -> Vec<u8> {
    match str::from_utf8(bytes) {
        Ok(text) => with_name(text, name).into_bytes(),
        Err(_) => bytes.to_vec(),
    }
}

fn with_name(text: &str, name: &str) -> String {
    text.replace("{{name}}", name)
        .replace("{{name_snake}}", &name.replace('-', "_"))
}

fn write(dir: &Path, files: &[Written]) -> Result<(), Failure> {
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::create_dir(dir).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => Failure::refused(format!(
            "{} exists already; nothing was written",
            dir.display()
        ))
        .with_hint("choose another name, or another folder with --dir"),
        _ => Failure::failed(format!("{} cannot be created: {error}", dir.display())),
    })?;
    for (path, bytes) in files {
        let path = dir.join(path);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(&path, bytes)?;
    }
    Ok(())
}

/// The commands that come next.
fn next(dir: &Path, setup: &[String]) -> Vec<String> {
    let mut lines = vec![format!("cd {}", dir.display())];
    lines.extend(setup.iter().cloned());
    lines.extend(["millrace test", "millrace dev"].map(str::to_owned));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::develop::project::Project;

    #[test]
    fn every_template_makes_a_project_that_can_be_read() {
        let dir = tempfile::tempdir().expect("a directory");
        for lang in carried::languages() {
            for kind in carried::kinds(lang) {
                let args = Args {
                    name: "my-module".to_owned(),
                    lang: lang.to_owned(),
                    kind: kind.to_owned(),
                    dir: None,
                };
                let about = about(lang).expect("a description");
                let files = files(&args, &about).expect("files");
                let into = dir.path().join(format!("{lang}-{kind}"));
                write(&into, &files).expect("written");
                let project = Project::read(&into).expect("a project");
                assert_eq!(
                    (
                        project.name.as_str(),
                        project.language.as_str(),
                        project.kind.as_str()
                    ),
                    ("my-module", lang, kind)
                );
                let unfilled = files.iter().filter(|(path, bytes)| {
                    path.contains("{{") || String::from_utf8_lossy(bytes).contains("{{name")
                });
                assert_eq!(unfilled.map(|(path, _)| path).collect::<Vec<_>>(), [""; 0]);
                let has = |wanted: &str| files.iter().any(|(path, _)| path == wanted);
                assert!(has("README.md") && has(".gitignore"), "{lang} {kind}");
                let has_sample = files.iter().any(|(path, _)| {
                    path.starts_with("samples/") && path.ends_with(".expected.ndjson")
                });
                assert!(
                    has_sample,
                    "{lang} {kind} has no sample with expected results"
                );
            }
        }
    }
}
