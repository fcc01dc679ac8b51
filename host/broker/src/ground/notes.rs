//! What one request asked for, noted for the audit log.

use std::sync::Arc;

use millrace_model::bounds::RESOURCE_NAME_CHARS_MAX;
use parking_lot::Mutex;

use crate::ground::verbs::Verb;

/// What a request asked for: the verb that was refused, or else the first administrative one. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notes(Arc<Mutex<Option<Note>>>);

/// A verb, and what it was about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    /// The verb.
    pub(crate) verb: Verb,
    /// The name of the thing; empty for the host, and for what has no name yet.
    pub(crate) name: String,
    /// Whether the caller may do it.
    pub(crate) is_allowed: bool,
}

impl Notes {
    pub(super) fn add(&self, verb: Verb, name: &str, is_allowed: bool) {
        if is_allowed && !verb.is_administrative() {
            return;
        }
        let mut noted = self.0.lock();
        let is_news = noted.as_ref().is_none_or(|before| {
            let is_named_now = before.name.is_empty() && before.verb == verb;
            before.is_allowed && (!is_allowed || is_named_now)
        });
        if is_news {
            *noted = Some(Note {
                verb,
                // What a path has in the place of a name can be of any length.
                name: name[..name.floor_char_boundary(RESOURCE_NAME_CHARS_MAX)].to_owned(),
                is_allowed,
            });
        }
    }

    /// What was noted; `None` if nothing was refused, and nothing administrative asked for.
    #[must_use]
    pub(crate) fn noted(&self) -> Option<Note> {
        self.0.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(asked: &[(Verb, &str, bool)]) -> Option<(Verb, String, bool)> {
        let notes = Notes::default();
        for (verb, name, is_allowed) in asked {
            notes.add(*verb, name, *is_allowed);
        }
        let note = notes.noted()?;
        Some((note.verb, note.name, note.is_allowed))
    }

    #[test]
    fn what_is_refused_counts_before_what_is_allowed_and_the_first_before_the_rest() {
        let deploys = (Verb::DeployProcessor, "p", true);
        let reads = (Verb::Read, "orders", true);
        let is_refused = (Verb::Read, "salaries", false);
        assert_eq!(noted(&[reads]), None);
        let first = Some((Verb::DeployProcessor, "p".to_owned(), true));
        assert_eq!(noted(&[deploys, reads, (Verb::Trim, "t", true)]), first);
        let refused = Some((Verb::Read, "salaries".to_owned(), false));
        assert_eq!(noted(&[deploys, is_refused]), refused);
        assert_eq!(noted(&[is_refused, deploys]), refused);
    }

    #[test]
    fn what_can_be_no_name_is_cut() {
        let long = "é".repeat(RESOURCE_NAME_CHARS_MAX);
        let (_, name, _) = noted(&[(Verb::Read, &long, false)]).unwrap();
        assert!(name.len() <= RESOURCE_NAME_CHARS_MAX && long.starts_with(&name));
    }

    #[test]
    fn a_name_that_is_known_later_counts() {
        let asked = [
            (Verb::UploadModule, "", true),
            (Verb::UploadModule, "double", true),
        ];
        let named = Some((Verb::UploadModule, "double".to_owned(), true));
        assert_eq!(noted(&asked), named);
    }
}
