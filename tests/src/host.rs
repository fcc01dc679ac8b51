//! One running host process: starts, stops and kills it, and starts it again on the same data.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{Client, wait_for};

/// What the host prints first, before its address.
const READY: &str = "millrace is ready at ";
/// How long a start may take before it counts as hung: a machine at load 30 takes a minute for what
/// otherwise takes two seconds.
const START_PATIENCE: Duration = Duration::from_secs(240);

/// A host process with its own data directory. Dropping it kills the process.
pub struct Host {
    binary: PathBuf,
    options: Vec<String>,
    directory: PathBuf,
    /// The file for the process's log; without one the log goes to this process's standard error.
    log: Option<PathBuf>,
    child: Option<Child>,
    stdout: Option<ChildStdout>,
    url: String,
    /// Removed when the host is dropped; `None` if the directory belongs to the caller.
    _owned: Option<TempDir>,
}

impl Host {
    /// Starts the binary and waits until it is ready.
    pub fn start(binary: impl AsRef<Path>) -> Result<Self> {
        Self::start_with(binary, &[])
    }

    /// Starts the binary with further options of `serve`.
    pub fn start_with(binary: impl AsRef<Path>, options: &[&str]) -> Result<Self> {
        let owned = tempfile::tempdir()?;
        let mut host = Self::in_directory(binary, &owned.path().join("data"), options);
        host._owned = Some(owned);
        host.start_again()?;
        Ok(host)
    }

    /// A host that is not started yet, on a data directory that outlives it.
    pub fn in_directory(binary: impl AsRef<Path>, directory: &Path, options: &[&str]) -> Self {
        Self {
            binary: binary.as_ref().to_owned(),
            options: options.iter().map(|&option| option.to_owned()).collect(),
            directory: directory.to_owned(),
            log: None,
            child: None,
            stdout: None,
            url: String::new(),
            _owned: None,
        }
    }

    /// From the next start on, appends the process's log to this file.
    pub fn log_to(&mut self, file: &Path) {
        self.log = Some(file.to_owned());
    }

    /// Starts the host again on the same data; it must not be running.
    pub fn start_again(&mut self) -> Result<()> {
        self.spawn()?;
        self.wait_until_ready()
    }

    /// Starts the process without waiting; it must not be running.
    pub fn spawn(&mut self) -> Result<()> {
        let command = self.serve_command();
        self.spawn_as(command)
    }

    /// As [`Host::spawn`], with a command made from [`Host::serve_command`].
    pub fn spawn_as(&mut self, mut command: Command) -> Result<()> {
        ensure!(self.child.is_none(), "the host runs already");
        if let Some(log) = &self.log {
            command.stderr(appending(log)?);
        }
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        self.stdout = child.stdout.take();
        self.child = Some(child);
        Ok(())
    }

    /// Waits for the first line of a spawned host.
    pub fn wait_until_ready(&mut self) -> Result<()> {
        let stdout = self.stdout.take().context("the host was not spawned")?;
        let (said, hears) = mpsc::channel();
        // The thread ends with the process at the latest.
        thread::spawn(move || {
            let mut line = String::new();
            let read = BufReader::new(stdout).read_line(&mut line);
            let _ = said.send(read.map(|_| line));
        });
        let Ok(line) = hears.recv_timeout(START_PATIENCE) else {
            bail!("not ready after {} s", START_PATIENCE.as_secs());
        };
        let line = line?;
        let url = line
            .trim()
            .strip_prefix(READY)
            .with_context(|| format!("the host's first line was {line:?}"))?;
        url.clone_into(&mut self.url);
        Ok(())
    }

    /// The command that `start` runs, for tests that expect it to fail.
    #[must_use]
    pub fn serve_command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(&self.directory)
            .args(&self.options)
            // It is for tests, and a host warns of variables that it does not know.
            .env_remove("MILLRACE_TEST_NATS")
            .env("MILLRACE_LOG_FILTER", "warn");
        command
    }

    /// A command of the CLI for this host.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(arguments).env("MILLRACE_HOST", &self.url);
        // Not those of the user who runs the tests.
        command.env("MILLRACE_CONFIG_DIR", self.directory.join("no-contexts"));
        command
    }

    /// The data directory.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        self.directory.clone()
    }

    /// The host's URL.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A client of the host.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(&self.url)
    }

    /// `kill -9`: the process gets no chance to write anything.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the host does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// The process id, for signals and for tools that attach to it.
    pub fn pid(&self) -> Result<Pid> {
        let child = self.child.as_ref().context("the host does not run")?;
        Ok(Pid::from_child(child))
    }

    /// How the process ended, if it did so by itself.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let child = self.child.as_mut().context("the host does not run")?;
        let status = child.try_wait()?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status)
    }

    /// Asks the process to end and waits for it.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        let mut child = self.child.take().context("the host does not run")?;
        kill_process(Pid::from_child(&child), Signal::TERM)?;
        wait_for("the host to end", || Ok(child.try_wait()?))
    }

    /// Bytes of resident memory.
    pub fn resident_bytes(&self) -> Result<u64> {
        self.memory("VmRSS:")
    }

    /// Bytes of resident memory that belong to no file.
    pub fn own_bytes(&self) -> Result<u64> {
        self.memory("RssAnon:")
    }

    fn memory(&self, line: &str) -> Result<u64> {
        let child = self.child.as_ref().context("the host does not run")?;
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()))?;
        let value = status.lines().find_map(|found| found.strip_prefix(line));
        let value = value.with_context(|| format!("no {line}"))?;
        let kib: u64 = value.trim().trim_end_matches(" kB").trim().parse()?;
        Ok(kib * 1024)
    }
}

fn appending(path: &Path) -> Result<File> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.with_context(|| format!("{} cannot be opened", path.display()))
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
