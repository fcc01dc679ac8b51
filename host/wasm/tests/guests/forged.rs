//! Components whose core module is written by hand, as no toolchain writes it: an answer of any bytes, and any code where the canonical
//! ABI calls the guest.

use std::path::Path;

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::{Resolve, SourceMap};

/// The interface that every forged component exports.
const EXPORT: &str = "millrace:broker/message-processor@0.1.1";

/// Where the record of an answer begins in its memory.
pub(crate) const ANSWER_AT: usize = 1_024;

/// Where the guest allocates from, after everything else in its memory.
const HEAP_AT: usize = 65_536;

/// WASI's random numbers, as far as they are imported here.
const RANDOM: &str = "package wasi:random@0.2.12;
interface random { get-random-bytes: func(len: u64) -> list<u8>; }";

/// A processor whose parts are text of WebAssembly. By default it answers every batch with empty columns.
pub(crate) struct Forged {
    /// Lines of its world beside the export.
    pub(crate) world: &'static str,
    /// Imports, globals and functions.
    pub(crate) items: String,
    /// Pages of memory.
    pub(crate) pages: u32,
    /// The body of `cabi_realloc`; parameters `$old`, `$size`, `$align` and `$new`.
    pub(crate) realloc: String,
    /// The body of `process`; its parameter is `$batch`.
    pub(crate) process: String,
    /// The body of the function that the host calls after it has read the answer.
    pub(crate) post: String,
    /// The answer's record.
    pub(crate) answer: Vec<u8>,
    /// How its strings are encoded.
    pub(crate) encoding: StringEncoding,
}

impl Default for Forged {
    fn default() -> Self {
        Self {
            world: "",
            items: String::new(),
            pages: 32,
            realloc: "(call $allocate (local.get $align) (local.get $new))".to_owned(),
            process: answered(),
            post: format!("(global.set $next (i32.const {HEAP_AT}))"),
            answer: record(&[]),
            encoding: StringEncoding::UTF8,
        }
    }
}

/// Code that returns the answer.
pub(crate) fn answered() -> String {
    format!("(i32.const {ANSWER_AT})")
}

/// The record of an answer with these lists, by their position in `types.answer`: pointer and length of each.
pub(crate) fn record(lists: &[(usize, u32, u32)]) -> Vec<u8> {
    // The number of the result's case, then twelve lists.
    let mut bytes = vec![0; 4 + 12 * 8];
    for &(list, pointer, length) in lists {
        bytes[4 + list * 8..][..4].copy_from_slice(&pointer.to_le_bytes());
        bytes[8 + list * 8..][..4].copy_from_slice(&length.to_le_bytes());
    }
    bytes
}

impl Forged {
    /// The component.
    pub(crate) fn component(&self) -> Vec<u8> {
        let world = format!("{} export {EXPORT};", self.world);
        encoded(&self.text(), &world, self.encoding)
    }

    fn text(&self) -> String {
        let Self {
            items,
            pages,
            realloc,
            process,
            post,
            answer,
            ..
        } = self;
        let answer: String = answer.iter().map(|byte| format!("\\{byte:02x}")).collect();
        format!(
            r#"(module
            {items}
            (memory (export "memory") {pages})
            (global $next (mut i32) (i32.const {HEAP_AT}))
            (func $allocate (param $align i32) (param $new i32) (result i32) (local $at i32)
                (local.set $at (i32.and
                    (i32.add (global.get $next) (i32.sub (local.get $align) (i32.const 1)))
                    (i32.sub (i32.const 0) (local.get $align))))
                (global.set $next (i32.add (local.get $at) (local.get $new)))
                (local.get $at))
            (func (export "cabi_realloc") (param $old i32) (param $size i32) (param $align i32) (param $new i32) (result i32)
                {realloc})
            (func (export "{EXPORT}#process") (param $batch i32) (result i32)
                {process})
            (func (export "cabi_post_{EXPORT}#process") (param i32)
                {post})
            (data (i32.const {ANSWER_AT}) "{answer}"))"#
        )
    }
}

/// The component of a core module in text and of the lines of its world.
pub(crate) fn encoded(core: &str, world: &str, encoding: StringEncoding) -> Vec<u8> {
    let mut core = wat::parse_str(core).expect("the text assembles");
    let mut resolve = Resolve::default();
    for (name, text) in wasi() {
        resolve.push_source(&name, &text).expect("WASI's packages");
    }
    let contract = contract().parse().map_err(|(_, error)| error);
    let contract = contract.expect("the contract");
    resolve.push_group(contract).expect("the contract");
    let world = format!("package test:forged;\nworld forged {{ {world} }}");
    let package = resolve.push_source("world.wit", &world).expect("a world");
    let world = resolve.select_world(&[package], Some("forged"));
    let world = world.expect("the world is there");
    embed_component_metadata(&mut core, &resolve, world, encoding, false)
        .expect("the module takes its world");
    let mut encoder = ComponentEncoder::default();
    encoder.validate(true).module(&core).expect("the module");
    encoder.encode().expect("the component")
}

fn repository() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Name and text of WASI's packages, each after those that it refers to.
fn wasi() -> Vec<(String, String)> {
    let read = |name: &str| {
        let file = repository().join("host/component/wasi").join(name);
        let text = std::fs::read_to_string(file).expect("a copy of WASI's package");
        (name.to_owned(), text)
    };
    let mut packages = vec![read("io.wit"), read("clocks.wit"), read("http.wit")];
    packages.push(("random.wit".to_owned(), RANDOM.to_owned()));
    packages
}

fn contract() -> SourceMap {
    let mut contract = SourceMap::new();
    let files = std::fs::read_dir(repository().join("wit")).expect("the contract is there");
    for file in files.flatten() {
        let text = std::fs::read_to_string(file.path()).expect("it is text");
        contract.push_str(&file.file_name().to_string_lossy(), text);
    }
    contract
}
