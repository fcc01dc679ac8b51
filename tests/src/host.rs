//! One running host process: start, stop, kill, start again on the same data.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{Client, wait_for};

/// What the host prints first, before its address.
const READY: &str = "millrace is ready at ";

/// A host process with its own data directory. Dropping it kills the process.
pub struct Host {
    binary: PathBuf,
    options: Vec<String>,
    directory: TempDir,
    child: Option<Child>,
    url: String,
}

impl Host {
    /// Starts the binary and waits until it is ready.
    pub fn start(binary: impl AsRef<Path>) -> Result<Self> {
        Self::start_with(binary, &[])
    }

    /// Starts the binary with further options of `serve`.
    pub fn start_with(binary: impl AsRef<Path>, options: &[&str]) -> Result<Self> {
        let mut host = Self {
            binary: binary.as_ref().to_owned(),
            options: options.iter().map(|&option| option.to_owned()).collect(),
            directory: tempfile::tempdir()?,
            child: None,
            url: String::new(),
        };
        host.start_again()?;
        Ok(host)
    }

    /// Starts it once more on the same data; it must not be running.
    pub fn start_again(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "the host runs already");
        let mut child = self.serve_command().stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        self.child = Some(child);
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let url = line
            .trim()
            .strip_prefix(READY)
            .with_context(|| format!("the host's first line was {line:?}"))?;
        url.clone_into(&mut self.url);
        Ok(())
    }

    /// The command that `start` runs, for those who expect it to fail.
    #[must_use]
    pub fn serve_command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(self.directory())
            .args(&self.options)
            .env("MILLRACE_LOG_FILTER", "warn");
        command
    }

    /// The CLI, pointed at this host.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(arguments).env("MILLRACE_HOST", &self.url);
        command
    }

    /// Where its data is.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Its address.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A client of it.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(&self.url)
    }

    /// `kill -9`: no chance to write anything.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the host does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Asks it to end and waits until it did.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        let mut child = self.child.take().context("the host does not run")?;
        kill_process(Pid::from_child(&child), Signal::TERM)?;
        wait_for("the host to end", || Ok(child.try_wait()?))
    }

    /// Bytes of memory that the process has resident now.
    pub fn resident_bytes(&self) -> Result<u64> {
        let child = self.child.as_ref().context("the host does not run")?;
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .context("no VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
        Ok(kib * 1024)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
