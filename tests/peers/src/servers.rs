//! The brokers as processes: started on loopback with free ports and their own directories, and
//! ended when they are dropped.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// A start that takes longer counts as failed.
const START_PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(50);
/// Lines of a server's log that are shown if it does not start.
const LOG_LINES: usize = 20;
/// The heap that Kafka's own start script gives the broker.
const HEAP: [&str; 2] = ["-Xms1g", "-Xmx1g"];
/// Sixteen arbitrary bytes in Kafka's notation.
const CLUSTER: &str = "millrace-beside-peersQ";

/// A server process started by this program.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
}

/// Kafka's jars, and our own classes.
#[derive(Clone)]
pub(crate) struct Jars {
    pub(crate) libraries: PathBuf,
    pub(crate) classes: PathBuf,
}

/// A program with Kafka Streams that is controlled by lines on its standard input.
pub(crate) struct Streams {
    child: Child,
    says: BufReader<ChildStdout>,
    hears: ChildStdin,
}

/// The function of a Kafka Streams program, and its settings.
pub(crate) struct Topology<'a> {
    /// `upper` or `count`.
    pub(crate) function: &'a str,
    /// Kafka Streams' `processing.guarantee`.
    pub(crate) guarantee: &'a str,
    /// Other settings that differ from the default, as `NAME=VALUE`.
    pub(crate) settings: &'a [&'a str],
    pub(crate) input: &'a str,
    pub(crate) output: &'a str,
}

impl Server {
    pub(crate) fn millrace(binary: &Path, home: &Path) -> Result<Self> {
        let address = free_address()?;
        let mut command = Command::new(binary);
        command
            .arg("serve")
            .arg("--listen")
            .arg(address.to_string());
        command.arg("--data-dir").arg(home.join("millrace"));
        command.env("MILLRACE_LOG_FILTER", "warn");
        Self::start(command, address, &home.join("millrace.log"))
    }

    pub(crate) fn kafka(jars: &Jars, home: &Path) -> Result<Self> {
        let (address, controller) = (free_address()?, free_address()?);
        let properties = format!(
            "process.roles=broker,controller\n\
             node.id=1\n\
             controller.quorum.bootstrap.servers={controller}\n\
             listeners=PLAINTEXT://{address},CONTROLLER://{controller}\n\
             advertised.listeners=PLAINTEXT://{address}\n\
             controller.listener.names=CONTROLLER\n\
             log.dirs={}\n\
             offsets.topic.replication.factor=1\n\
             transaction.state.log.replication.factor=1\n\
             transaction.state.log.min.isr=1\n\
             group.initial.rebalance.delay.ms=0\n",
            home.join("kafka").display()
        );
        let file = home.join("kafka.properties");
        fs::write(&file, properties)?;
        let mut format = jars.java("kafka.tools.StorageTool", &[]);
        format.args(["format", "--standalone", "-t", CLUSTER, "-c"]);
        let formatted = format.arg(&file).output()?;
        if !formatted.status.success() {
            bail!(
                "Kafka's storage could not be formatted: {}",
                String::from_utf8_lossy(&formatted.stderr)
            );
        }
        let mut command = jars.java("kafka.Kafka", &HEAP);
        command.arg(file);
        Self::start(command, address, &home.join("kafka.log"))
    }

    /// `sync_interval` as in the settings of NATS; if `None`, its default.
    pub(crate) fn nats(binary: &Path, home: &Path, sync_interval: Option<&str>) -> Result<Self> {
        let address = free_address()?;
        let name = format!("nats-{}", sync_interval.unwrap_or("default"));
        let directory = home.join(&name);
        let sync = sync_interval.map(|interval| format!("; sync_interval: {interval}"));
        let settings = format!(
            "listen: \"{address}\"\njetstream {{ store_dir: \"{}\"{} }}\n",
            directory.display(),
            sync.unwrap_or_default()
        );
        let file = home.join(format!("{name}.conf"));
        fs::write(&file, settings)?;
        let mut command = Command::new(binary);
        command.arg("-c").arg(file);
        Self::start(command, address, &home.join(format!("{name}.log")))
    }

