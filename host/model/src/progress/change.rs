//! A commit's changes to progress: its size depends on what changes, not on how much is parked.

use super::{Parked, Progress, Reader};
use crate::bounds::PARKED_MESSAGES_MAX;
use crate::offset::Offset;

/// Changes to a [`Progress`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgressChange {
    /// The new progress, but only with those parked messages that are new or changed; ascending by offset.
    pub to: Progress,
    /// Messages that are no longer parked, ascending. Naming one that was not parked is no error.
    pub unparked: Vec<Offset>,
    /// Whether only the parked messages in `to` remain.
    pub is_whole: bool,
}

/// `is_whole`, the number of unparked messages, these, and `to` in its own encoding.
const WHOLE: u8 = 1;

impl From<Progress> for ProgressChange {
    /// Replaces whatever there was before.
    fn from(to: Progress) -> Self {
        Self {
            to,
            unparked: Vec::new(),
            is_whole: true,
        }
    }
}

impl ProgressChange {
    /// As stored.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.encoded_bytes());
        out.push(if self.is_whole { WHOLE } else { 0 });
        out.extend((self.unparked.len() as u32).to_le_bytes());
        out.extend(self.unparked.iter().flat_map(|at| at.0.to_le_bytes()));
        out.extend(self.to.encode());
        out
    }

    /// Its encoded size.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        5 + 8 * self.unparked.len() + self.to.encoded_bytes()
    }

    /// Reads what [`ProgressChange::encode`] wrote; `None` for anything else.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = Reader(bytes);
        let [flags] = rest.take()?;
        let count = rest.u32()? as usize;
        if flags > WHOLE || count > PARKED_MESSAGES_MAX {
            return None;
        }
        let unparked = (0..count).map(|_| rest.u64().map(Offset));
        let unparked = unparked.collect::<Option<_>>()?;
        Some(Self {
            to: Progress::decode(rest.0)?,
            unparked,
            is_whole: flags == WHOLE,
        })
    }
}

impl Progress {
    /// The change from this to `to`.
    #[must_use]
    pub fn change_to(&self, to: &Self) -> ProgressChange {
        let mut change = ProgressChange {
            to: Self {
                next: to.next,
                revision: to.revision,
                parked: Vec::new(),
                first_call: to.first_call,
                given_up: to.given_up,
            },
            ..ProgressChange::default()
        };
        let mut before = self.parked.iter().peekable();
        for parked in &to.parked {
            while let Some(gone) = before.next_if(|was| was.offset < parked.offset) {
                change.unparked.push(gone.offset);
            }
            let was = before.next_if(|was| was.offset == parked.offset);
            if was != Some(parked) {
                change.to.parked.push(parked.clone());
            }
        }
        change.unparked.extend(before.map(|gone| gone.offset));
        change
    }

    /// Applies the change.
    pub fn change(&mut self, change: ProgressChange) {
        let ProgressChange {
            mut to,
            unparked,
            is_whole,
        } = change;
        if !is_whole {
            let mut stays = std::mem::take(&mut self.parked);
            if !unparked.is_empty() {
                stays.retain(|parked| unparked.binary_search(&parked.offset).is_err());
            }
            to.parked = merged(stays, to.parked);
        }
        *self = to;
    }
}

/// Both, ascending by offset; if a message is in both, the newer entry.
fn merged(older: Vec<Parked>, newer: Vec<Parked>) -> Vec<Parked> {
    if newer.is_empty() {
        return older;
    }
    let mut all = Vec::with_capacity(older.len() + newer.len());
    let mut older = older.into_iter().peekable();
    for parked in newer {
        while let Some(before) = older.next_if(|before| before.offset < parked.offset) {
            all.push(before);
        }
        older.next_if(|before| before.offset == parked.offset);
        all.push(parked);
    }
    all.extend(older);
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::any_parked;
    use super::*;

    fn any_progress() -> impl Strategy<Value = Progress> {
        let parked = proptest::collection::vec(any_parked(), 0..6);
        (0_u64..9, any::<u32>(), parked).prop_map(|(next, revision, mut parked)| {
            // Few offsets, so that two progresses share some.
            for one in &mut parked {
                one.offset = Offset(one.offset.0 % 8);
            }
            parked.sort_by_key(|one| one.offset);
            parked.dedup_by_key(|one| one.offset);
            Progress {
                next: Offset(next),
                revision,
                parked,
                ..Progress::default()
            }
        })
    }

    proptest! {
        #[test]
        fn the_change_from_one_progress_to_another_makes_the_other(from in any_progress(), to in any_progress()) {
            let change = from.change_to(&to);
            let mut changed = from.clone();
            changed.change(change.clone());
            prop_assert_eq!(&changed, &to);
            // Done again, as a replay may, it changes nothing more.
            changed.change(change);
            prop_assert_eq!(&changed, &to);
            let mut replaced = from;
            replaced.change(to.clone().into());
            prop_assert_eq!(replaced, to);
        }

        #[test]
        fn what_stays_parked_is_not_in_the_change(progress in any_progress(), next: u64) {
            let moved = Progress { next: Offset(next), ..progress.clone() };
            let change = progress.change_to(&moved);
            prop_assert!(change.to.parked.is_empty() && change.unparked.is_empty());
        }

        #[test]
        fn a_change_reads_back_as_written(from in any_progress(), to in any_progress()) {
            for change in [from.change_to(&to), to.into()] {
                prop_assert_eq!(change.encode().len(), change.encoded_bytes());
                prop_assert_eq!(ProgressChange::decode(&change.encode()), Some(change));
            }
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let _ = ProgressChange::decode(&bytes);
        }
    }
}
