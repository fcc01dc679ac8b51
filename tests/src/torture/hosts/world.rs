//! One world: a store, hosts on it, clients that never rest, and a number of faults; then calm, a last reading of everything, and the checker.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fastrand::Rng;
use rustix::process::Signal;
use tempfile::TempDir;

use super::forwarder::Weather;
use super::members::Member;
use super::silence::Silence;
use super::store::{Store, StoreKind};
use crate::torture::calm::Calm;
use crate::torture::checker::{self, Verdict};
use crate::torture::clients::{self, Shared};
use crate::torture::history::{Event, Fault, History};
use crate::torture::world::{AGING, PRODUCERS, TOPICS, partitions, rules, set_up};
use crate::torture::{counting, times};

/// How long hosts may take until everything goes on after a fault.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Longer than a host may be silent until it is considered dead, by default 10 s.
const PAST_LEASE: Duration = Duration::from_millis(12_500);
/// How much longer pauses clients make than with one host.
const PACE: u32 = 8;
/// Longer than any host takes to hear what others have committed.
const HEARS_AFTER: Duration = Duration::from_secs(2);

/// The plan for one world.
#[derive(Clone, Debug)]
pub(super) struct WorldPlan {
    pub(super) binary: PathBuf,
    pub(super) store: StoreKind,
    pub(super) hosts: usize,
    pub(super) seed: u64,
    pub(super) faults: Vec<Fault>,
    /// Where the files of a world with findings are kept for examination.
    pub(super) keep: PathBuf,
}

/// What came of a world.
pub(super) struct Lived {
    pub(super) verdict: Verdict,
    pub(super) silences: Vec<(Fault, Duration)>,
}

/// A running world. Hosts end before their store.
struct World {
    members: Vec<Member>,
    store: Box<dyn Store>,
    random: Rng,
    shared: Arc<Shared>,
    silence: Arc<Silence>,
    silences: Vec<(Fault, Duration)>,
    directory: TempDir,
}

/// Runs a world and judges it. Errors are those of the machine or of this program, not of the hosts.
pub(super) fn live(plan: &WorldPlan) -> Result<Lived> {
    let mut world = World::make(plan)?;
    let lived = world.live(plan);
    world.shared.history.flush()?;
    let verdict = checker::check_file(&world.directory.path().join("history.jsonl"));
    if lived.is_err() || !verdict.as_ref().is_ok_and(Verdict::is_clean) {
        world.keep(plan);
    }
    lived.with_context(|| format!("seed {}", plan.seed))?;
    Ok(Lived {
        verdict: verdict?,
        silences: std::mem::take(&mut world.silences),
    })
}

