//! Makes a component of a core module: the module gets its world, unless it has one, and adapters that answer the calls of WASI
//! preview 1, and others, that its language's library makes.
//!
//! What can be wrong is looked for first and said in terms of the project: the errors of the encoder name types and indexes.

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::{Resolve, SourceMap};

use crate::plain::plain;
use crate::strip::NotWasm;
use crate::surface::{Surface, surface};
use crate::wasi::{self, WASI, needs_wasi};
use crate::world::{Contract, Kind, PACKAGE, UnknownImport, WORLD, world};

/// The module name of WASI preview 1, which an adapter provides.
const PREVIEW1: &str = "wasi_snapshot_preview1";
/// The module from which what TeaVM makes of Java takes functions.
const MATH: &str = "teavmMath";
/// Imports listed in an error.
const NAMES_LISTED_MAX: usize = 12;

/// A core module and what it should become.
#[derive(Clone, Copy, Debug)]
pub struct Making<'a> {
    /// The core module; text if it begins with a parenthesis.
    pub core: &'a [u8],
    /// The contract.
    pub contract: Contract<'a>,
    /// What it is for.
    pub kind: Kind,
    /// The interfaces that it may import.
    pub imports: &'a [String],
    /// Adapters: the name of the module that each stands for, such as `wasi_snapshot_preview1`, and its text.
    pub adapters: &'a [(&'a str, &'a str)],
}

/// A finished component.
#[derive(Clone, Debug)]
pub struct Made {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Whether an adapter is part of it.
    pub is_adapted: bool,
}

/// Why a core module does not become a component.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// It is no core module.
    #[error(transparent)]
    NotWasm(#[from] NotWasm),
    /// It is text that does not assemble.
    #[error("the text of the module does not assemble: {0}")]
    Text(String),
    /// It is already a component.
    #[error("the toolchain made a component, where a core module was expected")]
    IsComponent,
    /// The project's list of imports is wrong.
    #[error(transparent)]
    UnknownImport(#[from] UnknownImport),
    /// It imports what nothing provides.
    #[error("the module imports what nothing provides: {}", .imports.join(", "))]
    Unprovided {
        /// Each import, as `module.name`.
        imports: Vec<String>,
        /// What to do about it.
        hint: String,
    },
    /// It lacks a function that its kind needs.
    #[error("the module does not export {}, which a {kind} has", .missing.join(" and "))]
    Missing {
        /// The exports.
        missing: Vec<String>,
        /// The kind.
        kind: Kind,
        /// What it exports.
        found: Vec<String>,
    },
    /// Any other error of the encoder.
    #[error("the component cannot be made: {0}")]
    Encoder(String),
}

impl MakeError {
    /// What the developer can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unprovided { hint, .. } => Some(hint.clone()),
            Self::Missing { found, .. } => Some(match found.is_empty() {
                true => "it exports nothing; is the handler part of the build, and is it exported?".to_owned(),
                false => format!(
                    "it exports {}; do the kind in millrace.toml and the source agree?",
                    listed(found)
                ),
            }),
            Self::IsComponent => Some(
                "write `component = \"FILE\"` instead of `core = \"FILE\"` in [build] of millrace.toml".to_owned(),
            ),
            _ => None,
        }
    }
}

fn listed(names: &[String]) -> String {
    let mut shown: Vec<&str> = names.iter().map(String::as_str).collect();
    shown.truncate(NAMES_LISTED_MAX);
    let rest = names.len() - shown.len();
    match rest {
        0 => shown.join(", "),
        rest => format!("{} and {rest} more", shown.join(", ")),
    }
}

