//! Random sequences of transitions of one processor, with the invariants that hold after each one,
//! made or refused.

use std::collections::BTreeMap;

use millrace_model::bounds::{CHANGES_KEPT_MAX, REVISIONS_KEPT_MAX};
use millrace_model::{Digest, TopicName};

use super::*;
use crate::ground::caller::HOST;

const SEQUENCES: u64 = 100;
const STEPS: usize = 120;
const HOUR_MS: u64 = 60 * 60 * 1_000;

fn name() -> ProcessorName {
    ProcessorName::parse("p").expect("a name")
}

/// A specification to deploy. Equal numbers give equal specifications.
fn spec(number: u8, topic: &str) -> ProcessorSpec {
    let fields = serde_json::json!({
        "topics": [topic],
        "module": Digest([number; 32]),
        "auto_redrive": number.is_multiple_of(2),
    });
    serde_json::from_value(fields).expect("a specification")
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Deploy(Beginning),
    DeployAnew,
    ChangeShare(u32),
    Promote { anyway: bool },
    Withdraw,
    EndShadow,
    WithdrawFailing(u32),
    RollBack(Asks),
    TakeBack { bad: u32, to: u32 },
    Pause,
    Resume,
    Recreate,
}

impl Step {
    fn any(rng: &mut fastrand::Rng, processor: &Processor) -> Self {
        let percent = match rng.u8(..8) {
            0 => 0,
            1 => 100,
            _ => rng.u32(1..=99),
        };
        // Mostly a number that exists.
        let mut number = || match rng.u8(..8) {
            0 => rng.u32(0..200),
            1 => processor.current,
            2 => processor.on_trial().unwrap_or(0),
            _ => rng.choice(&processor.revisions).map_or(0, |r| r.number),
        };
        let (one, other) = (number(), number());
        let some = |rng: &mut fastrand::Rng, number| rng.bool().then_some(number);
        match rng.u8(..20) {
            0..=3 => Self::Deploy(Beginning::Current),
            4 | 5 => Self::Deploy(Beginning::Canary { percent }),
            6 | 7 => Self::Deploy(Beginning::Shadow),
            8 => Self::DeployAnew,
            9 => Self::ChangeShare(percent),
            10 | 11 => Self::Promote { anyway: rng.bool() },
            12 => Self::Withdraw,
            13 => Self::EndShadow,
            14 => Self::WithdrawFailing(one),
            15 | 16 => Self::RollBack(Asks {
                to: some(rng, one),
                from: some(rng, other),
            }),
            17 => Self::TakeBack {
                bad: processor.current,
                to: one,
            },
            18 if rng.bool() => Self::Pause,
            18 => Self::Resume,
            _ if rng.u8(..20) == 0 => Self::Recreate,
            _ => Self::TakeBack {
                bad: one,
                to: other,
            },
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Deploy(Beginning::Current) => "deploy",
            Self::Deploy(Beginning::Canary { .. }) => "canary",
            Self::Deploy(Beginning::Shadow) => "shadow",
            Self::DeployAnew => "deploy anew",
            Self::ChangeShare(_) => "change share",
            Self::Promote { .. } => "promote",
            Self::Withdraw => "withdraw",
            Self::EndShadow => "end shadow",
            Self::WithdrawFailing(_) => "withdraw failing",
            Self::RollBack(_) => "roll back",
            Self::TakeBack { .. } => "take back",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Recreate => "recreate",
        }
    }
}

struct Sequence {
    rng: fastrand::Rng,
    processor: Processor,
    now: Timestamp,
    /// Every number that was ever given to a revision, and its specification.
    given: BTreeMap<u32, ProcessorSpec>,
    /// Revisions whose module begins with this byte cannot run, as if their topics were gone.
    gone: u8,
    what: Vec<String>,
}

