//! The operating system's metrics of this process, named as in Prometheus's own libraries. Values that the system does not provide are
//! omitted.

use std::fmt::Write as _;
use std::fs;

/// The unit in which Linux reports CPU times.
const TICKS_PER_SECOND: f64 = 100.0;

/// One value of a process.
struct Measured {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    value: Option<f64>,
}

/// The running version, as a series that is always 1.
pub(crate) fn measure_build() {
    metrics::gauge!("millrace_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}

/// The process's own metrics, as text.
pub(crate) fn metrics_text() -> String {
    let stat = Stat::read();
    let measured = [
        Measured {
            name: "process_cpu_seconds_total",
            kind: "counter",
            help: "CPU time of the process, its threads together",
            value: stat.as_ref().map(|stat| stat.cpu_seconds),
        },
        Measured {
            name: "process_resident_memory_bytes",
            kind: "gauge",
            help: "Resident memory",
            value: resident_bytes(),
        },
        Measured {
            name: "process_open_fds",
            kind: "gauge",
            help: "Open files, connections among them",
            value: fs::read_dir("/proc/self/fd")
                .ok()
                .map(|open| open.count() as f64),
        },
        Measured {
            name: "process_max_fds",
            kind: "gauge",
            help: "Files that may be open",
            value: open_files_max(),
        },
        Measured {
            name: "process_start_time_seconds",
            kind: "gauge",
            help: "When the process was started, in seconds since the Unix epoch",
            value: stat.and_then(|stat| Some(boot_seconds()? + stat.start_seconds)),
        },
    ];
    let mut text = String::new();
    for Measured {
        name,
        kind,
        help,
        value,
    } in measured
    {
        if let Some(value) = value {
            // Writing to a string does not fail.
            let _ = write!(
                text,
                "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n\n"
            );
        }
    }
    text
}

struct Stat {
    cpu_seconds: f64,
    /// Since the machine was started.
    start_seconds: f64,
}

impl Stat {
    fn read() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // The program's name is in parentheses and may contain anything.
        let (_, rest) = stat.rsplit_once(')')?;
        let fields: Vec<f64> = rest
            .split_ascii_whitespace()
            .map(|field| field.parse().unwrap_or_default())
            .collect();
        let ticks = |at: usize| fields.get(at).copied();
        Some(Self {
            cpu_seconds: (ticks(11)? + ticks(12)?) / TICKS_PER_SECOND,
            start_seconds: ticks(19)? / TICKS_PER_SECOND,
        })
    }
}

fn resident_bytes() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kib * 1024.0)
}

fn open_files_max() -> Option<f64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

fn boot_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_knows_its_memory_its_files_and_when_it_began() {
        let text = metrics_text();
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|value| value.trim().parse::<f64>().ok())
                .unwrap_or_default()
        };
        assert!(value("process_resident_memory_bytes ") > 1e6, "{text}");
        assert!(value("process_open_fds ") >= 3.0, "{text}");
        assert!(value("process_max_fds ") >= 3.0, "{text}");
        assert!(value("process_start_time_seconds ") > 1.6e9, "{text}");
        assert!(text.contains("# TYPE process_cpu_seconds_total counter"));
    }
}
