//! Compares files of state with the checkpoint: each must exist, every block must be as it was
//! written, and together they must have the recorded sizes of their tables.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use millrace_log::Cipher;
use millrace_log::inspect::ReadOnlyDisk;
use millrace_log::pace::Pace;
use millrace_log::run::{Fault, Met, Run};
use millrace_model::TopicPartition;

use super::catalogue::{Catalogue, Table};
use super::partitions::names;
use super::report::{Finding, Report, Severity};
use crate::keep::checkpoint::StoredRun;
use crate::keep::runs::set::{RunSet, entry_key};
use crate::keep::runs::{DIRECTORY, file_name, number_of};

/// Bytes of a key shown in a finding.
const SHOWN_BYTES_MAX: usize = 64;
const PUT_BACK: &str =
    "put the file back while no host runs, or restore the data directory from a backup";

pub(super) fn examine(
    report: &mut Report,
    catalogue: &Catalogue,
    read: &mut dyn FnMut(u64),
    cipher: Option<&Arc<Cipher>>,
) -> io::Result<()> {
    let dir = report.dir.join(DIRECTORY);
    let mut examination = Examination {
        report,
        catalogue,
        read,
        cipher,
        dir,
        unread: BTreeSet::new(),
    };
    let mut named = BTreeSet::new();
    for table in &catalogue.tables {
        named.extend(table.runs.iter().map(|run| run.number));
        examination.look_at_table(table);
    }
    examination.look_at_others(&named)?;
    for id in std::mem::take(&mut examination.unread) {
        let meaning = format!("files encrypted with key {id} were not looked into");
        let advice = "name the key file with --encryption-key-file to examine those, too";
        let finding = Finding::note(&examination.dir, meaning).advise(advice);
        examination.report.add(finding);
    }
    Ok(())
}

struct Examination<'a> {
    report: &'a mut Report,
    catalogue: &'a Catalogue,
    read: &'a mut dyn FnMut(u64),
    cipher: Option<&'a Arc<Cipher>>,
    dir: PathBuf,
    /// Ids of needed keys that were not given.
    unread: BTreeSet<u32>,
}

/// The owner of a file.
#[derive(Clone, Copy)]
struct Owner<'a> {
    partition: TopicPartition,
    group: &'a str,
}

