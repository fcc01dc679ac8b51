//! JWTs that were verified, by their SHA-256, so that a request costs a lookup and not the check of a signature.

use std::collections::HashMap;

use millrace_broker::Proved;
use millrace_model::Timestamp;

use super::bounds::JWTS_REMEMBERED_MAX;

/// The SHA-256 of a JWT's text.
pub(super) type Print = [u8; 32];

/// What a JWT proved.
#[derive(Clone, Debug)]
pub(super) struct Remembered {
    pub(super) proved: Proved,
    pub(super) until: Timestamp,
    /// Which provider's key signed it.
    pub(super) provider: usize,
    pub(super) key: Print,
}

/// Two halves: those that were used since the last turn, and those before. When the first is full it becomes the second, whose
/// contents are forgotten. So what is in use stays, and nothing needs to be searched for.
#[derive(Default)]
pub(super) struct Memory {
    lately: HashMap<Print, Remembered>,
    before: HashMap<Print, Remembered>,
}

impl Memory {
    /// What this JWT proved, unless it has expired.
    pub(super) fn find(&mut self, jwt: &Print, now: Timestamp) -> Option<Remembered> {
        let found = match self.lately.get(jwt) {
            Some(found) => found.clone(),
            None => {
                let found = self.before.remove(jwt)?;
                self.add(*jwt, found.clone());
                found
            }
        };
        (found.until > now).then_some(found)
    }

    pub(super) fn add(&mut self, jwt: Print, proved: Remembered) {
        if self.lately.len() >= JWTS_REMEMBERED_MAX / 2 {
            self.before = std::mem::take(&mut self.lately);
        }
        self.lately.insert(jwt, proved);
    }

    pub(super) fn forget(&mut self, jwt: &Print) {
        self.lately.remove(jwt);
        self.before.remove(jwt);
    }

    /// Forgets what the keys of a provider signed that it no longer has, and ends what is under way with it.
    pub(super) fn keep_keys(&mut self, provider: usize, has: impl Fn(&Print) -> bool) {
        for half in [&mut self.lately, &mut self.before] {
            half.retain(|_, one| {
                let stays = one.provider != provider || has(&one.key);
                if !stays {
                    one.proved.ended.cancel();
                }
                stays
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use millrace_broker::Standing;
    use tokio_util::sync::CancellationToken;

    use super::*;

    fn one(key: u8) -> Remembered {
        Remembered {
            proved: Proved {
                standing: Standing::Nobody,
                ended: CancellationToken::new(),
            },
            until: Timestamp(100),
            provider: 0,
            key: [key; 32],
        }
    }

    fn print(number: usize) -> Print {
        let mut print = [0; 32];
        print[..8].copy_from_slice(&number.to_le_bytes());
        print
    }

    #[test]
    fn what_is_used_stays_and_the_rest_is_forgotten_at_the_bound() {
        let (mut memory, now) = (Memory::default(), Timestamp(1));
        for number in 0..4 * JWTS_REMEMBERED_MAX {
            memory.add(print(number), one(1));
            assert!(memory.find(&print(0), now).is_some(), "{number}");
            assert!(memory.lately.len() + memory.before.len() <= JWTS_REMEMBERED_MAX);
        }
        assert!(memory.find(&print(1), now).is_none());
        assert!(memory.find(&print(0), Timestamp(100)).is_none(), "expired");
    }

    #[test]
    fn what_a_key_signed_ends_when_the_provider_has_it_no_more() {
        let mut memory = Memory::default();
        let (gone, stays) = (one(1), one(2));
        memory.add(print(1), gone.clone());
        memory.add(print(2), stays.clone());
        memory.keep_keys(1, |_| false);
        assert!(!gone.proved.ended.is_cancelled(), "another provider's");
        memory.keep_keys(0, |key| *key == [2; 32]);
        assert!(gone.proved.ended.is_cancelled() && !stays.proved.ended.is_cancelled());
        assert!(memory.find(&print(1), Timestamp(1)).is_none());
        assert!(memory.find(&print(2), Timestamp(1)).is_some());
    }
}
