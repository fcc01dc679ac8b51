//! Examines an upload before anything is compiled: what it is, how large its parts are, what it exports and imports.
//!
//! One pass over the bytes, trusting nothing. The compiler process does the full validation: some inputs take seconds to validate, and
//! only a process can be stopped.

use millrace_broker::handler::{AdmitError, Interface};
use millrace_model::{Digest, GuestLimits};
use sha2::{Digest as _, Sha256};
use wasmparser::{Encoding, FunctionBody, MemoryType, Parser, Payload};
use wasmtime::Engine;

use crate::logs::clean;

/// Functions of a component, over all its core modules.
const FUNCTIONS_MAX: u64 = 50_000;
/// Bytes of one function's body.
const FUNCTION_BYTES_MAX: usize = 1 << 20;
/// Local variables of one function.
const FUNCTION_LOCALS_MAX: u64 = 5_000;
/// Types, core and component, over all parts.
const TYPES_MAX: u64 = 50_000;
/// Imports and exports, over all parts.
const NAMES_MAX: u64 = 50_000;
/// Data and element segments, over all core modules.
const SEGMENTS_MAX: u64 = 50_000;
/// Globals, over all core modules.
const GLOBALS_MAX: u64 = 50_000;
/// Core modules and nested components.
const PARTS_MAX: u64 = 256;
/// Components within components.
const DEPTH_MAX: usize = 8;
/// Memories and tables, over all core modules.
const MEMORIES_AND_TABLES_MAX: u64 = 64;
/// Instances, aliases and canonical functions, over all components.
const DEFINITIONS_MAX: u64 = 50_000;

/// Names of imports or exports listed in an error.
const NAMES_LISTED_MAX: usize = 12;
/// Bytes of each name of an import or export listed in an error.
const NAME_LISTED_BYTES_MAX: usize = 120;

/// Our package and its supported versions.
const PACKAGE: &str = "millrace:broker/";
const PACKAGE_VERSION: &str = "0.1.";

/// Interfaces of WASI 0.2 that every guest may import, because toolchains import them by default. Apart from clocks, random numbers and
/// the log, none reaches beyond its own instance: the filesystem is empty, and sockets are closed.
const WASI_GRANTED: [&str; 6] = [
    "wasi:cli/",
    "wasi:io/",
    "wasi:clocks/",
    "wasi:random/",
    "wasi:filesystem/",
    "wasi:sockets/",
];

/// Interfaces of our package that a guest may import. Whether a processor or a route may use them is decided when it is
/// deployed or set.
const GRANTED: [&str; 8] = [
    "types", "log", "state", "config", "secrets", "metrics", "producer", "views",
];
const WASI_VERSION: &str = "0.2.";

/// Of `wasi:http`: the types, and requests to servers that the grants name.
const HTTP_TYPES: &str = "wasi:http/types";
const HTTP_SENDING: &str = "wasi:http/outgoing-handler";

/// A component's imports, exports and sizes.
pub(crate) struct Outline {
    pub(crate) exports: Vec<Interface>,
    pub(crate) imports: Vec<String>,
}

/// Admits an upload for compiling, or says why not.
pub(crate) fn examine_upload(bytes: &[u8], limits: &GuestLimits) -> Result<Outline, AdmitError> {
    let (count, max) = (bytes.len() as u64, limits.module_bytes_max);
    if count > max {
        let bytes = Some(count);
        return Err(AdmitError::TooLarge { bytes, max });
    }
    examine(bytes, limits)
}

/// Admits bytes for compiling that may have been uploaded under larger limits.
pub(crate) fn examine(bytes: &[u8], limits: &GuestLimits) -> Result<Outline, AdmitError> {
    what_else_it_is(bytes).map_or(Ok(()), |what| Err(AdmitError::NotAComponent(what)))?;
    let names = Scan::new(*limits).read(bytes)?;
    let exports = interfaces_of(names.exports.iter().map(String::as_str));
    if exports.is_empty() {
        return Err(missing_export(&Interface::ALL, &names.exports));
    }
    refuse_ungranted(&names.imports)?;
    refuse_state_of_messaging(&names)?;
    Ok(Outline {
        exports,
        imports: names.imports,
    })
}

/// The digest of the bytes.
pub(crate) fn digest(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}

