//! Backups while everything goes on, faults included. Each complete backup is restored, a host
//! starts on it, and the checker judges what it shows: everything that clients had written down
//! when the backup began must be there, and whatever they did until it ended may be. A backup that
//! breaks off because the host was hit must leave the one before it whole.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;

use super::calm::Calm;
use super::checker::{self, Verdict};
use super::clients::{self, Shared};
use super::counting;
use super::history::{self, Copied, Event, Fault, History};
use super::times;
use crate::Host;

/// Longer than any backup of a world takes, on any machine: a command that runs for longer is hung.
const COMMAND_PATIENCE: Duration = Duration::from_secs(180);
/// The message of `millrace` for a backup that contains damage.
const DAMAGED: &str = "damaged data";
/// Findings that are reported of one restored copy.
const FINDINGS_MAX: usize = 20;

/// What the taker of backups needs.
pub(super) struct Keeper<'a> {
    pub(super) shared: &'a Shared,
    pub(super) binary: &'a Path,
    /// Options of the host.
    pub(super) sizes: &'a [String],
    /// The world's directory, which no fault affects.
    pub(super) directory: &'a Path,
    /// Compiled code; copying it saves compiling it again.
    pub(super) code: PathBuf,
    pub(super) counter: &'a str,
    pub(super) places: &'a [(String, u32)],
    /// Whether the faults of this world may damage its files: then backups are taken, but not
    /// judged.
    pub(super) may_damage: bool,
}

