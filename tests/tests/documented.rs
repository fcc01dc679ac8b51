//! Compares four documents with the source: `docs/bounds.md` must have every bound of the host,
//! `docs/metrics.md` every metric, `docs/errors.md` every code of an error, `docs/wit.md` the whole contract with components. To write
//! them from the source: `MILLRACE_WRITE_DOCS=1 cargo test -p millrace-tests --test documented`.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use millrace::{ErrorCode, error_codes};
use millrace_model::Kind;
use millrace_tests::tree::{Source, repository, sources};

#[path = "documented/wit.rs"]
mod wit;

/// The variable that makes this test write the documents instead of comparing them.
const WRITE: &str = "MILLRACE_WRITE_DOCS";
/// The file that describes the metrics.
const TELEMETRY: &str = "host/server/src/telemetry.rs";

#[test]
fn every_bound_of_the_host_is_documented() {
    let sources = product();
    let bounds: Vec<Bound> = sources.iter().flat_map(bounds_of).collect();
    assert!(bounds.len() > 100, "the bounds were found");
    let undescribed: Vec<&str> = bounds
        .iter()
        .filter(|bound| bound.meaning.is_empty())
        .map(|bound| bound.name.as_str())
        .collect();
    assert!(
        undescribed.is_empty(),
        "say what they bound: {undescribed:?}"
    );
    hold("docs/bounds.md", &bounds_page(&bounds));
}

#[test]
fn every_metric_is_described_and_documented() {
    let sources = product();
    let telemetry = sources.iter().find(|source| source.path == TELEMETRY);
    let described = described(&telemetry.expect("metrics are described there").text);
    let elsewhere = sources.iter().filter(|source| source.path != TELEMETRY);
    let used: Vec<&str> = elsewhere
        .flat_map(|source| metric_names(&source.text))
        .collect();
    assert!(used.len() > 15, "the metrics were found: {used:?}");
    let missing: Vec<&&str> = used
        .iter()
        .filter(|name| !described.contains_key(**name))
        .collect();
    assert!(
        missing.is_empty(),
        "describe them in {TELEMETRY}: {missing:?}"
    );
    let unused = described
        .keys()
        .filter(|name| !used.contains(&name.as_str()));
    assert_eq!(
        unused.collect::<Vec<_>>(),
        [""; 0],
        "described, and never measured"
    );
    hold("docs/metrics.md", &metrics_page(&described));
}

#[test]
fn every_code_of_an_error_is_documented() {
    let codes = error_codes();
    assert!(codes.len() > 80, "the codes were found");
    let page = errors_page(&codes);
    for code in &codes {
        let row = format!("| `{}` |", code.code);
        assert!(page.contains(&row), "{} has no row", code.code);
    }
    hold("docs/errors.md", &page);
}

#[test]
fn the_whole_contract_with_components_is_documented() {
    let page = wit::page();
    for name in ["message-processor", "state", "producer", "secrets"] {
        assert!(
            page.contains(&format!("\n## {name}\n")),
            "{name} has no section"
        );
    }
    hold("docs/wit.md", &page);
}

/// The host's sources without tests.
fn product() -> Vec<Source> {
    let is_product = |source: &Source| {
        let path = &source.path;
        path.starts_with("host/")
            && path.contains("/src/")
            && path.ends_with(".rs")
            && !path.contains("tests")
    };
    sources().into_iter().filter(is_product).collect()
}

/// Compares a document with its wanted text, or writes it.
fn hold(path: &str, wanted: &str) {
    let file = repository().join(path);
    if std::env::var_os(WRITE).is_some() {
        fs::write(&file, wanted).expect("the document is written");
    }
    let found = fs::read_to_string(&file).unwrap_or_default();
    assert!(
        found == wanted,
        "{path} is not what the source says; write it anew: {WRITE}=1 cargo test -p millrace-tests --test documented"
    );
}

struct Bound {
    room: String,
    name: String,
    value: String,
    meaning: String,
    /// Where it stands, within the crate's sources: several parts have a bound of the same name.
    file: String,
}

