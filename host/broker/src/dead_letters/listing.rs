//! Lists dead letters page by page, or counts them in groups. One answer is bounded in dead letters, in bytes, and in what it reads; a
//! place says where to continue.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use millrace_model::bounds::{
    DEAD_LETTER_GROUPS_MAX, DEAD_LETTER_GROUPS_MS_MAX, DEAD_LETTERS_LISTED_BYTES_MAX,
    DEAD_LETTERS_LISTED_MAX, DEAD_LETTERS_SCANNED_BYTES_MAX,
};
use millrace_model::{Offset, ProcessorName, Timestamp};
use serde::Serialize;

use crate::dead_letters::filter::DeadLetterFilter;
use crate::dead_letters::handle::DeadLetters;
use crate::dead_letters::letters::{DeadLetter, DeadLetterError};
use crate::dead_letters::shelf::Shelf;
use crate::ground::verbs::Verb;
use crate::messages::place::MessagePlace;

/// Which dead letters to list.
#[derive(Clone, Debug, Default)]
pub struct DeadLetterQuery {
    /// The filter.
    pub filter: DeadLetterFilter,
    /// Where to start; `None` is the first one.
    pub from: Option<MessagePlace>,
    /// Maximum number; 0 means the bound.
    pub letters_max: usize,
}

/// A page of dead letters.
#[derive(Clone, Debug, Default)]
pub struct DeadLetterPage {
    /// Oldest first within each partition.
    pub letters: Vec<DeadLetter>,
    /// Where to continue; `None` at the end. There may be more even if none was found so far.
    pub next: Option<MessagePlace>,
}

/// Dead letters with the same class, cause and revision.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeadLetterGroup {
    /// Their class.
    pub class: String,
    /// How they failed.
    pub cause: String,
    /// The revision that failed.
    pub revision: u32,
    /// Their number.
    pub count: u64,
    /// When the first of them was given up, in milliseconds since the Unix epoch.
    pub first_died_at: Timestamp,
    /// When the last of them was given up.
    pub last_died_at: Timestamp,
    /// The place of one of them.
    pub sample: MessagePlace,
    /// The reason given for that one.
    pub sample_reason: String,
}

/// Dead letters by group.
#[derive(Clone, Debug, Default, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeadLetterGroups {
    /// The largest first.
    pub groups: Vec<DeadLetterGroup>,
    /// How many dead letters matched.
    pub count: u64,
    /// How many of them are in none of these groups, because there are more groups than the maximum.
    pub others: u64,
    /// Where to continue counting, as `from`, if time ran out; the counts add up.
    pub next: Option<MessagePlace>,
}

impl DeadLetters {
    /// Dead letters of a processor, oldest first within each partition.
    ///
    /// # Errors
    /// [`DeadLetterError`].
    pub async fn dead_letters(
        &self,
        name: &ProcessorName,
        query: DeadLetterQuery,
    ) -> Result<DeadLetterPage, DeadLetterError> {
        self.caller.may(Verb::ReadDeadLetters, name.as_str())?;
        let max = match query.letters_max {
            0 => DEAD_LETTERS_LISTED_MAX,
            max => max.min(DEAD_LETTERS_LISTED_MAX),
        };
        let mut walk = self.walk(name, query.from.as_ref())?;
        let mut page = DeadLetterPage::default();
        let (mut bytes, mut scanned) = (0, 0);
        while let Some((_, letters)) = self.advance(&mut walk).await? {
            for letter in letters {
                scanned += letter.message.byte_count();
                if !query.filter.fits(&letter) {
                    continue;
                }
                bytes += letter.message.byte_count();
                let after = letter.place().after();
                page.letters.push(letter);
                if page.letters.len() == max || bytes >= DEAD_LETTERS_LISTED_BYTES_MAX {
                    page.next = walk.is_more_from(&after).then_some(after);
                    return Ok(page);
                }
            }
            if scanned >= DEAD_LETTERS_SCANNED_BYTES_MAX {
                page.next = walk.next_place();
                return Ok(page);
            }
        }
        Ok(page)
    }