/// Makes the component.
///
/// # Errors
/// [`MakeError`]; [`MakeError::hint`] says what to do.
pub fn make(making: &Making<'_>) -> Result<Made, MakeError> {
    let core = assembled(making.core)?;
    let shown = surface(&core)?;
    if shown.is_component {
        return Err(MakeError::IsComponent);
    }
    let core = plain(&core, &format!("{PACKAGE}/"))?.into_owned();
    let shown = Surface {
        imports: surface(&core)?.imports,
        ..shown
    };
    let mut adapters = Vec::new();
    for (name, text) in making.adapters {
        let bytes = wat::parse_str(text).map_err(|error| encoder(&error))?;
        let exports = surface(&bytes)?.exports;
        adapters.push(Adapter {
            name,
            bytes,
            exports,
        });
    }
    check_imports(making, &shown, &adapters)?;
    check_exports(making, &shown)?;
    adapters.retain(|adapter| shown.imports.iter().any(|(name, _)| name == adapter.name));
    let core = match shown.has_world {
        true => core,
        false => with_world(core, making)?,
    };
    let encoded = encode(&core, &adapters);
    let bytes = encoded.map_err(|error| MakeError::Encoder(format!("{error:#}")))?;
    Ok(Made {
        bytes,
        is_adapted: !adapters.is_empty(),
    })
}

/// A module that answers the calls of another one.
struct Adapter<'a> {
    name: &'a str,
    bytes: Vec<u8>,
    exports: Vec<String>,
}

fn encoder(error: &dyn std::fmt::Display) -> MakeError {
    MakeError::Encoder(error.to_string())
}

fn assembled(core: &[u8]) -> Result<Vec<u8>, MakeError> {
    if core.starts_with(b"\0asm") {
        return Ok(core.to_vec());
    }
    let assembled = wat::parse_bytes(core).map_err(|error| MakeError::Text(error.to_string()))?;
    Ok(assembled.into_owned())
}

