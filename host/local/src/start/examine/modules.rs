//! Checks module files: the name of each must be the digest of its bytes, and each known module
//! must have one.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use millrace_log::Cipher;
use millrace_model::Digest;
use sha2::{Digest as _, Sha256};

use super::catalogue::Catalogue;
use super::report::{Finding, Report, Severity};
use crate::keep::modules::{SUFFIX, UNFINISHED_SUFFIX, key_id, plain};

/// Bytes read at once.
const READ_BYTES: usize = 256 << 10;
const PUT_BACK: &str = "put the component's original bytes there under this name while no host runs; until then processors that \
                        use it cannot start";

pub(super) fn examine(
    report: &mut Report,
    catalogue: &Catalogue,
    read: &mut dyn FnMut(u64),
    cipher: Option<&Cipher>,
) -> io::Result<()> {
    let dir = report.dir.join("modules");
    let mut present = BTreeSet::new();
    let mut worst = Severity::Ok;
    let mut add = |report: &mut Report, finding: Finding| {
        worst = worst.max(finding.severity);
        report.add(finding);
    };
    let entries = match fs::read_dir(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        entries => Some(entries?),
    };
    for entry in entries.into_iter().flatten() {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.unwrap_or_default();
        if let Some(digest) = name.strip_suffix(SUFFIX).and_then(|d| d.parse().ok()) {
            let key = key_of(&path);
            report.note_key(key, "modules");
            let found = match (key, cipher) {
                // Cannot be checked without a key: unlike segments, modules have no checksum of the
                // encrypted form.
                (Some(_), None) => Ok(digest),
                (Some(_), Some(cipher)) => decrypted_digest(&path, digest, cipher, read),
                (None, _) => digest_of(&path, read),
            };
            if let Some(finding) = look_at(&path, digest, found, catalogue) {
                add(report, finding);
            }
            present.insert(digest.to_string());
        } else if name.ends_with(UNFINISHED_SUFFIX) {
            let finding = Finding::note(&path, "an upload that a crash cut short");
            add(
                report,
                finding.advise("nothing to do: the next start removes it"),
            );
        } else {
            add(report, Finding::stray(&path));
        }
    }
    for missing in catalogue.modules.iter().flatten() {
        if !present.contains(missing) {
            let path = dir.join(format!("{missing}{SUFFIX}"));
            add(
                report,
                Finding::damage(&path, "the module's file is missing").advise(PUT_BACK),
            );
        }
    }
    if worst < Severity::Damage {
        let meaning = format!("{} modules, each as its digest says", present.len());
        report.add(Finding::ok(&dir, meaning));
    }
    Ok(())
}

fn look_at(
    path: &Path,
    digest: Digest,
    found: io::Result<Digest>,
    catalogue: &Catalogue,
) -> Option<Finding> {
    match found {
        Err(error) => Some(
            Finding::damage(path, format!("the module cannot be read: {error}")).advise(PUT_BACK),
        ),
        Ok(found) if found != digest => Some(
            Finding::damage(
                path,
                format!("the module's bytes have the digest {}", found.short()),
            )
            .advise(PUT_BACK),
        ),
        Ok(_) => {
            let modules = catalogue.modules.as_ref()?;
            let is_known = modules.contains(&digest.to_string());
            let finding = Finding::note(path, "no module of this digest is known");
            (!is_known).then(|| {
                finding.advise("nothing to do: an upload that was not finished, it only takes room")
            })
        }
    }
}

/// The id of the key that a file is encrypted with. A file that cannot be read is reported when its
/// bytes are read.
fn key_of(path: &Path) -> Option<u32> {
    let mut beginning = [0; 16];
    File::open(path).ok()?.read_exact(&mut beginning).ok()?;
    key_id(&beginning)
}

fn decrypted_digest(
    path: &Path,
    digest: Digest,
    cipher: &Cipher,
    read: &mut dyn FnMut(u64),
) -> io::Result<Digest> {
    let stored = fs::read(path)?;
    read(stored.len() as u64);
    let bytes = plain(digest, stored.into(), Some(cipher)).map_err(io::Error::other)?;
    Ok(Digest(Sha256::digest(&bytes).into()))
}

fn digest_of(path: &Path, read: &mut dyn FnMut(u64)) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(Digest(hash.finalize().into())),
            Ok(count) => {
                hash.update(&buffer[..count]);
                read(count as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
