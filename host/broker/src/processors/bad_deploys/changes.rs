//! Changes of a [`World`]'s processor: deployments, trials, rollbacks, restarts of the host.

use super::*;

impl World {
    /// Carries out alarms as the host would.
    pub(super) fn heed(&mut self) {
        while let Ok(alarm) = self.alarms.try_recv() {
            match alarm.wanted {
                Wanted::Note => {
                    let canary = self.canary.as_ref().map(|canary| Arc::clone(&canary.gate));
                    let gates = [Some(Arc::clone(&self.gate)), canary];
                    for gate in gates.into_iter().flatten() {
                        if let Some(noted) = gate.record(alarm.revision) {
                            let (now, fresh) = (self.now(), noted.fresh);
                            take_down(&mut self.processor, alarm.revision, noted, now);
                            gate.written(alarm.revision, fresh);
                            if let Some(revision) = self.processor.revision(alarm.revision) {
                                gate.follow(alarm.revision, &revision.record);
                            }
                        }
                    }
                }
                Wanted::Withdraw { why } => {
                    let is_well = self.natures.get(&alarm.revision) == Some(&Nature::Well);
                    assert!(
                        !is_well || self.had_outage || !why.contains("would have given up"),
                        "a canary that is well was withdrawn: {why}"
                    );
                    if self
                        .canary
                        .as_ref()
                        .is_some_and(|c| c.live.revision == alarm.revision)
                    {
                        self.end_canary();
                    }
                }
                Wanted::TakeBack { to, .. } => {
                    let bad = self.processor.revisions.iter_mut();
                    let mut bad = bad.filter(|r| r.number == alarm.revision && r.note.is_none());
                    let Some(bad) = bad
                        .next()
                        .filter(|_| self.auto_rollback && self.live.revision == alarm.revision)
                    else {
                        continue;
                    };
                    bad.note = Some("taken back".to_owned());
                    self.go_back(to);
                    let worked = self.worked.contains(&to);
                    assert!(worked, "back to {to}, which never processed a message");
                }
            }
        }
    }

    pub(super) fn go_back(&mut self, to: u32) {
        self.what.push(format!("back to {to}"));
        self.end_canary();
        self.leave();
        assert!(self.processor.revision(to).is_some(), "{to} is not kept");
        let run = unproven_run(&self.processor);
        let from = std::mem::replace(&mut self.processor.current, to);
        make_void(&mut self.processor, from);
        for target in self
            .processor
            .revisions
            .iter_mut()
            .filter(|r| r.number == to)
        {
            target.record.begin_anew();
            target.unproven_run = run;
        }
        self.install();
    }

    pub(super) fn leave(&mut self) {
        if self.proven_anew.contains(&self.processor.current) {
            self.given_up = 0;
        }
        let noted = self.gate.record(self.processor.current);
        let now = self.now();
        let seen = Seen {
            noted,
            ..Seen::default()
        };
        leave(&mut self.processor, seen, now);
    }

    pub(super) fn install(&mut self) {
        self.live = live(&self.processor, self.processor.current);
        self.gate.install(&self.live);
        self.row = Default::default();
        self.excused = 0;
        self.processed.remove(&self.live.revision);
        self.proven_anew.remove(&self.live.revision);
        let (now, live) = (self.now(), Arc::clone(&self.live));
        for part in &mut self.parts {
            part.alone = 0;
            for parked in &mut part.progress.parked {
                if batcher::waits_in_vain(parked, live.revision, &live.voided, now) {
                    parked.due = Some(now);
                }
            }
        }
    }

    pub(super) fn end_canary(&mut self) {
        self.processor.trial = None;
        if let Some(canary) = self.canary.take() {
            make_void(&mut self.processor, canary.live.revision);
            canary.gate.retire();
        }
    }

