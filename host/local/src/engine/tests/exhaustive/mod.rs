//! Every operation of scripted workloads is a crash point: the power fails there, with every kind
//! of loss, the engine recovers, and the result is compared with a model. Then the power also fails
//! at the operations of that recovery.
//!
//! ```text
//! script ─► engine on a simulated disk ─► a copy of the disk before each operation that changes it
//!           each copy × losses ─► recover ─► equal to the model after some step between "acknowledged as durable" and "asked for"
//!                                  └─ a copy before each operation × a loss ─► recover ─► equal to the first recovery
//! ```
//! `docs/reliability.md` says what is covered and what is not, and how to run it for longer.

mod faults;
mod found;
mod life_scripts;
mod model;
mod paged_scripts;
mod recover;
mod run;
mod scripts;
mod stateful;
mod transactions;

use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};

use self::recover::{Tally, Worker};
use self::run::{Run, run, run_paged};

/// Multiplies the losses and the random scripts of a run.
const EFFORT_VARIABLE: &str = "MILLRACE_EXHAUSTIVE_EFFORT";
/// Random losses at each point, besides the named ones.
const RANDOM_LOSSES: u64 = 1;
const RANDOM_SCRIPTS: u64 = 4;
/// How many of the random scripts run with state in files.
const PAGED_RANDOM_SCRIPTS: u64 = 2;
const THREADS: usize = 2;

fn effort() -> u64 {
    let asked = std::env::var(EFFORT_VARIABLE).ok();
    asked.and_then(|asked| asked.parse().ok()).unwrap_or(1)
}

/// Prints a line even if the output of passing tests is not shown.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[test]
fn exhaustive_crash_points_lose_nothing_that_was_acknowledged() {
    let began_at = std::time::Instant::now();
    let mut total = Tally::default();
    let mut trimmed = 0;
    for (name, script) in scripts::all() {
        let run = run(name, &script, &[]);
        trimmed += run.trimmed();
        total += explore(&run, RANDOM_LOSSES * effort());
    }
    for seed in 0..RANDOM_SCRIPTS * effort() {
        let script = scripts::random(seed);
        total += explore(&run("a random script", &script, &[]), RANDOM_LOSSES);
    }
    say(&format!(
        "exhaustive crash points in all: {total}, {} s",
        began_at.elapsed().as_secs()
    ));
    assert!(total.recoveries() >= 10_000, "{total}");
    assert!(
        trimmed >= 6,
        "retention and trims remove something: {trimmed}"
    );
    assert!(total.compacted > 100, "compaction is at work: {total}");
}

#[test]
fn exhaustive_crash_points_keep_state_progress_and_outputs_together() {
    let began_at = std::time::Instant::now();
    let mut total = Tally::default();
    for (name, script) in stateful::all() {
        total += explore(&run(name, &script, &[]), RANDOM_LOSSES * effort());
    }
    say(&format!(
        "exhaustive crash points with state in all: {total}, {} s",
        began_at.elapsed().as_secs()
    ));
    assert!(total.recoveries() >= 3_000, "{total}");
}

#[test]
fn exhaustive_crash_points_keep_state_that_stands_in_files() {
    let began_at = std::time::Instant::now();
    let mut total = Tally::default();
    for (name, script) in paged_scripts::all(effort()) {
        total += explore(&run_paged(name, &script), RANDOM_LOSSES * effort());
    }
    for seed in 0..PAGED_RANDOM_SCRIPTS * effort() {
        let script = scripts::random(seed);
        total += explore(&run_paged("a random script", &script), RANDOM_LOSSES);
    }
    say(&format!(
        "exhaustive crash points with state in files in all: {total}, {} s",
        began_at.elapsed().as_secs()
    ));
    assert!(total.recoveries() >= 10_000, "{total}");
}

#[test]
fn exhaustive_scripts_leave_the_same_trace_every_time() {
    let scripts = scripts::all().into_iter().chain(stateful::all());
    for (name, script) in scripts.chain([("random", scripts::random(1))]) {
        let [first, second] = [run(name, &script, &[]), run(name, &script, &[])];
        assert_eq!(first.trace_hash, second.trace_hash, "{name}");
        assert_eq!(first.points.len(), second.points.len());
    }
    for (name, script) in paged_scripts::all(effort()) {
        let [first, second] = [run_paged(name, &script), run_paged(name, &script)];
        assert_eq!(first.trace_hash, second.trace_hash, "{name}, in files");
    }
}

/// Crashes at every point of a run, with two threads.
fn explore(run: &Run, random_losses: u64) -> Tally {
    let next = AtomicUsize::new(0);
    let seen = Default::default();
    let mut total = Tally::default();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    let mut worker = Worker::new(run, &seen);
                    loop {
                        let place = next.fetch_add(1, Ordering::Relaxed);
                        let Some(point) = run.points.get(place) else {
                            return worker.tally;
                        };
                        worker.crash_at(point, place as u64, random_losses);
                    }
                })
            })
            .collect();
        for thread in threads {
            match thread.join() {
                Ok(tally) => total += tally,
                Err(panicked) => std::panic::resume_unwind(panicked),
            }
        }
    });
    println!("{}: {total}", run.name);
    total
}
