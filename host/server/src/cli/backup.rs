//! `backup`: copies a running host to a directory or to standard output, and verifies such a copy.

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use millrace_local::backup::{
    Flaw, ManifestError, Passing, ReceiveError, Received, Receiver, Verified, VerifyError, verify,
};
use millrace_local::examine::Severity;
use serde_json::{Value, json};

use super::client::Client;
use super::doctor;
use super::failure::{Exit, Failure};
use super::output::Output;
use crate::encryption::encryption_keys;

const AFTER_HELP: &str = "\
Examples:
  millrace backup backups/host                 everything; the next time only what is new
  millrace backup - | zstd > host.tar.zst      to standard output, as a tar archive
  millrace backup verify backups/host
  millrace restore backups/host --data-dir restored

The host keeps running. A backup is as of one instant: everything that was acknowledged before the command began is in
it. The directory holds one backup, the last complete one; an interrupted backup leaves it unchanged. The key file of an encrypted host is not
included: keep a copy of it separately.
Exit codes: 0 done and sound, 1 failed, or parts are damaged (they are named; the rest is complete), 4 refused, 5 host unreachable.";

const VERIFY_AFTER_HELP: &str = "\
Examples:
  millrace backup verify backups/host
  millrace backup verify backups/host --json | jq .damage

Reads every file, compares it with the manifest, and examines the backup as `millrace doctor` does. Needs no host.
Exit codes: 0 sound, 1 damaged, 3 no backup.";

/// Bytes read at once.
const READ_BYTES: usize = 256 << 10;

/// Back up a running host
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Args {
    /// The destination directory; - for standard output
    #[arg(value_name = "DIR", required = true)]
    to: Option<PathBuf>,
    /// Copy everything again, including what is already there from an earlier backup
    #[arg(long)]
    full: bool,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Compare a backup with its manifest, and examine it
    Verify(VerifyArgs),
}

#[derive(clap::Args)]
#[command(after_help = VERIFY_AFTER_HELP)]
struct VerifyArgs {
    /// The backup's directory
    dir: PathBuf,
    /// The keys of an encrypted backup: journal and modules are then examined, too
    #[arg(long, value_name = "FILE", env = "MILLRACE_ENCRYPTION_KEY_FILE")]
    encryption_key_file: Option<PathBuf>,
}

pub(super) fn run(args: Args, client: Result<Client, Failure>) -> Result<(), Failure> {
    if let Some(Verb::Verify(args)) = args.verb {
        // No host is needed, only its output format.
        return verify_dir(&args, client.is_ok_and(|client| client.json));
    }
    let to = args.to.unwrap_or_default();
    let client = client?;
    match to == Path::new("-") {
        true => to_stdout(&client),
        false => to_directory(&to, args.full, &client),
    }
}

fn to_stdout(client: &Client) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    if out.is_terminal() {
        let failure = Failure::usage("a backup cannot be written to a terminal");
        return Err(
            failure.with_hint("redirect it to a file or another program, or name a directory")
        );
    }
    let mut passing = Passing::default();
    pass_on(client.stream("/v1/backup", &json!({}))?, &mut |bytes| {
        passing.take(bytes).map_err(not_received)?;
        Ok(out.write_all(bytes)?)
    })?;
    out.flush()?;
    let manifest = passing.finish().map_err(not_received)?;
    damaged(&manifest.damage, "was copied as it is")
}

fn to_directory(dir: &Path, full: bool, client: &Client) -> Result<(), Failure> {
    let mut receiver = Receiver::begin(dir, full).map_err(not_received)?;
    let request = receiver.request();
    let request = json!({"directory": request.directory, "known": request.known});
    let bar = bar("copying {bytes} {bytes_per_sec}");
    let archive = client.stream("/v1/backup", &request)?;
    pass_on(archive, &mut |bytes| {
        bar.inc(bytes.len() as u64);
        receiver.take(bytes).map_err(not_received)
    })?;
    bar.finish_and_clear();
    let received = receiver.finish().map_err(not_received)?;
    Output::new(client.json).answer(&shown(dir, &received), |_| told(dir, &received))?;
    damaged(&received.manifest.damage, "was copied as it is")
}

/// Passes the archive on to its end.
fn pass_on(
    mut archive: impl Read,
    take: &mut dyn FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match archive.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => take(&buffer[..count])?,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                let message = format!("the backup was interrupted ({error})");
                let hint = "the host may be stopping, or its disk may be full: its log says why. An earlier backup in a directory is unchanged";
                return Err(Failure::new(Exit::Failed, "broken-off", message).with_hint(hint));
            }
        }
    }
}

/// Reports damage; everything else is complete.
pub(super) fn damaged(flaws: &[Flaw], how: &str) -> Result<(), Failure> {
    if flaws.is_empty() {
        return Ok(());
    }
    let listed: Vec<String> = flaws
        .iter()
        .map(|flaw| format!("{}: {}", flaw.path, flaw.what))
        .collect();
    let message = format!(
        "damaged data {how}; everything else is complete:\n  {}",
        listed.join("\n  ")
    );
    let hint = "`millrace damage list` shows the damage that the host knows of; docs/operations.md says what to do";
    Err(Failure::new(Exit::Failed, "damaged", message).with_hint(hint))
}

