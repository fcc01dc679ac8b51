//! What a decision takes from the processor's allowances before its commit: dead letters, and messages that an unproven revision gives
//! up. Other partitions take from the same allowances, so nothing is committed that was not taken.

use std::time::Duration;

use crate::dispatch::allowance::Granted;
use crate::dispatch::delivery::Effects;
use crate::dispatch::gate::Gate;

/// Taken for one decision; to be given back if that is not committed.
#[must_use]
pub(crate) struct Taken {
    dead_letters: Granted,
    /// How many messages are given up, in this run of unproven revisions.
    unproven: (u32, u32),
}

/// Why a decision cannot have what it needs.
pub(crate) enum Short {
    /// Another partition was faster, or another revision runs by now. A new decision sees what is left, eventually nothing.
    Outrun,
    /// There are fewer dead letters than it has: this message of the batch would be the first too many. More come after this time.
    DeadLetters { first: usize, more_in: Duration },
}

impl Taken {
    /// Takes what the decision needs. What an operator gives up needs no allowance of dead letters.
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

    /// The decision is not committed.
    pub(crate) fn give_back(self, gate: &Gate) {
        let (run, messages) = self.unproven;
        gate.give_back(self.dead_letters);
        gate.give_back_unproven(run, messages);
    }
}
