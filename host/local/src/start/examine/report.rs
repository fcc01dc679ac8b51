//! The findings of an examination, for people and programs.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use millrace_log::partition::examine::{Fault, FaultKind};
use millrace_model::{Offset, PartitionId};

/// Maximum number of findings in a report; more are only counted, so that a disk that lost
/// everything does not fill the memory.
pub const FINDINGS_MAX: usize = 10_000;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Worth knowing; nothing acknowledged is lost.
    Note,
    /// Something that was acknowledged is not there as it was written.
    Damage,
}

impl Severity {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Damage => "damage",
        }
    }
}

/// A single finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The file or directory, relative to the data directory.
    pub place: PathBuf,
    /// The position in the file, if the finding is about a part of it.
    pub bytes: Option<Range<u64>>,
    /// The topic's name, or its number if the name is unknown.
    pub topic: Option<String>,
    /// The topic's partition.
    pub partition: Option<PartitionId>,
    /// The affected offsets. The end is [`Offset::MAX`] if it is unknown.
    pub offsets: Option<Range<Offset>>,
    /// What it means.
    pub meaning: String,
    /// What to do.
    pub advice: Option<String>,
    /// What a repair would do about it.
    pub repair: Option<Repair>,
}

/// What a repair does about a finding. Nothing is ever removed: files that are in the way are moved
/// to `quarantine/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Moves the file to `quarantine/`.
    Quarantine,
    /// Puts a copy of the file into `quarantine/` if another repair gives up transactions, because
    /// the next start would overwrite it.
    KeepCopy,
    /// Keeps the journal up to this byte of the file; the rest of it and later files are moved
    /// away.
    CutJournal {
        /// Where the sound part ends.
        position: u64,
        /// The last transaction that is kept.
        last_sequence: u64,
    },
    /// Accepts the journal's end, although more was durable.
    AcceptMissing {
        /// The last transaction that is kept.
        last_sequence: u64,
    },
    /// Rebuilds the checkpoint from the copy of the topics, the segments and the journal.
    RebuildCheckpoint,
}

impl Finding {
    fn new(severity: Severity, place: &Path, meaning: impl Into<String>) -> Self {
        Self {
            severity,
            place: place.to_owned(),
            bytes: None,
            topic: None,
            partition: None,
            offsets: None,
            meaning: meaning.into(),
            advice: None,
            repair: None,
        }
    }

    pub(super) fn ok(place: &Path, meaning: impl Into<String>) -> Self {
        Self::new(Severity::Ok, place, meaning)
    }

    pub(super) fn note(place: &Path, meaning: impl Into<String>) -> Self {
        Self::new(Severity::Note, place, meaning)
    }

    pub(super) fn damage(place: &Path, meaning: impl Into<String>) -> Self {
        Self::new(Severity::Damage, place, meaning)
    }

    pub(super) fn stray(place: &Path) -> Self {
        Self::note(place, "this is not the host's")
            .advise("the host leaves it alone; so may you")
            .repaired_by(Repair::Quarantine)
    }

    pub(super) fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    pub(super) fn repaired_by(mut self, repair: Repair) -> Self {
        self.repair = Some(repair);
        self
    }

    pub(super) fn in_bytes(mut self, bytes: Range<u64>) -> Self {
        self.bytes = Some(bytes);
        self
    }

    pub(super) fn of_topic(mut self, topic: impl Into<String>) -> Self {
        self.topic = Some(topic.into());
        self
    }

    pub(super) fn of_partition(self, topic: &str, partition: PartitionId) -> Self {
        let partition = Some(partition);
        Self { partition, ..self }.of_topic(topic)
    }

    pub(super) fn at_offsets(mut self, offsets: Range<Offset>) -> Self {
        self.offsets = Some(offsets);
        self
    }

