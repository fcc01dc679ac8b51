//! Describes the journal: what would be replayed, cut or refused, and which offsets are lost behind
//! damage.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use bytes::Bytes;
use millrace_log::Cipher;
use millrace_log::journal::examine::{self, Gap, JournalExamination};

use super::catalogue::Catalogue;
use super::report::{Finding, Repair, Report};
use crate::decide::codec::{self, Operation};

/// Why a replay ends early.
enum Stopped {
    Contradiction { sequence: u64, reason: String },
    Io(io::Error),
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

pub(super) fn examine(
    report: &mut Report,
    catalogue: &mut Catalogue,
    (first_file, after_sequence, durable): (u64, u64, u64),
    cipher: Option<&Cipher>,
) -> io::Result<()> {
    let dir = report.dir.join("journal");
    let found = examine::examine(&dir, first_file, after_sequence)?;
    let mut unread = BTreeSet::new();
    let replayed = found.replay(|sequence, body| {
        let key = codec::key_id(&body);
        report.note_key(key, "journal");
        match key {
            Some(id) if cipher.is_none() => {
                unread.insert(id);
                Ok(())
            }
            _ => replay(catalogue, sequence, body, cipher),
        }
    });
    for id in unread {
        let meaning = format!(
            "what it holds since the last checkpoint is encrypted with key {id} and was not looked into"
        );
        let advice = "name the key file with --encryption-key-file to examine that, too";
        report.add(Finding::note(&dir, meaning).advise(advice));
    }
    match replayed {
        Ok(()) => {}
        Err(Stopped::Io(error)) => return Err(error),
        Err(Stopped::Contradiction { sequence, reason }) => report.add(
            Finding::damage(
                &dir,
                format!("transaction {sequence} cannot be replayed, so a host does not start: {reason}"),
            )
            .advise("use the version of millrace that wrote it, or restore the data directory from a backup"),
        ),
    }
    if let Some(gap) = &found.damage {
        add_damage(report, catalogue, gap, &found, (durable, cipher));
    }
    if let Some(gap) = &found.torn {
        report.add(
            Finding::note(
                &gap.path,
                format!("the last write, transaction {} and on, did not get to the disk whole", gap.sequence),
            )
            .in_bytes(gap.bytes.clone())
            .advise("nothing to do: cut by the next start; nothing that was acknowledged at `durable` is in it"),
        );
    }
    for path in &found.damaged_headers {
        report.add(
            Finding::note(path, "the file's header is damaged; its frames are sound")
                .advise("nothing to do: the frames make up for it; have an eye on this disk"),
        );
    }
    for name in &found.strays {
        report.add(Finding::stray(&dir.join(name)));
    }
    if !found.has_first_file && found.live_files == 0 && first_file > 0 {
        report.add(
            Finding::note(&dir, format!("journal file {first_file}, where the checkpoint says it goes on, is not there"))
                .advise("fine if a start was interrupted; if files were moved away, put them back before the next start"),
        );
    }
    let last_sequence = found.last_sequence();
    if found.damage.is_none() && last_sequence < durable {
        report.add(missing_end(&dir, last_sequence, durable));
    } else if found.damage.is_none() {
        let transactions = last_sequence - after_sequence;
        let (live, spare) = (found.live_files, found.spare_files);
        report.add(Finding::ok(
            &dir,
            format!("{transactions} transactions to replay; files: {live} in use, {spare} to be used again"),
        ));
    }
    Ok(())
}

fn replay(
    catalogue: &mut Catalogue,
    sequence: u64,
    body: Bytes,
    cipher: Option<&Cipher>,
) -> Result<(), Stopped> {
    let contradiction = |reason| Stopped::Contradiction { sequence, reason };
    let operations = codec::open(body, cipher, sequence).map_err(contradiction)?;
    for operation in &operations {
        catalogue.apply(operation).map_err(contradiction)?;
    }
    Ok(())
}

/// Reports a journal that is intact but ends too early.
fn missing_end(dir: &Path, last_sequence: u64, durable: u64) -> Finding {
    let meaning = format!(
        "transactions {} to {durable} were durable and are not there: a file was removed, cut or replaced while no host ran, or \
         the last write was damaged afterwards; a host does not start",
        last_sequence + 1
    );
    Finding::damage(dir, meaning)
        .advise("put the journal's files back, or restore the directory from a backup; `--repair` goes on without what is missing")
        .repaired_by(Repair::AcceptMissing { last_sequence })
}

fn add_damage(
    report: &mut Report,
    catalogue: &Catalogue,
    gap: &Gap,
    found: &JournalExamination,
    (durable, cipher): (u64, Option<&Cipher>),
) {
    let last = found.after_damage.last().map_or(0, |(last, _)| *last);
    let last = match last.max(durable) {
        0 => format!("transaction {} and those after it", gap.sequence),
        last => format!("transactions {} to {last}, or parts of them,", gap.sequence),
    };
    let meaning =
        format!("{last} cannot be replayed, though they were durable; a host does not start");
    let advice = "restore the data directory from a backup; `--repair` goes on with what came before the damage";
    let finding = Finding::damage(&gap.path, meaning)
        .advise(advice)
        .repaired_by(Repair::CutJournal {
            position: gap.bytes.start,
            last_sequence: gap.sequence - 1,
        });
    report.add(finding.in_bytes(gap.bytes.clone()));
    let mut seen = BTreeSet::new();
    for (sequence, body) in &found.after_damage {
        let operations = codec::open(body.clone(), cipher, *sequence).unwrap_or_default();
        for operation in operations {
            let Operation::Append { partition, batch } = operation else {
                continue;
            };
            // The first append after the damage shows where the partition was by then.
            if !seen.insert(partition) {
                continue;
            }
            let Ok(end) = catalogue.end(partition) else {
                continue;
            };
            if end < batch.base_offset() {
                let topic = catalogue.topic_name(partition.topic);
                let meaning = format!(
                    "offsets {end} to {} (exclusive) stood in the damaged part of the journal",
                    batch.base_offset()
                );
                report.add(
                    Finding::damage(&gap.path, meaning)
                        .in_bytes(gap.bytes.clone())
                        .of_partition(&topic, partition.partition)
                        .at_offsets(end..batch.base_offset()),
                );
            }
        }
    }
}
