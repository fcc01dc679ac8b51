//! Who on the machine can read the data directory, and paths that are refused for it.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Result, ensure};
use millrace_tests::Host;
use serde_json::json;

use crate::MILLRACE;

fn mode(path: &Path) -> Result<u32> {
    Ok(fs::metadata(path)?.permissions().mode() & 0o777)
}

/// Starts a host there and stores something in it.
fn used(directory: &Path) -> Result<Host> {
    let mut host = Host::in_directory(MILLRACE, directory, &[]);
    host.start_again()?;
    host.client().topic("t", 1)?;
    host.client().produce("t", &[json!({"value": "x"})])?;
    host.stop()?;
    Ok(host)
}

#[test]
fn a_new_data_directory_is_its_owners_alone() -> Result<()> {
    let place = tempfile::tempdir()?;
    let directory = place.path().join("data");
    used(&directory)?;
    let mut left = vec![directory];
    let mut files = 0;
    while let Some(path) = left.pop() {
        if path.is_dir() {
            ensure!(
                mode(&path)? == 0o700,
                "{}: {:o}",
                path.display(),
                mode(&path)?
            );
            let entries = fs::read_dir(&path)?;
            left.extend(
                entries
                    .map(|entry| Ok(entry?.path()))
                    .collect::<Result<Vec<_>>>()?,
            );
        } else {
            ensure!(
                mode(&path)? == 0o600,
                "{}: {:o}",
                path.display(),
                mode(&path)?
            );
            files += 1;
        }
    }
    ensure!(files > 5, "{files} files were looked at");
    Ok(())
}

#[test]
fn a_directory_that_is_open_to_others_is_left_as_it_is_and_that_is_said() -> Result<()> {
    let place = tempfile::tempdir()?;
    let (directory, log) = (place.path().join("data"), place.path().join("log"));
    fs::create_dir(&directory)?;
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
    let mut host = Host::in_directory(MILLRACE, &directory, &[]);
    host.log_to(&log);
    host.start_again()?;
    host.stop()?;
    ensure!(mode(&directory)? == 0o755, "{:o}", mode(&directory)?);
    let said = fs::read_to_string(&log)?;
    ensure!(said.contains("chmod -R go="), "{said}");
    // A directory that its owner closed to others stays closed, and so are new files in it.
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o700))?;
    used(&directory)?;
    ensure!(
        mode(&directory.join("topics/1"))? == 0o700,
        "what came since"
    );
    Ok(())
}

#[test]
fn a_name_that_is_not_utf_8_is_refused_in_clear_words_and_nothing_is_made() -> Result<()> {
    let place = tempfile::tempdir()?;
    let directory = place.path().join(OsStr::from_bytes(b"d\xff"));
    let output = Host::in_directory(MILLRACE, &directory, &[])
        .serve_command()
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(2),
        "{:?}: {said}",
        output.status
    );
    ensure!(
        said.contains("not UTF-8") && !said.contains("damage"),
        "{said}"
    );
    ensure!(!directory.exists(), "nothing was made");
    // The remedy that the error suggests works.
    let link = place.path().join("link");
    fs::create_dir(&directory)?;
    std::os::unix::fs::symlink(&directory, &link)?;
    used(&link).map(drop)
}