    /// The finding for a fault in a partition's files.
    pub(super) fn of_fault(fault: Fault) -> Self {
        let range = fault.offsets.as_ref().map_or_else(String::new, range);
        let reads_fail = || match &fault.offsets {
            Some(offsets) if offsets.end < Offset::MAX => format!(
                "reads give an error there and go on at {}; restore the directory from a backup, or accept the loss",
                offsets.end
            ),
            _ => "restore the directory from a backup, or accept the loss".to_owned(),
        };
        let path = &fault.path;
        let finding = match &fault.kind {
            FaultKind::Damaged => {
                Self::damage(path, format!("{range} are damaged")).advise(reads_fail())
            }
            FaultKind::Misplaced => Self::damage(
                path,
                format!("{range} stand in the wrong partition: what is there was written for another topic or partition"),
            )
            .advise(format!(
                "if segment files were swapped or restored to the wrong place, stop the host and put them back; else {}",
                reads_fail()
            )),
            FaultKind::Foreign => Self::damage(
                path,
                "a segment that was written for another topic or partition stands here",
            )
            .advise("stop the host and put it back where it belongs; the next start would keep it under another name"),
            FaultKind::SetAside => Self::note(
                path,
                "a segment of another topic or partition that stood here; a start kept it under this name",
            )
            .advise("if messages are missing elsewhere, put it there under its name without the ending; else remove it"),
            FaultKind::Missing => Self::damage(
                path,
                format!("{range} are missing: a segment file was removed or cut"),
            )
            .advise(format!(
                "if a segment file was moved away, put it back; else {}",
                reads_fail()
            )),
            FaultKind::Unreadable(error) => Self::damage(
                path,
                format!("{range} were not examined, or not to the end: {error}"),
            )
            .advise("look at the disk and the file's permissions, then examine again"),
            FaultKind::IndexMisleads => {
                Self::damage(path, "the index leads to wrong places in its segment")
                    .advise("`--repair` moves the index file away; reading makes a new one")
                    .repaired_by(Repair::Quarantine)
            }
            FaultKind::IndexDamaged => Self::note(path, "the index is damaged")
                .advise("nothing to do: the segment is read through where its index is of no use")
                .repaired_by(Repair::Quarantine),
            FaultKind::IndexAlone => Self::note(path, "an index without a segment")
                .advise("nothing to do, unless its segment was moved away: then put that back")
                .repaired_by(Repair::Quarantine),
            FaultKind::PastEnd => Self::note(path, "bytes after the segment's last message")
                .advise("nothing to do: they belong to no message"),
            FaultKind::AfterMark => Self::note(path, "bytes written after the last checkpoint")
                .advise("nothing to do: the next start writes them again from the journal")
                .repaired_by(Repair::KeepCopy),
            FaultKind::AfterCheckpoint => Self::note(
                path,
                "a segment begun after the last checkpoint",
            )
            .advise("nothing to do: the next start removes it and writes it again from the journal")
            .repaired_by(Repair::KeepCopy),
            FaultKind::Superseded(count) => Self::note(
                path,
                format!("{count} superseded messages stand in a segment that is said to be compacted ({range})"),
            )
            .advise(
                "a later message with the same key stands for each of them. The segment could not be read when it was to be compacted, or a                  version that forgot such segments left it; keys of it whose deletion was compacted away since may have come back: look                  at it with `millrace segment dump`, and delete what is not to be there once more",
            ),
            FaultKind::Stray => Self::stray(path),
        };
        Self {
            bytes: fault.bytes,
            offsets: fault.offsets,
            ..finding
        }
    }
}

fn range(offsets: &Range<Offset>) -> String {
    match offsets.end {
        Offset::MAX => format!("offsets from {} on", offsets.start),
        end => format!("offsets {} to {end} (exclusive)", offsets.start),
    }
}

/// All findings.
#[derive(Clone, Debug)]
pub struct Report {
    /// The data directory.
    pub dir: PathBuf,
    /// In the order in which a start meets them.
    pub findings: Vec<Finding>,
    /// Findings over [`FINDINGS_MAX`]: counted, not kept.
    pub findings_dropped: usize,
    worst: Severity,
    /// For each encryption key, the kinds of data encrypted with it; under `None`, the kinds of
    /// plain data.
    keys: BTreeMap<Option<u32>, BTreeSet<&'static str>>,
}

impl Report {
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            findings: Vec::new(),
            findings_dropped: 0,
            worst: Severity::Ok,
            keys: BTreeMap::new(),
        }
    }

    /// Notes that data of this kind is encrypted with the key, or plain.
    pub(super) fn note_key(&mut self, key: Option<u32>, kind: &'static str) {
        self.keys.entry(key).or_default().insert(kind);
    }

    /// A key that is needed to read the data.
    pub(crate) fn key_needed(&self) -> Option<u32> {
        self.keys.keys().find_map(|key| *key)
    }

    /// Adds a finding that names the keys still needed, if any.
    pub(super) fn conclude_keys(&mut self) {
        let words = |kinds: &BTreeSet<_>| kinds.iter().copied().collect::<Vec<_>>().join(", ");
        let needed: Vec<String> = self
            .keys
            .iter()
            .filter_map(|(key, kinds)| Some(format!("key {} ({})", (*key)?, words(kinds))))
            .collect();
        if needed.is_empty() {
            return;
        }
        let plain = self.keys.get(&None).map_or_else(String::new, |kinds| {
            format!(
                "; some is plain still, written before there was a key: {}",
                words(kinds)
            )
        });
        let meaning = format!("encrypted; still needed: {}{plain}", needed.join(", "));
        let dir = self.dir.clone();
        self.add(Finding::ok(&dir, meaning));
    }

    pub(super) fn add(&mut self, mut finding: Finding) {
        self.worst = self.worst.max(finding.severity);
        if self.findings.len() >= FINDINGS_MAX {
            self.findings_dropped += 1;
            return;
        }
        if let Ok(inside) = finding.place.strip_prefix(&self.dir) {
            let inside = match inside.as_os_str().is_empty() {
                true => Path::new("."),
                false => inside,
            };
            finding.place = inside.to_owned();
        }
        self.findings.push(finding);
    }

    /// Reports a read that failed; the rest is examined anyway.
    pub(super) fn expect_read(&mut self, place: &str, result: io::Result<()>) {
        if let Err(error) = result {
            let meaning = format!("it was not examined, or not to the end: {error}");
            self.add(
                Finding::damage(&self.dir.join(place), meaning)
                    .advise("look at the disk and the permissions, then examine again"),
            );
        }
    }

    /// The worst of all findings.
    #[must_use]
    pub fn worst(&self) -> Severity {
        self.worst
    }
}