/// What the bytes are, if not a component, and what to do about it.
fn what_else_it_is(bytes: &[u8]) -> Option<String> {
    let what = match bytes {
        [] => "the upload is empty; send the bytes of a WebAssembly component".to_owned(),
        [0, b'a', b's', b'm', 0x0d, 0, 1, 0, ..] if Parser::is_component(bytes) => return None,
        [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => {
            "this is a core WebAssembly module, not a component; build it for \
            wasm32-wasip2, or wrap it with `wasm-tools component new`"
                .to_owned()
        }
        [0, b'a', b's', b'm', ..] => {
            "this is WebAssembly of an unsupported version or layer; build a \
            component of WASI 0.2"
                .to_owned()
        }
        _ if Engine::detect_precompiled(bytes).is_some() => {
            "this is precompiled native code, which is never accepted; \
            upload the component that it was compiled from"
                .to_owned()
        }
        _ => format!(
            "this is {}, not a WebAssembly component",
            foreign_format(bytes)
        ),
    };
    Some(what)
}

fn foreign_format(bytes: &[u8]) -> &'static str {
    let text = std::str::from_utf8(&bytes[..bytes.len().min(1 << 10)]).map_or_else(
        |error| (error.error_len().is_none()).then_some(""),
        |text| Some(text.trim_start()),
    );
    match bytes {
        [0x7f, b'E', b'L', b'F', ..] => "a native program (ELF)",
        [0x1f, 0x8b, ..] => "a gzip archive: upload the file inside it",
        [b'P', b'K', 3, 4, ..] => "a zip archive: upload the file inside it",
        [0x89, b'P', b'N', b'G', ..] => "an image (PNG)",
        _ => match text {
            Some(text) if text.starts_with("(module") || text.starts_with("(component") => {
                "WebAssembly text: assemble it with `wasm-tools parse`"
            }
            Some(text) if text.starts_with('<') => "HTML or XML",
            Some(_) => "text",
            None => "data of an unknown format",
        },
    }
}

/// Counts the parts of a component against their bounds, and collects its imports and exports.
#[derive(Default)]
struct Scan {
    limits: GuestLimits,
    depth: usize,
    components_open: Vec<Encoding>,
    functions: u64,
    types: u64,
    names: u64,
    segments: u64,
    globals: u64,
    parts: u64,
    memories_and_tables: u64,
    definitions: u64,
    surface: Names,
}

#[derive(Default)]
struct Names {
    imports: Vec<String>,
    exports: Vec<String>,
}

