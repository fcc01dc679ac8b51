//! `restore`: restores a backup to a data directory, on which a host can then start.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use millrace_local::backup::{RestoreError, Restored, Restorer, restore};
use serde_json::json;

use super::backup::{bar, damaged, mebibytes, no_backup};
use super::failure::{Exit, Failure};
use super::output::Output;
use super::table::when;

const AFTER_HELP: &str = "\
Examples:
  millrace restore backups/host --data-dir restored
  zstd -dc host.tar.zst | millrace restore - --data-dir restored
  millrace serve --data-dir restored

The data directory must be empty or not exist. Every file is compared with the manifest; damaged files are named, and everything else is
restored. An encrypted backup stays encrypted: `serve` needs its key file.
Exit codes: 0 restored, 1 failed, or parts are damaged (they are named), 3 no backup, 4 refused.";

/// Bytes read at once.
const READ_BYTES: usize = 256 << 10;

/// Restore a backup to a data directory
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    /// The backup's directory; - for an archive from standard input
    #[arg(value_name = "DIR")]
    from: PathBuf,
    /// The data directory to create
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
}

pub(super) fn run(args: Args, as_json: bool) -> Result<(), Failure> {
    let (from, to) = (&args.from, &args.data_dir);
    let restored = match from == Path::new("-") {
        true => from_stdin(to)?,
        false => from_directory(from, to)?,
    };
    let manifest = &restored.manifest;
    let answer = json!({
        "data_dir": to.display().to_string(),
        "begun_at": manifest.begun_at,
        "sequence": manifest.sequence,
        "encryption_key": manifest.encryption_key,
        "files": manifest.files.len(),
        "bytes": manifest.byte_count(),
        "topics": restored.topics.iter().map(|(name, partitions)| json!({
            "name": name, "partitions": partitions,
        })).collect::<Vec<_>>(),
        "damage": restored.flaws,
    });
    Output::new(as_json).answer(&answer, |_| told(to, &restored))?;
    damaged(&restored.flaws, "was restored as it is in the backup")
}

fn told(to: &Path, restored: &Restored) -> String {
    let Restored {
        manifest, topics, ..
    } = restored;
    let mut text = format!(
        "{} has everything up to transaction {}, from {}: {} topics, {} files, {} MiB",
        to.display(),
        manifest.sequence,
        when(&json!(manifest.begun_at)),
        topics.len(),
        manifest.files.len(),
        mebibytes(manifest.byte_count()),
    );
    let key = manifest.encryption_key.map_or_else(String::new, |key| {
        format!(" --encryption-key-file FILE-WITH-KEY-{key}")
    });
    text.push_str(&format!(
        "\nstart a host with `millrace serve --data-dir {}{key}`; write its backups to another directory than this backup",
        to.display()
    ));
    text
}

fn from_directory(from: &Path, to: &Path) -> Result<Restored, Failure> {
    let bar = bar("restoring {bar:32} {bytes}/{total_bytes} {eta}");
    let restored = restore(from, to, &mut |read, total| {
        bar.set_length(total);
        bar.set_position(read);
    });
    bar.finish_and_clear();
    restored.map_err(not_restored)
}

fn from_stdin(to: &Path) -> Result<Restored, Failure> {
    let mut archive = std::io::stdin().lock();
    if archive.is_terminal() {
        let failure = Failure::usage("there is no archive on standard input");
        return Err(failure.with_hint("write `millrace restore - --data-dir NEW < host.tar`"));
    }
    let mut restorer = Restorer::begin(to).map_err(not_restored)?;
    let bar = bar("restoring {bytes} {bytes_per_sec}");
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let count = archive.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        bar.inc(count as u64);
        restorer.take(&buffer[..count]).map_err(not_restored)?;
    }
    bar.finish_and_clear();
    restorer.finish().map_err(not_restored)
}

fn not_restored(error: RestoreError) -> Failure {
    let message = error.to_string();
    match &error {
        RestoreError::Manifest(error) => no_backup(error),
        RestoreError::NotEmpty { .. } => Failure::refused(message)
            .with_hint("nothing was changed; name a directory that is empty or does not exist"),
        RestoreError::InUse { .. } => Failure::new(Exit::DataDirInUse, "data-dir-in-use", message)
            .with_hint("stop that one, or name another directory"),
        RestoreError::Malformed(_) => Failure::new(Exit::Failed, "broken-off", message)
            .with_hint("remove the incomplete data directory, and use another backup"),
        RestoreError::Checkpoint(_) => Failure::new(Exit::Failed, "damaged", message)
            .with_hint("without it there is no record of which topics the messages belong to; use another backup."),
        RestoreError::DiskFull { .. } => Failure::failed(message)
            .with_hint("remove the incomplete data directory, free space, and restore again"),
        RestoreError::Io { .. } => Failure::failed(message).with_hint(
            "check the disk, remove the incomplete data directory, and restore again",
        ),
    }
}
