//! Reads what a component says about itself: producers, facts for registries, and embedded lists of dependencies.
//!
//! The sections are a stranger's. They are read within bounds of number, size and depth after decompression, texts are cut and escaped,
//! and a section that cannot be read is left out: it says nothing about whether the component runs.

use std::io::Read;

use flate2::read::ZlibDecoder;
use millrace_broker::{Dependency, Metadata, Producer, RegistryFact};
use serde::Deserialize;
use serde_json::Value;
use wasmparser::{CustomSectionReader, KnownCustom, Parser, Payload};

use crate::logs::clean;

/// Producers of a component that are kept; further ones are left out.
const PRODUCERS_MAX: usize = 32;
/// Facts for registries that are kept.
const REGISTRY_FACTS_MAX: usize = 16;
/// Dependencies that are kept.
const DEPENDENCIES_MAX: usize = 256;
/// Bytes of each name and version.
const WORD_BYTES_MAX: usize = 80;
/// Bytes of each fact for registries.
const FACT_BYTES_MAX: usize = 256;
/// Bytes of a section that is read, and of a list of dependencies after decompression.
const SECTION_BYTES_MAX: usize = 1 << 20;
/// Custom sections that are looked at, over all parts of a component.
const SECTIONS_MAX: usize = 1_000;

/// The section in which `cargo auditable` stores dependencies: zlib, then JSON.
const DEPENDENCIES: &str = ".dep-v0";
/// The section with all facts for registries as JSON, as earlier tools write it.
const REGISTRY: &str = "registry-metadata";
/// Sections with one fact each, as text.
const FACTS: [&str; 7] = [
    "description",
    "licenses",
    "source",
    "homepage",
    "revision",
    "version",
    "authors",
];

/// What the component says about itself.
pub(crate) fn metadata(component: &[u8]) -> Metadata {
    let mut found = Metadata::default();
    let payloads = Parser::new(0).parse_all(component).map_while(Result::ok);
    let sections = payloads.filter_map(|payload| match payload {
        Payload::CustomSection(section) => Some(section),
        _ => None,
    });
    for (index, section) in sections.enumerate() {
        if index >= SECTIONS_MAX {
            found.more = true;
            break;
        }
        if section.data().len() <= SECTION_BYTES_MAX {
            read(&section, &mut found);
        }
    }
    found
}

fn read(section: &CustomSectionReader<'_>, found: &mut Metadata) {
    match section.name() {
        DEPENDENCIES => dependencies(section.data(), found),
        REGISTRY => registry(section.data(), found),
        name if FACTS.contains(&name) => {
            if let Ok(text) = std::str::from_utf8(section.data()) {
                fact(name, text, found);
            }
        }
        _ => {
            if let KnownCustom::Producers(fields) = section.as_known() {
                let fields = fields.into_iter().map_while(Result::ok);
                let values = fields.flat_map(|field| {
                    let values = field.values.into_iter().map_while(Result::ok);
                    values.map(move |value| (field.name, value))
                });
                for (field, value) in values {
                    let producer = Producer {
                        field: clean(field, WORD_BYTES_MAX),
                        name: clean(value.name, WORD_BYTES_MAX),
                        version: clean(value.version, WORD_BYTES_MAX),
                    };
                    if !keep(&mut found.producers, producer, PRODUCERS_MAX) {
                        found.more = true;
                        break;
                    }
                }
            }
        }
    }
}

/// Keeps an item once; false if there is no room for it.
fn keep<T: PartialEq>(items: &mut Vec<T>, item: T, max: usize) -> bool {
    if items.contains(&item) {
        return true;
    }
    let has_room = items.len() < max;
    if has_room {
        items.push(item);
    }
    has_room
}

fn fact(name: &str, text: &str, found: &mut Metadata) {
    let fact = RegistryFact {
        name: clean(name, WORD_BYTES_MAX),
        value: clean(text, FACT_BYTES_MAX),
    };
    if !fact.value.is_empty() && !keep(&mut found.registry, fact, REGISTRY_FACTS_MAX) {
        found.more = true;
    }
}

fn registry(json: &[u8], found: &mut Metadata) {
    let Ok(Value::Object(fields)) = serde_json::from_slice::<Value>(json) else {
        return;
    };
    for (name, value) in fields.into_iter().take(REGISTRY_FACTS_MAX) {
        match value {
            Value::String(text) => fact(&name, &text, found),
            Value::Array(items) => {
                let texts = items
                    .iter()
                    .take(REGISTRY_FACTS_MAX)
                    .filter_map(Value::as_str);
                fact(&name, &texts.collect::<Vec<_>>().join(", "), found);
            }
            _ => {}
        }
    }
}

#[derive(Deserialize)]
struct Packages {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
}