impl Sequence {
    fn new(seed: u64) -> Self {
        let mut sequence = Self {
            rng: fastrand::Rng::with_seed(seed),
            processor: create(&name(), spec(0, "in"), asked_by(None, Timestamp(1_000))),
            now: Timestamp(1_000),
            given: BTreeMap::new(),
            gone: u8::MAX,
            what: vec![format!("seed {seed}")],
        };
        sequence.remember();
        sequence
    }

    /// Checks that numbers only grow and that none is given twice.
    fn remember(&mut self) {
        let newest = self.given.keys().next_back().copied().unwrap_or(0);
        for revision in &self.processor.revisions {
            match self.given.get(&revision.number) {
                Some(spec) => assert_eq!(*spec, revision.spec, "{:?}", self.what),
                None => {
                    assert!(revision.number > newest, "{:?}", self.what);
                    self.given.insert(revision.number, revision.spec.clone());
                }
            }
        }
    }

    /// A random report of the workers.
    fn seen(&mut self) -> Seen {
        let rng = &mut self.rng;
        let has_worked = rng.u8(..4) > 0;
        let proven = has_worked && rng.bool();
        let noted = Noted {
            record: Record {
                proven,
                proven_anew: proven,
                ..Record::default()
            },
            has_worked,
            fresh: u32::from(has_worked),
            goes_on: false,
        };
        let mut sometimes = |what: &str| (rng.u8(..6) == 0).then(|| what.to_owned());
        Seen {
            problem: sometimes("it traps"),
            trial_problem: sometimes("it traps, too"),
            trouble: sometimes("it fails"),
            wrong: sometimes("it was wrong"),
            noted: Some(noted),
        }
    }

    /// Makes the step on `processor`.
    fn make(
        &self,
        step: Step,
        (processor, seen): (&mut Processor, Seen),
        next: &ProcessorSpec,
    ) -> Result<(), ProcessorError> {
        let (asked, next) = (self.asked(step), next.clone());
        let can_run = |revision: &Revision| revision.spec.module.0[0] != self.gone;
        match step {
            Step::Deploy(beginning) => {
                deploy(processor, asked, seen, next, beginning)?;
            }
            Step::DeployAnew => {
                deploy_anew(processor, asked, seen, next)?;
            }
            Step::ChangeShare(percent) => change_share(processor, asked, percent)?,
            Step::Promote { anyway } => promote(processor, asked, seen, anyway)?,
            Step::Withdraw => withdraw(processor, asked, None)?,
            Step::EndShadow => end_shadow(processor, asked)?,
            Step::WithdrawFailing(revision) => {
                withdraw_failing(processor, asked, revision, "it fails");
            }
            Step::RollBack(asks) => roll_back(processor, asked, seen, asks, &can_run)?,
            Step::TakeBack { bad, to } => {
                take_back(processor, asked, seen, (bad, to), "it fails", &can_run)?;
            }
            Step::Pause => pause(processor, asked),
            Step::Resume => resume(processor, asked, Some(3)),
            Step::Recreate => *processor = create(&name(), next, asked),
        }
        Ok(())
    }

