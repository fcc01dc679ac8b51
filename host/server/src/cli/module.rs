//! `module`: upload, list, show, tag, sign, copy and delete modules.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use indicatif::{ProgressBar, ProgressStyle};
use millrace_broker::SIGNATURE_BYTES_MAX;
use serde_json::{Value, json};
use ureq::http::Method;
use ureq::{AsSendBody, SendBody};

use super::client::{Client, escaped};
use super::failure::Failure;
use super::keys::{self, KeygenArgs, SignArgs};
use super::oci::{self, PublishArgs, PullArgs};
use super::table::{cell, facts, items, short, table, when};

/// How long an upload waits for its compile before the progress is shown.
const UPLOAD_WAIT_MS: u64 = 1_000;

/// How often the progress of a compile is asked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// How often a spinner turns.
const SPINNER_INTERVAL: Duration = Duration::from_millis(100);

/// Manage modules
#[derive(clap::Subcommand)]
pub(super) enum Verb {
    /// Upload a component; it is checked, compiled and tried before it is stored
    #[command(
        after_help = "Examples:\n  millrace module push target/wasm32-wasip2/release/uppercase.wasm --tag uppercase@1.0.0\n  millrace module push uppercase.wasm --signature uppercase.wasm.minisig"
    )]
    Push {
        /// The component
        file: PathBuf,
        /// A tag for it, name@version
        #[arg(long, value_name = "NAME@VERSION")]
        tag: Option<String>,
        /// The file of its signature
        #[arg(long, value_name = "FILE")]
        signature: Option<PathBuf>,
    },
    /// Copy a component from an OCI registry to the host
    Pull(PullArgs),
    /// Copy a module of the host to an OCI registry
    Publish(PublishArgs),
    /// Make a pair of keys for signatures of modules
    Keygen(KeygenArgs),
    /// Sign a component
    Sign(SignArgs),
    /// List all modules
    List,
    /// Show a module
    Show {
        /// Digest, a unique beginning of it, or tag
        module: String,
    },
    /// Give a module a further tag; the same bytes may have several
    #[command(after_help = "Example:\n  millrace module tag uppercase@1.0.0 uppercase@1.0.1")]
    Tag {
        /// Digest, a unique beginning of it, or tag
        module: String,
        /// The tag
        #[arg(value_name = "NAME@VERSION")]
        tag: String,
    },
    /// Take a tag back; the module and all that is deployed stay
    #[command(after_help = "Example:\n  millrace module untag uppercase@1.0.1")]
    Untag {
        /// The tag
        #[arg(value_name = "NAME@VERSION")]
        tag: String,
    },
    /// Delete a module that is not in use
    Delete {
        /// Digest, a unique beginning of it, or tag
        module: String,
    },
}

pub(super) fn run(verb: Verb, client: &Client) -> Result<(), Failure> {
    let mut out = client.output();
    match verb {
        Verb::Pull(args) => oci::pull(client, args),
        Verb::Publish(args) => oci::publish(client, args),
        Verb::Keygen(args) => keys::keygen(&args, &mut out),
        Verb::Sign(args) => keys::sign(&args, &mut out),
        Verb::Push {
            file,
            tag,
            signature,
        } => {
            let signature = signature.map(|file| keys::read(&file, SIGNATURE_BYTES_MAX as u64));
            let signature = signature.transpose()?;
            let module = push(client, &file, tag.as_deref(), signature.as_deref())?;
            out.answer(&module, |module| admitted(module, tag.as_deref()))
        }
        Verb::List => out.answer(&client.get("/v1/modules")?, list),
        Verb::Show { module } => {
            let shown = client.get(&path(&module))?;
            out.answer(&shown, |shown| match is_under_way(shown) {
                true => under_way(shown),
                false => show(shown),
            })
        }
        Verb::Tag { module, tag } => {
            let tagged = client.send_again(Method::PUT, &tag_path(&module, &tag), &json!({}))?;
            out.answer(&tagged, |module| {
                format!("module {} is {tag}", short(&module["digest"]))
            })
        }
        Verb::Untag { tag } => {
            let untagged = client.delete(&tag_path(&tag, &tag))?;
            out.answer(&untagged, |module| {
                let tags = cell(&module["tags"]);
                format!(
                    "tag {tag} is taken back\ndigest  {}\ntags    {tags}",
                    cell(&module["digest"])
                )
            })
        }
        Verb::Delete { module } => {
            client.delete(&path(&module))?;
            out.answer(&json!({"deleted": module}), |_| {
                format!("module {module} is deleted")
            })
        }
    }
}

/// What is said about an upload.
pub(super) fn admitted(module: &Value, tag: Option<&str>) -> String {
    let name = tag.map_or_else(|| short(&module["digest"]), str::to_owned);
    format!(
        "module {name} is admitted ({} bytes, compiled in {})\ndigest  {}",
        module["byte_count"],
        compiled_in(module),
        cell(&module["digest"])
    )
}