fn shown(dir: &Path, received: &Received) -> Value {
    let Received { manifest, copied } = received;
    json!({
        "directory": dir.display().to_string(),
        "of": manifest.directory,
        "begun_at": manifest.begun_at,
        "sequence": manifest.sequence,
        "encryption_key": manifest.encryption_key,
        "files": manifest.files.len(),
        "bytes": manifest.byte_count(),
        "files_copied": copied.0,
        "bytes_copied": copied.1,
        "damage": manifest.damage,
    })
}

fn told(dir: &Path, received: &Received) -> String {
    let Received { manifest, copied } = received;
    let kept = manifest.files.len() - copied.0;
    let mut text = format!(
        "{} holds everything up to transaction {}: {} files, {} MiB; {} files, {} MiB were copied now, {kept} were already there",
        dir.display(),
        manifest.sequence,
        manifest.files.len(),
        mebibytes(manifest.byte_count()),
        copied.0,
        mebibytes(copied.1),
    );
    if let Some(key) = manifest.encryption_key {
        text.push_str(&format!(
            "\nit is encrypted; the file with key {key} is not included: keep a copy of it separately"
        ));
    }
    text
}

pub(super) fn mebibytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

fn verify_dir(args: &VerifyArgs, as_json: bool) -> Result<(), Failure> {
    let keys = encryption_keys(args.encryption_key_file.as_deref())?;
    let bar = bar("reading {bar:32} {bytes}/{total_bytes} {eta}");
    let verified = verify(&args.dir, keys, &mut |read, total| {
        bar.set_length(total);
        bar.set_position(read);
    });
    bar.finish_and_clear();
    let verified = verified.map_err(not_verified)?;
    let Verified {
        manifest,
        flaws,
        report,
    } = &verified;
    let answer = json!({
        "directory": args.dir.display().to_string(),
        "begun_at": manifest.begun_at,
        "sequence": manifest.sequence,
        "files": manifest.files.len(),
        "bytes": manifest.byte_count(),
        "wrong": flaws,
        "damage": manifest.damage,
        "worst": report.worst().as_str(),
        "findings": doctor::findings(report),
    });
    Output::new(as_json).answer(&answer, |_| {
        let mut text = doctor::for_people(report, false);
        let count = manifest.files.len();
        text.push_str(&format!(
            "\n{} of {count} files match the manifest",
            count - flaws.len()
        ));
        text
    })?;
    damaged(flaws, "differs from what was backed up")?;
    damaged(
        &manifest.damage,
        "was damaged in the host when it was backed up",
    )?;
    match report.worst() {
        Severity::Damage => {
            let message = format!("the backup in {} is damaged", args.dir.display());
            let hint =
                "make a new one with --full in another directory while the host still has the data";
            Err(Failure::new(Exit::Failed, "damaged", message).with_hint(hint))
        }
        Severity::Ok | Severity::Note => Ok(()),
    }
}

/// A progress bar on standard error; hidden if that is not a terminal.
pub(super) fn bar(template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template);
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn not_received(error: ReceiveError) -> Failure {
    let message = error.to_string();
    let refused = |hint: &str| Failure::refused(message.clone()).with_hint(hint);
    match &error {
        ReceiveError::NotOurs { .. } => refused("name an empty directory, or one that does not exist"),
        ReceiveError::InDataDirectory { .. } => {
            refused("name one elsewhere, preferably on another disk, so that one failure cannot destroy both")
        }
        ReceiveError::InUse { .. } => refused("wait until that backup is done"),
        ReceiveError::Earlier(ManifestError::Damaged(_)) => refused(
            "use --full to copy everything again and replace that backup, or name another directory",
        ),
        ReceiveError::Earlier(_) => refused("name another directory"),
        ReceiveError::BrokenOff => Failure::new(Exit::Failed, "broken-off", message).with_hint(
            "the host may be stopping, or its disk may be full: its log says why. An earlier backup in this directory is unchanged",
        ),
        ReceiveError::Malformed(_) => Failure::failed(message)
            .with_hint("an earlier backup in this directory is unchanged; try again"),
        ReceiveError::Io { .. } => Failure::failed(message).with_hint(
            "free space, or check the disk; an earlier backup in this directory is unchanged",
        ),
    }
}

fn not_verified(error: VerifyError) -> Failure {
    let message = error.to_string();
    match error {
        VerifyError::Manifest(error) => no_backup(&error),
        VerifyError::Io(_) | VerifyError::Examine(_) => Failure::failed(message).with_hint(
            "run this as the owner of the files, with space for a copy of the checkpoint",
        ),
    }
}

/// The backup is unusable.
pub(super) fn no_backup(error: &ManifestError) -> Failure {
    let message = error.to_string();
    match error {
        ManifestError::Missing { .. } => Failure::new(Exit::Unknown, "no-backup", message)
            .with_hint("name the directory that `millrace backup` wrote to"),
        ManifestError::Newer { .. } => Failure::refused(message),
        ManifestError::Damaged(_) | ManifestError::Io(_) => Failure::failed(message).with_hint(
            "without it there is no record of which files belong together; use another backup",
        ),
    }
}