    fn asked(&self, step: Step) -> Asked<'static> {
        let by = match step {
            Step::WithdrawFailing(_) | Step::TakeBack { .. } => HOST,
            _ => "someone",
        };
        asked_by(Some(by), self.now)
    }

    /// Returns the step that was made, and whether it changed something.
    fn step(&mut self) -> (Step, bool) {
        self.now.0 += self.rng.u64(..HOUR_MS / 4);
        self.gone = self.rng.u8(..12);
        let step = Step::any(&mut self.rng, &self.processor);
        let topic = ["in", "elsewhere"][usize::from(self.rng.u8(..10) == 0)];
        let next = spec(self.rng.u8(..8), topic);
        let seen = self.seen();
        let before = self.processor.clone();
        let mut after = before.clone();
        let done = self.make(step, (&mut after, seen.clone()), &next);
        self.what.push(format!("{step:?} {:?}", done.is_ok()));
        if matches!(step, Step::Recreate) {
            self.given.clear();
        }
        self.processor = after;
        self.check();
        let changed = self.processor != before;
        match done {
            Ok(()) => self.check_made(step, &before, &next, seen),
            Err(error) => assert!(!changed, "{error}: {:?}", self.what),
        }
        (step, changed)
    }

    /// Checks the invariants.
    fn check(&mut self) {
        self.remember();
        let (processor, what) = (&self.processor, &self.what);
        let current = processor.current();
        let current = current.unwrap_or_else(|| panic!("the current one is not kept: {what:?}"));
        assert!(!current.trial, "{what:?}");
        if let Some(trial) = processor.on_trial() {
            let tried = processor.revision(trial);
            let tried = tried.unwrap_or_else(|| panic!("the trial is not kept: {what:?}"));
            assert!(tried.trial && trial > processor.current, "{what:?}");
            assert_ne!(tried.spec, current.spec, "{what:?}");
        }
        // Three may be kept beyond the maximum: the current one, the one on trial and the newest.
        let kept = processor.revisions.len();
        assert!(kept <= REVISIONS_KEPT_MAX + 3, "{kept}: {what:?}");
        assert!(processor.changes.len() <= CHANGES_KEPT_MAX, "{what:?}");
        let ascend = processor.revisions.is_sorted_by(|a, b| a.number < b.number);
        assert!(ascend, "{what:?}");
        let written = serde_json::to_value(processor).expect("JSON");
        let has = |field| written.get(field).is_some();
        let (canary, shadow) = match &processor.trial {
            None => (false, false),
            Some(Trial::Canary { .. }) => (true, false),
            Some(Trial::Shadow { .. }) => (false, true),
        };
        assert_eq!((has("canary"), has("shadow")), (canary, shadow), "{what:?}");
        let read: Processor = serde_json::from_value(written).expect("a processor");
        assert_eq!(read, *processor, "{what:?}");
    }

    /// Checks the result of a step that was made.
    fn check_made(&self, step: Step, before: &Processor, next: &ProcessorSpec, seen: Seen) {
        let (processor, what) = (&self.processor, &self.what);
        let spec_of = |number: Option<u32>| {
            let revision = number.and_then(|number| processor.revision(number));
            revision.map(|revision| &revision.spec)
        };
        let stays = processor.current == before.current;
        match step {
            Step::Deploy(Beginning::Current) | Step::DeployAnew => {
                assert_eq!(spec_of(Some(processor.current)), Some(next), "{what:?}");
                let anew = matches!(step, Step::DeployAnew);
                assert!(!anew || processor.current > before.current, "{what:?}");
                assert!(stays || processor.trial.is_none(), "{what:?}");
            }
            Step::Deploy(Beginning::Canary { percent }) => {
                assert_eq!(spec_of(processor.on_trial()), Some(next), "{what:?}");
                let share = processor.trial.as_ref().and_then(Trial::percent);
                assert!(stays && share == Some(percent), "{what:?}");
            }
            Step::Deploy(Beginning::Shadow) => {
                assert_eq!(spec_of(processor.on_trial()), Some(next), "{what:?}");
                let is_shadow = matches!(processor.trial, Some(Trial::Shadow { .. }));
                assert!(stays && is_shadow, "{what:?}");
            }
            Step::Promote { .. } => {
                assert_eq!(Some(processor.current), before.on_trial(), "{what:?}");
                assert!(processor.trial.is_none(), "{what:?}");
            }
            Step::Withdraw | Step::EndShadow => {
                assert!(stays && processor.trial.is_none(), "{what:?}");
                let tried = before.on_trial();
                let tried = tried.and_then(|number| processor.revision(number));
                assert!(tried.is_some_and(|r| r.record.voided), "{what:?}");
            }
            Step::ChangeShare(percent) => {
                let share = processor.trial.as_ref().and_then(Trial::percent);
                assert_eq!(share.unwrap_or(0), percent, "{what:?}");
            }
            Step::RollBack(asks) if processor != before => {
                assert!(processor.trial.is_none(), "{what:?}");
                // A repeated request must not roll back again.
                let from = Some(before.on_trial().unwrap_or(before.current));
                let again = Asks { from, ..asks };
                let mut twice = processor.clone();
                let done = self.make(Step::RollBack(again), (&mut twice, seen), next);
                let is_told = matches!(done, Err(ProcessorError::OtherRevision { .. }))
                    || asks.to == Some(processor.current);
                assert!(is_told && twice == *processor, "{what:?}");
            }
            Step::TakeBack { bad, .. } if processor != before => {
                assert!(before.current == bad && !stays, "{what:?}");
                assert!(processor.trial.is_none(), "{what:?}");
                let note = processor.revision(bad).map(|bad| bad.note.is_some());
                assert_ne!(note, Some(false), "{what:?}");
                // An operator who meant to roll back the bad revision is told that the host did it.
                let mut twice = processor.clone();
                let asks = Asks::default();
                let done = self.make(Step::RollBack(asks), (&mut twice, seen), next);
                let is_told = matches!(
                    done,
                    Err(ProcessorError::RolledBackAlready { .. }
                        | ProcessorError::NothingToRollBack(_)
                        | ProcessorError::WayBackGone { .. })
                );
                assert!(is_told && twice == *processor, "{what:?}");
            }
            Step::WithdrawFailing(revision) => {
                assert!(stays, "{what:?}");
                assert_ne!(processor.on_trial(), Some(revision), "{what:?}");
            }
            Step::Pause => assert!(processor.paused, "{what:?}"),
            Step::Resume => assert!(!processor.paused, "{what:?}"),
            Step::RollBack(_) | Step::TakeBack { .. } | Step::Recreate => {}
        }
    }
}