fn encode(core: &[u8], adapters: &[Adapter<'_>]) -> anyhow::Result<Vec<u8>> {
    let mut encoder = ComponentEncoder::default();
    encoder.validate(true).module(core)?;
    for adapter in adapters {
        encoder.adapter(adapter.name, &adapter.bytes)?;
    }
    encoder.encode()
}

/// The module with the project's world in a custom section, where the encoder reads it.
fn with_world(mut core: Vec<u8>, making: &Making<'_>) -> Result<Vec<u8>, MakeError> {
    let text = world(&making.contract, making.kind, making.imports)?;
    let mut embed = || -> anyhow::Result<()> {
        let mut resolve = Resolve::default();
        if needs_wasi(making.kind, making.imports) {
            for (package, wit) in WASI {
                resolve.push_source(&format!("{package}.wit"), wit)?;
            }
        }
        let mut contract = SourceMap::new();
        for (name, text) in making.contract.files {
            contract.push_str(name, *text);
        }
        let contract = contract
            .parse()
            .map_err(|(_, error)| anyhow::anyhow!("{error}"))?;
        resolve.push_group(contract)?;
        let package = resolve.push_source("world.wit", &text)?;
        let world = resolve.select_world(&[package], Some(WORLD.1))?;
        embed_component_metadata(&mut core, &resolve, world, StringEncoding::UTF8, false)
    };
    embed().map_err(|error| MakeError::Encoder(format!("{error:#}")))?;
    Ok(core)
}

/// Every import must be one of the project's interfaces, or be answered by an adapter.
fn check_imports(
    making: &Making<'_>,
    core: &Surface,
    adapters: &[Adapter<'_>],
) -> Result<(), MakeError> {
    let adapter = |module: &str| adapters.iter().find(|adapter| adapter.name == module);
    if core.has_world {
        // Which interfaces it may import is in there; only the adapters' calls can be checked.
        let is_unknown = |(module, name): &&(String, String)| {
            adapter(module).is_some_and(|adapter| !adapter.exports.contains(name))
        };
        let unknown: Vec<_> = core.imports.iter().filter(is_unknown).collect();
        return unprovided(making, &unknown);
    }
    let full = |name: &String| making.contract.full_name(name);
    let wanted: Vec<String> = making.imports.iter().map(full).collect();
    let with_wasi = needs_wasi(making.kind, making.imports);
    let export = making.kind.export(&making.contract);
    let types = making.contract.interface("types");
    let is_provided = |(module, name): &&(String, String)| {
        let module = module.strip_prefix("[export]").unwrap_or(module);
        if let Some(adapter) = adapter(module) {
            return adapter.exports.contains(name);
        }
        match module {
            "$root" | "__main_module__" => true,
            _ if module.starts_with("cm32p2") => true,
            // What the wanted ones refer to comes with them.
            _ if with_wasi && wasi::has(module) => true,
            _ => wanted.iter().any(|name| name == module) || module == export || module == types,
        }
    };
    let unknown: Vec<_> = core
        .imports
        .iter()
        .filter(|import| !is_provided(import))
        .collect();
    unprovided(making, &unknown)
}

fn unprovided(making: &Making<'_>, unknown: &[&(String, String)]) -> Result<(), MakeError> {
    let Some((first, _)) = unknown.first() else {
        return Ok(());
    };
    let mut imports: Vec<String> = unknown
        .iter()
        .take(NAMES_LISTED_MAX)
        .map(|(module, name)| format!("{module}.{name}"))
        .collect();
    if unknown.len() > imports.len() {
        imports.push(format!("and {} more", unknown.len() - imports.len()));
    }
    let ours = making.contract.interface("");
    let (package, version) = ours.split_once('@').unwrap_or((&ours, ""));
    let hint = match first.strip_prefix(package) {
        Some(rest) => {
            let (name, asked) = rest.split_once('@').unwrap_or((rest, ""));
            match asked == version {
                true => format!("add {name:?} to `imports` in millrace.toml, or do not call it"),
                false => format!(
                    "it is built for version {asked} of the contract, and this `millrace` has {version}: take the SDK that `millrace new` writes"
                ),
            }
        }
        None if first == MATH => {
            "TeaVM has no such function of java.lang.Math without a JavaScript host, only floor, ceil and sqrt".to_owned()
        }
        None if first == PREVIEW1 => {
            "the sandbox has no such call: files and sockets are not there; find the library that makes it".to_owned()
        }
        None if first == "env" => {
            "functions that are declared and not defined become such imports: link the file or the library that defines them".to_owned()
        }
        None if first.starts_with("wasi:") => format!(
            "add its full name, such as {first:?}, to `imports` in millrace.toml if the host should grant it"
        ),
        None => "build for `wasm32-wasip1` or `wasm32-unknown-unknown` without JavaScript glue".to_owned(),
    };
    Err(MakeError::Unprovided { imports, hint })
}

/// The kind's functions must be exported, under the names of the canonical ABI.
fn check_exports(making: &Making<'_>, core: &Surface) -> Result<(), MakeError> {
    if core.has_world || core.exports.iter().any(|name| name.starts_with("cm32p2")) {
        return Ok(());
    }
    let function = match making.kind {
        Kind::Processor => "process",
        Kind::Partitioner => "assign",
        Kind::ErrorHandler => "handle",
        Kind::Http => "handle",
    };
    let wanted = [
        format!("{}#{function}", making.kind.export(&making.contract)),
        "memory".to_owned(),
    ];
    let is_missing = |name: &String| !core.exports.contains(name);
    let missing: Vec<String> = wanted.into_iter().filter(is_missing).collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(MakeError::Missing {
            missing,
            kind: making.kind,
            found: core.exports.clone(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::tests::CONTRACT;

    const ADAPTERS: &[(&str, &str)] = &[
        (
            PREVIEW1,
            r#"(module
            (import "env" "memory" (memory 0))
            (func (export "sched_yield") (result i32) i32.const 0)
            (func (export "fd_write") (param i32 i32 i32 i32) (result i32) i32.const 8))"#,
        ),
        (
            MATH,
            r#"(module (func (export "ceil") (param f64) (result f64) local.get 0 f64.ceil))"#,
        ),
    ];

    /// A partitioner that sends everything to partition 0, with more imports and functions.
    fn core(more: &str) -> String {
        let export = CONTRACT.interface("partitioner");
        format!(
            r#"(module {more}
            (memory (export "memory") 1)
            (func (export "{export}#assign") (param i32) (result i32) i32.const 8)
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) i32.const 1024))"#
        )
    }

    fn made(text: &str, imports: &[&str]) -> Result<Made, MakeError> {
        let imports: Vec<String> = imports.iter().map(|&name| name.to_owned()).collect();
        make(&Making {
            core: text.as_bytes(),
            contract: CONTRACT,
            kind: Kind::Partitioner,
            imports: &imports,
            adapters: ADAPTERS,
        })
    }

    #[test]
    fn a_core_module_that_answers_http_becomes_a_component_with_wasis_types() {
        let types = "wasi:http/types@0.2.12";
        let text = format!(
            r#"(module
            (import "{types}" "[resource-drop]incoming-request" (func $drop (param i32)))
            (memory (export "memory") 1)
            (func (export "wasi:http/incoming-handler@0.2.12#handle") (param i32 i32) (call $drop (local.get 0)))
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) i32.const 1024))"#
        );
        let made = make(&Making {
            core: text.as_bytes(),
            contract: CONTRACT,
            kind: Kind::Http,
            imports: &["log".to_owned()],
            adapters: ADAPTERS,
        });
        let shown = surface(&made.expect("a component").bytes).expect("WebAssembly");
        assert_eq!(shown.exports, ["wasi:http/incoming-handler@0.2.12"]);
        let found: Vec<String> = shown.imports.into_iter().map(|(name, _)| name).collect();
        assert!(found.iter().any(|name| name == types), "{found:?}");
        assert!(!found.contains(&CONTRACT.interface("log")), "{found:?}");
    }

    #[test]
    fn a_core_module_becomes_a_component_with_only_what_it_uses() {
        let log = CONTRACT.interface("log");
        let uses = format!(r#"(import "{log}" "log" (func (param i32 i32 i32)))"#);
        let dotted = uses.replace("\"log\"", "\"log.log\"");
        let maths = format!(
            r#"(import "{MATH}" "ceil" (func (param f64) (result f64)))
            (import "{PREVIEW1}" "sched_yield" (func (result i32)))"#
        );
        for (more, imports, adapted) in [
            (String::new(), vec![], false),
            (uses, vec![log.clone()], false),
            (dotted, vec![log], false),
            (maths, vec![], true),
            (
                format!(r#"(import "{PREVIEW1}" "sched_yield" (func (result i32)))"#),
                vec![],
                true,
            ),
        ] {
            let made = made(&core(&more), &["log", "metrics"]).expect("a component");
            let shown = surface(&made.bytes).expect("WebAssembly");
            assert!(shown.is_component && made.is_adapted == adapted);
            let found: Vec<String> = shown.imports.into_iter().map(|(name, _)| name).collect();
            for import in &imports {
                assert!(found.contains(import), "{found:?}");
            }
            let metrics = CONTRACT.interface("metrics");
            assert!(!found.contains(&metrics), "{found:?}");
            assert_eq!(shown.exports, [CONTRACT.interface("partitioner")]);
        }
    }

    #[test]
    fn an_import_that_nothing_provides_is_explained() {
        let metrics = CONTRACT.interface("metrics");
        let cases = [
            (metrics.as_str(), "add", "add \"metrics\" to `imports`"),
            ("millrace:broker/log@9.0.0", "log", "version 9.0.0"),
            (PREVIEW1, "sock_accept", "sockets are not there"),
            (MATH, "sin", "only floor, ceil and sqrt"),
            ("env", "helper", "not defined"),
        ];
        for (module, name, says) in cases {
            let more = format!(r#"(import "{module}" "{name}" (func))"#);
            let error = made(&core(&more), &["log"]).expect_err("refused");
            assert!(
                error.to_string().contains(&format!("{module}.{name}")),
                "{error}"
            );
            let hint = error.hint().expect("a hint");
            assert!(hint.contains(says), "{hint}");
        }
    }

    #[test]
    fn a_missing_export_and_a_finished_component_are_told() {
        let error = made("(module (func (export \"run\")))", &[]).expect_err("refused");
        assert!(error.to_string().contains("#assign and memory"), "{error}");
        assert!(error.hint().expect("a hint").contains("it exports run"));
        let error = made("(component)", &[]).expect_err("refused");
        assert!(matches!(error, MakeError::IsComponent));
        let error = made("(module", &[]).expect_err("refused");
        assert!(matches!(error, MakeError::Text(_)), "{error}");
    }
}
