//! The source tree, for tests that read it.

use std::fs;
use std::path::{Path, PathBuf};

/// A file written by people.
pub struct Source {
    /// The path from the repository's root, with forward slashes.
    pub path: String,
    /// The content.
    pub text: String,
}

/// The root of the repository.
#[must_use]
pub fn repository() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("tests is in it").to_path_buf()
}

/// Every file written by people, of the kinds that have rules.
///
/// # Panics
/// If the tree cannot be read.
#[must_use]
pub fn sources() -> Vec<Source> {
    let root = repository();
    let mut sources = Vec::new();
    let mut directories = vec![root.clone()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("a readable directory") {
            let path = entry.expect("a readable entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            // The advisories there are others' texts.
            let copied = path.ends_with("tests/advisories/database");
            if path.is_dir() && !name.starts_with('.') && name != "target" && !copied {
                directories.push(path);
            } else if [".rs", ".md", ".toml", ".wit"]
                .iter()
                .any(|end| name.ends_with(end))
            {
                let inside = path.strip_prefix(&root).expect("found inside");
                sources.push(Source {
                    path: inside.to_string_lossy().replace('\\', "/"),
                    text: fs::read_to_string(&path).expect("text"),
                });
            }
        }
    }
    sources.sort_by(|one, other| one.path.cmp(&other.path));
    sources
}
