//! Rebuilds a lost checkpoint: topics from their copy, the ends of partitions from segments and
//! journal.
//!
//! The new checkpoint is as of the beginning of a journal file, from which on the journal is
//! complete; the next start replays from there. A partition's mark is the offset of the journal's
//! first append to it, or the end of its files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;

use millrace_log::Cipher;
use millrace_log::journal::examine::{self as journal, JournalExamination};
use millrace_log::partition::rebuild::told;
use millrace_log::partition::{Listing, Mark};
use millrace_model::{Offset, Topic, TopicId, TopicPartition};

use super::{RepairError, Work};
use crate::decide::codec::{self, Operation};
use crate::decide::state::Changes;
use crate::keep::checkpoint::{CheckpointStore, RunsStep, Step};
use crate::keep::evidence::{self, Evidence, EvidenceFile};
use crate::keep::names::{self, Names};
use crate::keep::runs;

/// Data that only the checkpoint had.
pub(super) const LOST: &str = "deployed processors, their progress and their state, what is known of modules, and the numbers and request keys of \
     producers, as far as the journal does not tell them; messages that were trimmed come back where their segment is there still. \
     Upload the modules and deploy the processors again, with --reset-state those that keep state: they begin with the first \
     message kept";

const CHECKPOINT: &str = "checkpoint.sqlite";

pub(super) fn rebuild(work: &Work<'_>) -> Result<(), RepairError> {
    let failed = |source| RepairError::Io {
        path: work.dir.join(CHECKPOINT),
        source,
    };
    let names = names::read(&*work.disk, work.dir).map_err(failed)?;
    let names = names.ok_or_else(|| {
        RepairError::Rebuild(
            "there is no topics.json that is whole, so nobody knows the topics' names".to_owned(),
        )
    })?;
    let known = evidence::read(&*work.disk, work.dir).map_err(failed)?;
    let known = known.unwrap_or_default();
    let tail = Tail::find(work, &names, known)?;
    let marks = marks(work, &names, &tail).map_err(failed)?;
    for file in [CHECKPOINT, "checkpoint.sqlite-journal"] {
        work.move_away(Path::new(file)).map_err(failed)?;
    }
    // Only the checkpoint knew their owners, and a start removes files of state that no checkpoint
    // names.
    let state = Path::new(runs::DIRECTORY);
    let unlisted = |source| RepairError::Io {
        path: work.dir.join(state),
        source,
    };
    let names_of_state = work.disk.list(&work.dir.join(state)).map_err(unlisted)?;
    let files = names_of_state
        .iter()
        .filter(|name| runs::number_of(name).is_some());
    for name in files {
        work.move_away(&state.join(name)).map_err(unlisted)?;
    }
    let changes = Changes {
        next_topic: next_topic(work.dir, &names).map_err(failed)?,
        topics: names
            .topics
            .into_iter()
            .filter(|topic| !tail.created.contains(&topic.id))
            .collect(),
        ..Changes::default()
    };
    let step = Step {
        sequence: tail.after_sequence,
        journal_file: tail.first_file,
        changes: &changes,
        marks: &marks,
        swept_topics: &[],
        runs: &RunsStep::default(),
    };
    let unwritten = |error: String| failed(io::Error::other(error));
    let store = CheckpointStore::open(&work.dir.join(CHECKPOINT), work.cipher.clone());
    let mut store = store.map_err(|error| unwritten(error.to_string()))?;
    store
        .adopt_keys()
        .map_err(|error| unwritten(error.to_string()))?;
    store
        .save(&step)
        .map_err(|error| unwritten(error.to_string()))?;
    let mut file = EvidenceFile::new(work.disk.clone(), work.dir);
    file.try_write(Evidence {
        durable: known.durable.min(tail.last_sequence),
        checkpoint: tail.after_sequence,
        journal_file: tail.first_file,
        is_closed: true,
    })
    .map_err(failed)
}

