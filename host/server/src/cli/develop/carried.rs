//! What the binary carries for developers: templates, SDKs, the contract, the adapter. A language or kind is offered if it has a folder
//! in `guests/templates`.

use millrace_component::Contract;

/// Name and bytes of every file, by name.
type File = (&'static str, &'static [u8]);

const FILES: &[File] = include!(concat!(env!("OUT_DIR"), "/carried.rs"));

/// Where templates are.
const TEMPLATES: &str = "templates/";
/// The modules of calls that adapters answer, and the files of the adapters.
const ADAPTERS: [(&str, &str); 2] = [
    ("wasi_snapshot_preview1", "adapter/preview1.wat"),
    ("teavmMath", "adapter/math.wat"),
];
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

/// The adapters: the module that each stands for, and its text.
pub(super) fn adapters() -> [(&'static str, &'static str); 2] {
    ADAPTERS.map(|(module, file)| (module, text(file)))
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
    fn the_contract_the_adapters_and_the_rust_templates_are_on_board() {
        assert!(adapters().iter().all(|(_, text)| text.contains("(module")));
        let names: Vec<&str> = own_package().iter().map(|(name, _)| *name).collect();
        assert!(names.contains(&"types.wit"), "{names:?}");
        assert!(with_contract(|contract| contract
            .version()
            .starts_with("0.1.")));
        assert!(languages().contains(&"rust"), "{:?}", languages());
        assert_eq!(
            kinds("rust"),
            ["error-handler", "http", "partitioner", "processor"]
        );
        assert!(file("sdk/src/lib.rs").is_some());
        assert!(kinds("cobol").is_empty());
    }
}
