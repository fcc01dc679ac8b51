//! What a measurement used: processor time and memory of the servers, and of this load.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};

/// If the load keeps a core busy for this share of the time, the load may be the limit.
const BUSY: f64 = 0.9;

/// Covers one measurement.
pub(crate) struct Meter<'a> {
    servers: &'a [u32],
    spent_before: f64,
    own_before: Duration,
    began: Instant,
}

/// The resources that a measurement used.
#[derive(Clone, Copy)]
pub(crate) struct Spent {
    /// Elapsed seconds.
    pub(crate) seconds: f64,
    /// Processor seconds of the servers, including children that have ended.
    pub(crate) server_seconds: f64,
    /// CPU seconds of this program.
    pub(crate) own_seconds: f64,
}

impl<'a> Meter<'a> {
    /// Begins a measurement; `servers` are process ids.
    pub(crate) fn start(servers: &'a [u32]) -> Result<Self> {
        Ok(Self {
            servers,
            spent_before: cpu_seconds(servers)?,
            own_before: own_cpu(),
            began: Instant::now(),
        })
    }

    pub(crate) fn end(&self) -> Result<Spent> {
        let seconds = self.began.elapsed().as_secs_f64();
        let own = own_cpu() - self.own_before;
        Ok(Spent {
            seconds,
            server_seconds: cpu_seconds(self.servers)? - self.spent_before,
            own_seconds: own.as_secs_f64(),
        })
    }
}

impl Spent {
    /// Whether the load, which is one thread, was almost always busy.
    pub(crate) fn is_bound_by_load(&self) -> bool {
        self.own_seconds / self.seconds > BUSY
    }

    /// CPU time of the servers in microseconds per message.
    pub(crate) fn server_us(&self, messages: u64) -> f64 {
        self.server_seconds * 1e6 / messages.max(1) as f64
    }
}

/// Resident memory of all processes together.
pub(crate) fn resident_bytes(processes: &[u32]) -> Result<u64> {
    let resident = |process: &u32| {
        let status = fs::read_to_string(format!("/proc/{process}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        let kib: u64 = number
            .context("a process without resident memory")?
            .parse()?;
        Ok(kib << 10)
    };
    processes.iter().map(resident).sum()
}

/// The system's load average over one minute.
pub(crate) fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

/// The number of cores, and their model.
pub(crate) fn cores() -> String {
    let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find(|line| line.starts_with("model name"));
    let model = model.and_then(|line| line.split_once(": "));
    let model = model.map_or("an unnamed processor", |(_, model)| model);
    format!("{count} cores of {model}")
}

fn own_cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn cpu_seconds(processes: &[u32]) -> Result<f64> {
    let ticks = |process: &u32| {
        let stat = fs::read_to_string(format!("/proc/{process}/stat"));
        let stat = stat.with_context(|| format!("process {process} has ended"))?;
        ticks(&stat).with_context(|| format!("/proc/{process}/stat is not understood: {stat:?}"))
    };
    let sum: u64 = processes.iter().map(ticks).sum::<Result<u64>>()?;
    Ok(sum as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// User and system time of the process and of its children that have ended. The name in parentheses
/// before them may contain any character.
fn ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let times = rest.split_whitespace().skip(11).take(4);
    let times: Vec<u64> = times.map_while(|time| time.parse().ok()).collect();
    (times.len() == 4).then(|| times.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 1 2 3 4 50 60 7 8 20 0 1 0";
        assert_eq!(ticks(stat), Some(125));
        assert_eq!(ticks("7 (cut) S 1"), None);
    }

    #[test]
    fn this_process_has_memory_and_spends_time() {
        let own = [std::process::id()];
        assert!(resident_bytes(&own).unwrap() > 0);
        let meter = Meter::start(&own).unwrap();
        let until = Instant::now() + Duration::from_millis(50);
        while Instant::now() < until {}
        let spent = meter.end().unwrap();
        assert!(spent.own_seconds > 0.0 && spent.seconds >= 0.05);
    }
}