/// Constants whose names end in `MAX`, with their comments.
fn bounds_of(source: &Source) -> Vec<Bound> {
    let lines: Vec<&str> = source.text.lines().map(str::trim).collect();
    let declared = |at: &usize| {
        let line = lines[*at];
        let (_, rest) = line.split_once("const ")?;
        let (name, rest) = rest.split_once(':')?;
        let named = name.ends_with("_MAX") || name.contains("_MAX_");
        let declares = line.starts_with("pub") || line.starts_with("const ");
        (named && declares).then(|| (name.to_owned(), rest.to_owned()))
    };
    let bound = |at: usize| {
        let (name, rest) = declared(&at)?;
        let mut value = rest
            .split_once('=')
            .map_or("", |(_, value)| value)
            .to_owned();
        for line in &lines[at + 1..] {
            if value.contains(';') {
                break;
            }
            let _ = write!(value, " {line}");
        }
        let comment = lines[..at]
            .iter()
            .rev()
            .take_while(|line| line.starts_with("///"));
        let mut meaning: Vec<&str> = comment
            .map(|line| line.trim_start_matches('/').trim())
            .collect();
        meaning.reverse();
        Some(Bound {
            room: source.path.split('/').nth(1).unwrap_or_default().to_owned(),
            file: source
                .path
                .split("/src/")
                .nth(1)
                .unwrap_or_default()
                .to_owned(),
            value: readable(&name, value.trim().trim_end_matches(';')),
            name,
            meaning: meaning.join(" "),
        })
    };
    (0..lines.len()).filter_map(bound).collect()
}

/// Writes values such as `8 << 20` bytes as people do; others stay as they are in the source.
fn readable(name: &str, value: &str) -> String {
    let shifted = value.split_once(" << ").and_then(|(one, by)| {
        let one: u64 = one.trim().parse().ok()?;
        one.checked_shl(by.trim().parse().ok()?)
    });
    let unit = if name.contains("KIB") { 1024 } else { 1 };
    match shifted {
        Some(value) if name.contains("BYTES") || name.contains("KIB") => size(value * unit),
        Some(value) => value.to_string(),
        None => format!("`{value}`"),
    }
}

fn size(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let fitting = units
        .into_iter()
        .find(|(unit, _)| bytes.is_multiple_of(*unit));
    fitting.map_or_else(
        || format!("{bytes} B"),
        |(unit, name)| format!("{} {name}", bytes / unit),
    )
}

fn bounds_page(bounds: &[Bound]) -> String {
    let mut page = String::from(
        "# Bounds\n\nEverything that could grow has a named bound; the tables say what happens there. Generated from the source by \
         `tests/tests/documented.rs`.\n",
    );
    let mut room = "";
    for bound in bounds {
        if bound.room != room {
            room = &bound.room;
            let _ = write!(
                page,
                "\n## host/{room}\n\n| name | value | what it bounds, and what happens there | in |\n|---|---|---|---|\n"
            );
        }
        let meaning = bound.meaning.replace('|', "\\|");
        let (name, value, file) = (&bound.name, &bound.value, &bound.file);
        let _ = writeln!(page, "| `{name}` | {value} | {meaning} | {file} |");
    }
    page
}

/// Names of metrics that occur in the text as literals.
fn metric_names(text: &str) -> Vec<&str> {
    let literals = text.split('"').skip(1).step_by(1);
    let is_name = |word: &&str| {
        word.starts_with("millrace_")
            && word
                .chars()
                .all(|c| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit())
    };
    literals.filter(is_name).collect()
}

/// Kind and description by name, from the calls that describe metrics.
fn described(text: &str) -> BTreeMap<String, (String, String)> {
    let mut described = BTreeMap::new();
    for call in text.split("describe_").skip(1) {
        let Some((kind, rest)) = call.split_once("!(") else {
            continue;
        };
        let arguments = rest.split(");").next().unwrap_or_default();
        let literals: Vec<&str> = arguments.split('"').skip(1).step_by(2).collect();
        if let [name, text] = literals[..] {
            described.insert(name.to_owned(), (kind.to_owned(), text.to_owned()));
        }
    }
    described
}

