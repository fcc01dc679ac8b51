//! PostgreSQL as the store of several hosts: a primary and, in worlds where it is promoted, a synchronous standby.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;

use super::forwarder::Upstream;
use super::store::Store;
use crate::torture::disk::fill;
use crate::torture::history::Fault;

/// Ends everything when the process of the torture ends, however it ends.
const WATCHER: &str = r#"
cat >/dev/null
for pid in "$1"/*/postmaster.pid; do [ -f "$pid" ] && kill -9 "$(head -1 "$pid")" 2>/dev/null; done
sleep 0.2
umount "$1/a" 2>/dev/null
rm -rf "$1"
"#;
/// Two servers never have the same one; connections go to sockets in the directory.
const PORTS: [u16; 2] = [5432, 5433];
const NAMES: [&str; 2] = ["a", "b"];
/// Bytes of the file system of a server whose disk is filled.
const SMALL_DISK: &str = "256m";
/// How long a server may take to start or to copy another one.
const PATIENCE: Duration = Duration::from_secs(120);
const SETTINGS: &str = "
listen_addresses = ''
max_connections = 200
shared_buffers = 32MB
max_wal_size = 64MB
min_wal_size = 32MB
wal_keep_size = 64MB
max_locks_per_transaction = 256
";

/// The servers.
pub(super) struct Cluster {
    directory: PathBuf,
    binaries: PathBuf,
    /// Which of the two serves.
    primary: usize,
    has_standby: bool,
    watcher: Child,
}

impl Cluster {
    /// What a database can suffer.
    pub(super) const FAULTS: [Fault; 5] = [
        Fault::StoreKill,
        Fault::Terminate,
        Fault::Evict,
        Fault::Promote,
        Fault::StoreFull,
    ];

    /// What is missing on this machine for the fault.
    pub(super) fn missing(fault: Fault) -> Option<String> {
        if binaries().is_none() {
            return Some("needs PostgreSQL".to_owned());
        }
        let is_root = rustix::process::getuid().is_root();
        (fault == Fault::StoreFull && !is_root).then(|| "needs root".to_owned())
    }

    /// Starts a primary, on a small disk if that is to be filled, and a standby if it is to be promoted.
    pub(super) fn start(directory: &Path, faults: &[Fault]) -> Result<Self> {
        let directory = directory.join("postgres");
        std::fs::create_dir(&directory)?;
        let watcher = Command::new("setsid")
            .args(["sh", "-c", WATCHER, "sh"])
            .arg(&directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        let cluster = Self {
            binaries: binaries().context("PostgreSQL is not installed")?,
            primary: 0,
            has_standby: faults.contains(&Fault::Promote),
            watcher,
            directory,
        };
        let data = cluster.data(0);
        std::fs::create_dir(&data)?;
        if faults.contains(&Fault::StoreFull) && !cluster.has_standby {
            let options = format!("size={SMALL_DISK},mode=700");
            let mut mount = Command::new("mount");
            mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]);
            done(mount.arg(&data))?;
        }
        cluster.give_away()?;
        let mut initdb = cluster.command("initdb");
        done(
            initdb
                .args(["-U", "millrace", "-A", "trust", "--no-sync", "-D"])
                .arg(&data),
        )?;
        let settings = data.join("postgresql.conf");
        let sockets = format!(
            "unix_socket_directories = '{}'\n",
            cluster.directory.display()
        );
        let text = std::fs::read_to_string(&settings)? + SETTINGS + &sockets;
        std::fs::write(&settings, text)?;
        cluster.start_server(0)?;
        if cluster.has_standby {
            cluster.make_standby()?;
        }
        Ok(cluster)
    }

    fn data(&self, server: usize) -> PathBuf {
        self.directory.join(NAMES[server])
    }

    /// The server's user must not be root, so root runs it as the user that its package made.
    fn command(&self, binary: &str) -> Command {
        let path = self.binaries.join(binary);
        let mut command = match rustix::process::getuid().is_root() {
            false => Command::new(path),
            true => {
                let mut command = Command::new("setpriv");
                command.args([
                    "--reuid",
                    "postgres",
                    "--regid",
                    "postgres",
                    "--clear-groups",
                ]);
                command.arg(path);
                command
            }
        };
        command.current_dir(&self.directory);
        command
    }

    fn give_away(&self) -> Result<()> {
        if rustix::process::getuid().is_root() {
            // Parents must be passable for that user.
            for above in self.directory.ancestors().take(2) {
                done(Command::new("chmod").arg("a+rx").arg(above))?;
            }
            done(
                Command::new("chown")
                    .args(["-R", "postgres"])
                    .arg(&self.directory),
            )?;
        }
        Ok(())
    }

    fn start_server(&self, server: usize) -> Result<()> {
        let log = self.directory.join(format!("log-{}", NAMES[server]));
        let mut start = self.command("pg_ctl");
        start.arg("-D").arg(self.data(server)).arg("-l").arg(log);
        start.args([
            "-w",
            "-t",
            "100",
            "-o",
            &format!("-p {}", PORTS[server]),
            "start",
        ]);
        done(&mut start)
    }

    /// `kill -9` of a server with all its processes, so that none of them can do anything more.
    fn kill_server(&self, server: usize) -> Result<()> {
        let Some(postmaster) = self.postmaster(server) else {
            return Ok(());
        };
        let signal = |signal: &str, pids: &[String]| {
            // Some may have ended by themselves.
            let _ = Command::new("kill")
                .arg(signal)
                .args(pids)
                .stderr(Stdio::null())
                .status();
        };
        // A stopped postmaster starts no further processes.
        signal("-STOP", std::slice::from_ref(&postmaster));
        let children =
            std::fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children"));
        let children = children.unwrap_or_default();
        let mut all: Vec<String> = children.split_whitespace().map(str::to_owned).collect();
        all.push(postmaster);
        signal("-KILL", &all);
        let began = Instant::now();
        while all
            .iter()
            .any(|pid| Path::new(&format!("/proc/{pid}")).exists())
        {
            ensure!(began.elapsed() < PATIENCE, "the server does not end");
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// The first process of a server, if it runs.
    fn postmaster(&self, server: usize) -> Option<String> {
        let file = std::fs::read_to_string(self.data(server).join("postmaster.pid")).ok()?;
        let pid = file.lines().next()?.trim().to_owned();
        Path::new(&format!("/proc/{pid}")).exists().then_some(pid)
    }

    fn url(&self, server: usize) -> String {
        let (directory, port) = (self.directory.display(), PORTS[server]);
        format!("postgres://millrace@localhost:{port}/postgres?host={directory}")
    }

    fn sql(&self, statements: &str) -> Result<String> {
        Ok(crate::sql(&self.url(self.primary), statements)?)
    }

    /// Copies the primary to the other place, and makes commits wait for the copy.
    fn make_standby(&self) -> Result<()> {
        let standby = 1 - self.primary;
        let data = self.data(standby);
        let _ = std::fs::remove_dir_all(&data);
        let mut copy = self.command("pg_basebackup");
        copy.arg("-h").arg(&self.directory);
        copy.args([
            "-p",
            &PORTS[self.primary].to_string(),
            "-U",
            "millrace",
            "-R",
            "-X",
            "stream",
            "-c",
            "fast",
        ]);
        done(copy.arg("-D").arg(&data))?;
        self.start_server(standby)?;
        self.sql("alter system set synchronous_standby_names = '*'")?;
        self.sql("select pg_reload_conf()")?;
        self.wait_until(
            "select count(*) from pg_stat_replication where sync_state = 'sync'",
            "1",
        )
    }

    fn wait_until(&self, asked: &str, expected: &str) -> Result<()> {
        let began = Instant::now();
        loop {
            let found = self.sql(asked);
            if found.as_ref().is_ok_and(|found| found == expected) {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                bail!("{asked}: {found:?}, not {expected}");
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The primary is lost; the standby, which has every acknowledged commit, takes its place.
    fn promote(&mut self) -> Result<()> {
        self.kill_server(self.primary)?;
        let standby = 1 - self.primary;
        // A standby that waits for nobody: there is none yet that could confirm.
        let settings = self.data(standby).join("postgresql.auto.conf");
        let text = std::fs::read_to_string(&settings)?;
        std::fs::write(&settings, text + "\nsynchronous_standby_names = ''\n")?;
        let mut promote = self.command("pg_ctl");
        promote.arg("-D").arg(self.data(standby));
        done(
            promote
                .args(["-w", "-t", "100", "promote"])
                .stdout(Stdio::null()),
        )?;
        self.primary = standby;
        Ok(())
    }

    /// Fills the disk of the primary, and frees it later.
    fn fill_up(&self, random: &mut Rng) -> Result<String> {
        let ballast = self.data(self.primary).join("ballast");
        fill(&ballast)?;
        let pause = Duration::from_millis(random.u64(500..2_500));
        thread::sleep(pause);
        std::fs::remove_file(&ballast)?;
        // A server that could not write its log has ended.
        let ended = self.postmaster(self.primary).is_none();
        if ended {
            self.start_server(self.primary)?;
        }
        self.wait_until("select 1", "1")?;
        Ok(format!("for {pause:?}; the server had ended: {ended}"))
    }
}

impl Store for Cluster {
    fn upstreams(&self) -> Vec<Upstream> {
        let socket = format!(".s.PGSQL.{}", PORTS[self.primary]);
        vec![Upstream::Unix(self.directory.join(socket))]
    }

    fn options(&self, ports: &[u16]) -> Vec<String> {
        let port = ports[0];
        let url = format!("postgres://millrace@127.0.0.1:{port}/postgres?sslmode=disable");
        ["--engine", "postgres", "--postgres-url", &url]
            .map(str::to_owned)
            .to_vec()
    }

    fn inject(&mut self, fault: Fault, random: &mut Rng) -> Result<String> {
        match fault {
            Fault::StoreKill => {
                self.kill_server(self.primary)?;
                let pause = Duration::from_millis(random.u64(..1_500));
                thread::sleep(pause);
                self.start_server(self.primary)?;
                Ok(format!("started again after {pause:?}"))
            }
            Fault::Terminate => {
                let ended = self.sql(
                    "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name like 'millrace %' \
                     and (state in ('active', 'idle in transaction') or random() < 0.3) and pid not in (select pid from pg_locks where locktype = 'advisory')",
                )?;
                Ok(format!("{ended} sessions"))
            }
            Fault::Evict => {
                let ended = self.sql(
                    "select count(pg_terminate_backend(pid)) from (select pid from pg_locks where locktype = 'advisory' and objsubid = 2 \
                     order by random() limit 1) one",
                )?;
                Ok(format!("{ended} sessions with the lock of a host"))
            }
            Fault::Promote => {
                self.promote()?;
                Ok(format!("to {}", NAMES[self.primary]))
            }
            Fault::StoreFull => self.fill_up(random),
            other => bail!("{} is no fault of a store", other.word()),
        }
    }

    fn mend(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Promote => self.make_standby(),
            _ => Ok(()),
        }
    }

    fn logs(&self) -> PathBuf {
        self.directory.clone()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for server in 0..NAMES.len() {
            let _ = self.kill_server(server);
        }
        // The watcher removes the files.
        drop(self.watcher.stdin.take());
        let _ = self.watcher.wait();
    }
}

/// Where the newest version's programs are.
fn binaries() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let version = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
    let newest = versions.flatten().filter_map(version).max()?;
    Some(format!("/usr/lib/postgresql/{newest}/bin").into())
}

/// Runs a command that must succeed.
fn done(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let output = output.spawn().and_then(Child::wait_with_output);
    let output = output.with_context(|| format!("{command:?}"))?;
    let says = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {says}");
    Ok(())
}
