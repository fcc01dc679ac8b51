//! Batches of a [`World`]: cut as the worker cuts them, called, and settled by the host's rules.

use super::*;

impl World {
    pub(super) fn step_all(&mut self) {
        for part in 0..self.parts.len() {
            self.step(part);
            self.heed();
        }
    }

    /// Runs one batch of a partition.
    pub(super) fn step(&mut self, part: usize) {
        if let Some(canary) = &self.canary {
            canary.gate.remind();
        }
        if let Some(flight) = self.parts[part].flight.take() {
            self.land(part, flight);
            return;
        }
        let gate = Arc::clone(&self.gate);
        let probe = match gate.enter() {
            Entry::Go => None,
            Entry::Probe(probe) => Some(probe),
            Entry::Wait(..) => return,
        };
        let is_open = self
            .canary
            .as_ref()
            .is_some_and(|canary| canary.gate.is_open());
        let splits = self.canary.is_some() && !is_open && probe.is_none();
        let Some(batch) = self.cut(part, splits, probe.is_some()) else {
            return;
        };
        self.parts[part].alone = self.parts[part].alone.saturating_sub(batch.len());
        let (live, breaker) = match (&self.canary, batch.side) {
            (Some(canary), Side::Canary) => (Arc::clone(&canary.live), Arc::clone(&canary.gate)),
            _ => (Arc::clone(&self.live), Arc::clone(&self.gate)),
        };
        if self.natures[&live.revision] == Nature::Down {
            let mut probe = probe;
            breaker.unavailable(live.revision, "down", probe.as_mut());
            return;
        }
        let mut failed = self.outcomes(&batch, part, live.revision);
        let takes_down = |failed: &&Failed| !matches!(failed.cause, Cause::Retry | Cause::Reject);
        if let Some(fatal) = failed.iter().find(takes_down).cloned() {
            if batch.side == Side::Canary && fatal.cause == Cause::Timeout {
                breaker.timed_out(live.revision);
            }
            if batch.len() > 1 {
                self.parts[part].alone = batch.len();
                return;
            }
            failed = vec![fatal];
        }
        let flight = Flight {
            batch,
            live,
            breaker,
            probe,
            failed,
        };
        match self.rng.u8(..8) {
            0 => self.parts[part].flight = Some(flight),
            _ => self.land(part, flight),
        }
    }

    pub(super) fn outcomes(&self, batch: &Batch, part: usize, revision: u32) -> Vec<Failed> {
        let outcome = |(message, offset): (usize, &Offset)| {
            let (cause, class) = self.outcome(revision, part, offset.0)?;
            Some(Failed {
                message,
                cause,
                class: class.to_owned(),
                reason: String::new(),
                after_ms: None,
                backtrace: None,
            })
        };
        let offsets = batch.offsets.iter().enumerate();
        offsets.filter_map(outcome).collect()
    }

    /// Settles a call that has returned. Other revisions may run by now.
    pub(super) fn land(&mut self, part: usize, flight: Flight) {
        let Flight {
            batch,
            live,
            breaker,
            mut probe,
            failed: verdict,
        } = flight;
        let verdict = Verdict {
            outputs: Outputs::default(),
            failed: verdict,
            ..Verdict::default()
        };
        let progress = self.parts[part].progress.clone();
        let decided = |failed: &Failed| {
            let before = parked_before(&batch, &progress, failed.message);
            let tried = before.map_or(0, |parked| parked.attempts);
            decision(self.handler, failed, tried)
        };
        let decisions: Vec<Decision> = match self.handler {
            Patience::None => Vec::new(),
            _ => verdict.failed.iter().map(decided).collect(),
        };
        let whose = live.whose(self.now());
        let said: Vec<Says> = verdict
            .failed
            .iter()
            .enumerate()
            .map(|(index, failed)| match decisions.get(index) {
                Some(Decision::Drop(_)) => Says::Settled,
                _ => {
                    let before = parked_before(&batch, &progress, failed.message);
                    whose.says(before, failed)
                }
            })
            .collect();
        let report = Report {
            revision: live.revision,
            partition: TopicPartition {
                topic: TopicId(1),
                partition: PartitionId(part as u32),
            },
            offsets: &batch.offsets,
            retried: batch.retried,
            failed: &verdict.failed,
            says: &said,
        };
        let was_open = self.gate.is_open();
        let is_probe = probe.is_some();
        let judgement = breaker.report(&report, probe.as_mut());
        if batch.side == Side::Current && live.revision == self.live.revision {
            self.watch_row(part, &batch, &verdict, &live, was_open || is_probe);
        }
        if self.gate.is_open() {
            let current = self.live.revision;
            if let Some((first, _)) = self.processed.get_mut(&current) {
                *first = None;
            }
            let why = self.gate.status().text.unwrap_or_default();
            assert!(!why.contains("ignore"), "what was settled counted: {why}");
        }
        if judgement == Judgement::Discard {
            return;
        }
        if !self.is_over && self.rng.u8(..60) == 0 {
            // Another deployment takes effect between the judgement and the commit.
            self.deploy();
        }
        self.settle(
            part, &batch, &verdict, &decisions, &live, judgement, &progress,
        );
    }