impl Scan {
    fn new(limits: GuestLimits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    fn read(mut self, bytes: &[u8]) -> Result<Names, AdmitError> {
        for payload in Parser::new(0).parse_all(bytes) {
            self.count(&payload.map_err(invalid)?)?;
        }
        Ok(self.surface)
    }

    fn count(&mut self, payload: &Payload) -> Result<(), AdmitError> {
        match payload {
            Payload::Version { encoding, .. } => self.components_open.push(*encoding),
            Payload::End(_) => {
                self.components_open.pop();
                self.depth = self.depth.saturating_sub(1);
            }
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => {
                self.depth += 1;
                bounded(
                    "components within components",
                    self.depth as u64,
                    DEPTH_MAX as u64,
                )?;
                add(
                    "core modules and nested components",
                    &mut self.parts,
                    1,
                    PARTS_MAX,
                )?;
            }
            Payload::CodeSectionStart { count, .. } => {
                add("functions", &mut self.functions, *count, FUNCTIONS_MAX)?;
            }
            Payload::CodeSectionEntry(body) => count_function(body)?,
            Payload::TypeSection(s) => add("types", &mut self.types, s.count(), TYPES_MAX)?,
            Payload::CoreTypeSection(s) => add("types", &mut self.types, s.count(), TYPES_MAX)?,
            Payload::ComponentTypeSection(s) => {
                add("types", &mut self.types, s.count(), TYPES_MAX)?
            }
            Payload::ImportSection(s) => add("imports", &mut self.names, s.count(), NAMES_MAX)?,
            Payload::ExportSection(s) => add("exports", &mut self.names, s.count(), NAMES_MAX)?,
            Payload::DataSection(s) => {
                add("segments", &mut self.segments, s.count(), SEGMENTS_MAX)?
            }
            Payload::ElementSection(s) => {
                add("segments", &mut self.segments, s.count(), SEGMENTS_MAX)?
            }
            Payload::GlobalSection(s) => add("globals", &mut self.globals, s.count(), GLOBALS_MAX)?,
            Payload::MemorySection(s) => {
                self.count_stores(s.count())?;
                for memory in s.clone() {
                    self.check_memory(&memory.map_err(invalid)?)?;
                }
            }
            Payload::TableSection(s) => {
                self.count_stores(s.count())?;
                for table in s.clone() {
                    self.check_table(table.map_err(invalid)?.ty.initial)?;
                }
            }
            Payload::InstanceSection(s) => self.count_definitions(s.count())?,
            Payload::ComponentInstanceSection(s) => self.count_definitions(s.count())?,
            Payload::ComponentAliasSection(s) => self.count_definitions(s.count())?,
            Payload::ComponentCanonicalSection(s) => self.count_definitions(s.count())?,
            Payload::ComponentImportSection(s) => {
                add("imports", &mut self.names, s.count(), NAMES_MAX)?;
                for import in s.clone() {
                    let name = import.map_err(invalid)?.name.name;
                    self.at_surface(|surface| surface.imports.push(name.to_owned()));
                }
            }
            Payload::ComponentExportSection(s) => {
                add("exports", &mut self.names, s.count(), NAMES_MAX)?;
                for export in s.clone() {
                    let name = export.map_err(invalid)?.name.name;
                    self.at_surface(|surface| surface.exports.push(name.to_owned()));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn check_memory(&self, memory: &MemoryType) -> Result<(), AdmitError> {
        let (max, begins) = (
            self.limits.guest_memory_bytes_max,
            memory
                .initial
                .saturating_mul(1 << memory.page_size_log2.unwrap_or(16).min(16)),
        );
        within("bytes of memory", begins, "guest_memory_bytes_max", max)
    }

    fn check_table(&self, begins: u64) -> Result<(), AdmitError> {
        let max = self.limits.guest_table_elements_max;
        within(
            "elements of a table",
            begins,
            "guest_table_elements_max",
            max,
        )
    }

    fn count_stores(&mut self, count: u32) -> Result<(), AdmitError> {
        add(
            "memories and tables",
            &mut self.memories_and_tables,
            count,
            MEMORIES_AND_TABLES_MAX,
        )
    }

    fn count_definitions(&mut self, count: u32) -> Result<(), AdmitError> {
        add(
            "instances and aliases",
            &mut self.definitions,
            count,
            DEFINITIONS_MAX,
        )
    }

    fn at_surface(&mut self, keep: impl FnOnce(&mut Names)) {
        if self.depth == 0 {
            keep(&mut self.surface);
        }
    }
}

fn count_function(body: &FunctionBody) -> Result<(), AdmitError> {
    let range = body.range();
    bounded(
        "bytes of a function",
        (range.end - range.start) as u64,
        FUNCTION_BYTES_MAX as u64,
    )?;
    let mut locals = 0;
    for group in body.get_locals_reader().map_err(invalid)? {
        let (count, _) = group.map_err(invalid)?;
        add(
            "local variables of a function",
            &mut locals,
            count,
            FUNCTION_LOCALS_MAX,
        )?;
    }
    Ok(())
}

fn add(what: &str, total: &mut u64, count: u32, max: u64) -> Result<(), AdmitError> {
    *total += u64::from(count);
    bounded(what, *total, max)
}

fn bounded(what: &str, count: u64, max: u64) -> Result<(), AdmitError> {
    if count > max {
        let text = format!("it has {count} {what}; the maximum is {max}: make it smaller");
        return Err(AdmitError::Invalid(text));
    }
    Ok(())
}

/// A limit that is a setting of the host.
fn within(what: &str, begins: u64, setting: &str, max: u64) -> Result<(), AdmitError> {
    if begins > max {
        let text = format!(
            "it starts with {begins} {what}; this host's maximum is {max} (setting {setting} = {max})"
        );
        return Err(AdmitError::Invalid(text));
    }
    Ok(())
}

fn invalid(error: wasmparser::BinaryReaderError) -> AdmitError {
    AdmitError::Invalid(clean(&error.to_string(), 500))
}

/// What a component exports to handle messages one by one.
const MESSAGING_HANDLER: &str = "wasi:messaging/incoming-handler@0.2.0-draft";
/// Interfaces of `wasi:messaging` that a guest may import, in this version only: it is a draft.
const MESSAGING_GRANTED: [&str; 2] = [
    "wasi:messaging/types@0.2.0-draft",
    "wasi:messaging/producer@0.2.0-draft",
];
/// The interface of `wasi:messaging` that waits for replies, and why there are none.
const MESSAGING_REPLIES: &str = "wasi:messaging/request-reply@";
const NO_REPLIES: &str = "what a component sends is committed with the message that it handles, so it cannot wait for a reply to it";

/// What a component exports to answer HTTP requests.
const HTTP_HANDLER: &str = "wasi:http/incoming-handler";

/// An interface's place in the contract.
pub(crate) trait Contract: Sized {
    const ALL: [Self; 4];
    /// The interface's name with its package.
    fn interface_name(self) -> &'static str;
    /// How a supported version begins.
    fn version(self) -> &'static str;
}

impl Contract for Interface {
    const ALL: [Self; 4] = [
        Self::MessageProcessor,
        Self::Partitioner,
        Self::ErrorHandler,
        Self::HttpHandler,
    ];

    fn interface_name(self) -> &'static str {
        match self {
            Self::MessageProcessor => "millrace:broker/message-processor",
            Self::Partitioner => "millrace:broker/partitioner",
            Self::ErrorHandler => "millrace:broker/error-handler",
            Self::HttpHandler => HTTP_HANDLER,
        }
    }

    fn version(self) -> &'static str {
        match self {
            Self::MessageProcessor | Self::Partitioner | Self::ErrorHandler => PACKAGE_VERSION,
            Self::HttpHandler => WASI_VERSION,
        }
    }
}

/// Whether an export handles messages one by one.
pub(crate) fn handles_messages(export: &str) -> bool {
    export == MESSAGING_HANDLER
}

/// Whether an import sends messages by `wasi:messaging`.
pub(crate) fn sends_messages(import: &str) -> bool {
    import.starts_with("wasi:messaging/producer@")
}

/// The interface with this export's name, in a supported version. Whoever handles messages one by one processes them, too.
pub(crate) fn interface_of(export: &str) -> Option<Interface> {
    if handles_messages(export) {
        return Some(Interface::MessageProcessor);
    }
    let (name, version) = export.split_once('@')?;
    Interface::ALL.into_iter().find(|interface| {
        interface.interface_name() == name && version.starts_with(interface.version())
    })
}

/// Our interface's name in an import, whatever its version.
pub(crate) fn own_interface(import: &str) -> Option<&str> {
    import.strip_prefix(PACKAGE)?.split('@').next()
}

/// Whether an import is a part of `wasi:http`.
pub(crate) fn is_http(import: &str) -> bool {
    matches!(import.split('@').next(), Some(HTTP_TYPES | HTTP_SENDING))
}

/// Whether an import sends HTTP requests.
pub(crate) fn sends_http(import: &str) -> bool {
    import.split('@').next() == Some(HTTP_SENDING)
}

fn interfaces_of<'a>(exports: impl Iterator<Item = &'a str>) -> Vec<Interface> {
    let mut found: Vec<_> = exports.filter_map(interface_of).collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// The refusal of a component that exports none of `wanted`.
pub(crate) fn missing_export(wanted: &[Interface], exports: &[String]) -> AdmitError {
    let is_processor = wanted.contains(&Interface::MessageProcessor);
    let messaging = is_processor.then_some(MESSAGING_HANDLER);
    let wanted = wanted
        .iter()
        .map(|interface| format!("{}@{}x", interface.interface_name(), interface.version()))
        .chain(messaging.map(str::to_owned))
        .collect::<Vec<_>>()
        .join(", ");
    let found = match exports {
        [] => "nothing".to_owned(),
        exports => listed(exports.iter().map(String::as_str)).join(", "),
    };
    AdmitError::MissingExport { wanted, found }
}

fn refuse_ungranted(imports: &[String]) -> Result<(), AdmitError> {
    let ungranted = imports
        .iter()
        .map(String::as_str)
        .filter(|name| !is_granted(name));
    let mut imports = listed(ungranted);
    if let Some(import) = imports
        .iter_mut()
        .find(|import| import.starts_with(MESSAGING_REPLIES))
    {
        *import = format!("{import} ({NO_REPLIES})");
    }
    if imports.is_empty() {
        return Ok(());
    }
    Err(AdmitError::UngrantedImports { imports })
}

/// State is changed for messages of a batch, and `wasi:messaging` knows no batches.
fn refuse_state_of_messaging(names: &Names) -> Result<(), AdmitError> {
    let processors: Vec<&String> = names
        .exports
        .iter()
        .filter(|export| interface_of(export) == Some(Interface::MessageProcessor))
        .collect();
    let state = names.imports.iter();
    let state = state.filter(|import| own_interface(import) == Some("state"));
    let imports: Vec<String> = state
        .map(|import| {
            let import = clean(import, NAME_LISTED_BYTES_MAX);
            format!(
                "{import} (a component of wasi:messaging has no state; export message-processor)"
            )
        })
        .collect();
    match !imports.is_empty() && matches!(&*processors, [only] if handles_messages(only)) {
        true => Err(AdmitError::UngrantedImports { imports }),
        false => Ok(()),
    }
}

fn is_granted(import: &str) -> bool {
    let Some((name, version)) = import.split_once('@') else {
        return false;
    };
    match name.strip_prefix(PACKAGE) {
        Some(ours) => GRANTED.contains(&ours) && version.starts_with(PACKAGE_VERSION),
        None => {
            let of_everyone = WASI_GRANTED.iter().any(|granted| name.starts_with(granted));
            version.starts_with(WASI_VERSION) && (of_everyone || is_http(name))
                || MESSAGING_GRANTED.contains(&import)
        }
    }
}

/// Names from a component, escaped and limited to one line.
fn listed<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut names = names.map(|name| clean(name, NAME_LISTED_BYTES_MAX));
    let mut listed: Vec<_> = names.by_ref().take(NAMES_LISTED_MAX).collect();
    match names.count() {
        0 => {}
        more => listed.push(format!("and {more} more")),
    }
    listed
}