/// How long the compile of a module took, and how long it waited for it.
fn compiled_in(module: &Value) -> String {
    let ms = &module["compile_ms"];
    match module["waited_ms"].as_u64() {
        None | Some(0) => format!("{ms} ms"),
        Some(waited) => format!("{ms} ms after waiting {waited} ms for its turn"),
    }
}

pub(super) fn path(reference: &str) -> String {
    format!("/v1/modules/{}", escaped(reference))
}

fn tag_path(reference: &str, tag: &str) -> String {
    format!("{}/tags/{}", path(reference), escaped(tag))
}

/// Uploads a file, with a progress bar on standard error if that is a terminal.
fn push(
    client: &Client,
    file: &Path,
    tag: Option<&str>,
    signature: Option<&str>,
) -> Result<Value, Failure> {
    let unreadable = |error| Failure::usage(format!("{} cannot be read: {error}", file.display()));
    let opened = File::open(file).map_err(unreadable)?;
    let about = opened.metadata().map_err(unreadable)?;
    // Only regular files have a known length.
    if !about.is_file() {
        return Err(unreadable(io::Error::other("not a regular file")));
    }
    let bytes = about.len();
    check_size(client, bytes)?;
    let bar = bar(bytes);
    let body = SendBody::from_owned_reader(bar.wrap_read(opened));
    let module = upload(client, tag, None, signature, body);
    bar.finish_and_clear();
    module
}

/// Uploads a component, with its signature if it has one. The host refuses it if it has another digest than the one given.
pub(super) fn upload(
    client: &Client,
    tag: Option<&str>,
    digest: Option<&str>,
    signature: Option<&str>,
    body: impl AsSendBody,
) -> Result<Value, Failure> {
    let wait_ms = UPLOAD_WAIT_MS.to_string();
    let fields = [
        ("tag", tag),
        ("digest", digest),
        ("wait_ms", Some(wait_ms.as_str())),
    ];
    let given = fields.iter().filter_map(|(name, value)| {
        let value = escaped((*value)?);
        Some(format!("{name}={value}"))
    });
    let query = given.collect::<Vec<_>>().join("&");
    let signature = signature.map(|text| STANDARD.encode(text));
    let headers: Vec<(&str, &str)> = signature
        .iter()
        .map(|text| ("millrace-signature", text.as_str()))
        .collect();
    let path = format!("/v1/modules?{query}");
    let answer = client.upload_with(&path, "application/wasm", &headers, body)?;
    if !is_under_way(&answer) {
        return Ok(answer);
    }
    let module = admitted_at_last(client, &cell(&answer["digest"]), answer)?;
    let has_tag = |tag: &str| items(&module["tags"]).iter().any(|known| *known == tag);
    match tag.filter(|tag| !has_tag(tag)) {
        None => Ok(module),
        Some(tag) => Err(Failure::refused(format!(
            "the module was compiled, but {tag} was given to none or another one meanwhile"
        ))
        .with_hint("`millrace module list` shows the tags; `millrace module tag` gives one")),
    }
}

/// Whether an answer is about an upload that is still being compiled.
fn is_under_way(answer: &Value) -> bool {
    answer["state"].is_string()
}

/// Waits until the host has compiled a module, if it is doing so, and says how long that takes already.
pub(super) fn await_admission(client: &Client, reference: &str) {
    // Whatever is wrong with it, the request that names it says so.
    if let Ok(answer) = client.get(&path(reference))
        && is_under_way(&answer)
    {
        let _ = admitted_at_last(client, reference, answer);
    }
}

/// The module, once it is admitted; `answer` is the first one about its upload.
fn admitted_at_last(client: &Client, reference: &str, answer: Value) -> Result<Value, Failure> {
    let spinner = working("{spinner} {msg}");
    let mut answer = answer;
    while is_under_way(&answer) {
        spinner.set_message(progress(&answer));
        thread::sleep(LOOK_INTERVAL);
        answer = client.get(&path(reference))?;
    }
    spinner.finish_and_clear();
    Ok(answer)
}

/// How far the admission of an upload is.
fn progress(answer: &Value) -> String {
    let seconds = answer["since_ms"].as_u64().unwrap_or(0) / 1_000;
    match answer["state"].as_str() {
        Some("waiting") => format!("waiting for its turn to be compiled, {seconds} s so far"),
        Some("trying") => format!("trying whether it starts, {seconds} s so far"),
        _ => format!("compiling, {seconds} s so far"),
    }
}

/// Shows on a terminal that something takes its time.
pub(super) fn working(template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template);
    let style = style.unwrap_or_else(|_| ProgressStyle::default_spinner());
    let spinner = ProgressBar::new_spinner().with_style(style);
    spinner.enable_steady_tick(SPINNER_INTERVAL);
    spinner
}

