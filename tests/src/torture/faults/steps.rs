//! Named steps that a fault should hit: before and after a commit, and during a swap of revisions,
//! a redrive or a checkpoint.
//!
//! The host does not help. For a swap or a redrive, the fault comes after the request and before
//! its answer; a checkpoint being saved is recognised by a file beside it. A commit is observed
//! from outside:
//!
//! - **Before**: the journal's file is watched until a frame contains a commit of the counting
//!   processor; then the process is stopped. For a kill this counts if a sync of the journal is
//!   inside the kernel and the frame is the last one, so that nobody has been told of it. For a
//!   power cut it counts if the frame is gone afterwards. Before a power cut, syncs are delayed
//!   ([`slow`]); otherwise hitting this step would be luck.
//! - **After**: a reader waits for an output, and the host is stopped when it is shown. This counts
//!   if, before the next start, the journal has no later commit of the processor than the one with
//!   that output. It also counts if a frame of the first kind survived a power cut as the
//!   processor's last commit: it was durable, and nobody had been told.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::super::clients::{self, TIMEOUT};
use super::super::counting;
use super::super::history::{Event, Fault, Step};
use super::super::journal::{Found, Mark, Tail};
use super::{World, slow, stop};
use crate::Client;

/// Maximum wait for a checkpoint to begin; they are frequent.
const CHECKPOINT_PATIENCE: Duration = Duration::from_millis(500);
/// Maximum wait for a commit; commits are even more frequent, unless syncs are slow.
const COMMIT_PATIENCE: Duration = Duration::from_millis(300);
/// Maximum number of tries to reach a step.
const TRIES_MAX: u32 = 6;
const LOOK_AGAIN: Duration = Duration::from_micros(200);

/// What the host is doing when the fault comes, as far as known.
pub(super) enum Aim {
    /// Anything.
    Anything,
    /// A step that was requested or observed.
    Amid(Step),
    /// A commit is in the journal, and the host is stopped or has ended: before a power cut at any
    /// point, before a kill inside a sync.
    Written { mark: Mark, sequence: u64 },
    /// The last output of a commit was shown.
    Shown { mark: Mark, output: String },
}

/// Sometimes brings the host to a step that the fault should hit.
pub(super) fn reach(world: &mut World, fault: Fault) -> Result<Aim> {
    Ok(match world.random.u8(..6) {
        0 => ask(world, Step::Swap),
        1 => ask(world, Step::Redrive),
        2 => wait_for_checkpoint(world),
        3 => wait_for_frame(world, fault)?,
        4 => wait_for_output(world)?,
        _ => Aim::Anything,
    })
}

impl Aim {
    pub(super) fn stands_still(&self) -> bool {
        matches!(self, Self::Written { .. })
    }
}

/// Records the step if the fault met it. Called when the host has ended and the power is back.
pub(super) fn note_met(world: &World, fault: Fault, aim: &Aim) -> Result<()> {
    let step = match aim {
        Aim::Anything => None,
        Aim::Amid(step) => Some(*step),
        Aim::Written { mark, sequence } => {
            let frames = frames(world, mark, "")?;
            match fault {
                Fault::Power => after_cut(&frames, *sequence),
                _ => is_last(&frames, *sequence).then_some(Step::BeforeCommit),
            }
        }
        Aim::Shown { mark, output } => {
            let frames = frames(world, mark, output)?;
            is_last_commit(&frames).then_some(Step::AfterCommit)
        }
    };
    if let Some(step) = step {
        let kind = fault;
        world.shared.history.write(Event::Met { kind, step });
    }
    Ok(())
}

fn is_last(frames: &[Found], sequence: u64) -> bool {
    let last = frames.last();
    last.is_some_and(|last| last.sequence == sequence && last.is_commit)
}

/// Whether the frame is gone, or is the processor's last commit that the start finds.
fn after_cut(frames: &[Found], sequence: u64) -> Option<Step> {
    let last = frames.last()?;
    if last.sequence < sequence {
        return Some(Step::BeforeCommit);
    }
    let commit = frames.iter().rfind(|frame| frame.is_commit)?;
    (commit.sequence == sequence).then_some(Step::AfterCommit)
}

fn frames(world: &World, mark: &Mark, text: &str) -> Result<Vec<Found>> {
    mark.frames(&journal(world), counting::PROCESSOR, text)
}

fn journal(world: &World) -> PathBuf {
    world.host.directory().join("journal")
}