impl Examination<'_> {
    fn look_at_table(&mut self, table: &Table) {
        let owner = Owner {
            partition: table.partition,
            group: &table.group,
        };
        let mut runs = Vec::new();
        for stored in &table.runs {
            let path = self.dir.join(file_name(stored.number));
            self.report.note_key(stored.key, "state");
            match self.open(&path, stored) {
                Ok(Some(run)) => {
                    if self.look_at_run(&path, &run, Some(owner)) < Severity::Damage {
                        runs.push(Arc::new(run));
                    }
                }
                Ok(None) => {}
                Err(reason) => {
                    let meaning = format!("{reason}; a host does not start");
                    let finding = Finding::damage(&path, meaning).advise(PUT_BACK);
                    self.add(finding, Some(owner));
                }
            }
        }
        if runs.len() == table.runs.len() {
            self.count(table, owner, runs);
        }
    }

    /// Opens a run that a checkpoint names; `None` if it cannot be examined without its key. The
    /// error says what is wrong.
    fn open(&mut self, path: &Path, stored: &StoredRun) -> Result<Option<Run>, String> {
        let cipher = match (stored.key, self.cipher) {
            (None, _) => None,
            (Some(key), Some(cipher)) if cipher.check_value(key).is_some() => Some(cipher),
            (Some(key), _) => {
                self.unread.insert(key);
                // Existence and length can be checked without the key.
                None
            }
        };
        let opened = Run::open(&ReadOnlyDisk, path, stored.number, cipher.cloned());
        let run = opened.map_err(|error| error.to_string())?;
        let facts = run.facts();
        let found = (facts.file_bytes, facts.entries, facts.removals);
        if found != (stored.file_bytes, stored.entries, stored.removals) {
            return Err("it is not the file that the checkpoint names".into());
        }
        Ok((stored.key.is_none() || cipher.is_some()).then_some(run))
    }

    /// Reads a whole run; returns the severity of its worst problem.
    fn look_at_run(&mut self, path: &Path, run: &Run, owner: Option<Owner<'_>>) -> Severity {
        let pace: Pace = Arc::new(|_| Ok(()));
        let mut findings = Vec::new();
        let read = &mut *self.read;
        let examined = run.examine(&pace, &mut |met| match met {
            Met::Read(bytes) => read(bytes),
            Met::Item(_) => {}
            Met::Fault(fault) => findings.push(finding_of(path, fault)),
        });
        if let Err(error) = examined {
            findings.push(Finding::damage(path, error.to_string()));
        }
        let worst = findings.iter().map(|finding| finding.severity).max();
        for finding in findings {
            self.add(finding, owner);
        }
        worst.unwrap_or(Severity::Ok)
    }

    /// Checks that the intact runs have the recorded size of their table.
    fn count(&mut self, table: &Table, owner: Owner<'_>, runs: Vec<Arc<Run>>) {
        let (files, dir) = (runs.len(), self.dir.clone());
        let (partition, group) = (owner.partition, owner.group);
        let said = table.size;
        let finding = match RunSet::of(runs).count() {
            Ok(found) if found == said => Finding::ok(
                &dir,
                format!(
                    "state of {group}: sound; {} entries, {} bytes in {files} files",
                    said.entries, said.bytes
                ),
            ),
            Ok(found) => Finding::damage(
                &dir,
                format!(
                    "state of {group}: {} entries of {} bytes where the checkpoint says {} of {}; a host counts wrong from then on",
                    found.entries, found.bytes, said.entries, said.bytes
                ),
            )
            .advise("export the state and import it again: then it is counted anew"),
            Err(error) => Finding::damage(&dir, format!("state of {group}: {error}")),
        };
        let topic = self.catalogue.topic_name(partition.topic);
        let finding = finding.of_partition(&topic, partition.partition);
        self.report.add(finding);
    }

    /// Reports files that no checkpoint names.
    fn look_at_others(&mut self, named: &BTreeSet<u64>) -> io::Result<()> {
        for name in names(&self.dir)? {
            let path = self.dir.join(&name);
            let number = name.to_str().and_then(number_of);
            match number {
                Some(number) if named.contains(&number) => {}
                Some(number) if self.catalogue.is_guessed => self.look_at_ownerless(&path, number),
                Some(_) => {
                    let meaning = "state that no checkpoint names, which a crash left";
                    let advice = "nothing to do: the next start removes it";
                    self.report
                        .add(Finding::note(&path, meaning).advise(advice));
                }
                None => self.report.add(Finding::stray(&path)),
            }
        }
        Ok(())
    }

    /// Reports a file without a checkpoint: its owner and its key are unknown.
    fn look_at_ownerless(&mut self, path: &Path, number: u64) {
        let opened = Run::open(&ReadOnlyDisk, path, number, self.cipher.cloned());
        match opened {
            Ok(run) if self.cipher.is_none() => {
                self.look_at_run(path, &run, None);
            }
            Ok(_) => {}
            Err(error) => self.report.add(Finding::damage(path, error.to_string())),
        }
    }

    fn add(&mut self, finding: Finding, owner: Option<Owner<'_>>) {
        let Some(Owner { partition, group }) = owner else {
            return self.report.add(finding);
        };
        let meaning = format!("state of {group}: {}", finding.meaning);
        let topic = self.catalogue.topic_name(partition.topic);
        let finding = Finding { meaning, ..finding };
        let finding = finding.of_partition(&topic, partition.partition);
        self.report.add(finding);
    }
}

fn finding_of(path: &Path, fault: Fault) -> Finding {
    match fault {
        Fault::Items {
            bytes,
            after,
            before,
            error,
        } => {
            let from = after.map_or_else(|| "the beginning".into(), |key| shown(&key));
            let to = before.map_or_else(|| "the end".into(), |key| shown(&key));
            let meaning = format!("what stands between {from} and {to} cannot be read: {error}");
            Finding::damage(path, meaning).in_bytes(bytes).advise(
                "restore the data directory from a backup, or empty the state of this partition",
            )
        }
        Fault::Map(error) => Finding::damage(
            path,
            format!("every entry is there, and they cannot be found: {error}"),
        )
        .advise(PUT_BACK),
        Fault::Counts { entries, removals } => Finding::damage(
            path,
            format!("it has {entries} entries and {removals} removals, which is not what it says"),
        )
        .advise(PUT_BACK),
    }
}

/// The entry that a run's key belongs to, for people.
fn shown(key: &[u8]) -> String {
    let key = entry_key(key);
    let key = &key[..key.len().min(SHOWN_BYTES_MAX)];
    format!("key \"{}\"", key.escape_ascii())
}