    #[expect(clippy::too_many_arguments, reason = "all that a decision hangs on")]
    pub(super) fn settle(
        &mut self,
        part: usize,
        batch: &Batch,
        verdict: &Verdict,
        decisions: &[Decision],
        live: &Arc<Live>,
        judgement: Judgement,
        progress: &Progress,
    ) {
        let word = match batch.side {
            Side::Canary => Word::IsAskedAgain,
            Side::Current => self.word(live.revision),
        };
        let gate = Arc::clone(&self.gate);
        let settling = Settling {
            processor: "p",
            revision: live.revision,
            module: "",
            spec: &live.spec,
            input: &Input {
                topic: topic(1, "in"),
                partition: PartitionId(part as u32),
                origin: name("in"),
                dead_letters: topic(2, "in.p.dlq"),
                range: None,
                first: None,
                times: None,
            },
            batch,
            verdict,
            places: &[],
            decisions,
            word,
            whose: live.whose(self.now()),
            same_handler: true,
            excuses: &|class| gate.excuses(class),
            progress,
            is_short: false,
            now: self.now(),
        };
        let mut effects = match judgement {
            Judgement::Settle => delivery::settle(&settling, &mut self.rng),
            _ => delivery::postpone(&settling),
        };
        if effects.given_up_unproven > 0 {
            let messages = effects.given_up_unproven;
            assert!(self.gate.take_unproven(live.unproven_run, messages));
        }
        effects.count_unproven(live.unproven_run);
        if judgement == Judgement::Settle {
            self.check(part, batch, verdict, live, &effects, progress);
            if batch.side == Side::Current {
                self.gate.processed(live.revision, effects.counts.ok);
            }
            if let Some(canary) = self.canary.as_ref().filter(|_| batch.side == Side::Current) {
                let wrong = contradictions(canary.live.revision, batch, verdict, progress);
                if wrong > 0 {
                    canary.gate.contradicted(wrong);
                }
            }
        }
        self.parts[part].progress = effects.progress;
    }

    pub(super) fn word(&self, revision: u32) -> Word {
        loop {
            let NotLookedUp { run, inputs } = match self.gate.word(revision) {
                Ok(word) => return word,
                Err(missing) => missing,
            };
            assert_eq!(inputs.len(), self.parts.len());
            let known = self.parts.iter().filter_map(|part| part.progress.given_up);
            let messages = known
                .filter(|known| known.run == run)
                .map(|known| known.messages);
            self.gate.looked_up(GivenUp {
                run,
                messages: messages.sum(),
            });
        }
    }

    /// Cuts the next batch of a partition as the worker does.
    pub(super) fn cut(&mut self, part: usize, splits: bool, probes: bool) -> Option<Batch> {
        let percent = self.canary.as_ref().map_or(0, |canary| canary.percent);
        let now = self.now();
        let Part {
            messages,
            progress,
            alone,
            ..
        } = &self.parts[part];
        let most = if probes || *alone > 0 {
            1
        } else {
            BATCH_MESSAGES
        };
        let parked = &progress.parked;
        let takes_parked = !probes || self.rng.bool() || progress.next.0 as usize >= messages.len();
        let due = match (takes_parked, most) {
            (false, _) => batcher::Due::default(),
            (true, 1) => batcher::oldest_due(parked, now, &HashSet::new()),
            _ => batcher::due(parked, now, most.div_ceil(2)),
        };
        let current_only = batcher::current_only(parked);
        let side = |offset: u64, only: bool| match splits && !only {
            true => side_of(percent, Some(key_of(offset).as_bytes()), Offset(offset)),
            false => Side::Current,
        };
        let parked_of = |offset: Offset| {
            let index = parked.binary_search_by_key(&offset, |parked| parked.offset);
            &parked[index.expect("what is due is parked")]
        };
        let sides = |offset: &Offset| side(offset.0, current_only(parked_of(*offset)));
        // If both sides have messages, either may come first, as in the worker.
        let prefers = if self.rng.bool() {
            Side::Canary
        } else {
            Side::Current
        };
        let has = |wanted: Side| due.offsets.iter().any(|offset| sides(offset) == wanted);
        let mut of = due.offsets.first().map(|_| match has(prefers) {
            true => prefers,
            false => sides(&due.offsets[0]),
        });
        let mut batch = Batch {
            next: progress.next,
            ..Batch::default()
        };
        let mut columns = ColumnBatch::default();
        let mut take = |offset: Offset, attempts: u32| {
            let key = key_of(offset.0);
            let parts = (Some(key.as_bytes()), None);
            push(
                &mut columns,
                offset.0,
                0,
                attempts,
                parts,
                std::iter::empty(),
            );
        };
        for offset in &due.offsets {
            if Some(sides(offset)) == of {
                take(*offset, parked_of(*offset).attempts + 1);
                batch.offsets.push(*offset);
            }
        }
        batch.retried = batch.offsets.len();
        let held: HashSet<u64> = parked.iter().filter_map(|parked| parked.ordering).collect();
        while !due.alone && batch.offsets.len() < most && (batch.next.0 as usize) < messages.len() {
            let offset = batch.next;
            let order = ordering(spec().order, Some(key_of(offset.0).as_bytes()));
            if order.is_some_and(|order| held.contains(&order)) {
                batch.skipped.push(behind(offset, order));
            } else {
                let its = side(offset.0, false);
                if *of.get_or_insert(its) != its {
                    break;
                }
                take(offset, 1);
                batch.offsets.push(offset);
            }
            batch.next = Offset(offset.0 + 1);
        }
        batch.side = of.unwrap_or_default();
        batch.columns = Arc::new(columns);
        if batch.offsets.is_empty() {
            // Position and parked messages are kept, as the worker does.
            let progress = &mut self.parts[part].progress;
            progress.next = batch.next;
            progress.parked.append(&mut batch.skipped);
            return None;
        }
        Some(batch)
    }
}