/// The complete part of the journal up to its end.
struct Tail {
    first_file: u64,
    after_sequence: u64,
    last_sequence: u64,
    /// The first offset that it appends to each partition.
    first_offsets: BTreeMap<TopicPartition, Offset>,
    /// Topics that it creates.
    created: BTreeSet<TopicId>,
}

impl Tail {
    fn find(work: &Work<'_>, names: &Names, known: Evidence) -> Result<Self, RepairError> {
        let dir = &work.dir.join("journal");
        let failed = |source| RepairError::Io {
            path: dir.to_owned(),
            source,
        };
        let files = journal::used_files(dir).map_err(failed)?;
        let Some(&(newest, _)) = files.last() else {
            let sequence = names.sequence.max(known.durable);
            return Ok(Self::none(known.journal_file + 1, sequence));
        };
        for (number, first_sequence) in files {
            let after = first_sequence.saturating_sub(1);
            // Before that, topics may have been created or deleted that the copy does not know.
            if after < names.sequence {
                continue;
            }
            let found = journal::examine(dir, number, after).map_err(failed)?;
            if found.damage.is_none() {
                return Self::of(&found, number, after, work.cipher.as_deref());
            }
        }
        // The last checkpoint had everything, so the segments do too, and the journal adds nothing.
        if known.is_closed && known.checkpoint >= known.durable.max(names.sequence) {
            let next = known.journal_file.max(newest + 1);
            return Ok(Self::none(next, known.checkpoint));
        }
        Err(RepairError::Rebuild(format!(
            "the journal, up to file {newest}, does not reach back to transaction {}, of which topics.json is, or is damaged",
            names.sequence
        )))
    }

    fn none(first_file: u64, sequence: u64) -> Self {
        Self {
            first_file,
            after_sequence: sequence,
            last_sequence: sequence,
            first_offsets: BTreeMap::new(),
            created: BTreeSet::new(),
        }
    }

    fn of(
        found: &JournalExamination,
        first_file: u64,
        after: u64,
        cipher: Option<&Cipher>,
    ) -> Result<Self, RepairError> {
        let mut tail = Self::none(first_file, after);
        let replayed = found.replay::<io::Error>(|sequence, body| {
            for operation in codec::open(body, cipher, sequence).map_err(io::Error::other)? {
                match operation {
                    Operation::Append { partition, batch } => {
                        let first = tail.first_offsets.entry(partition);
                        first.or_insert_with(|| batch.base_offset());
                    }
                    Operation::CreateTopic(topic) => {
                        tail.created.insert(topic.id);
                    }
                    _ => {}
                }
            }
            tail.last_sequence = sequence;
            Ok(())
        });
        replayed.map_err(|error| RepairError::Rebuild(error.to_string()))?;
        Ok(tail)
    }
}

fn marks(work: &Work<'_>, names: &Names, tail: &Tail) -> io::Result<Vec<(TopicPartition, Mark)>> {
    let mut marks = Vec::new();
    let old = |topic: &&Topic| !tail.created.contains(&topic.id);
    for topic in names.topics.iter().filter(old) {
        let dir = work.dir.join(format!("topics/{}", topic.id));
        let listing = Listing::read(&*work.disk, &dir)?;
        for id in topic.partitions() {
            let from = tail.first_offsets.get(&id).copied();
            let told = told(&listing, id, from)?;
            for after in &told.after {
                work.move_away(inside(work, after))?;
            }
            if let Some(cut) = &told.cut {
                work.copy(inside(work, cut))?;
            }
            marks.push((id, told.mark));
        }
    }
    Ok(marks)
}

fn inside<'a>(work: &Work<'_>, path: &'a Path) -> &'a Path {
    path.strip_prefix(work.dir).unwrap_or(path)
}

/// A topic number above every number ever assigned.
fn next_topic(dir: &Path, names: &Names) -> io::Result<TopicId> {
    let mut next = names.next_topic;
    for entry in fs::read_dir(dir.join("topics"))? {
        let name = entry?.file_name();
        if let Some(number) = name.to_str().and_then(|name| name.parse::<u64>().ok()) {
            next = next.max(TopicId(number.saturating_add(1)));
        }
    }
    Ok(next)
}
