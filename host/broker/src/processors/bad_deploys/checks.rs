//! Checks the promises of `docs/bad-deploys.md` after each step of a [`World`].

use super::*;

impl World {
    /// Checks that the breaker opens before too many different messages in a row fail alike.
    pub(super) fn watch_row(
        &mut self,
        part: usize,
        batch: &Batch,
        verdict: &Verdict,
        live: &Live,
        probes: bool,
    ) {
        let back = live.back.as_ref().map(|back| back.revision);
        // Judged as the page says, independently of the rules under test.
        let is_news = |failed: &Failed| {
            let before = parked_before(batch, &self.parts[part].progress, failed.message);
            let log = before.map_or(&[][..], |parked| &parked.log);
            let mut last = log.iter().rev();
            let last = last.find(|a| a.revision == live.revision || Some(a.revision) == back);
            let is_settled = self.handler != Patience::None && failed.class == "ignore";
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

    /// Checks a settled batch against the promises.
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
        let mut unexplained = 0;
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
            let after = effects.progress.parked.iter();
            let after = { after }.find(|parked| parked.offset == *offset);
            let stays = after.is_some();
            // A failure behind another message with the same key does not count: it is called
            // again.
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
                let parked = parked_before(batch, before, message);
                unexplained += u32::from(!self.gave_up(part, offset.0, failed, live, parked));
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
        if batch.side == Side::Current {
            self.processed(current, effects.counts.ok);
        }
        assert!(
            unexplained <= effects.given_up_unproven,
            "{unexplained} messages were given up, and {} counted",
            effects.given_up_unproven
        );
        self.given_up += u64::from(effects.given_up_unproven);
        let (count, most) = (
            self.given_up,
            number("messages that unproven revisions may give up"),
        );
        assert!(
            count <= most,
            "{count} messages were given up by revisions of which none was proven"
        );
    }

    /// Checks a message that was given up; returns whether the revision is not to blame.
    pub(super) fn gave_up(
        &mut self,
        part: usize,
        offset: u64,
        failed: &Failed,
        live: &Arc<Live>,
        before: Option<&Parked>,
    ) -> bool {
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
        if self.proven.contains(&number_of) || live.back.is_none() {
            return true;
        }
        let log = before.map_or(&[][..], |parked| &parked.log);
        let mut by_back = log.iter().rev();
        let back = live.back.as_ref().map(|back| back.revision);
        let by_back = by_back.find(|attempt| Some(attempt.revision) == back);
        if by_back.is_some_and(|attempt| attempt.class == failed.class) {
            return true;
        }
        let hour = Duration::from_secs(60 * number("or minutes after"));
        let since = before.and_then(|parked| parked.held_since);
        if since.is_some_and(|since| since.after(hour) <= self.now()) {
            return true;
        }
        let is_good = self.parts[part].messages[offset as usize] == Kind::Good;
        if failed.class == "usual" {
            self.excused += u64::from(is_good);
            assert!(
                self.excused < 30,
                "ever more is rejected as if it were usual"
            );
            return true;
        }
        let mut proven = self.proven.iter();
        let rejects = |of: &u32| matches!(self.natures[of], Nature::Fails(Cause::Reject, _));
        if failed.class == "new" && proven.any(rejects) {
            // The class became usual under a proven revision that rejected at any share.
            return true;
        }
        assert!(
            before.is_none() || own > 1 || own == all,
            "the first failure of revision {number_of} was the last"
        );
        false
    }

    /// Records that a revision processed this many messages and committed them.
    fn processed(&mut self, revision: u32, messages: u64) {
        if messages == 0 || self.live.revision != revision || self.gate.is_open() {
            return;
        }
        let now = self.now();
        self.worked.insert(revision);
        let (first, count) = self.processed.entry(revision).or_default();
        let first = *first.get_or_insert(now);
        *count += messages;
        let hour = Duration::from_secs(60 * number("or minutes after"));
        let in_time = first.after(hour) <= now && *count >= number("with at least this many");
        if in_time || *count >= number("processed messages after which") {
            self.proven.insert(revision);
            self.proven_anew.insert(revision);
        }
    }
}
