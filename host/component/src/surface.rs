//! What a module or component shows to the outside: its imports and exports.

use wasmparser::{Encoding, Parser, Payload};

use crate::strip::NotWasm;

/// The imports and exports of a module or component.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surface {
    /// Whether it is a component; otherwise it is a core module.
    pub is_component: bool,
    /// Of a component the names; of a core module `module` and `name` of each import.
    pub imports: Vec<(String, String)>,
    /// The names of its exports.
    pub exports: Vec<String>,
    /// Whether a core module says itself which world it is for.
    pub has_world: bool,
    /// The names of its custom sections.
    pub custom: Vec<String>,
}

/// Reads the outer imports and exports.
///
/// # Errors
/// [`NotWasm`] if it is not WebAssembly.
pub fn surface(bytes: &[u8]) -> Result<Surface, NotWasm> {
    let mut surface = Surface::default();
    let mut open: Vec<Encoding> = Vec::new();
    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload.map_err(NotWasm::new)?;
        let is_outer = open.len() == 1;
        match payload {
            Payload::Version { encoding, .. } => {
                if open.is_empty() {
                    surface.is_component = encoding == Encoding::Component;
                }
                open.push(encoding);
            }
            Payload::End(_) => {
                open.pop();
            }
            Payload::ImportSection(section) if is_outer => {
                for import in section.into_imports() {
                    let import = import.map_err(NotWasm::new)?;
                    let (module, name) = (import.module.to_owned(), import.name.to_owned());
                    surface.imports.push((module, name));
                }
            }
            Payload::ExportSection(section) if is_outer => {
                for export in section {
                    let export = export.map_err(NotWasm::new)?;
                    surface.exports.push(export.name.to_owned());
                }
            }
            Payload::ComponentImportSection(section) if is_outer => {
                for import in section {
                    let import = import.map_err(NotWasm::new)?;
                    let name = import.name.name.to_owned();
                    surface.imports.push((name, String::new()));
                }
            }
            Payload::ComponentExportSection(section) if is_outer => {
                for export in section {
                    let export = export.map_err(NotWasm::new)?;
                    surface.exports.push(export.name.name.to_owned());
                }
            }
            Payload::CustomSection(section) if is_outer => {
                surface.has_world |= section.name().starts_with("component-type");
                surface.custom.push(section.name().to_owned());
            }
            _ => {}
        }
    }
    Ok(surface)
}
