//! Whether a revision may give messages up.

/// What happens if a revision gives messages up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// They are given up.
    Counts,
    /// At most this many are given up. The others are retried: the revision is not proven.
    CountsFor(Left),
    /// None is given up: the revision is a canary, and the current revision answers instead.
    IsAskedAgain,
}

/// How many messages an unproven revision may give up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Left {
    /// Its own allowance.
    pub(crate) unproven: u32,
    /// Further dead letters that an operator has accepted.
    pub(crate) accepted: u32,
}

impl Left {
    /// How many of these count: dead letters and dropped messages.
    pub(super) fn counted(self, letters: u32, drops: u32) -> u32 {
        letters.saturating_sub(self.accepted).saturating_add(drops)
    }
}
