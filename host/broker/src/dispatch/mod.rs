//! Dispatch: how messages reach processors and what becomes of them.
//!
//! In the order of a batch: [`source`] reads, [`batcher`] cuts, [`worker`] calls, [`answer`] checks, [`placing`] gives outputs
//! their partitions, [`delivery`] decides with [`retry`], [`dead_letter`] writes the evidence, and the worker commits all of it
//! in one transaction. [`supervisor`] keeps one worker per processor and input partition, and one [`gate`] per processor: the
//! [`breaker`] that pauses it when most messages fail alike, and the [`allowance`] of dead letters. [`sides`] shares messages out
//! between the current revision and a canary; a [`shadow`] is shown what was settled, and its answers go to a [`comparison`].
//! What all of them may have in memory is bounded: by [`at_hand`] for what is being processed, by [`remembered`] for what waits.

pub(crate) mod allowance;
pub(crate) mod answer;
pub(crate) mod at_hand;
pub(crate) mod batcher;
pub(crate) mod breaker;
pub(crate) mod classes;
pub(crate) mod command;
pub(crate) mod comparison;
pub(crate) mod dead_letter;
pub(crate) mod delivery;
pub(crate) mod failed;
pub(crate) mod gate;
pub(crate) mod input;
pub(crate) mod live;
pub(crate) mod meters;
pub(crate) mod orders;
pub(crate) mod pace;
pub(crate) mod placing;
pub(crate) mod prepared;
pub(crate) mod remembered;
pub(crate) mod retry;
pub(crate) mod shadow;
pub(crate) mod sides;
pub(crate) mod source;
pub(crate) mod standing;
pub(crate) mod supervisor;
pub(crate) mod worker;
