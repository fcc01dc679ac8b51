//! Dispatch: how messages reach processors, and what happens to them.
//!
//! In the order of a batch: [`plan`] says what to cut, [`source`] reads, [`batcher`] cuts,
//! [`worker`] calls, [`answer`] checks, [`placing`] chooses the partitions of outputs, [`delivery`]
//! decides with [`retry`], [`dead_letter`] writes the evidence, and the worker commits everything
//! in one transaction.
//!
//! [`supervisor`] keeps one worker per processor and input partition, and one [`gate`] per
//! processor. A gate holds the [`breaker`], which pauses the processor when most messages fail
//! alike, and the [`allowance`] of dead letters. [`sides`] divides messages between the current
//! revision and a canary. A [`shadow`] is called with finished batches, and its answers go to a
//! [`comparison`]. A [`rehearsal`] is for developers: it calls a handler without any of this around
//! it. Memory is bounded by [`at_hand`] for batches in work and by [`remembered`] for
//! parked messages.

pub(crate) mod allowance;
pub(crate) mod answer;
pub(crate) mod answered;
pub(crate) mod at_hand;
pub(crate) mod batcher;
pub(crate) mod breaker;
pub(crate) mod classes;
pub(crate) mod command;
pub(crate) mod comparison;
pub(crate) mod counts;
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
pub(crate) mod plan;
pub(crate) mod prepared;
pub(crate) mod rehearsal;
pub(crate) mod remembered;
pub(crate) mod retry;
mod settled;
pub(crate) mod shadow;
pub(crate) mod sides;
pub(crate) mod source;
pub(crate) mod standing;
pub(crate) mod supervisor;
pub(crate) mod suspects;
pub(crate) mod taken;
pub(crate) mod word;
pub(crate) mod worker;
pub(crate) mod writes;
