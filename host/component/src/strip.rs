//! Removes custom sections that nobody needs at run time, in a component and in all modules in it. Names of functions stay: the host
//! shows them in the backtrace of a trap.

use wasm_encoder::{ComponentSectionId, Encode, RawSection, Section};
use wasmparser::{Encoding, Parser, Payload};

/// Custom sections that stay: names, and what says where a component comes from.
const KEPT: [&str; 10] = [
    "name",
    "component-name",
    "producers",
    "authors",
    "description",
    "licenses",
    "source",
    "homepage",
    "revision",
    "version",
];

/// Bytes that are not WebAssembly, or damaged.
#[derive(Debug, thiserror::Error)]
#[error("this is not valid WebAssembly: {0}")]
pub struct NotWasm(String);

impl NotWasm {
    pub(crate) fn new(error: wasmparser::BinaryReaderError) -> Self {
        Self(error.to_string())
    }
}

/// The same module or component without debug information and other sections that are not needed.
///
/// # Errors
/// [`NotWasm`].
pub fn stripped(bytes: &[u8]) -> Result<Vec<u8>, NotWasm> {
    let mut output = Vec::with_capacity(bytes.len());
    // Outputs that wait for the module or component inside them.
    let mut outer: Vec<Vec<u8>> = Vec::new();
    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload.map_err(NotWasm::new)?;
        match &payload {
            Payload::Version { encoding, .. } => output.extend_from_slice(match encoding {
                Encoding::Component => &wasm_encoder::Component::HEADER,
                Encoding::Module => &wasm_encoder::Module::HEADER,
            }),
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => {
                outer.push(std::mem::take(&mut output));
                continue;
            }
            Payload::End(_) => {
                let Some(mut parent) = outer.pop() else {
                    break;
                };
                let is_component = output.starts_with(&wasm_encoder::Component::HEADER);
                parent.push(match is_component {
                    true => ComponentSectionId::Component.into(),
                    false => ComponentSectionId::CoreModule.into(),
                });
                output.as_slice().encode(&mut parent);
                output = parent;
                continue;
            }
            Payload::CustomSection(section) if !KEPT.contains(&section.name()) => continue,
            _ => {}
        }
        if let Some((id, range)) = payload.as_section() {
            let data = &bytes[range.start as usize..range.end as usize];
            RawSection { id, data }.append_to(&mut output);
        }
    }
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::surface;

    #[test]
    fn debug_information_goes_and_names_stay_at_every_depth() {
        let module = |n: u32| {
            format!(
                r#"(core module $m{n} (@custom ".debug_info" "\01\02") (@producers (processed-by "x" "1")) (func $kept_{n}))"#
            )
        };
        let text = format!(
            r#"(component {} (component {}) (@custom "linking" "\00"))"#,
            module(1),
            module(2)
        );
        let bytes = wat::parse_str(&text).expect("a component");
        let less = stripped(&bytes).expect("stripped");
        let has = |bytes: &[u8], what: &str| {
            let what = what.as_bytes();
            bytes.windows(what.len()).any(|window| window == what)
        };
        for gone in [".debug_info", "linking"] {
            assert!(has(&bytes, gone) && !has(&less, gone), "{gone}");
        }
        for kept in ["kept_1", "kept_2", "producers"] {
            assert!(has(&less, kept), "{kept}");
        }
        wasmparser::validate(&less).expect("still valid");
        assert_eq!(stripped(&less).expect("stripped"), less);
        assert!(surface(&less).expect("a component").is_component);
    }

    #[test]
    fn what_is_not_webassembly_is_refused() {
        assert!(stripped(b"text").is_err());
        assert!(stripped(b"\0asm\x01\0\0\0\x01\xff").is_err());
    }
}
