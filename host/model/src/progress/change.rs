//! What a commit changes of progress: it costs what it changes, however much is parked.

use super::{Parked, Progress, Reader};
use crate::bounds::PARKED_MESSAGES_MAX;
use crate::offset::Offset;

/// What becomes of a [`Progress`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgressChange {
    /// The new progress, but of the parked messages only those that were not parked before, or otherwise; ascending by offset.
    pub to: Progress,
    /// Messages that are parked no longer, ascending. One that was not parked is no error.
    pub unparked: Vec<Offset>,
    /// Whether nothing stays parked but what `to` has.
    pub is_whole: bool,
}

/// `is_whole`, then how many are unparked, these, and `to` as it is encoded alone.
const WHOLE: u8 = 1;

impl From<Progress> for ProgressChange {
    /// Whatever there was before.
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

    /// Bytes of it as stored.
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
    /// What makes `to` of this.
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

    /// Makes of this what the change says.
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

/// Both, ascending by offset; of one that is in both the newer.
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