fn asked_by(by: Option<&'static str>, now: Timestamp) -> Asked<'static> {
    Asked { by, now }
}

#[test]
fn whatever_is_done_to_a_processor_its_revisions_keep_their_rules() {
    let (mut changed, mut refused) = (BTreeMap::new(), BTreeMap::new());
    for seed in 0..SEQUENCES {
        let mut sequence = Sequence::new(seed);
        for _ in 0..STEPS {
            let (step, has_changed) = sequence.step();
            let counts = match has_changed {
                true => &mut changed,
                false => &mut refused,
            };
            *counts.entry(step.word()).or_insert(0u64) += 1;
        }
    }
    // Every step was made at least once. All but those that are always possible were also refused,
    // or changed nothing.
    assert_eq!(changed.len(), 14, "{changed:?}");
    assert!(changed.values().all(|count| *count > 5), "{changed:?}");
    assert!(refused.values().all(|count| *count > 5), "{refused:?}");
    assert!(refused.len() >= 10, "{refused:?}");
}

#[test]
fn a_replay_is_deployed_to_in_no_way() {
    let replay = Replay {
        of: ProcessorName::parse("original").expect("a name"),
        revision: 7,
        from: Timestamp(0),
        until: Timestamp(1),
        into: TopicName::parse("out").expect("a name"),
        ranges: Vec::new(),
    };
    let asked = asked_by(Some("someone"), Timestamp(5));
    let mut processor = create_replay(&name(), spec(1, "in"), replay, asked);
    assert_eq!((processor.current, processor.revisions.len()), (7, 1));
    let before = processor.clone();
    let beginnings = [
        Beginning::Current,
        Beginning::Canary { percent: 5 },
        Beginning::Shadow,
    ];
    for beginning in beginnings {
        let seen = Seen::default();
        let done = deploy(&mut processor, asked, seen, spec(2, "in"), beginning);
        let error = done.expect_err("a replay").to_string();
        assert!(error.contains("is a replay of original"), "{error}");
        assert_eq!(processor, before);
    }
}