impl World {
    fn make(plan: &WorldPlan) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let store = plan.store.start(directory.path(), &plan.faults)?;
        let mut members = Vec::new();
        for number in 0..plan.hosts {
            let member = Member::new(&plan.binary, directory.path(), number, &*store)?;
            members.push(member);
        }
        let history = History::create(&directory.path().join("history.jsonl"))?;
        Ok(Self {
            members,
            store,
            random: Rng::with_seed(plan.seed),
            shared: Arc::new(Shared::new(history)),
            silence: Arc::new(Silence::new()),
            silences: Vec::new(),
            directory,
        })
    }

    fn live(&mut self, plan: &WorldPlan) -> Result<()> {
        for member in &mut self.members {
            member.start()?;
        }
        let trims = self.random.bool();
        let rules = rules(plan.seed, trims, true);
        self.shared.history.write(Event::Rules(rules.clone()));
        self.shared.slow_down(PACE);
        let client = self.members[0].client();
        set_up(&client, trims, true)?;
        times::set_up(&self.shared, &client)?;
        let counter = counting::set_up(&client)?;
        let of_topic =
            |topic: &'static str| (0..partitions(topic)).map(move |at| (topic.to_owned(), at));
        let places: Vec<(String, u32)> = TOPICS.into_iter().flat_map(of_topic).collect();
        let trimmed = |place: &&(String, u32)| trims && place.0 == AGING;
        let trimmed: Vec<_> = places.iter().filter(trimmed).cloned().collect();
        let (shared, silence) = (Arc::clone(&self.shared), Arc::clone(&self.silence));
        let seed = self.random.u64(..);
        thread::scope(|scope| {
            for producer in PRODUCERS {
                let (shared, seed) = (&shared, seed ^ u64::from(producer.number));
                scope.spawn(move || clients::produce(shared, producer, seed));
            }
            scope.spawn(|| counting::disturb(&shared, &counter, seed.rotate_left(2)));
            scope.spawn(|| clients::trim(&shared, &trimmed, seed.rotate_left(1)));
            scope.spawn(|| clients::read(&shared, &places, &rules.pipelines, !seed));
            scope.spawn(|| silence.follow());
            let lived = self.suffer(plan);
            let lived = lived.and_then(|goes_on| match goes_on {
                true => self.calm(&counter, &places),
                false => Ok(()),
            });
            // Also after an error, because the scope waits for its threads.
            shared.stop_producing();
            shared.stop_reading();
            silence.stop();
            lived
        })
    }

    /// Injects the faults. False if the hosts do not go on after one; the history says so.
    fn suffer(&mut self, plan: &WorldPlan) -> Result<bool> {
        self.tell_addresses(None);
        if !self.goes_on("the beginning", Instant::now())? {
            return Ok(false);
        }
        for &fault in &plan.faults {
            thread::sleep(Duration::from_millis(self.random.u64(20..350)));
            self.silence.mark();
            let how = self.inject(fault);
            let how = how.with_context(|| fault.word())?;
            if !self.goes_on(&format!("{}, {how}", fault.word()), Instant::now())? {
                return Ok(false);
            }
            self.store.mend(fault)?;
        }
        Ok(true)
    }

    /// Clients go to all hosts, and whoever measures silence to those that no fault affects.
    fn tell_addresses(&self, affected: Option<usize>) {
        let address = |member: &Member| member.host.url().to_owned();
        self.shared
            .go_to(self.members.iter().map(address).collect());
        let others = self.members.iter().enumerate();
        let others = others.filter(|(number, _)| Some(*number) != affected);
        self.silence
            .ask(others.map(|(_, member)| address(member)).collect());
    }

    fn note(&self, kind: Fault, how: &str) {
        times::write_clock(&self.shared);
        self.shared.history.write(Event::Fault {
            kind,
            how: how.to_owned(),
            forgets: false,
        });
    }

    fn unexpected(&self, what: String) {
        self.shared.history.write(Event::Unexpected { what });
    }

    /// Injects a fault and ends it; returns what was done.
    fn inject(&mut self, fault: Fault) -> Result<String> {
        let number = self.random.usize(..self.members.len());
        match fault {
            Fault::HostKill | Fault::HostStop | Fault::HostRestart | Fault::HostClock => {
                self.note(fault, &format!("host {number}"));
                self.tell_addresses(Some(number));
                self.hit(fault, number)?;
                self.tell_addresses(None);
                Ok(format!("host {number}"))
            }
            Fault::Cut | Fault::Stall => {
                let weather = match fault {
                    Fault::Cut => Weather::Cut,
                    _ => Weather::Still,
                };
                // Some are so long that the host is considered dead.
                let pause = match self.random.u8(..8) {
                    0 => PAST_LEASE,
                    _ => Duration::from_millis(self.random.u64(100..4_000)),
                };
                let how = format!("host {number} for {pause:?}");
                self.note(fault, &how);
                self.tell_addresses(Some(number));
                self.members[number].set(weather);
                thread::sleep(pause);
                self.members[number].set(Weather::Clear);
                self.tell_addresses(None);
                Ok(how)
            }
            _ => {
                self.note(fault, "the store");
                let how = self.store.inject(fault, &mut self.random)?;
                for member in &self.members {
                    member.lead_to(&*self.store);
                }
                Ok(how)
            }
        }
    }

    /// Hits a host and starts it again.
    fn hit(&mut self, fault: Fault, number: usize) -> Result<()> {
        let since = Instant::now();
        match fault {
            Fault::HostKill => {
                self.members[number].host.kill()?;
                let pause = Duration::from_millis(self.random.u64(..3_000));
                thread::sleep(pause);
            }
            Fault::HostStop => {
                self.members[number].signal(Signal::STOP)?;
                thread::sleep(PAST_LEASE);
                // The others have its work, before it goes on and finds that out.
                self.others_work(number, since)?;
                self.members[number].signal(Signal::CONT)?;
                return Ok(());
            }
            _ => {
                let stopped = self.members[number].host.stop()?;
                if !stopped.success() {
                    let says = self.members[number].says();
                    self.unexpected(format!(
                        "asked to stop, a host ended with {stopped}; {says}"
                    ));
                }
            }
        }
        match fault {
            Fault::HostClock => {
                let hours = if self.random.bool() { 1 } else { -1 };
                self.members[number].start_at(hours)
            }
            _ => self.members[number].start(),
        }
    }

    /// Waits until the others process everything without this one.
    fn others_work(&self, number: usize, since: Instant) -> Result<()> {
        let began = Instant::now();
        while self.silence.longest(since).is_none() {
            if began.elapsed() > PATIENCE {
                let silent = self.silence.silent(since);
                let why =
                    format!("nobody takes over from host {number}, which stands still: {silent:?}");
                self.shared.history.write(Event::NotDrained { why });
                return Ok(());
            }
            thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    /// Waits until every host is ready and every partition is worked again, and notes how long partitions were silent.
    fn goes_on(&mut self, after: &str, since: Instant) -> Result<bool> {
        for number in 0..self.members.len() {
            let member = &mut self.members[number];
            if let Some(status) = member.host.ended()? {
                let says = member.says();
                self.unexpected(format!(
                    "after {after}, host {number} ended with {status}; {says}"
                ));
                self.members[number].start()?;
                self.tell_addresses(None);
            }
        }
        loop {
            let waiting = self
                .members
                .iter()
                .filter(|member| !is_ready(member))
                .count();
            let longest = self.silence.longest(since);
            if let Some(longest) = longest.filter(|_| waiting == 0) {
                let fault = self.last_fault(after);
                self.silences.extend(fault.map(|fault| (fault, longest)));
                let after_ms = u64::try_from(since.elapsed().as_millis())?;
                times::write_clock(&self.shared);
                self.shared.history.write(Event::Started { after_ms });
                return Ok(true);
            }
            if since.elapsed() > PATIENCE {
                let silent = self.silence.silent(since);
                let says: Vec<String> = self.members.iter().map(Member::says).collect();
                let why = format!(
                    "after {after}: {waiting} hosts are not ready, nothing comes out in {silent:?}; {says:?}"
                );
                self.shared.history.write(Event::NotDrained { why });
                return Ok(false);
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    fn last_fault(&self, after: &str) -> Option<Fault> {
        let word = after.split(',').next()?;
        let mut all = Fault::OF_SEVERAL.into_iter();
        all.find(|fault| fault.word() == word)
    }

    /// The clients send nothing more; everything is processed and read once more, and the hosts stop in order.
    fn calm(&mut self, counter: &str, places: &[(String, u32)]) -> Result<()> {
        self.shared.stop_producing();
        // Clients finish the requests that they have begun.
        thread::sleep(clients::TIMEOUT);
        let number = self.random.usize(..self.members.len());
        let calm = Calm {
            shared: &self.shared,
            client: self.members[number].client(),
            counter,
            places,
        };
        calm.drain()?;
        self.shared.stop_reading();
        thread::sleep(HEARS_AFTER);
        calm.read_last()?;
        for member in &mut self.members {
            let stopped = member.host.stop()?;
            if !stopped.success() {
                let what = format!(
                    "asked to stop, a host ended with {stopped}; {}",
                    member.says()
                );
                self.shared.history.write(Event::Unexpected { what });
            }
        }
        Ok(())
    }

    /// Copies history and logs to where they are kept.
    fn keep(&self, plan: &WorldPlan) {
        let to = plan.keep.join(format!("seed-{}", plan.seed));
        let copy = || -> Result<()> {
            std::fs::create_dir_all(&to)?;
            let directory = self.directory.path();
            let of_servers = std::fs::read_dir(self.store.logs())?;
            for entry in std::fs::read_dir(directory)?.chain(of_servers) {
                let entry = entry?;
                if entry.file_type()?.is_file() {
                    std::fs::copy(entry.path(), to.join(entry.file_name()))?;
                }
            }
            Ok(())
        };
        match copy() {
            Ok(()) => eprintln!("torture: history and logs are kept in {}", to.display()),
            Err(error) => eprintln!("torture: nothing is kept: {error:#}"),
        }
    }
}

fn is_ready(member: &Member) -> bool {
    let client = crate::Client::with_timeout(member.host.url(), clients::TIMEOUT);
    let ready = client.get("/health/ready");
    ready.is_ok_and(|reply| reply.status == 200)
}