fn metrics_page(described: &BTreeMap<String, (String, String)>) -> String {
    let mut page = String::from(
        "# Metrics\n\nServed for Prometheus at `/metrics`. Generated from the source by `tests/tests/documented.rs`.\n\n\
         | name | kind | what it says |\n|---|---|---|\n",
    );
    for (name, (kind, text)) in described {
        let _ = writeln!(page, "| `{name}` | {kind} | {text} |");
    }
    page
}

const ERRORS: &str = r#"# Errors

Every error has a code for programs, a message that says what went wrong, and a hint that says what to do now. Over HTTP:

```json
{"error": {"code": "unknown-topic", "message": "topic orders does not exist",
  "hint": "GET /v1/topics or `millrace topic list` shows the topics that exist"}}
```

Codes are stable; messages and hints are for people, and may change. Each code has a kind, which is all that most programs need; over HTTP, each kind has
a status. `next` is the offset at which to continue after messages that cannot be read. With 429 and 503, `Retry-After` says when to repeat the request.

One code has two kinds: `busy` is 429 if the caller's own requests help to fill the bound (produce, dry runs), and 503 if the caller only has to wait for
something in use (compiling, bodies and answers in memory, a running batch). In both cases, try again later. Generated from the source by
`tests/tests/documented.rs`.

| kind | HTTP | what to do |
|---|---|---|
"#;

fn errors_page(codes: &[ErrorCode]) -> String {
    let of_kind = |kind: Option<Kind>| codes.iter().filter(move |code| code.kind == kind);
    let mut page = ERRORS.to_owned();
    for kind in Kind::ALL {
        let status = of_kind(Some(kind)).map(|code| code.status.as_str()).next();
        let status = status.unwrap_or_default();
        let _ = writeln!(page, "| {kind:?} | {status} | {} |", kind.remedy());
    }
    for kind in Kind::ALL {
        let _ = write!(
            page,
            "\n## {kind:?}\n\n| code | meaning | what to do |\n|---|---|---|\n"
        );
        for code in of_kind(Some(kind)) {
            let remedy = cell(code.remedy);
            let _ = writeln!(page, "| `{}` | {} | {remedy} |", code.code, code.meaning);
        }
    }
    page += "\n## Only over HTTP\n\n| code | HTTP | meaning | what to do |\n|---|---|---|---|\n";
    for code in of_kind(None) {
        let (status, remedy) = (&code.status, cell(code.remedy));
        let _ = writeln!(
            page,
            "| `{}` | {status} | {} | {remedy} |",
            code.code, code.meaning
        );
    }
    page
}

/// The text as a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[test]
fn a_bound_is_read_with_its_value_and_its_meaning() {
    let source = Source {
        path: "host/log/src/some.rs".to_owned(),
        text: "/// Bytes of it.\n/// More is refused.\npub const IT_BYTES_MAX: usize =\n    3 << 10;\nconst OTHER: u8 = 1;\n".to_owned(),
    };
    let bounds = bounds_of(&source);
    let [bound] = &bounds[..] else {
        panic!("one bound, not {}", bounds.len());
    };
    let found = (&*bound.room, &*bound.name, &*bound.value, &*bound.meaning);
    assert_eq!(
        found,
        (
            "log",
            "IT_BYTES_MAX",
            "3 KiB",
            "Bytes of it. More is refused."
        )
    );
}

#[test]
fn a_metric_without_description_is_noticed() {
    let telemetry = "describe_counter!(\n \"millrace_one_total\",\n \"Ones\"\n);";
    assert!(described(telemetry).contains_key("millrace_one_total"));
    assert_eq!(
        metric_names("counter!(\"millrace_two_total\").increment(1)"),
        ["millrace_two_total"]
    );
}
