//! How much memory the host may use, and the bounds that follow from it: each is a fraction, so that a host on a small machine refuses
//! work instead of being killed. From 512 MiB on, all of them together, with the program itself and a compiler process, are less than
//! the available memory.

use std::path::{Path, PathBuf};

use clap::Args;
use millrace_engine::HostBounds;
use millrace_engine::room::TABLE_MAX;
use millrace_model::GuestLimits;
use millrace_model::bounds::{
    HOST_AT_HAND_BYTES_MAX, HOST_ATTEMPTS_BYTES_MAX, HOST_DELAYED_BYTES_MAX, HOST_KEPT_BYTES_MAX,
    HOST_PARTITIONS_MAX, HOST_STATE_ATTEMPTS_MAX, HOST_STATE_BYTES_MAX,
    PRODUCE_BYTES_IN_FLIGHT_MAX, PRODUCE_CALL_BYTES_MAX, REQUESTS_BYTES_MAX,
    STATE_ATTEMPT_BYTES_MAX,
};
use millrace_model::guests::COMPILE_MEMORY_BYTES_DEFAULT;
use serde::{Deserialize, Serialize};

use crate::config::error::{ConfigError, refused};
use crate::http::bounds::PRODUCE_BODY_BYTES_MAX;
use crate::net::bounds::{ANSWERS_KIB_MAX, BODIES_KIB_MAX};

/// Used if no system says how much there is.
const MEMORY_BYTES_ASSUMED: u64 = 2 << 30;
/// Fractions are counted in this many parts of the memory.
const PARTS: usize = 64;
/// Parts that belong to no fraction: a margin for what is counted approximately.
const MARGIN_PARTS: usize = 4;
/// The largest cost of a partition and a processor that reads it.
const PARTITION_COST_BYTES: usize = 16 << 10;
/// Partitions that every host may have.
const PARTITIONS_LEAST: usize = 1_000;
/// Bytes that every host may keep of each kind.
const KEPT_BYTES_LEAST: usize = 8 << 20;
/// Minimum bytes of batches in memory.
const TAIL_BYTES_LEAST: usize = 16 << 20;
/// Minimum bytes of all answers together. An answer that may need more takes all of it, and is sent alone.
const ANSWERS_BYTES_LEAST: usize = 40 << 20;
/// Minimum memory of all guests: one with the default limit, and its overhead.
const GUEST_BYTES_LEAST: usize = 72 << 20;
/// Minimum bytes of batches held by processors: the most that one may need by default.
const AT_HAND_BYTES_LEAST: usize = 48 << 20;
/// Minimum memory for compiling the components of common toolchains.
const COMPILE_BYTES_LEAST: u64 = 48 << 20;
/// Memory of the program itself: code, threads, connections, the database's pages, and the allocator's overhead.
const PROGRAM_BYTES: (usize, usize) = (48 << 20, 256 << 20);

/// The least memory that a host can be run with.
const MEMORY_BYTES_LEAST: u64 = 64 << 20;

/// `[limits]`: bounds of memory and state. Bounds that are not set follow from the available
/// memory.
#[derive(Args, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MemorySettings {
    /// Memory that the host may use; its bounds are fractions of this [default: that of the
    /// machine, or the limit of its control group if that is less]
    #[arg(long, id = "limits.memory_bytes", value_name = "BYTES")]
    pub memory_bytes: Option<u64>,
    /// Memory for all delayed messages [default: a 16th of the memory, at most 1 GiB]
    #[arg(long, id = "limits.delayed_bytes_max", value_name = "BYTES")]
    pub delayed_bytes_max: Option<u64>,
    /// Memory for the state of all processors; beyond it, state moves to files [default: three
    /// 32nds of the memory, at most 3 GiB]
    #[arg(long, id = "limits.state_bytes_max", value_name = "BYTES")]
    pub state_bytes_max: Option<u64>,
    /// Bytes of the state of all processors, in memory and in files [default: half of the disk of
    /// the data directory]
    #[arg(long, id = "limits.state_disk_bytes_max", value_name = "BYTES")]
    pub state_disk_bytes_max: Option<u64>,
    /// Memory for delayed messages and state together [default: an eighth of the memory, at most 4
    /// GiB]
    #[arg(long, id = "limits.kept_bytes_max", value_name = "BYTES")]
    pub kept_bytes_max: Option<u64>,
    /// Memory for idempotency keys; at the bound the oldest are forgotten [default: a 64th of the
    /// memory, at most 256 MiB]
    #[arg(long, id = "limits.idempotency_bytes_max", value_name = "BYTES")]
    pub idempotency_bytes_max: Option<u64>,
    /// Partitions of all topics, including those of processors [default: one per 256 KiB of the
    /// memory, from 4 GiB on one per 128 KiB; at most 200000]
    #[arg(long, id = "limits.partitions_max", value_name = "COUNT")]
    pub partitions_max: Option<u64>,
}

