//! What is done to hosts, and what has to follow from it.

use std::thread;
use std::time::Duration;

use anyhow::Result;
use fastrand::Rng;

use super::disk::{self, LoopDisk};
use super::history::{Event, Fault};
use super::world::World;

/// Whether this machine can inject it; if not, what is missing.
pub(super) fn available(fault: Fault) -> Result<(), String> {
    match fault {
        Fault::Kill => Ok(()),
        Fault::Power => disk::available(),
        _ => Err("not built yet".to_owned()),
    }
}

/// The disk that the fault needs, if it needs one.
pub(super) fn disk(fault: Fault, random: &mut Rng) -> Result<Option<LoopDisk>> {
    match fault {
        Fault::Power => LoopDisk::new(random).map(Some),
        _ => Ok(None),
    }
}

/// The first start of a host that is to suffer the fault.
pub(super) fn start(world: &mut World, _: Fault) -> Result<()> {
    world.host.start_again()
}

/// Injects the fault under load, and brings the host back. How many faults it was; `None` if the host does not come back.
pub(super) fn inject(world: &mut World, fault: Fault) -> Result<Option<u32>> {
    match fault {
        Fault::Power => cut_power(world),
        _ => kill(world),
    }
}

fn kill(world: &mut World) -> Result<Option<u32>> {
    note(world, Fault::Kill, "under load");
    world.host.kill()?;
    let mut faults = 1;
    // Now and then once more while it starts.
    while world.random.u8(..5) == 0 {
        keep_out(world);
        world.host.spawn()?;
        thread::sleep(Duration::from_millis(world.random.u64(..120)));
        note(world, Fault::Kill, "while it started");
        world.host.kill()?;
        faults += 1;
    }
    Ok(world.recover()?.then_some(faults))
}

fn cut_power(world: &mut World) -> Result<Option<u32>> {
    lose_power(world, "under load")?;
    let mut faults = 1;
    while world.random.u8(..5) == 0 {
        world.host.spawn()?;
        thread::sleep(Duration::from_millis(world.random.u64(..120)));
        lose_power(world, "while it started")?;
        faults += 1;
    }
    Ok(world.recover()?.then_some(faults))
}

fn lose_power(world: &mut World, when: &str) -> Result<()> {
    let flag = match world.random.u8(..16) {
        0 => 0,
        1..4 => 1,
        _ => 2,
    };
    note(world, Fault::Power, &format!("{when}, flag {flag}"));
    let random = &mut world.random;
    let Some(disk) = &mut world.disk else {
        anyhow::bail!("a world without a disk of its own");
    };
    disk.cut(flag)?;
    // What the host does without its disk must not be acknowledged.
    thread::sleep(Duration::from_millis(random.u64(..15)));
    world.host.kill()?;
    keep_out(world);
    match &mut world.disk {
        Some(disk) => disk.restore(),
        None => Ok(()),
    }
}

/// Nobody is amid anything any more that began with the host that is gone.
fn keep_out(world: &World) {
    drop(world.shared.shut());
}

fn note(world: &World, kind: Fault, how: &str) {
    let how = how.to_owned();
    world.shared.history.write(Event::Fault { kind, how });
}