impl Keeper<'_> {
    /// Takes backups now and then, until the clients have stopped sending.
    pub(super) fn keep(&self, seed: u64) {
        let mut random = Rng::with_seed(seed);
        let mut number = 0;
        self.keep_code();
        while self.shared.is_producing() {
            thread::sleep(Duration::from_millis(random.u64(50..900)));
            number += 1;
            if let Err(error) = self.take(number, &mut random) {
                let text = format!("{error:#}");
                eprintln!("torture: backup {number} could not be judged: {text}");
                self.write(Copied::Unjudged, text);
            }
        }
    }

    fn write(&self, what: Copied, why: String) {
        self.shared.history.write(Event::Backup { what, why });
    }

    fn unexpected(&self, what: String) {
        self.shared.history.write(Event::Unexpected { what });
    }

    fn keep_code(&self) {
        let to = self.directory.join("code");
        // Without it a start only takes longer.
        let _ = copy_all(&self.code, &to);
    }

    /// Takes one backup, and checks what must hold afterwards.
    fn take(&self, number: u32, random: &mut Rng) -> Result<()> {
        let dir = self.directory.join("backup");
        let archive = self.directory.join("backup.tar");
        let to_stream = random.u8(..4) == 0;
        let mut taken = None;
        self.shared.with_address(|url| {
            let lines = self.shared.history.lines();
            let mut command = self.command(&["backup"]);
            command.env("MILLRACE_HOST", url);
            let made = match to_stream {
                false => command.arg(&dir).output_in_time(),
                true => command.arg("-").output_to(&archive),
            };
            taken = Some((lines, made, self.shared.history.lines()));
        });
        let Some((began, made, ended)) = taken else {
            return Ok(());
        };
        let made = made?;
        let says = String::from_utf8_lossy(&made.stderr).into_owned();
        if says.contains(DAMAGED) && !self.may_damage {
            self.unexpected(format!("backup {number}: {says}"));
        }
        if !made.status.success() {
            self.write(Copied::BrokenOff, says);
            return self.earlier_is_whole(&dir);
        }
        self.write(Copied::Taken, String::new());
        if self.may_damage {
            return Ok(());
        }
        let from = if to_stream { &archive } else { &dir };
        self.judge(number, from, (began, ended))
    }

    /// Checks that a backup that broke off left the one before it unchanged.
    fn earlier_is_whole(&self, dir: &Path) -> Result<()> {
        if self.may_damage || !dir.join("backup.json").exists() {
            return Ok(());
        }
        let verified = self
            .command(&["backup", "verify"])
            .arg(dir)
            .output_in_time()?;
        if !verified.status.success() {
            let says = String::from_utf8_lossy(&verified.stderr).into_owned();
            self.unexpected(format!("a backup broke off, and of the one before: {says}"));
        }
        Ok(())
    }

    /// Restores a backup into a data directory, and judges what a host shows of it.
    fn judge(&self, number: u32, from: &Path, lines: (u64, u64)) -> Result<()> {
        let place = self.directory.join(format!("restored-{number}"));
        std::fs::create_dir(&place)?;
        let data = place.join("data");
        let mut command = self.command(&["restore"]);
        if from.is_dir() {
            command.arg(from);
        } else {
            command.arg("-").stdin(std::fs::File::open(from)?);
        }
        let restored = command.arg("--data-dir").arg(&data).output_in_time()?;
        if !restored.status.success() {
            let says = String::from_utf8_lossy(&restored.stderr).into_owned();
            self.unexpected(format!("backup {number} is not restored: {says}"));
            return Ok(());
        }
        let _ = copy_all(&self.directory.join("code"), &data.join("code"));
        let verdict = self.live(&place, &data, lines)?;
        self.write(Copied::Judged, String::new());
        for finding in verdict.findings.iter().take(FINDINGS_MAX) {
            let (began, ended) = lines;
            self.unexpected(format!(
                "backup {number}, taken from line {began} to {ended}, restored: {finding}"
            ));
        }
        if verdict.is_clean() {
            std::fs::remove_dir_all(&place)?;
        }
        Ok(())
    }

    /// Lets a host finish the work that is in a restored backup.
    fn live(&self, place: &Path, data: &Path, (began, ended): (u64, u64)) -> Result<Verdict> {
        let path = place.join("history.jsonl");
        let shared = Shared::new(History::create(&path)?);
        self.shared.history.flush()?;
        let all = self.directory.join("history.jsonl");
        copy_history(&all, &shared.history, began, ended)?;
        let sizes: Vec<&str> = self.sizes.iter().map(String::as_str).collect();
        let mut host = Host::in_directory(self.binary, data, &sizes);
        host.log_to(&place.join("host.log"));
        // For the copy, the host that was backed up is gone.
        shared.history.write(Event::Fault {
            kind: Fault::Kill,
            how: "a backup is restored".to_owned(),
            forgets: false,
        });
        let start = Instant::now();
        if let Err(error) = host.start_again() {
            let why = format!("{error:#}");
            shared.history.write(Event::NotStarted { why });
        } else {
            let client = host.client();
            for place in self.places {
                clients::write_ends(&shared, &client, place, true)?;
            }
            counting::write_state(&shared, &client, false)?;
            times::write_clock(&shared);
            let after_ms = u64::try_from(start.elapsed().as_millis())?;
            shared.history.write(Event::Started { after_ms });
            let calm = Calm {
                shared: &shared,
                client,
                counter: self.counter,
                places: self.places,
            };
            calm.drain()?;
            calm.read_last()?;
            host.stop()?;
        }
        shared.history.flush()?;
        checker::check_file(&path)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.binary);
        command.args(arguments).stdin(Stdio::null());
        command
    }
}