/// The bounds of a host's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The memory that the fractions refer to.
    pub memory_bytes: u64,
    /// Where that number comes from.
    pub source: &'static str,
    /// The engine's bounds.
    pub bounds: HostBounds,
    /// Bytes of batches that are not in files yet, or were just written to a store elsewhere.
    pub tail_bytes: usize,
    /// Bytes of journal between two checkpoints, unless configured: changes of up to this size may be in memory twice during a
    /// checkpoint.
    pub journal_bytes: u64,
    /// Bytes of transactions that wait for their commit.
    pub queue_bytes: usize,
    /// Bytes of produce calls on their way to the engine.
    pub in_flight_bytes: usize,
    /// Bytes of records of failed attempts.
    pub attempts_bytes: usize,
    /// Concurrent calls that may write to state.
    pub state_attempts: usize,
    /// Bytes of batches held by processors, including their answers.
    pub at_hand_bytes: usize,
    /// Bytes of bodies being received.
    pub bodies_bytes: usize,
    /// Bytes of answers being sent.
    pub answers_bytes: usize,
    /// Bytes of the memories of all guests.
    pub guest_bytes: usize,
    /// Bytes of a compiler's process.
    pub compile_bytes: u64,
    /// Approximate memory of the program itself.
    pub program_bytes: usize,
}

impl MemorySettings {
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let least = MEMORY_BYTES_LEAST;
        match self.memory_bytes.filter(|bytes| *bytes < least) {
            Some(bytes) => Err(refused(
                "limits.memory_bytes",
                bytes.to_string(),
                format!("at least {least} bytes"),
            )),
            None => Ok(()),
        }
    }

    /// The plan for this machine.
    #[must_use]
    pub fn plan(&self) -> MemoryPlan {
        let (memory_bytes, source) = match self.memory_bytes {
            Some(bytes) => (bytes, "memory_bytes"),
            None => found(),
        };
        self.plan_for(memory_bytes, source)
    }

    fn plan_for(&self, memory_bytes: u64, source: &'static str) -> MemoryPlan {
        let memory = usize::try_from(memory_bytes).unwrap_or(usize::MAX);
        let share = |parts: usize, least: usize, most: usize| {
            (memory / PARTS * parts).clamp(least, most.max(least))
        };
        let or = |set: Option<u64>, share: usize| {
            set.map_or(share, |set| usize::try_from(set).unwrap_or(usize::MAX))
        };
        let delayed = share(4, KEPT_BYTES_LEAST, HOST_DELAYED_BYTES_MAX);
        let delayed = or(self.delayed_bytes_max, delayed);
        let state = share(6, KEPT_BYTES_LEAST, HOST_STATE_BYTES_MAX);
        let state = or(self.state_bytes_max, state);
        let together = share(8, 2 * KEPT_BYTES_LEAST, HOST_KEPT_BYTES_MAX);
        // A configured bound is taken as it is.
        let together = match (self.delayed_bytes_max, self.state_bytes_max) {
            (None, None) => together,
            _ => together.max(delayed).max(state),
        };
        let requests = share(1, KEPT_BYTES_LEAST, REQUESTS_BYTES_MAX);
        let partitions = |parts: usize| {
            let share = share(parts, 0, usize::MAX) / PARTITION_COST_BYTES;
            share.clamp(PARTITIONS_LEAST, HOST_PARTITIONS_MAX)
        };
        let mut plan = MemoryPlan {
            memory_bytes,
            source,
            bounds: HostBounds {
                delayed_bytes: delayed,
                state_bytes: state,
                kept_bytes: or(self.kept_bytes_max, together),
                state_disk_bytes: self
                    .state_disk_bytes_max
                    .map(|set| usize::try_from(set).unwrap_or(usize::MAX)),
                table: TABLE_MAX,
                requests_bytes: or(self.idempotency_bytes_max, requests),
                partitions: or(self.partitions_max, partitions(4)),
            },
            tail_bytes: share(2, TAIL_BYTES_LEAST, 64 << 20),
            journal_bytes: share(1, KEPT_BYTES_LEAST, 128 << 20) as u64,
            queue_bytes: share(2, TAIL_BYTES_LEAST, 64 << 20),
            in_flight_bytes: share(3, PRODUCE_CALL_BYTES_MAX, PRODUCE_BYTES_IN_FLIGHT_MAX),
            attempts_bytes: share(1, KEPT_BYTES_LEAST, HOST_ATTEMPTS_BYTES_MAX),
            state_attempts: (share(2, 0, usize::MAX) / STATE_ATTEMPT_BYTES_MAX)
                .clamp(1, HOST_STATE_ATTEMPTS_MAX),
            at_hand_bytes: share(6, AT_HAND_BYTES_LEAST, HOST_AT_HAND_BYTES_MAX),
            bodies_bytes: share(4, PRODUCE_BODY_BYTES_MAX, BODIES_KIB_MAX << 10),
            answers_bytes: share(5, ANSWERS_BYTES_LEAST, ANSWERS_KIB_MAX << 10),
            guest_bytes: share(9, GUEST_BYTES_LEAST, usize::MAX),
            compile_bytes: (share(6, 0, usize::MAX) as u64)
                .clamp(COMPILE_BYTES_LEAST, COMPILE_MEMORY_BYTES_DEFAULT),
            program_bytes: share(6, PROGRAM_BYTES.0, PROGRAM_BYTES.1),
        };
        // If some reach their bounds, others get more: partitions up to an eighth of everything, guests up to a quarter.
        if self.partitions_max.is_none() {
            let more = partitions(8) - plan.bounds.partitions;
            plan.bounds.partitions += more.min(plan.left() / PARTITION_COST_BYTES);
        }
        let more = (memory / 4).saturating_sub(plan.guest_bytes);
        plan.guest_bytes += more.min(plan.left());
        plan
    }
}