/// Asks for the largest module size before sending the file, to avoid a useless upload.
fn check_size(client: &Client, bytes: u64) -> Result<(), Failure> {
    // Earlier versions do not tell; if the host does not answer at all, the upload reports it.
    let Ok(host) = client.get("/v1/host") else {
        return Ok(());
    };
    match host["limits"]["module_bytes_max"].as_u64() {
        Some(max) if bytes > max => {
            let message = format!(
                "the module has {bytes} bytes; the maximum is {max} (setting module_bytes_max = {max})"
            );
            Err(Failure::refused(message).with_hint(
                "strip debug information or reduce its size, or start the host with a larger --module-bytes-max",
            ))
        }
        _ => Ok(()),
    }
}

fn bar(bytes: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("uploading {bar:32} {bytes}/{total_bytes} {msg}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(bytes).with_style(style);
    bar.set_message("the host checks and compiles the module");
    bar
}

fn list(answer: &Value) -> String {
    let row = |module: &Value| {
        let cells =
            ["tags", "byte_count", "exports", "compile_ms"].map(|field| cell(&module[field]));
        [&[short(&module["digest"])], cells.as_slice()].concat()
    };
    let rows: Vec<Vec<String>> = items(&answer["modules"]).iter().map(row).collect();
    let under_way = items(&answer["under_way"]).iter().map(|admission| {
        let name = match admission["tag"].as_str() {
            Some(tag) => tag.to_owned(),
            None => short(&admission["digest"]),
        };
        format!("\n{name}: {}", progress(admission))
    });
    let under_way: String = under_way.collect();
    let headings = ["DIGEST", "TAGS", "BYTES", "EXPORTS", "COMPILE MS"];
    let note = "there are no modules yet; upload one with `millrace module push FILE`";
    match rows.is_empty() && !under_way.is_empty() {
        true => under_way.trim_start().to_owned(),
        false => table(&headings, rows, note) + &under_way,
    }
}

/// An upload that is being admitted.
fn under_way(admission: &Value) -> String {
    let mut pairs = ["digest", "tag", "byte_count", "state"]
        .map(|name| (name, cell(&admission[name])))
        .to_vec();
    pairs.push(("uploaded", when(&admission["since"])));
    if !admission["compiling_since"].is_null() {
        pairs.push(("compiling since", when(&admission["compiling_since"])));
    }
    facts(&pairs)
}

fn show(module: &Value) -> String {
    let fact = |name: &'static str| (name, cell(&module[name]));
    let names = ["digest", "tags", "byte_count", "exports", "imports"];
    let mut pairs = names.map(fact).to_vec();
    pairs.push(("compiled in", compiled_in(module)));
    pairs.push(("uploaded", when(&module["uploaded_at"])));
    if !module["compiling_since"].is_null() {
        pairs.push(("compiling since", when(&module["compiling_since"])));
    }
    let metadata = &module["metadata"];
    for producer in items(&metadata["producers"]) {
        let text = format!("{} {}", cell(&producer["name"]), cell(&producer["version"]));
        pairs.push((field_of(&producer["field"]), text.trim_end().to_owned()));
    }
    for fact in items(&metadata["registry"]) {
        let text = format!("{}: {}", cell(&fact["name"]), cell(&fact["value"]));
        pairs.push(("says", text));
    }
    let dependencies = items(&metadata["dependencies"]);
    if !dependencies.is_empty() {
        let names = dependencies.iter().map(|dependency| {
            format!(
                "{} {}",
                cell(&dependency["name"]),
                cell(&dependency["version"])
            )
        });
        pairs.push(("built from", names.collect::<Vec<_>>().join(", ")));
    }
    if metadata["more"] == true {
        pairs.push(("and more", "the host keeps only so much of it".to_owned()));
    }
    let signature = &module["signature"];
    if !signature.is_null() {
        let trusted = match signature["trusted"].as_bool() {
            Some(true) => "trusted",
            _ => "not trusted any more",
        };
        pairs.push((
            "signed by",
            format!("key {}, {trusted}", cell(&signature["key"])),
        ));
        pairs.push(("signed", keys::fields_of(&signature["comment"])));
    }
    facts(&pairs)
}

/// What a producer is, in the words of a table.
fn field_of(field: &Value) -> &'static str {
    match field.as_str() {
        Some("language") => "language",
        Some("sdk") => "sdk",
        _ => "tool",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signatures_comment_is_shown_field_by_field_and_harmlessly() {
        let comment = "timestamp:1\tfile:up\u{1b}[31m.wasm\thashed\ttag:up@1.0.0";
        let shown = show(&json!({
            "signature": {"key": "AB", "trusted": true, "comment": comment},
        }));
        assert!(
            !shown.contains("\\t") && !shown.contains('\u{1b}'),
            "{shown}"
        );
        let lines: Vec<&str> = shown.lines().map(str::trim).collect();
        let is_first = |line: &&str| line.starts_with("signed ") && line.ends_with(" timestamp:1");
        assert!(lines.iter().any(is_first), "{shown}");
        assert!(lines.contains(&"tag:up@1.0.0"), "{shown}");
    }
}
