//! Gives imports of the contract their plain names. TeaVM, the compiler for Java, takes a name of an import once, whatever its module is,
//! so a module from it imports `state.get` of `state` and `config.get` of `config`. No function of a contract has a dot in its name.

use std::borrow::Cow;

use wasm_encoder::{EntityType, ImportSection, RawSection, Section};
use wasmparser::{Parser, Payload, TypeRef};

use crate::strip::NotWasm;

/// The core module, in which what stands before a dot in the name of an imported function is removed, if the import's module begins with
/// `package`.
pub(crate) fn plain<'a>(core: &'a [u8], package: &str) -> Result<Cow<'a, [u8]>, NotWasm> {
    let mut output = wasm_encoder::Module::HEADER.to_vec();
    let mut is_changed = false;
    for payload in Parser::new(0).parse_all(core) {
        let payload = payload.map_err(NotWasm::new)?;
        if let Payload::ImportSection(section) = &payload {
            let mut imports = ImportSection::new();
            let mut are_functions = true;
            for import in section.clone().into_imports() {
                let import = import.map_err(NotWasm::new)?;
                let TypeRef::Func(function) = import.ty else {
                    are_functions = false;
                    break;
                };
                let name = match import.name.rsplit_once('.') {
                    Some((_, name)) if import.module.starts_with(package) => name,
                    _ => import.name,
                };
                is_changed |= name != import.name;
                imports.import(import.module, name, EntityType::Function(function));
            }
            if are_functions {
                imports.append_to(&mut output);
                continue;
            }
        }
        if let Some((id, range)) = payload.as_section() {
            let data = &core[range.start as usize..range.end as usize];
            RawSection { id, data }.append_to(&mut output);
        }
    }
    Ok(match is_changed {
        true => Cow::Owned(output),
        false => Cow::Borrowed(core),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::surface;

    fn imports(text: &str) -> Vec<(String, String)> {
        let bytes = wat::parse_str(text).expect("a module");
        let plain = plain(&bytes, "our:own/").expect("WebAssembly");
        wasmparser::validate(&plain).expect("valid");
        surface(&plain).expect("WebAssembly").imports
    }

    fn import(module: &str, name: &str) -> (String, String) {
        (module.to_owned(), name.to_owned())
    }

    #[test]
    fn what_stands_before_a_dot_is_removed_from_imports_of_the_package_only() {
        let text = r#"(module
            (import "our:own/state" "state.get" (func (param i32)))
            (import "our:own/log" "log" (func (param i64)))
            (import "env" "a.b" (func))
            (memory 1)
            (data (i32.const 0) "text")
            (func (export "run") (call 2)))"#;
        let found = [
            import("our:own/state", "get"),
            import("our:own/log", "log"),
            import("env", "a.b"),
        ];
        assert_eq!(imports(text), found);
    }

    #[test]
    fn a_module_that_imports_its_memory_stays_as_it_is() {
        let text = r#"(module (import "our:own/x" "x.memory" (memory 1)))"#;
        assert_eq!(imports(text), [import("our:own/x", "x.memory")]);
    }
}