impl MemoryPlan {
    /// Bytes of all fractions, if each is used completely.
    fn together(&self) -> usize {
        let bounds = &self.bounds;
        let in_parts = [
            bounds.kept_bytes,
            bounds.requests_bytes,
            bounds.partitions.saturating_mul(PARTITION_COST_BYTES),
            self.tail_bytes,
            usize::try_from(self.journal_bytes).unwrap_or(usize::MAX),
            self.queue_bytes,
            self.in_flight_bytes,
            self.attempts_bytes,
            self.state_attempts.saturating_mul(STATE_ATTEMPT_BYTES_MAX),
            self.at_hand_bytes,
            self.bodies_bytes,
            self.answers_bytes,
            self.guest_bytes,
            usize::try_from(self.compile_bytes).unwrap_or(usize::MAX),
            self.program_bytes,
        ];
        in_parts.into_iter().fold(0, usize::saturating_add)
    }

    /// What is not a fraction yet, minus the margin.
    fn left(&self) -> usize {
        let memory = usize::try_from(self.memory_bytes).unwrap_or(usize::MAX);
        (memory / PARTS * (PARTS - MARGIN_PARTS)).saturating_sub(self.together())
    }

    /// The limits of modules: as configured, but no default that has no room here.
    pub(crate) fn guests(&self, configured: GuestLimits) -> GuestLimits {
        let usual = GuestLimits::default();
        let within = |set: u64, usual: u64, room: u64| match set == usual {
            true => set.min(room),
            false => set,
        };
        GuestLimits {
            module_bytes_max: within(
                configured.module_bytes_max,
                usual.module_bytes_max,
                self.bodies_bytes as u64,
            ),
            guest_memory_bytes_max: within(
                configured.guest_memory_bytes_max,
                usual.guest_memory_bytes_max,
                self.guest_bytes as u64,
            ),
            compile_memory_bytes_max: within(
                configured.compile_memory_bytes_max,
                usual.compile_memory_bytes_max,
                self.compile_bytes,
            ),
            ..configured
        }
    }

