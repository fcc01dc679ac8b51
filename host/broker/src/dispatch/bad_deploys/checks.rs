//! What the page promises, checked of each step of a [`World`].

use super::*;

impl World {
    /// A revision that fails at everything alike is stopped.
    pub(super) fn watch_row(
        &mut self,
        part: usize,
        batch: &Batch,
        verdict: &Verdict,
        live: &Live,
        probes: bool,
    ) {
        let back = live.back.as_ref().map(|back| back.revision);
        // As the page says, whatever the rules make of it.
        let is_news = |failed: &Failed| {
            let before = parked_before(batch, &self.parts[part].progress, failed.message);
            let log = before.map_or(&[][..], |parked| &parked.log);
            let mut last = log.iter().rev();
            let last = last.find(|a| a.revision == live.revision || Some(a.revision) == back);
            let is_settled = self.handler && failed.class == "ignore";
            failed.cause != Cause::Reject
                && !is_settled
                && last.is_none_or(|last| last.class != failed.class)
        };
        let first = verdict.failed.first().map(|failed| failed.class.clone());
        let all = verdict.failed.len() == batch.len()
            && verdict.failed.iter().all(is_news)
            && verdict
                .failed
                .iter()
                .all(|f| Some(&f.class) == first.as_ref());
        if !all || probes || self.gate.is_open() {
            self.row = Default::default();
            return;
        }
        let class = first.unwrap_or_default();
        if self.row.0 != class {
            self.row = (class, BTreeSet::new());
        }
        let new = batch.offsets.iter().map(|offset| (part, offset.0));
        self.row.1.extend(new);
        let most = number("different messages in a row");
        assert!(
            (self.row.1.len() as u64) < most,
            "{} different messages in a row failed alike, and nothing opened",
            self.row.1.len()
        );
    }

    /// What became of a batch, against what is promised.
    pub(super) fn check(
        &mut self,
        part: usize,
        batch: &Batch,
        verdict: &Verdict,
        live: &Arc<Live>,
        effects: &Effects,
        before: &Progress,
    ) {
        let current = live.revision;
        let dropped: HashSet<u64> = effects.dropped.iter().map(|(offset, _)| offset.0).collect();
        if batch.side == Side::Canary {
            assert!(
                effects.given_up.is_empty() && dropped.is_empty(),
                "a canary gave up"
            );
        }
        for (message, offset) in batch.offsets.iter().enumerate() {
            let failed = verdict
                .failed
                .iter()
                .find(|failed| failed.message == message);
            if failed.is_none() && batch.side == Side::Current {
                let now = self.now();
                let (first, count) = self.processed.entry(current).or_default();
                first.get_or_insert(now);
                *count += 1;
            }
            let after = effects.progress.parked.iter();
            let after = { after }.find(|parked| parked.offset == *offset);
            let stays = after.is_some();
            // What failed behind another of its key is as if it had not been called.
            let tries = |parked: Option<&Parked>| parked.map_or(0, |parked| parked.attempts);
            let counts =
                after.is_none() || tries(after) > tries(parked_before(batch, before, message));
            let gives_up = effects.given_up.contains(&message);
            if let Some(failed) = failed
                && failed.class != "ignore"
                && counts
            {
                *self.attempts.entry((part, offset.0, current)).or_default() += 1;
            }
            if gives_up {
                let failed = failed.expect("what is given up has failed");
                self.gave_up(
                    part,
                    offset.0,
                    failed,
                    live,
                    parked_before(batch, before, message).is_some(),
                );
            }
            if stays {
                continue;
            }
            let part = &mut self.parts[part];
            assert!(part.ended.insert(offset.0), "{} ended twice", offset.0);
            let last = part.settled.insert(offset.0 % KEYS, offset.0);
            assert!(
                last.is_none_or(|last| last < offset.0),
                "{} overtook {last:?}",
                offset.0
            );
        }
    }

    pub(super) fn gave_up(
        &mut self,
        part: usize,
        offset: u64,
        failed: &Failed,
        live: &Arc<Live>,
        retried: bool,
    ) {
        let number_of = live.revision;
        let own = self.attempts[&(part, offset, number_of)];
        let all: u32 = self
            .attempts
            .iter()
            .filter(|((p, o, _), _)| (*p, *o) == (part, offset))
            .map(|(_, count)| count)
            .sum();
        if failed.cause != Cause::Reject {
            let most = number("attempts of one revision") as u32;
            assert!(
                own >= most,
                "given up after {own} attempts of revision {number_of}"
            );
        }
        let is_good = self.parts[part].messages[offset as usize] == Kind::Good;
        let is_usual = self.is_usual(number_of, &failed.class);
        if failed.cause == Cause::Reject {
            let classes = self.rejected.entry(number_of).or_default();
            classes.insert(failed.class.clone());
        }
        if failed.class == "usual" && is_good && !self.is_proven(number_of) {
            self.excused += 1;
            assert!(
                self.excused < 12,
                "ever more is rejected as if it were usual"
            );
        }
        if self.is_proven(number_of) || live.back.is_none() || is_usual {
            return;
        }
        assert!(
            !retried || own > 1 || own == all,
            "the first failure of revision {number_of} was the last"
        );
        self.given_up += 1;
        let (count, most) = (self.given_up, number("messages that revisions give up"));
        assert!(
            count <= most,
            "{count} messages were given up by revisions of which none was proven"
        );
    }

    /// As the page says, whatever the rules make of it.
    pub(super) fn is_proven(&self, number_of: u32) -> bool {
        let hour = Duration::from_secs(60 * number("or so many minutes"));
        let enough = |(first, count): &(Option<Timestamp>, u64)| {
            *count >= number("a revision is proven once")
                || first.is_some_and(|first| first.after(hour) <= self.now())
        };
        number_of == 1 || self.processed.get(&number_of).is_some_and(enough)
    }

    /// Whether a revision that is proven rejects under this class, too.
    pub(super) fn is_usual(&self, number_of: u32, class: &str) -> bool {
        let mut others = self
            .rejected
            .iter()
            .filter(|(other, _)| **other != number_of);
        class == "usual"
            || others.any(|(other, classes)| self.is_proven(*other) && classes.contains(class))
    }
}
