//! Modules as artefacts, with the command line: tags, signatures, and the way to a registry and back.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use guest_artifacts as guests;
use millrace_tests::Host;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::MILLRACE;

/// A folder with a component and a pair of keys.
struct Workshop {
    folder: TempDir,
}

impl Workshop {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("upper.wasm"), guests::UPPERCASE)?;
        let shop = Self { folder };
        shop.done(&["module", "keygen", "key"])?;
        Ok(shop)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(MILLRACE);
        command.args(arguments).current_dir(self.folder.path());
        command.env("MILLRACE_CONFIG_DIR", self.path("no-contexts"));
        command
    }

    /// Runs a command that must succeed.
    fn done(&self, arguments: &[&str]) -> Result<String> {
        finished(&mut self.command(arguments))
    }

    /// Runs a command for a host and returns its JSON.
    fn json(&self, host: &Host, arguments: &[&str]) -> Result<Value> {
        let mut command = self.command(arguments);
        let output = finished(command.arg("--json").env("MILLRACE_HOST", host.url()))?;
        Ok(serde_json::from_str(&output)?)
    }

    /// Runs a command for a host that must fail; returns its exit code and the code of the error.
    fn refused(&self, host: &Host, arguments: &[&str]) -> Result<(i32, String)> {
        let mut command = self.command(arguments);
        let output = command
            .arg("--json")
            .env("MILLRACE_HOST", host.url())
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let error: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
        let code = error["error"]["code"].as_str().context(said)?.to_owned();
        Ok((output.status.code().unwrap_or(-1), code))
    }

    /// A host that demands signatures by the key.
    fn demanding_host(&self) -> Result<Host> {
        let key = self.path("key.pub");
        let key = key.to_str().context("a text path")?;
        Host::start_with(MILLRACE, &["--require-signature", "--trusted-key", key])
    }
}

