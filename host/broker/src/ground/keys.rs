//! Callers that may touch only some keys: what they may do at all, and with which keys. Both are decided here, without state.

use std::fmt;
use std::sync::Arc;

use crate::ground::verbs::Verb;

/// The keys that a caller may touch: one, or all that begin alike.
#[derive(Clone, PartialEq, Eq)]
pub enum KeyPattern {
    /// This key.
    One(Arc<[u8]>),
    /// All keys that begin so.
    Beginning(Arc<[u8]>),
}

impl KeyPattern {
    /// Whether it covers this key.
    #[must_use]
    pub fn covers(&self, key: &[u8]) -> bool {
        match self {
            Self::One(one) => **one == *key,
            Self::Beginning(beginning) => key.starts_with(beginning),
        }
    }

    /// What the keys that it covers have in common with those that begin so; `None` if there are no such keys.
    pub(crate) fn within(&self, prefix: &[u8]) -> Option<Self> {
        match self {
            Self::Beginning(beginning) if prefix.starts_with(beginning) => {
                Some(Self::Beginning(prefix.into()))
            }
            Self::One(text) | Self::Beginning(text) => {
                text.starts_with(prefix).then(|| self.clone())
            }
        }
    }

    /// How the keys that it covers begin.
    pub(crate) fn beginning(&self) -> &[u8] {
        match self {
            Self::One(text) | Self::Beginning(text) => text,
        }
    }
}

/// As it is written in settings.
impl fmt::Display for KeyPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = String::from_utf8_lossy(self.beginning());
        match self {
            Self::One(_) => f.write_str(&text),
            Self::Beginning(_) => write!(f, "{text}*"),
        }
    }
}

impl fmt::Debug for KeyPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

/// Whether a caller may touch what has this key. What has no key is nobody's: only who may touch all keys may touch it.
#[must_use]
pub fn may_touch(keys: Option<&[KeyPattern]>, key: Option<&[u8]>) -> bool {
    match (keys, key) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(keys), Some(key)) => keys.iter().any(|pattern| pattern.covers(key)),
    }
}

/// The patterns below a prefix, by key, and none that another covers: their keys do not overlap.
pub(crate) fn ranges(keys: &[KeyPattern], prefix: &[u8]) -> Vec<KeyPattern> {
    let mut found: Vec<KeyPattern> = keys.iter().filter_map(|key| key.within(prefix)).collect();
    // A beginning before the one key that is spelt like it: it covers that one.
    found.sort_by(|one, other| {
        let is_one = |key: &KeyPattern| matches!(key, KeyPattern::One(_));
        (one.beginning(), is_one(one)).cmp(&(other.beginning(), is_one(other)))
    });
    let mut kept: Vec<KeyPattern> = Vec::new();
    for pattern in found {
        if !kept.iter().any(|other| other.covers(pattern.beginning())) {
            kept.push(pattern);
        }
    }
    kept
}