    /// Logs the bounds.
    pub(crate) fn say(&self) {
        let bounds = &self.bounds;
        tracing::info!(
            memory_bytes = self.memory_bytes,
            source = self.source,
            delayed_bytes_max = bounds.delayed_bytes,
            state_bytes_max = bounds.state_bytes,
            kept_bytes_max = bounds.kept_bytes,
            idempotency_bytes_max = bounds.requests_bytes,
            partitions_max = bounds.partitions,
            guest_bytes_max = self.guest_bytes,
            "memory bounds"
        );
    }
}

/// The memory that this process may use, and where the number comes from: the machine, or a control group that allows less.
fn found() -> (u64, &'static str) {
    let machine = std::fs::read_to_string("/proc/meminfo").ok();
    let machine = machine.and_then(|text| machine_bytes(&text));
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = group_bytes(&groups, Path::new("/sys/fs/cgroup"));
    match (machine, group) {
        (Some(machine), Some(group)) if group < machine => (group, "control group"),
        (Some(machine), _) => (machine, "machine"),
        (None, Some(group)) => (group, "control group"),
        (None, None) => (MEMORY_BYTES_ASSUMED, "assumed"),
    }
}

fn machine_bytes(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib: u64 = line?.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// The smallest limit of the process's groups and their ancestors, in either version of control groups.
fn group_bytes(groups: &str, root: &Path) -> Option<u64> {
    let mut limits = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let (root, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        // Within a container the path may be the machine's: then the root is the container's own.
        let mut at = PathBuf::from(path.trim_start_matches('/'));
        loop {
            let limit = std::fs::read_to_string(root.join(&at).join(file)).ok();
            limits.extend(limit.and_then(|text| text.trim().parse::<u64>().ok()));
            if !at.pop() {
                break;
            }
        }
    }
    limits.into_iter().filter(|limit| *limit > 0).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_of_all_groups_counts_and_no_limit_is_none() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
            std::fs::write(path, text).expect("a file");
        };
        put("memory/memory.limit_in_bytes", "9223372036854771712\n");
        put("memory/a/memory.limit_in_bytes", "3000\n");
        put("memory/a/b/memory.limit_in_bytes", "4000\n");
        put("s/memory.max", "max\n");
        put("s/t/memory.max", "5000\n");
        let limit = |groups| group_bytes(groups, root.path());
        assert_eq!(limit("9:cpu,cpuacct:/x\n8:memory:/a/b\n"), Some(3_000));
        assert_eq!(limit("0::/s/t\n"), Some(5_000));
        assert_eq!(limit("0::/s\n"), None);
        assert_eq!(
            limit("8:memory:/of/the/machine\n"),
            Some(9_223_372_036_854_771_712)
        );
        assert_eq!(limit("not a line"), None);
    }

    #[test]
    fn what_the_machine_has_is_read() {
        let text = "MemTotal:       24683248 kB\nMemFree:  1 kB\n";
        assert_eq!(machine_bytes(text), Some(24_683_248 << 10));
        assert_eq!(machine_bytes("MemFree: 1 kB"), None);
    }

    #[test]
    fn a_small_machine_keeps_less_and_what_is_set_is_kept() {
        let small = MemorySettings::default().plan_for(512 << 20, "test");
        assert_eq!(small.bounds.delayed_bytes, 32 << 20);
        assert_eq!(small.bounds.state_bytes, 48 << 20);
        assert_eq!(small.bounds.kept_bytes, 64 << 20);
        let large = MemorySettings::default().plan_for(64 << 30, "test");
        assert_eq!(large.bounds.delayed_bytes, HOST_DELAYED_BYTES_MAX);
        assert_eq!(large.bounds.partitions, HOST_PARTITIONS_MAX);
        for memory in [
            512 << 20,
            600 << 20,
            1 << 30,
            3 << 30,
            24 << 30,
            1 << 40_u64,
        ] {
            let plan = MemorySettings::default().plan_for(memory, "test");
            let most = memory as usize / PARTS * (PARTS - MARGIN_PARTS);
            assert!(
                plan.together() <= most,
                "{memory}: {} of {most}",
                plan.together()
            );
        }
        assert_eq!(large.guest_bytes, 16 << 30);
        assert_eq!(small.bounds.partitions, 2_048);
        let set = MemorySettings {
            state_bytes_max: Some(1 << 30),
            ..MemorySettings::default()
        };
        let bounds = set.plan_for(512 << 20, "test").bounds;
        assert_eq!((bounds.state_bytes, bounds.kept_bytes), (1 << 30, 1 << 30));
    }
}
