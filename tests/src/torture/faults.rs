//! The faults, and the effects that each must have.

mod eio;
mod full;
mod memory;
mod slow;
mod steps;
mod stop;

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fastrand::Rng;

use super::disk::{self, Cutter, LoopDisk};
use super::history::{Event, Fault};
use super::times;
use super::world::World;
pub(super) use memory::Group;

/// How long the required effect of a fault may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Whether this machine can inject the fault; if not, what is missing.
pub(super) fn available(fault: Fault) -> Result<(), String> {
    match fault {
        Fault::Kill | Fault::Stop => Ok(()),
        Fault::Power | Fault::Full => disk::available(),
        Fault::Eio => eio::available(),
        Fault::Memory => memory::available(),
        _ => Err("is one of several hosts".to_owned()),
    }
}

/// The disk for the fault, if it needs one.
pub(super) fn disk(fault: Fault, random: &mut Rng) -> Result<Option<LoopDisk>> {
    match fault {
        Fault::Power => LoopDisk::new(random).map(Some),
        Fault::Full => full::disk().map(Some),
        Fault::Eio => eio::disk(),
        _ => Ok(None),
    }
}

/// The first start of a host that will suffer the fault.
pub(super) fn start(world: &mut World, fault: Fault) -> Result<()> {
    if fault == Fault::Memory {
        return memory::start(world);
    }
    world.host.start_again()
}

/// Every later start.
pub(super) fn start_again(world: &mut World) -> Result<()> {
    if world.group.is_some() {
        memory::spawn(world)?;
        return world.host.wait_until_ready();
    }
    world.host.start_again()
}

/// Injects the fault under load and starts the host again. Returns how many faults that were;
/// `None` if the host does not start.
pub(super) fn inject(world: &mut World, fault: Fault) -> Result<Option<u32>> {
    match fault {
        Fault::Kill => kill(world),
        Fault::Power => cut_power(world),
        Fault::Full => full::inject(world),
        Fault::Eio => eio::inject(world),
        Fault::Stop => stop::inject(world),
        Fault::Memory => memory::inject(world),
        other => bail!("{} is a fault of several hosts", other.word()),
    }
}

fn kill(world: &mut World) -> Result<Option<u32>> {
    let aim = steps::reach(world, Fault::Kill)?;
    note(world, Fault::Kill, "under load");
    world.host.kill()?;
    steps::note_met(world, Fault::Kill, &aim)?;
    let mut faults = 1;
    // Now and then a second kill while it starts.
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
    let knife = cutter(world)?;
    let aim = steps::reach(world, Fault::Power)?;
    let goes_on = !aim.stands_still() && world.random.u8(..3) == 0;
    lose_power(world, knife, "under load", goes_on)?;
    steps::note_met(world, Fault::Power, &aim)?;
    let mut faults = 1;
    while world.random.u8(..5) == 0 {
        world.host.spawn()?;
        thread::sleep(Duration::from_millis(world.random.u64(..120)));
        let (knife, goes_on) = (cutter(world)?, world.random.u8(..3) == 0);
        lose_power(world, knife, "while it started", goes_on)?;
        faults += 1;
    }
    Ok(world.recover()?.then_some(faults))
}

/// A random way to cut the power.
fn cutter(world: &mut World) -> Result<Cutter> {
    let flag = match world.random.u8(..16) {
        0 => 0,
        1..4 => 1,
        _ => 2,
    };
    world.disk()?.cutter(flag)
}

/// Cuts the power in one of two ways.
///
/// The kernel's shutdown takes a moment, and a sync that is under way in that moment may return
/// success although its bytes never arrive: ext4 gives up converting preallocated blocks without
/// reporting it. A real power cut cannot do that, since a machine without power returns nothing. So
/// the process is stopped during the shutdown: either during its syncs, and then it is killed and
/// cannot act on their results; or between them, and then it may go on and see the errors of a dead
/// disk.
fn lose_power(world: &mut World, cutter: Cutter, when: &str, goes_on: bool) -> Result<()> {
    stop::stand_still(world, goes_on)?;
    let flag = cutter.flag();
    cutter.cut()?;
    let how = if goes_on { "it goes on" } else { "amid all" };
    note(world, Fault::Power, &format!("{when}, {how}, flag {flag}"));
    if goes_on {
        stop::go_on(world)?;
        thread::sleep(Duration::from_millis(world.random.u64(..15)));
    }
    world.host.kill()?;
    keep_out(world);
    world.disk()?.restore()
}

/// Waits until no client is still in a request to the host that has ended.
fn keep_out(world: &World) {
    drop(world.shared.shut());
}

fn note(world: &World, kind: Fault, how: &str) {
    note_as(world, kind, how, kind == Fault::Power);
}

/// `forgets`: whatever was only in the page cache may be gone.
fn note_as(world: &World, kind: Fault, how: &str, forgets: bool) {
    times::write_clock(&world.shared);
    world.shared.history.write(Event::Fault {
        kind,
        how: how.to_owned(),
        forgets,
    });
}

fn unexpected(world: &World, what: String) {
    world.shared.history.write(Event::Unexpected { what });
}

/// Waits until the condition holds, at most [`PATIENCE`]; returns how long it took.
fn within_patience(mut is_so: impl FnMut() -> Result<bool>) -> Result<Option<Duration>> {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        if is_so()? {
            return Ok(Some(began.elapsed()));
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(None)
}

impl World {
    fn disk(&mut self) -> Result<&mut LoopDisk> {
        let disk = self.disk.as_mut();
        disk.context("a world without a disk of its own")
    }
}