/// Whether a caller that may touch only some keys may do this at all. It may do what shows it no content of other keys, and what asks
/// for the key; whoever adds a verb decides.
#[must_use]
pub const fn is_for_some_keys(verb: Verb) -> bool {
    match verb {
        // These ask for the key, or leave out what has another.
        Verb::Read | Verb::Produce | Verb::ReadState | Verb::WriteState => true,
        // These are about positions and names, and show no content.
        Verb::SeeTopic | Verb::SeeConsumers | Verb::SeeHost => true,
        // The component decides what its callers get; it sees the claims.
        Verb::CallRoute => true,
        // These change or remove what others have.
        Verb::KeepPositions
        | Verb::ResetConsumer
        | Verb::DeleteConsumer
        | Verb::CreateTopic
        | Verb::ChangeTopic
        | Verb::DeleteTopic
        | Verb::Trim
        | Verb::AcceptDamage
        | Verb::KeepAudit
        | Verb::CancelDelayed => false,
        // These show content: messages, texts of components, or what was measured of them.
        Verb::SeeDelayed
        | Verb::SeeProcessor
        | Verb::ReadLogs
        | Verb::SeeParked
        | Verb::ActOnParked
        | Verb::SeeTrial
        | Verb::SeeDeadLetters
        | Verb::ReadDeadLetters
        | Verb::Redrive
        | Verb::Replay
        | Verb::SeeSchedule
        | Verb::SeeRoute
        | Verb::ReadRouteLogs
        | Verb::ReadMetrics
        | Verb::ReadAudit
        | Verb::BackUp => false,
        // With these, a caller could get at what it may not by itself.
        Verb::DeployProcessor
        | Verb::DeleteProcessor
        | Verb::RollBackProcessor
        | Verb::PauseProcessor
        | Verb::EndShadow
        | Verb::SeeModule
        | Verb::UploadModule
        | Verb::ReadModule
        | Verb::TagModule
        | Verb::DeleteModule
        | Verb::SetSchedule
        | Verb::PauseSchedule
        | Verb::RunSchedule
        | Verb::DeleteSchedule
        | Verb::SetRoute
        | Verb::RollBackRoute
        | Verb::DeleteRoute
        | Verb::UseSecret
        | Verb::SeePrincipal
        | Verb::SetPrincipal
        | Verb::DeletePrincipal
        | Verb::MakeToken
        | Verb::RevokeToken
        | Verb::SetPassword
        | Verb::RemovePassword => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_key() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop::sample::select(b"ab*".as_slice()), 0..5)
    }

    fn any_pattern() -> impl Strategy<Value = KeyPattern> {
        (any_key(), any::<bool>()).prop_map(|(text, is_one)| match is_one {
            true => KeyPattern::One(text.into()),
            false => KeyPattern::Beginning(text.into()),
        })
    }

    #[test]
    fn a_star_in_a_key_is_a_character_like_any_other() {
        let one = KeyPattern::One(b"user:*"[..].into());
        assert!(one.covers(b"user:*") && !one.covers(b"user:ann"));
        let beginning = KeyPattern::Beginning(b"user:*:"[..].into());
        assert!(beginning.covers(b"user:*:1") && !beginning.covers(b"user:ann:1"));
    }

    #[test]
    fn whoever_may_touch_some_keys_cannot_give_itself_more() {
        for verb in Verb::ALL {
            let gives = verb.rights().has_any(millrace_model::Rights::of(&[
                millrace_model::Right::Administer,
                millrace_model::Right::Deploy,
            ]));
            let has_other_rights = matches!(
                verb,
                Verb::SeeTopic
                    | Verb::SeeProcessor
                    | Verb::SeeModule
                    | Verb::SeeSchedule
                    | Verb::SeeRoute
            );
            assert!(
                !gives || has_other_rights || !is_for_some_keys(*verb),
                "{verb:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_key_is_touched_by_whoever_has_a_pattern_that_spells_it(
            patterns in prop::collection::vec(any_pattern(), 0..5), key in any_key(),
        ) {
            let expected = patterns.iter().any(|pattern| match pattern {
                KeyPattern::One(one) => one.to_vec() == key,
                KeyPattern::Beginning(start) => key.len() >= start.len() && key[..start.len()] == **start,
            });
            prop_assert_eq!(may_touch(Some(&patterns), Some(&key)), expected);
            prop_assert!(may_touch(None, Some(&key)) && may_touch(None, None));
            prop_assert!(!may_touch(Some(&patterns), None));
        }

        #[test]
        fn more_patterns_never_cover_less_and_none_cover_nothing(
            patterns in prop::collection::vec(any_pattern(), 0..5), another in any_pattern(), key in any_key(),
        ) {
            let before = may_touch(Some(&patterns), Some(&key));
            let mut more = patterns;
            more.push(another);
            prop_assert!(may_touch(Some(&more), Some(&key)) || !before);
            prop_assert!(!may_touch(Some(&[]), Some(&key)));
        }

        #[test]
        fn ranges_have_each_key_below_the_prefix_once_and_in_order(
            patterns in prop::collection::vec(any_pattern(), 0..5), prefix in any_key(), key in any_key(),
        ) {
            let ranges = ranges(&patterns, &prefix);
            let covering = ranges.iter().filter(|range| range.covers(&key)).count();
            let expected = key.starts_with(&prefix) && may_touch(Some(&patterns), Some(&key));
            prop_assert_eq!(covering, usize::from(expected));
            prop_assert!(ranges.is_sorted_by(|one, next| one.beginning() < next.beginning()));
        }
    }
}
