//! Rules that a test breaks on purpose, to check that the [model of bad
//! deploys](crate::processors::bad_deploys) notices. The host itself never breaks one.

#[cfg(test)]
use std::cell::Cell;

/// A broken rule.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Planted {
    /// Only first attempts are evidence.
    FirstAttemptsOnly,
    /// Messages dropped by the error handler count as failures.
    DropsAreFailures,
    /// Attempts of all revisions count against a message.
    AttemptsAddUp,
    /// A canary may give messages up.
    CanaryGivesUp,
    /// An unproven revision gives up without a bound.
    NoBound,
    /// The bound starts over with each revision.
    BoundPerRevision,
    /// The bound starts over with each restart.
    BoundPerStart,
    /// A class that was usual excuses any number of rejections.
    KnownClassExcuses,
    /// Time alone proves a revision.
    IdleIsProof,
    /// The way back is the previous revision, whatever it did.
    BackToTheOneBefore,
    /// A new revision's first failure may be a message's last.
    FirstIsLast,
    /// Messages behind one that was passed to the current revision go to the canary meanwhile.
    OthersOvertake,
}

#[cfg(test)]
thread_local! {
    static BROKEN: Cell<Option<Planted>> = const { Cell::new(None) };
}

/// Breaks a rule in this thread; `None` restores it.
#[cfg(test)]
pub(crate) fn plant(rule: Option<Planted>) {
    BROKEN.set(rule);
}

/// Whether this thread breaks a rule.
#[cfg(test)]
pub(crate) fn is_any_broken() -> bool {
    BROKEN.get().is_some()
}

#[cfg(test)]
pub(crate) fn is_broken(rule: Planted) -> bool {
    BROKEN.get() == Some(rule)
}

/// Whether a rule is broken on purpose; never in the host.
macro_rules! planted {
    ($rule:ident) => {{
        #[cfg(test)]
        let broken = $crate::ground::planted::is_broken($crate::ground::planted::Planted::$rule);
        #[cfg(not(test))]
        let broken = false;
        broken
    }};
}
pub(crate) use planted;
