//! Callers whom somebody else vouches for: an identity provider, whose signature a door has checked. They act as a principal of this
//! host, with its rules or less, for as long as their credentials count.

use std::sync::{Arc, Weak};

use millrace_model::{PrincipalName, Rule, Timestamp};
use tokio_util::sync::CancellationToken;

use crate::access::handle::Access;
use crate::access::proving::{Proved, Unproved};
use crate::ground::keys::KeyPattern;
use crate::ground::standing::{Known, Standing};

/// Callers that are known at once: those whom a door remembers, and those with a request under way. Another one is told to come back.
pub(super) const PRESENTED_MAX: usize = 32_768;

/// What was checked of a caller's credentials.
#[derive(Clone, Debug)]
pub struct Presented {
    /// The principal whose rules count.
    pub principal: PrincipalName,
    /// Whom it acts for, for records.
    pub subject: Option<Arc<str>>,
    /// What the credentials allow of the principal's rules; all if absent.
    pub scope: Option<Vec<Rule>>,
    /// The keys that they are for; all if absent.
    pub keys: Option<Vec<KeyPattern>>,
    /// They count until then.
    pub until: Timestamp,
}

/// Those that count now.
#[derive(Default)]
pub(super) struct AllPresented(Vec<One>);

struct One {
    /// Dropped when no request and no door needs it any more.
    known: Weak<Known>,
    until: Timestamp,
    ended: CancellationToken,
}

impl AllPresented {
    /// Goes on with those that `still` accepts, and ends the others.
    pub(super) fn keep(&mut self, still: impl Fn(&Known) -> bool) {
        self.0.retain(|one| match one.known.upgrade() {
            Some(known) if still(&known) => true,
            Some(_) => {
                one.ended.cancel();
                false
            }
            None => false,
        });
    }

    pub(super) fn expire(&mut self, now: Timestamp) {
        self.0.retain(|one| {
            if one.until <= now {
                one.ended.cancel();
            }
            one.until > now && one.known.strong_count() > 0
        });
    }

    /// Returns whether there is room for it.
    fn add(&mut self, one: One, now: Timestamp) -> bool {
        if self.0.len() >= PRESENTED_MAX {
            self.expire(now);
        }
        let has_room = self.0.len() < PRESENTED_MAX;
        if has_room {
            self.0.push(one);
        }
        has_room
    }
}

impl Access {
    /// What a caller may do whose credentials were checked. It ends when they expire, when the rules of the principal change, and when
    /// it is deleted.
    ///
    /// # Errors
    /// [`Unproved::NoPrincipal`], [`Unproved::TooMany`], and [`Unproved::Unknown`] if they have expired meanwhile.
    pub fn prove_as(&self, presented: Presented) -> Result<Proved, Unproved> {
        self.inner.follow();
        let now = self.inner.clock.wall();
        if presented.until <= now {
            return Err(Unproved::Unknown);
        }
        // One lock for both: a change of the rules in between would be missed.
        let mut book = self.inner.book.write();
        let Presented {
            principal,
            subject,
            scope,
            keys,
            until,
        } = presented;
        let Some(kept) = book.principals.get(&principal) else {
            return Err(Unproved::NoPrincipal(principal));
        };
        let meters = book.meters_of(&principal);
        let ended = CancellationToken::new();
        let known = Arc::new(Known {
            name: principal,
            rules: kept.principal.rules.clone(),
            scope,
            subject,
            keys,
            meters,
            ended: ended.clone(),
        });
        let one = One {
            known: Arc::downgrade(&known),
            until,
            ended: ended.clone(),
        };
        if !book.presented.add(one, now) {
            return Err(Unproved::TooMany);
        }
        let standing = Standing::Principal(known);
        Ok(Proved { standing, ended })
    }

    /// Whether what was proved before still counts: it has not ended by anything that this host knows.
    #[must_use]
    pub fn still_counts(&self, proved: &Proved) -> bool {
        self.inner.follow();
        !proved.ended.is_cancelled()
    }
}