fn ask(world: &mut World, step: Step) -> Aim {
    for _ in 0..TRIES_MAX {
        let client = Client::with_timeout(world.host.url(), TIMEOUT);
        let (module, mut random) = (world.counter.clone(), world.random.fork());
        world.asked.ask(move || match step {
            Step::Swap => counting::swap(&client, &module, &mut random),
            _ => counting::redrive_all(&client),
        });
        thread::sleep(Duration::from_micros(world.random.u64(..12_000)));
        if world.asked.is_open() {
            return Aim::Amid(step);
        }
    }
    Aim::Anything
}

/// While a checkpoint is saved, its file has a rollback journal beside it.
fn wait_for_checkpoint(world: &World) -> Aim {
    let journal = world.host.directory().join("checkpoint.sqlite-journal");
    let began = Instant::now();
    while began.elapsed() < CHECKPOINT_PATIENCE {
        if journal.exists() {
            return Aim::Amid(Step::Checkpoint);
        }
        thread::sleep(LOOK_AGAIN);
    }
    Aim::Anything
}

/// Stops the process when a commit is in the journal. For a power cut, where syncs can be delayed,
/// the process ends at once, before any sync begins. For a kill, the process continues if the
/// moment turns out to have passed.
fn wait_for_frame(world: &World, fault: Fault) -> Result<Aim> {
    let directory = journal(world);
    let slow = match fault {
        Fault::Power => slow::begin(world)?,
        _ => None,
    };
    // The file may be reused while it is read, which is not the host's fault.
    let Ok(Some(mark)) = Mark::now(&directory) else {
        return Ok(Aim::Anything);
    };
    let Ok(mut tail) = Tail::follow(&directory, mark, counting::PROCESSOR) else {
        return Ok(Aim::Anything);
    };
    for _ in 0..TRIES_MAX {
        let Some(sequence) = tail.wait_for_commit(COMMIT_PATIENCE) else {
            return Ok(Aim::Anything);
        };
        match slow {
            Some(slow) => {
                slow.end_host(world)?;
                return Ok(Aim::Written { mark, sequence });
            }
            None => stop::stand_still(world, fault != Fault::Power)?,
        }
        let is_syncing = stop::is_syncing(world.host.pid()?, &directory);
        if fault == Fault::Power || tail.is_at_end() && is_syncing {
            return Ok(Aim::Written { mark, sequence });
        }
        stop::go_on(world)?;
    }
    Ok(Aim::Anything)
}

/// Waits until an output is shown, and stops the process. It continues if a later commit was
/// written meanwhile.
fn wait_for_output(world: &mut World) -> Result<Aim> {
    let client = Client::with_timeout(world.host.url(), TIMEOUT);
    for _ in 0..TRIES_MAX {
        let partition = world.random.u32(..counting::PARTITIONS);
        let place = (counting::OUTPUT.to_owned(), partition);
        let Ok(Some(mark)) = Mark::now(&journal(world)) else {
            return Ok(Aim::Anything);
        };
        let shown = clients::wait_for_next(&world.shared, &client, &place, COMMIT_PATIENCE);
        // A busy host does not answer in time.
        let Ok(Some(output)) = shown else {
            return Ok(Aim::Anything);
        };
        stop::stand_still(world, true)?;
        let frames = frames(world, &mark, &output);
        if frames.is_ok_and(|frames| is_last_commit(&frames)) {
            return Ok(Aim::Shown { mark, output });
        }
        stop::go_on(world)?;
    }
    Ok(Aim::Anything)
}

/// Whether no commit follows the one with the text.
fn is_last_commit(frames: &[Found]) -> bool {
    let last = frames.iter().rfind(|frame| frame.is_commit);
    last.is_some_and(|last| last.has_text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(commits: &[(u64, bool)]) -> Vec<Found> {
        let frame = |&(sequence, is_commit): &(u64, bool)| Found {
            sequence,
            is_commit,
            has_text: false,
        };
        commits.iter().map(frame).collect()
    }

    #[test]
    fn a_cut_comes_before_a_commit_that_is_gone_and_after_one_that_is_the_last() {
        let left = |commits: &[(u64, bool)]| after_cut(&frames(commits), 7);
        assert_eq!(left(&[(5, true), (6, false)]), Some(Step::BeforeCommit));
        assert_eq!(left(&[(6, true), (7, true)]), Some(Step::AfterCommit));
        assert_eq!(left(&[(7, true), (8, false)]), Some(Step::AfterCommit));
        assert_eq!(left(&[(7, true), (8, true)]), None);
        assert_eq!(left(&[]), None, "the file is in use again");
    }

    #[test]
    fn a_kill_comes_before_a_commit_only_if_that_is_the_last_frame() {
        assert!(is_last(&frames(&[(6, false), (7, true)]), 7));
        assert!(!is_last(&frames(&[(7, true), (8, false)]), 7));
        assert!(!is_last(&frames(&[(7, false)]), 7));
    }
}
