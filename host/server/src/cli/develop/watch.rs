//! Notices saved files by their times of modification and their lengths.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How often files are looked at.
pub(super) const INTERVAL: Duration = Duration::from_millis(300);
/// Files that are watched; further ones are not.
const FILES_MAX: usize = 20_000;
/// Folders of build products and tools.
const SKIPPED: [&str; 6] = [
    "build",
    "target",
    "node_modules",
    "__pycache__",
    "dist",
    "venv",
];

/// The files of a project at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen(BTreeMap<PathBuf, (Option<SystemTime>, u64)>);

impl Seen {
    /// The files as they are now.
    pub(super) fn now(dir: &Path) -> Self {
        let mut seen = Self::default();
        seen.add(dir);
        seen
    }

    fn add(&mut self, dir: &Path) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with('.') || name.ends_with('~') || self.0.len() >= FILES_MAX {
                continue;
            }
            // A link is not followed: it may lead in a circle.
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && !SKIPPED.contains(&&*name) => self.add(&entry.path()),
                Ok(kind) if kind.is_file() => {
                    if let Ok(about) = entry.metadata() {
                        let state = (about.modified().ok(), about.len());
                        self.0.insert(entry.path(), state);
                    }
                }
                _ => {}
            }
        }
    }

    /// A file that is new, gone or different since `before`.
    pub(super) fn changed_since<'a>(&'a self, before: &'a Self) -> Option<&'a Path> {
        let is_other = |(path, state): &(&PathBuf, &_)| before.0.get(*path) != Some(*state);
        let changed = self.0.iter().find(is_other).map(|(path, _)| path);
        let gone = || before.0.keys().find(|path| !self.0.contains_key(*path));
        changed.or_else(gone).map(PathBuf::as_path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saved_new_and_removed_files_are_noticed_and_build_products_are_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().expect("inside")).expect("made");
            std::fs::write(path, text).expect("written");
        };
        write("src/a.rs", "one");
        let first = Seen::now(dir.path());
        write("build/out.wasm", "x");
        write("target/x", "x");
        write(".git/x", "x");
        assert_eq!(Seen::now(dir.path()).changed_since(&first), None);
        write("src/a.rs", "longer");
        let second = Seen::now(dir.path());
        let changed = second.changed_since(&first).expect("changed");
        assert!(changed.ends_with("src/a.rs"));
        std::fs::remove_file(dir.path().join("src/a.rs")).expect("removed");
        assert!(Seen::now(dir.path()).changed_since(&second).is_some());
    }
}