fn dependencies(zlib: &[u8], found: &mut Metadata) {
    let mut json = Vec::new();
    let inflated = ZlibDecoder::new(zlib).take(SECTION_BYTES_MAX as u64 + 1);
    let read = { inflated }.read_to_end(&mut json);
    if read.is_err() || json.len() > SECTION_BYTES_MAX {
        found.more = true;
        return;
    }
    let Ok(list) = serde_json::from_slice::<Packages>(&json) else {
        return;
    };
    for package in list.packages {
        let dependency = Dependency {
            name: clean(&package.name, WORD_BYTES_MAX),
            version: clean(&package.version, WORD_BYTES_MAX),
        };
        if !keep(&mut found.dependencies, dependency, DEPENDENCIES_MAX) {
            found.more = true;
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::ZlibEncoder;

    use super::*;

    fn leb(mut value: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        loop {
            let low = (value & 0x7f) as u8;
            value >>= 7;
            if value == 0 {
                bytes.push(low);
                return bytes;
            }
            bytes.push(low | 0x80);
        }
    }

    fn text(text: &[u8]) -> Vec<u8> {
        [leb(text.len()), text.to_vec()].concat()
    }

    fn custom(name: &str, data: &[u8]) -> Vec<u8> {
        let body = [text(name.as_bytes()), data.to_vec()].concat();
        [vec![0], text(&body)].concat()
    }

    fn component(sections: &[Vec<u8>]) -> Vec<u8> {
        [b"\0asm\x0d\0\x01\0".to_vec(), sections.concat()].concat()
    }

    /// A section of producers: one field with these values.
    fn producers(values: &[(&[u8], &[u8])]) -> Vec<u8> {
        let values_read: Vec<u8> = values
            .iter()
            .flat_map(|(name, version)| [text(name), text(version)].concat())
            .collect();
        let data = [leb(1), text(b"sdk"), leb(values.len()), values_read].concat();
        custom("producers", &data)
    }

    fn zlib(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn producers_facts_and_dependencies_are_read() {
        let json = br#"{"packages":[{"name":"serde","version":"1.0.1","source":"crates.io"},{"name":"me","version":"0.1.0","root":true}]}"#;
        let found = metadata(&component(&[
            producers(&[(b"Rust", b"1.95.0")]),
            custom("licenses", b"MIT"),
            custom(
                REGISTRY,
                br#"{"description":"shouts","categories":["text","loud"],"links":{"x":1}}"#,
            ),
            custom(DEPENDENCIES, &zlib(json)),
        ]));
        let producer = &found.producers[0];
        assert_eq!(
            (
                producer.field.as_str(),
                producer.name.as_str(),
                producer.version.as_str()
            ),
            ("sdk", "Rust", "1.95.0")
        );
        let facts: Vec<(&str, &str)> = found
            .registry
            .iter()
            .map(|fact| (fact.name.as_str(), fact.value.as_str()))
            .collect();
        assert!(facts.contains(&("licenses", "MIT")), "{facts:?}");
        assert!(facts.contains(&("description", "shouts")), "{facts:?}");
        assert!(facts.contains(&("categories", "text, loud")), "{facts:?}");
        assert_eq!(found.dependencies.len(), 2);
        assert_eq!(found.dependencies[0].name, "serde");
        assert!(!found.more);
    }

    #[test]
    fn hostile_sections_are_cut_escaped_and_left_out() {
        let many: Vec<(Vec<u8>, Vec<u8>)> = (0..5_000)
            .map(|n: usize| (n.to_string().into_bytes(), b"1".to_vec()))
            .collect();
        let many: Vec<(&[u8], &[u8])> = many
            .iter()
            .map(|(a, b)| (a.as_slice(), b.as_slice()))
            .collect();
        let found = metadata(&component(&[producers(&many)]));
        assert_eq!((found.producers.len(), found.more), (PRODUCERS_MAX, true));

        let name = b"\x1b[2J<script>alert(1)</script>\n\xe2\x80\xae".to_vec();
        let long = vec![b'n'; 100_000];
        let found = metadata(&component(&[producers(&[(&name, b"\r\n"), (&long, b"1")])]));
        for producer in &found.producers {
            assert!(
                producer.name.len() <= 4 * WORD_BYTES_MAX,
                "{}",
                producer.name.len()
            );
            assert!(
                !producer.name.contains(char::is_control),
                "{:?}",
                producer.name
            );
            assert!(
                !producer.version.contains(char::is_control),
                "{:?}",
                producer.version
            );
            assert!(!producer.name.contains('\u{202e}'), "{:?}", producer.name);
        }
        let not_text = metadata(&component(&[
            producers(&[(b"\xff\xfe", b"1")]),
            custom("licenses", b"\xff"),
        ]));
        assert_eq!(not_text, Metadata::default());

        // A megabyte of JSON that comes from a kilobyte is read; a hundred are not.
        let bomb = zlib(&vec![b' '; 100 << 20]);
        assert!(bomb.len() < 200 << 10);
        let found = metadata(&component(&[
            custom(DEPENDENCIES, &bomb),
            producers(&[(b"a", b"1")]),
        ]));
        assert_eq!(
            (found.dependencies.len(), found.producers.len(), found.more),
            (0, 1, true)
        );

        let huge = metadata(&component(&[custom(
            "description",
            &vec![b'x'; SECTION_BYTES_MAX + 1],
        )]));
        assert_eq!(huge, Metadata::default());
        let sections = vec![custom("x", b""); SECTIONS_MAX + 1];
        assert!(metadata(&component(&sections)).more);
        for garbage in [
            &b""[..],
            b"\0asm",
            b"\0asm\x0d\0\x01\0\0\xff\xff\xff\xff\x0f",
        ] {
            assert_eq!(metadata(garbage), Metadata::default());
        }
    }
}