    /// `append_sync` is Redis' `appendfsync`.
    pub(crate) fn redis(binary: &Path, home: &Path, append_sync: &str) -> Result<Self> {
        let address = free_address()?;
        let directory = home.join(format!("redis-{append_sync}"));
        fs::create_dir_all(&directory)?;
        let mut command = Command::new(binary);
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"]);
        command.args(["--appendfsync", append_sync, "--port"]);
        command.arg(address.port().to_string());
        command.arg("--dir").arg(&directory);
        Self::start(command, address, &directory.with_extension("log"))
    }

    fn start(mut command: Command, address: SocketAddr, log: &Path) -> Result<Self> {
        let file = File::create(log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?);
        let child = command.stderr(file).spawn();
        let child = child.with_context(|| format!("{command:?} cannot be started"))?;
        let mut server = Self { child, address };
        let began = Instant::now();
        while TcpStream::connect(address).is_err() {
            let ended = server.child.try_wait()?;
            if ended.is_some() || began.elapsed() > START_PATIENCE {
                bail!("{command:?} does not listen: {}", last_lines(log));
            }
            thread::sleep(PAUSE);
        }
        Ok(server)
    }

    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

impl Jars {
    /// Kafka's version, from the name of a jar.
    pub(crate) fn version(&self) -> Result<String> {
        for entry in fs::read_dir(&self.libraries)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let version = name.strip_prefix("kafka-clients-");
            if let Some(version) = version.and_then(|rest| rest.strip_suffix(".jar")) {
                return Ok(version.to_owned());
            }
        }
        bail!("no jars of Kafka in {}", self.libraries.display())
    }

    fn java(&self, class: &str, options: &[&str]) -> Command {
        let libraries = self.libraries.join("*");
        let path = format!("{}:{}", libraries.display(), self.classes.display());
        let mut command = Command::new("java");
        command.args(options).arg("-cp").arg(path).arg(class);
        command
    }

    /// Starts a program with Kafka Streams and waits until it runs.
    pub(crate) fn streams(
        &self,
        kafka: SocketAddr,
        home: &Path,
        topology: &Topology<'_>,
    ) -> Result<Streams> {
        let application = topology.output;
        let log = home.join(format!("{application}.log"));
        let mut command = self.java("Through", &HEAP);
        command.args([&kafka.to_string(), application]);
        command.arg(home.join("streams"));
        command.args([topology.function, topology.guarantee]);
        command.args([topology.input, topology.output]);
        command.args(topology.settings);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.stderr(File::create(&log)?).spawn()?;
        let says = child.stdout.take().context("a program without output")?;
        let hears = child.stdin.take().context("a program without input")?;
        let mut streams = Streams {
            child,
            says: BufReader::new(says),
            hears,
        };
        streams
            .expect("running")
            .with_context(|| last_lines(&log))?;
        Ok(streams)
    }
}

impl Streams {
    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn pause(&mut self) -> Result<()> {
        self.tell("pause", "paused")
    }

    pub(crate) fn resume(&mut self) -> Result<()> {
        self.tell("resume", "resumed")
    }

    fn tell(&mut self, what: &str, done: &str) -> Result<()> {
        writeln!(self.hears, "{what}")?;
        self.expect(done)
    }

    fn expect(&mut self, word: &str) -> Result<()> {
        let mut line = String::new();
        self.says.read_line(&mut line)?;
        ensure!(
            line.trim() == word,
            "Kafka Streams said {line:?}, not {word}"
        );
        Ok(())
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Its data is thrown away, so it need not stop in order, and may have ended already.
fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// The version that a program prints.
pub(crate) fn version(binary: &Path) -> Result<String> {
    let output = Command::new(binary).arg("--version").output();
    let output = output.with_context(|| format!("{} cannot be started", binary.display()))?;
    ensure!(output.status.success(), "{}", binary.display());
    let text = String::from_utf8(output.stdout)?;
    let is_version = |word: &&str| {
        let digits = word.trim_start_matches("v=").trim_start_matches('v');
        digits.starts_with(|c: char| c.is_ascii_digit())
    };
    let word = text.split_whitespace().find(is_version);
    let word = word.with_context(|| format!("{text:?} holds no version"))?;
    Ok(word.trim_start_matches(['v', '=']).to_owned())
}

/// An address with a free port.
fn free_address() -> Result<SocketAddr> {
    let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    Ok(TcpListener::bind(any)?.local_addr()?)
}

fn last_lines(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}