    /// Counts dead letters by class, cause and revision, from a place on, in at most `groups_max` groups. It stops after
    /// [`DEAD_LETTER_GROUPS_MS_MAX`] and says where to continue.
    ///
    /// # Errors
    /// [`DeadLetterError`].
    pub async fn dead_letter_groups(
        &self,
        name: &ProcessorName,
        filter: &DeadLetterFilter,
        from: Option<&MessagePlace>,
        groups_max: usize,
    ) -> Result<DeadLetterGroups, DeadLetterError> {
        self.caller.may(Verb::ReadDeadLetters, name.as_str())?;
        let clock = &self.inner.clock;
        let over = clock.monotonic() + Duration::from_millis(DEAD_LETTER_GROUPS_MS_MAX);
        let mut walk = self.walk(name, from)?;
        let mut by_kind: BTreeMap<_, DeadLetterGroup> = BTreeMap::new();
        let mut all = DeadLetterGroups::default();
        while let Some((_, letters)) = self.advance(&mut walk).await? {
            for letter in letters.into_iter().filter(|letter| filter.fits(letter)) {
                all.count += 1;
                let kind = (letter.class.clone(), letter.cause.clone(), letter.revision);
                if let Some(group) = by_kind.get_mut(&kind) {
                    group.add(&letter);
                } else if by_kind.len() < DEAD_LETTER_GROUPS_MAX {
                    by_kind.insert(kind, DeadLetterGroup::of(letter));
                } else {
                    all.others += 1;
                }
            }
            if clock.monotonic() >= over {
                all.next = walk.next_place();
                break;
            }
        }
        all.groups = by_kind.into_values().collect();
        all.groups
            .sort_by_key(|group| std::cmp::Reverse(group.count));
        let rest = all.groups.split_off(groups_max.min(all.groups.len()));
        all.others += rest.iter().map(|group| group.count).sum::<u64>();
        Ok(all)
    }

    /// Goes through the processor's dead letters from a place on.
    pub(super) fn walk(
        &self,
        name: &ProcessorName,
        from: Option<&MessagePlace>,
    ) -> Result<Walk, DeadLetterError> {
        let mut shelves = self.shelves(name)?;
        if let Some(from) = from {
            shelves.retain(|shelf| {
                let topic = &shelf.topic.spec.name;
                (topic, shelf.partition.partition) >= (&from.topic, from.partition)
            });
        }
        Ok(Walk {
            shelves: shelves.into_iter(),
            from: from.cloned(),
            on: None,
        })
    }

    /// The next dead letters; `None` at the end. Those added after the partition was opened are not seen.
    pub(super) async fn advance(
        &self,
        walk: &mut Walk,
    ) -> Result<Option<(Arc<Shelf>, Vec<DeadLetter>)>, DeadLetterError> {
        loop {
            let Some((shelf, at, end)) = walk.on.clone().filter(|(_, at, end)| at < end) else {
                let Some(shelf) = walk.shelves.next() else {
                    walk.on = None;
                    return Ok(None);
                };
                let ends = self.ends_of(&shelf)?;
                let start = walk
                    .from
                    .as_ref()
                    .filter(|from| shelf.place(from.offset) == **from);
                let start = start.map_or(ends.start, |from| from.offset.max(ends.start));
                walk.on = Some((Arc::new(shelf), start, ends.end));
                continue;
            };
            let (mut letters, next) = self.letters(&shelf, at).await?;
            letters.retain(|letter| letter.offset < end);
            // No messages before the end: a trim is under way.
            let next = if next == at { end } else { next.min(end) };
            walk.on = Some((Arc::clone(&shelf), next, end));
            return Ok(Some((shelf, letters)));
        }
    }
}

/// A walk through the dead letters of a processor, partition by partition.
pub(super) struct Walk {
    shelves: std::vec::IntoIter<Shelf>,
    from: Option<MessagePlace>,
    /// The shelf, where to continue, and its end when the walk reached it.
    on: Option<(Arc<Shelf>, Offset, Offset)>,
}

impl Walk {
    /// Where it continues; `None` at the end.
    pub(super) fn next_place(&self) -> Option<MessagePlace> {
        let here = self.on.as_ref().filter(|(_, at, end)| at < end);
        let here = here.map(|(shelf, at, _)| shelf.place(*at));
        let there = || Some(self.shelves.as_slice().first()?.place(Offset(0)));
        here.or_else(there)
    }

    /// Whether anything is left on the way.
    pub(super) fn is_more_from(&self, place: &MessagePlace) -> bool {
        let here = self.on.as_ref();
        here.is_some_and(|(_, _, end)| place.offset < *end) || self.next_place().is_some()
    }
}

impl DeadLetterGroup {
    fn of(letter: DeadLetter) -> Self {
        Self {
            sample: letter.place(),
            class: letter.class,
            cause: letter.cause,
            revision: letter.revision,
            count: 1,
            first_died_at: letter.died_at,
            last_died_at: letter.died_at,
            sample_reason: letter.reason,
        }
    }

    fn add(&mut self, letter: &DeadLetter) {
        self.count += 1;
        self.first_died_at = self.first_died_at.min(letter.died_at);
        self.last_died_at = self.last_died_at.max(letter.died_at);
    }
}
