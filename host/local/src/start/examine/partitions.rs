//! Compares every partition's files with the checkpoint, and reports foreign files beside them.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;

use millrace_log::inspect::ReadOnlyDisk;
use millrace_log::partition::Listing;
use millrace_log::partition::examine::{self, Met, Sums};
use millrace_model::TopicId;

use super::catalogue::Catalogue;
use super::report::{Finding, Report, Severity};

pub(super) fn examine(
    report: &mut Report,
    catalogue: &Catalogue,
    read: &mut dyn FnMut(u64),
) -> io::Result<()> {
    for &topic in catalogue.topics.keys() {
        examine_topic(report, catalogue, topic, read);
    }
    look_at_strangers(report, catalogue)
}

fn examine_topic(
    report: &mut Report,
    catalogue: &Catalogue,
    topic: TopicId,
    read: &mut dyn FnMut(u64),
) {
    let name = catalogue.topic_name(topic);
    let dir = report.dir.join(format!("topics/{topic}"));
    let listing = match Listing::read(&ReadOnlyDisk, &dir) {
        Ok(listing) => listing,
        Err(error) => return report.expect_read(&format!("topics/{topic}"), Err(error)),
    };
    let mut sums = Sums::default();
    let mut worst = Severity::Ok;
    for id in catalogue.partitions(topic) {
        let mark = catalogue.mark(id);
        let of = examine::examine(&listing, id, mark, &mut |met| match met {
            Met::Read(bytes) => read(bytes),
            Met::Batch(key) => report.note_key(key, "segments"),
            Met::Fault(fault) => {
                let finding = Finding::of_fault(fault).of_partition(&name, id.partition);
                worst = worst.max(finding.severity);
                report.add(finding);
            }
        });
        match of {
            Ok(of) => {
                sums.segments += of.segments;
                sums.messages += of.messages;
                sums.bytes += of.bytes;
            }
            Err(error) => {
                worst = Severity::Damage;
                report.expect_read(&format!("topics/{id}"), Err(error));
            }
        }
    }
    let partitions = catalogue.topics.get(&topic).map_or(0, |t| t.partitions);
    let Sums {
        segments,
        messages,
        bytes,
        ..
    } = sums;
    let sound = if worst == Severity::Damage {
        "otherwise "
    } else {
        ""
    };
    let meaning = format!(
        "{sound}sound: {messages} messages, {bytes} bytes in {segments} segments of {partitions} partitions, and {} messages \
         in the journal",
        catalogue.in_journal(topic)
    );
    report.add(Finding::ok(&dir, meaning).of_topic(name));
}

/// Reports directories that belong to no topic, and files in a topic's directory that belong to no
/// partition.
fn look_at_strangers(report: &mut Report, catalogue: &Catalogue) -> io::Result<()> {
    let topics = report.dir.join("topics");
    for name in names(&topics)? {
        let path = topics.join(&name);
        let number = name
            .to_str()
            .and_then(|name| name.parse().ok().map(TopicId));
        match number {
            Some(id) if catalogue.topics.contains_key(&id) => {
                look_at_partition_names(report, catalogue, id, &path)?;
            }
            Some(id) if catalogue.removed.contains(&id) => {
                let meaning = "files of a deleted topic";
                let finding = Finding::note(&path, meaning);
                report.add(finding.advise("nothing to do: the next start removes them"));
            }
            _ => report.add(Finding::stray(&path)),
        }
    }
    Ok(())
}

fn look_at_partition_names(
    report: &mut Report,
    catalogue: &Catalogue,
    topic: TopicId,
    dir: &Path,
) -> io::Result<()> {
    let known = catalogue.topics.get(&topic).map_or(0, |t| t.partitions);
    for stranger in Listing::read(&ReadOnlyDisk, dir)?.strangers(known) {
        report.add(Finding::stray(&stranger));
    }
    Ok(())
}

/// The names in a directory, in order; none if there is no such directory.
pub(super) fn names(dir: &Path) -> io::Result<Vec<OsString>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let names: io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.file_name())).collect();
    let mut names = names?;
    names.sort_unstable();
    Ok(names)
}
