//! Named steps that a fault is to hit: amid a swap of revisions, a redrive, a checkpoint.

use std::thread;
use std::time::{Duration, Instant};

use super::super::clients::TIMEOUT;
use super::super::counting;
use super::super::history::Step;
use super::World;
use crate::Client;

/// How long it is waited for a checkpoint to begin; they come often.
const CHECKPOINT_PATIENCE: Duration = Duration::from_millis(400);
const LOOK_AGAIN: Duration = Duration::from_micros(200);

/// Now and then brings the host amid a step; which one it is amid now.
pub(super) fn reach(world: &mut World) -> Option<Step> {
    match world.random.u8(..8) {
        0 => ask(world, Step::Swap),
        1 => ask(world, Step::Redrive),
        2 => wait_for_checkpoint(world),
        _ => None,
    }
}

fn ask(world: &mut World, step: Step) -> Option<Step> {
    let client = Client::with_timeout(world.host.url(), TIMEOUT);
    let (module, mut random) = (world.counter.clone(), world.random.fork());
    world.asked.ask(move || match step {
        Step::Swap => counting::swap(&client, &module, &mut random),
        _ => counting::redrive_all(&client),
    });
    thread::sleep(Duration::from_micros(world.random.u64(..12_000)));
    world.asked.is_open().then_some(step)
}

/// While a checkpoint is saved, its file has a rollback journal beside it.
fn wait_for_checkpoint(world: &mut World) -> Option<Step> {
    let journal = world.host.directory().join("checkpoint.sqlite-journal");
    let began = Instant::now();
    while began.elapsed() < CHECKPOINT_PATIENCE {
        if journal.exists() {
            return Some(Step::Checkpoint);
        }
        thread::sleep(LOOK_AGAIN);
    }
    None
}