    pub(super) fn add(&mut self, nature: Nature, trial: bool) -> u32 {
        let number = self.natures.keys().max().expect("one") + 1;
        let since = unproven_run(&self.processor);
        let mut added = revision(number, since);
        added.trial = trial;
        added.predecessor = Some(self.processor.current);
        self.processor.revisions.push(added);
        self.natures.insert(number, nature);
        let back = self.processor.way_back_from(number).map(|back| back.number);
        forget_oldest(&mut self.processor, number);
        assert!(
            back.is_none_or(|back| self.processor.revision(back).is_some()),
            "the way back was pushed out"
        );
        number
    }

    pub(super) fn nature(&mut self) -> Nature {
        let causes = [
            Cause::Trap,
            Cause::Timeout,
            Cause::Reject,
            Cause::Retry,
            Cause::BadAnswer,
        ];
        let cause = causes[self.rng.usize(..causes.len())];
        match self.rng.u32(..20) {
            0..=5 => Nature::Well,
            6 | 7 => Nature::Strict,
            8 => Nature::Down,
            9..=15 => Nature::Fails(cause, 100),
            _ => Nature::Fails(cause, self.rng.u64(5..90)),
        }
    }

    pub(super) fn deploy(&mut self) {
        let nature = self.nature();
        self.deploy_as(nature);
    }

    pub(super) fn deploy_as(&mut self, nature: Nature) {
        self.leave();
        let number = self.add(nature, false);
        self.what.push(format!("deploy {number} {nature:?}"));
        self.end_canary();
        self.processor.current = number;
        self.install();
    }

    pub(super) fn try_canary(&mut self) {
        let nature = self.nature();
        self.end_canary();
        let number = self.add(nature, true);
        let percent = self.rng.u32(10..90);
        self.what
            .push(format!("canary {number} {nature:?} {percent} %"));
        self.processor.trial = Some(Trial::Canary {
            revision: number,
            percent,
            since: self.now(),
        });
        let live = live(&self.processor, number);
        self.canary = Some(Canary {
            gate: Arc::new(Gate::of_canary(&self.gate, Arc::clone(&live))),
            live,
            percent,
        });
    }

    /// Puts a shadow on trial. A shadow gives up no messages, but it is a revision and may be
    /// promoted.
    pub(super) fn try_shadow(&mut self) {
        let nature = self.nature();
        self.end_canary();
        let number = self.add(nature, true);
        self.what.push(format!("shadow {number} {nature:?}"));
        self.processor.trial = Some(Trial::Shadow {
            revision: number,
            since: self.now(),
        });
    }

    pub(super) fn promote(&mut self) {
        let Some(number) = self.processor.on_trial() else {
            return;
        };
        self.what.push(format!("promote {number}"));
        self.leave();
        let since = unproven_run(&self.processor);
        for promoted in self
            .processor
            .revisions
            .iter_mut()
            .filter(|r| r.number == number)
        {
            promoted.trial = false;
            promoted.record = Record::default();
            promoted.unproven_run = since;
        }
        self.end_canary();
        self.processor.current = number;
        self.install();
    }

    /// Restarts the host: everything outside the catalogue and progress is lost.
    pub(super) fn start(&mut self) {
        self.what.push("start".to_owned());
        self.parts.iter_mut().for_each(|part| part.flight = None);
        while self.alarms.try_recv().is_ok() {}
        self.live = live(&self.processor, self.processor.current);
        let clock: Arc<dyn Clock> = self.clock.clone();
        self.gate = Arc::new(Gate::new(
            clock,
            self.sender.clone(),
            Arc::clone(&self.live),
        ));
        self.tell_inputs();
        self.row = Default::default();
        self.excused = 0;
        self.parts.iter_mut().for_each(|part| part.alone = 0);
        if let Some(canary) = self.canary.take() {
            let live = live(&self.processor, canary.live.revision);
            self.canary = Some(Canary {
                gate: Arc::new(Gate::of_canary(&self.gate, Arc::clone(&live))),
                live,
                percent: canary.percent,
            });
        }
    }
}