fn finished(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// Whether a program is installed here; says so if it is not.
fn has(program: &str) -> bool {
    let has = Command::new(program)
        .arg("-v")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok();
    if !has {
        println!("skipped: {program} is not installed on this machine");
    }
    has
}

#[test]
fn tags_are_given_and_taken_back_and_versions_rise_where_that_is_set() -> Result<()> {
    let shop = Workshop::new()?;
    let host = Host::start_with(MILLRACE, &["--module-versions", "monotonic"])?;
    let push = ["module", "push", "upper.wasm", "--tag"];
    shop.json(&host, &[&push[..], &["upper@1.0.0"]].concat())?;
    // The same bytes under the next version.
    let module = shop.json(&host, &[&push[..], &["upper@1.1.0"]].concat())?;
    assert_eq!(module["tags"], json!(["upper@1.0.0", "upper@1.1.0"]));
    let older = shop.refused(&host, &[&push[..], &["upper@1.0.5"]].concat())?;
    assert_eq!(older, (4, "version-not-newer".to_owned()));
    let tagged = shop.json(&host, &["module", "tag", "upper@1.0.0", "loud@0.1.0"])?;
    assert_eq!(
        tagged["tags"],
        json!(["upper@1.0.0", "upper@1.1.0", "loud@0.1.0"])
    );
    let untagged = shop.json(&host, &["module", "untag", "upper@1.0.0"])?;
    assert_eq!(untagged["tags"], json!(["upper@1.1.0", "loud@0.1.0"]));
    let again = shop.refused(&host, &["module", "untag", "upper@1.0.0"])?;
    assert_eq!(again, (3, "unknown-module".to_owned()));
    let back = shop.refused(&host, &["module", "tag", "loud@0.1.0", "upper@1.0.0"])?;
    assert_eq!(back.1, "version-not-newer");
    Ok(())
}

#[test]
fn a_host_that_demands_signatures_takes_only_what_the_key_signed() -> Result<()> {
    let shop = Workshop::new()?;
    let host = shop.demanding_host()?;
    let push = ["module", "push", "upper.wasm"];
    let missing = shop.refused(&host, &push)?;
    assert_eq!(missing, (4, "signature-missing".to_owned()));
    shop.done(&[
        "module",
        "sign",
        "upper.wasm",
        "--key",
        "key",
        "--tag",
        "upper@1.0.0",
    ])?;
    let signed = ["--signature", "upper.wasm.minisig"];
    let other_tag = shop.refused(
        &host,
        &[&push[..], &signed, &["--tag", "upper@9.0.0"]].concat(),
    )?;
    assert_eq!(other_tag.1, "signature-invalid");
    std::fs::write(shop.path("other.wasm"), guests::FILTER)?;
    let other_file = shop.refused(
        &host,
        &[&["module", "push", "other.wasm"][..], &signed].concat(),
    )?;
    assert_eq!(other_file, (4, "signature-invalid".to_owned()));
    shop.done(&["module", "keygen", "stranger"])?;
    shop.done(&["module", "sign", "other.wasm", "--key", "stranger"])?;
    let stranger = [
        "module",
        "push",
        "other.wasm",
        "--signature",
        "other.wasm.minisig",
    ];
    assert_eq!(shop.refused(&host, &stranger)?.1, "signature-untrusted");
    assert_eq!(shop.json(&host, &["module", "list"])?["modules"], json!([]));
    let module = shop.json(
        &host,
        &[&push[..], &signed, &["--tag", "upper@1.0.0"]].concat(),
    )?;
    assert_eq!(module["signature"]["trusted"], true);
    let comment = module["signature"]["comment"]
        .as_str()
        .context("a comment")?;
    assert!(
        comment.contains("file:upper.wasm") && comment.contains("tag:upper@1.0.0"),
        "{comment}"
    );
    let mut show = shop.command(&["module", "show", "upper@1.0.0"]);
    let shown = finished(show.env("MILLRACE_HOST", host.url()))?;
    assert!(
        shown.contains("signed by") && shown.contains(", trusted"),
        "{shown}"
    );
    Ok(())
}

#[test]
fn a_key_is_private_and_is_never_overwritten_and_a_host_without_keys_does_not_start() -> Result<()>
{
    use std::os::unix::fs::PermissionsExt;
    let shop = Workshop::new()?;
    let mode = std::fs::metadata(shop.path("key"))?.permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let before = std::fs::read(shop.path("key"))?;
    let again = shop.command(&["module", "keygen", "key"]).output()?;
    assert_eq!(again.status.code(), Some(2));
    assert_eq!(std::fs::read(shop.path("key"))?, before);
    for options in [
        &["--require-signature"][..],
        &["--trusted-key", "upper.wasm"],
        &["--trusted-key", "key"],
        &["--trusted-key", "nowhere"],
    ] {
        let data = shop.path("data");
        let data = data.to_str().context("a text path")?;
        let serve = ["serve", "--listen", "127.0.0.1:0", "--data-dir", data];
        let output = shop.command(&[&serve[..], options].concat()).output()?;
        assert_eq!(output.status.code(), Some(2), "{options:?}");
    }
    Ok(())
}

#[test]
fn minisign_reads_our_signatures_and_we_read_its() -> Result<()> {
    if !has("minisign") {
        return Ok(());
    }
    let shop = Workshop::new()?;
    shop.done(&["module", "sign", "upper.wasm", "--key", "key"])?;
    let minisign = |arguments: &[&str]| {
        let mut command = Command::new("minisign");
        finished(
            command
                .args(arguments)
                .current_dir(shop.folder.path())
                .stdin(Stdio::null()),
        )
    };
    minisign(&["-V", "-p", "key.pub", "-m", "upper.wasm"])?;
    minisign(&["-G", "-W", "-p", "their.pub", "-s", "their.key"])?;
    minisign(&[
        "-S",
        "-s",
        "their.key",
        "-m",
        "upper.wasm",
        "-x",
        "their.minisig",
        "-t",
        "tag:upper@1.0.0",
    ])?;
    let key = shop.path("their.pub");
    let options = [
        "--require-signature",
        "--trusted-key",
        key.to_str().context("a text path")?,
    ];
    let host = Host::start_with(MILLRACE, &options)?;
    let push = [
        "module",
        "push",
        "upper.wasm",
        "--signature",
        "their.minisig",
        "--tag",
        "upper@1.0.0",
    ];
    assert_eq!(shop.json(&host, &push)?["signature"]["trusted"], true);
    // And our command signs with a key of minisign's.
    shop.done(&["module", "sign", "upper.wasm", "--key", "their.key"])?;
    minisign(&["-V", "-p", "their.pub", "-m", "upper.wasm"])?;
    Ok(())
}

#[test]
fn what_a_module_says_about_itself_is_shown() -> Result<()> {
    let shop = Workshop::new()?;
    let host = Host::start(MILLRACE)?;
    let module = shop.json(&host, &["module", "push", "upper.wasm"])?;
    let producers = module["metadata"]["producers"]
        .as_array()
        .context("producers")?;
    let rust = producers.iter().find(|producer| producer["name"] == "Rust");
    let rust = rust.with_context(|| format!("{producers:?}"))?;
    assert_eq!(rust["field"], "language");
    let digest = module["digest"].as_str().context("a digest")?;
    let mut show = shop.command(&["module", "show", digest]);
    let shown = finished(show.env("MILLRACE_HOST", host.url()))?;
    assert!(shown.contains("Rust"), "{shown}");
    Ok(())
}
