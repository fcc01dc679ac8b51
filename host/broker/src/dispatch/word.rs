//! Whether a revision may give messages up.

/// What happens to messages that a revision would give up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// All of them are given up.
    Counts,
    /// At most this many are given up, because the revision is not proven. The others are retried.
    CountsFor(Left),
    /// None is given up. The revision is a canary, and the current revision is called instead.
    IsAskedAgain,
}

/// How many messages an unproven revision may give up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Left {
    /// The allowance of unproven revisions.
    pub(crate) unproven: u32,
    /// Further dead letters that an operator has accepted.
    pub(crate) accepted: u32,
}

impl Left {
    /// How many of these dead letters and dropped messages count.
    pub(super) fn counted(self, letters: u32, drops: u32) -> u32 {
        letters.saturating_sub(self.accepted).saturating_add(drops)
    }
}
