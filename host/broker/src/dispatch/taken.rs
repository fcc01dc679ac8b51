//! Takes dead letters, and messages that an unproven revision gives up, from the processor's
//! allowances before their commit. Other partitions take from the same allowances, so nothing may
//! be committed that was not taken.

use std::time::Duration;

use crate::dispatch::allowance::Granted;
use crate::dispatch::delivery::Effects;
use crate::dispatch::gate::Gate;

/// What was taken for one decision. It must be given back if the decision is not committed.
#[must_use]
pub(crate) struct Taken {
    dead_letters: Granted,
    /// The run of unproven revisions, and how many messages are given up in it.
    unproven: (u32, u32),
}

/// Why a decision cannot take what it needs.
pub(crate) enum Short {
    /// Another partition was faster, or another revision runs by now. A new decision sees what is
    /// left, which may be nothing.
    Outrun,
    /// Fewer dead letters are allowed than the decision has. `first` is the first message of the
    /// batch beyond the limit, and more are allowed after `more_in`.
    DeadLetters { first: usize, more_in: Duration },
}

impl Taken {
    /// Takes what the decision needs. Messages that an operator gives up need no allowance of dead
    /// letters.
    pub(crate) fn take(
        gate: &Gate,
        run: u32,
        effects: &Effects,
        is_by_hand: bool,
    ) -> Result<Self, Short> {
        let messages = effects.given_up_unproven;
        if messages > 0 && !gate.take_unproven(run, messages) {
            return Err(Short::Outrun);
        }
        let wanted = match is_by_hand {
            true => 0,
            false => effects.given_up.len(),
        };
        let dead_letters = match wanted {
            0 => Granted::default(),
            wanted => gate.take(wanted as u32),
        };
        let taken = Self {
            dead_letters,
            unproven: (run, messages),
        };
        match effects.given_up[..wanted].get(dead_letters.count as usize) {
            None => Ok(taken),
            Some(&first) => {
                taken.give_back(gate);
                Err(Short::DeadLetters {
                    first,
                    more_in: dead_letters.more_in,
                })
            }
        }
    }

    /// Returns everything, because the decision is not committed.
    pub(crate) fn give_back(self, gate: &Gate) {
        let (run, messages) = self.unproven;
        gate.give_back(self.dead_letters);
        gate.give_back_unproven(run, messages);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use async_trait::async_trait;
    use millrace_model::processor::{DeadLetterPolicy, Grants};
    use millrace_model::{
        Answer, ColumnBatch, Digest, GivenUp, ManualClock, ProcessorName, ProcessorSpec, Record,
        Timestamp, TopicName,
    };
    use tokio::sync::mpsc;

    use super::*;
    use crate::dispatch::live::{Live, OutputTopics};
    use crate::handler::{BatchHandler, CallError};

    const RUN: u32 = 7;

    struct Nobody;

    #[async_trait]
    impl BatchHandler for Nobody {
        async fn process(&self, _: &Arc<ColumnBatch>) -> Result<Answer, CallError> {
            Ok(Answer::default())
        }
    }

    /// A gate that allows three dead letters, two of them to unproven revisions.
    fn gate() -> Gate {
        let live = Live {
            processor: ProcessorName::parse("p").unwrap(),
            revision: 1,
            made_at: Timestamp(0),
            back: None,
            voided: Vec::new(),
            record: Record::default(),
            unproven_run: RUN,
            spec: ProcessorSpec {
                topics: vec![TopicName::parse("in").unwrap()],
                module: Digest([0; 32]),
                output: None,
                grants: Grants::default(),
                order: Default::default(),
                batch: Default::default(),
                retry: Default::default(),
                error_handler: None,
                limits: Default::default(),
                breaker: Default::default(),
                dead_letters: DeadLetterPolicy {
                    max: 3,
                    unproven_max: 2,
                    ..DeadLetterPolicy::default()
                },
                auto_rollback: false,
                auto_redrive: false,
                hops_max: None,
            },
            module: String::new(),
            handler: Arc::new(Nobody),
            failures: None,
            outputs: OutputTopics::default(),
        };
        let clock = Arc::new(ManualClock::at(Timestamp(1)));
        let gate = Gate::new(clock, mpsc::channel(1).0, Arc::new(live));
        let (run, messages) = (RUN, 0);
        gate.looked_up(GivenUp { run, messages });
        gate
    }

    fn effects(given_up: &[usize], given_up_unproven: u32) -> Effects {
        Effects {
            given_up: given_up.to_vec(),
            given_up_unproven,
            ..Effects::default()
        }
    }

    fn take(gate: &Gate, effects: &Effects) -> Option<Taken> {
        Taken::take(gate, RUN, effects, false).ok()
    }

    #[test]
    fn what_a_decision_cannot_have_whole_it_does_not_take() {
        let gate = gate();
        let short = Taken::take(&gate, RUN, &effects(&[1, 4, 5, 9], 2), false);
        let first = match short {
            Err(Short::DeadLetters { first, .. }) => Some(first),
            _ => None,
        };
        assert_eq!(first, Some(9), "the first that is too many");
        assert!(take(&gate, &effects(&[1, 4, 5], 2)).is_some());
        assert!(take(&gate, &effects(&[1], 0)).is_none());
        let by_hand = Taken::take(&gate, RUN, &effects(&[1, 4, 5, 9], 0), true);
        assert!(by_hand.is_ok());
    }

    #[test]
    fn what_was_not_committed_is_there_for_the_next_decision() {
        let gate = gate();
        let all = effects(&[0, 1, 2], 2);
        let taken = take(&gate, &all).expect("nothing was taken before");
        let outrun = Taken::take(&gate, RUN, &effects(&[], 1), false);
        assert!(matches!(outrun, Err(Short::Outrun)));
        taken.give_back(&gate);
        assert!(take(&gate, &all).is_some());
        let another_run = Taken::take(&gate, RUN + 1, &effects(&[], 1), false);
        assert!(matches!(another_run, Err(Short::Outrun)));
    }
}
