//! What the binary carries for developers: templates, SDKs, the contract, the adapter. A language or kind is offered if it has a folder
//! in `guests/templates`.

use millrace_component::Contract;

/// Name and bytes of every file, by name.
type File = (&'static str, &'static [u8]);

const FILES: &[File] = include!(concat!(env!("OUT_DIR"), "/carried.rs"));

/// Where templates are.
const TEMPLATES: &str = "templates/";
/// The adapter for WASI preview 1.
const ADAPTER: &str = "adapter/preview1.wat";
/// The contract.
const CONTRACT: &str = "wit/";

/// The files below a folder, with their paths inside it.
pub(super) fn below(folder: &str) -> impl Iterator<Item = File> {
    FILES.iter().filter_map(move |(name, bytes)| {
        let inside = name.strip_prefix(folder)?.strip_prefix('/')?;
        Some((inside, *bytes))
    })
}

/// A file's bytes.
pub(super) fn file(name: &str) -> Option<&'static [u8]> {
    let found = FILES.iter().find(|(known, _)| *known == name);
    found.map(|(_, bytes)| *bytes)
}

/// A file's text; empty if it is missing or no text.
fn text(name: &str) -> &'static str {
    let bytes = file(name).unwrap_or_default();
    str::from_utf8(bytes).unwrap_or_default()
}

/// The adapter for WASI preview 1, as text.
pub(super) fn adapter() -> &'static str {
    text(ADAPTER)
}

/// Each file of the contract: its name and its text. Packages that it depends on are in folders below `deps`.
pub(super) fn contract_files() -> Vec<(&'static str, &'static str)> {
    let names = FILES.iter().filter_map(|(name, _)| {
        let inside = name.strip_prefix(CONTRACT)?;
        Some((inside, text(name)))
    });
    names.collect()
}

/// Our own package of the contract.
pub(super) fn own_package() -> Vec<(&'static str, &'static str)> {
    let mut files = contract_files();
    files.retain(|(name, _)| !name.contains('/'));
    files
}

/// The contract in the form for making components.
pub(super) fn with_contract<T>(work: impl FnOnce(Contract<'_>) -> T) -> T {
    let files = own_package();
    work(Contract { files: &files })
}

/// The languages that have templates.
pub(super) fn languages() -> Vec<&'static str> {
    folders(TEMPLATES.trim_end_matches('/'))
}

/// The kinds of a language.
pub(super) fn kinds(language: &str) -> Vec<&'static str> {
    let mut kinds = folders(&format!("{TEMPLATES}{language}"));
    kinds.retain(|kind| *kind != COMMON);
    kinds
}

/// The folder for files of every kind.
pub(super) const COMMON: &str = "common";

/// The folders directly in a folder.
fn folders(folder: &str) -> Vec<&'static str> {
    let mut names: Vec<&str> = below(folder)
        .filter_map(|(inside, _)| inside.split_once('/'))
        .map(|(name, _)| name)
        .collect();
    names.dedup();
    names
}

/// The folder of a language's templates.
pub(super) fn templates_of(language: &str) -> String {
    format!("{TEMPLATES}{language}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contract_the_adapter_and_the_rust_templates_are_on_board() {
        assert!(adapter().contains("(module"));
        let names: Vec<&str> = own_package().iter().map(|(name, _)| *name).collect();
        assert!(names.contains(&"types.wit"), "{names:?}");
        assert!(with_contract(|contract| contract
            .version()
            .starts_with("0.1.")));
        assert!(languages().contains(&"rust"), "{:?}", languages());
        assert_eq!(kinds("rust"), ["error-handler", "partitioner", "processor"]);
        assert!(file("sdk/src/lib.rs").is_some());
        assert!(kinds("cobol").is_empty());
    }
}