/// Writes a history for the copy: what clients knew when the backup began, and what they had begun
/// before it ended, which may or may not be in it.
fn copy_history(from: &Path, to: &History, began: u64, ended: u64) -> Result<()> {
    let mut open: BTreeMap<(u32, u64), u32> = BTreeMap::new();
    let unknown = |producer, first| Event::Info {
        producer,
        first,
        why: "a backup was taken".to_owned(),
    };
    for (at, entry) in (1..=ended).zip(history::read(from)?) {
        let event = entry.with_context(|| format!("line {at}"))?.event;
        let is_known = at <= began;
        match &event {
            Event::Invoke {
                producer, first, ..
            } => {
                *open.entry((*producer, *first)).or_default() += 1;
                to.write(event);
            }
            Event::Ok {
                producer, first, ..
            }
            | Event::Fail {
                producer, first, ..
            }
            | Event::Info {
                producer, first, ..
            } => {
                if let Some(left) = open.get_mut(&(*producer, *first)) {
                    *left = left.saturating_sub(1);
                }
                match event {
                    Event::Ok { .. } if !is_known => to.write(unknown(*producer, *first)),
                    _ => to.write(event.clone()),
                }
            }
            // Messages that may have been removed are not claimed to be there.
            Event::Rules(_) | Event::Due { .. } | Event::Scheduled { .. } | Event::Trim { .. } => {
                to.write(event)
            }
            // Verdicts on other copies do not concern this one.
            Event::Backup { .. } | Event::Unexpected { .. } => {}
            _ if is_known => to.write(event),
            _ => {}
        }
    }
    for ((producer, first), left) in open {
        for _ in 0..left {
            to.write(unknown(producer, first));
        }
    }
    Ok(())
}

fn copy_all(from: &Path, to: &Path) -> Result<()> {
    let mut command = Command::new("cp");
    let copied = command
        .arg("-r")
        .arg(from)
        .arg(to)
        .stderr(Stdio::null())
        .status()?;
    ensure!(copied.success(), "cp: {copied}");
    Ok(())
}

/// Runs commands that must end in time.
trait InTime {
    /// The command's output.
    fn output_in_time(&mut self) -> Result<Output>;
    /// Like [`InTime::output_in_time`], with standard output in a file.
    fn output_to(&mut self, file: &Path) -> Result<Output>;
}

impl InTime for Command {
    fn output_in_time(&mut self) -> Result<Output> {
        let child = self.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        wait(child)
    }

    fn output_to(&mut self, file: &Path) -> Result<Output> {
        let file = std::fs::File::create(file)?;
        let child = self.stdout(file).stderr(Stdio::piped()).spawn()?;
        wait(child)
    }
}

/// Its standard error must fit the pipe.
fn wait(mut child: Child) -> Result<Output> {
    let began = Instant::now();
    while child.try_wait()?.is_none() {
        if began.elapsed() > COMMAND_PATIENCE {
            child.kill()?;
            child.wait()?;
            bail!("a command does not end");
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(child.wait_with_output()?)
}

#[cfg(test)]
mod tests {
    use super::super::history::{Ages, Rules, TopicRule};
    use super::*;
    use crate::torture::checker::Kind;

    /// The verdict on an empty copy, when a message was sent in line 2 and acknowledged in line 3.
    fn verdict(began: u64, ended: u64) -> Result<Verdict> {
        let dir = tempfile::tempdir()?;
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let all = History::create(&from)?;
        let topic = TopicRule {
            name: "safe".to_owned(),
            durable: true,
            produced: true,
            ages: Ages::Never,
            delays: false,
        };
        all.write(Event::Rules(Rules {
            seed: 1,
            topics: vec![topic],
            pipelines: Vec::new(),
            several: false,
        }));
        let (producer, first) = (0, 0);
        all.write(Event::Invoke {
            producer,
            first,
            count: 1,
            topic: "safe".to_owned(),
            once: false,
        });
        let placed = vec![(0, 0)];
        all.write(Event::Ok {
            producer,
            first,
            placed,
        });
        assert_eq!(all.lines(), 3);
        all.flush()?;
        let copy = History::create(&to)?;
        copy_history(&from, &copy, began, ended)?;
        copy.write(Event::Read {
            topic: "safe".to_owned(),
            partition: 0,
            messages: Vec::new(),
            last: true,
        });
        copy.flush()?;
        checker::check_file(&to)
    }

    #[test]
    fn what_was_acknowledged_before_a_backup_has_to_be_in_it_and_what_was_later_may_be()
    -> Result<()> {
        assert!(verdict(3, 3)?.has(Kind::Lost));
        for (began, ended) in [(1, 1), (1, 2), (2, 2), (1, 3), (2, 3)] {
            let verdict = verdict(began, ended)?;
            assert!(verdict.is_clean(), "{:?}", verdict.findings);
        }
        Ok(())
    }
}
