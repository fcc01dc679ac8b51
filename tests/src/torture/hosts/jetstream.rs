//! Three NATS servers as the store of several hosts. Each host reaches each server through a forwarder; the servers do not name each other to
//! clients, or a host would go around it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use serde_json::Value;

use super::forwarder::Upstream;
use super::store::Store;
use crate::torture::history::Fault;
use crate::{Nats, nats_server};

const SERVERS: usize = 3;
/// The stream's name, by default.
const STREAM: &str = "millrace";
/// How long the servers may take until they have a leader.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a server may take to answer.
const ANSWER_DURATION_MAX: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The servers.
pub(super) struct Servers {
    nats: Nats,
    /// The one that is down until the hosts have gone on.
    down: Option<usize>,
}

impl Servers {
    /// What the servers can suffer.
    pub(super) const FAULTS: [Fault; 5] = [
        Fault::StoreKill,
        Fault::ServerKill,
        Fault::LeaderKill,
        Fault::ServerStop,
        Fault::StepDown,
    ];

    /// What is missing on this machine.
    pub(super) fn missing() -> Option<String> {
        let needs = || "needs nats-server (MILLRACE_TEST_NATS, or on the PATH)".to_owned();
        nats_server().is_none().then(needs)
    }

    pub(super) fn start() -> Result<Self> {
        Ok(Self {
            nats: Nats::start_discreet(SERVERS)?,
            down: None,
        })
    }

    /// Asks any of the servers that run.
    fn ask(&self, subject: &str) -> Result<Value> {
        let mut last = None;
        for (number, &port) in self.nats.ports().iter().enumerate() {
            if self.down == Some(number) {
                continue;
            }
            match ask(port, subject) {
                Ok(answer) => return Ok(answer),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("no server runs")?)
    }

    /// The server that decides about the stream.
    fn leader(&self) -> Result<usize> {
        let began = Instant::now();
        loop {
            let answer = self.ask(&format!("$JS.API.STREAM.INFO.{STREAM}"));
            let leader = answer.as_ref().ok();
            let leader = leader.and_then(|answer| answer["cluster"]["leader"].as_str());
            let number = leader.and_then(|name| name.strip_prefix('n')?.parse().ok());
            if let Some(number) = number {
                return Ok(number);
            }
            ensure!(began.elapsed() < PATIENCE, "no leader: {answer:?}");
            thread::sleep(LOOK_AGAIN);
        }
    }

    fn step_down(&self, random: &mut Rng) -> Result<String> {
        let (mut way, times) = (Vec::new(), random.usize(1..=3));
        while way.len() < times {
            way.push(self.leader()?.to_string());
            let answer = self.ask(&format!("$JS.API.STREAM.LEADER.STEPDOWN.{STREAM}"))?;
            ensure!(answer["success"] == Value::Bool(true), "{answer}");
            thread::sleep(Duration::from_millis(random.u64(..1_500)));
        }
        Ok(format!("of servers {}", way.join(", ")))
    }
}

impl Store for Servers {
    fn upstreams(&self) -> Vec<Upstream> {
        let ports = self.nats.ports().iter();
        ports.map(|&port| Upstream::Tcp(port)).collect()
    }

    fn options(&self, ports: &[u16]) -> Vec<String> {
        let url = |port: &u16| format!("nats://127.0.0.1:{port}");
        let urls: Vec<String> = ports.iter().map(url).collect();
        let urls = urls.join(",");
        [
            "--engine",
            "jetstream",
            "--jetstream-url",
            &urls,
            "--jetstream-synced",
        ]
        .map(str::to_owned)
        .to_vec()
    }

    fn inject(&mut self, fault: Fault, random: &mut Rng) -> Result<String> {
        let number = random.usize(..SERVERS);
        match fault {
            Fault::StoreKill => {
                for number in 0..SERVERS {
                    self.nats.kill(number)?;
                }
                let pause = Duration::from_millis(random.u64(..1_500));
                thread::sleep(pause);
                for number in 0..SERVERS {
                    self.nats.start_again(number)?;
                }
                Ok(format!("all servers, started again after {pause:?}"))
            }
            Fault::ServerKill => {
                self.nats.kill(number)?;
                let pause = Duration::from_millis(random.u64(..3_000));
                thread::sleep(pause);
                self.nats.start_again(number)?;
                Ok(format!("server {number}, started again after {pause:?}"))
            }
            Fault::LeaderKill => {
                let leader = self.leader()?;
                self.nats.kill(leader)?;
                self.down = Some(leader);
                Ok(format!("server {leader}"))
            }
            Fault::ServerStop => {
                // Two of three times another one must decide.
                let number = match random.bool() {
                    true => self.leader()?,
                    false => number,
                };
                let pause = Duration::from_millis(random.u64(1_000..8_000));
                self.nats.stand_still(number)?;
                thread::sleep(pause);
                self.nats.go_on(number)?;
                Ok(format!("server {number} for {pause:?}"))
            }
            Fault::StepDown => self.step_down(random),
            other => bail!("{} is no fault of these servers", other.word()),
        }
    }

    fn mend(&mut self, _fault: Fault) -> Result<()> {
        match self.down.take() {
            Some(number) => Ok(self.nats.start_again(number)?),
            None => Ok(()),
        }
    }

    fn logs(&self) -> PathBuf {
        self.nats.directory().to_owned()
    }
}

/// Sends a request to a server and waits for the answer.
fn ask(port: u16, subject: &str) -> Result<Value> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(ANSWER_DURATION_MAX))?;
    let mut lines = BufReader::new(&stream);
    let inbox = format!("_INBOX.torture{}", fastrand::u64(..));
    let asks = format!(
        "CONNECT {{\"verbose\":false,\"pedantic\":false}}\r\nSUB {inbox} 1\r\nPUB {subject} {inbox} 0\r\n\r\n"
    );
    (&stream).write_all(asks.as_bytes())?;
    loop {
        let mut line = String::new();
        ensure!(lines.read_line(&mut line)? > 0, "the connection ended");
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["MSG", .., length] => {
                let mut answer = vec![0; length.parse()?];
                lines.read_exact(&mut answer)?;
                return Ok(serde_json::from_slice(&answer)?);
            }
            ["PING"] => (&stream).write_all(b"PONG\r\n")?,
            ["-ERR", ..] => bail!("{subject}: {}", line.trim()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_were_killed_stopped_and_started_again_end_with_the_rest() {
        if Servers::missing().is_some() {
            println!("skipped: there is no nats-server on this machine");
            return;
        }
        let mut nats = Nats::start_discreet(SERVERS).unwrap();
        let (ports, directory) = (nats.ports().to_vec(), nats.directory().to_owned());
        let runs = |port: &u16| TcpStream::connect(("127.0.0.1", *port)).is_ok();
        crate::wait_for("all of them", || Ok(ports.iter().all(runs).then_some(()))).unwrap();
        nats.kill(0).unwrap();
        nats.start_again(0).unwrap();
        assert!(runs(&ports[0]));
        nats.kill(0).unwrap();
        nats.start_again(0).unwrap();
        nats.stand_still(1).unwrap();
        drop(nats);
        assert!(!ports.iter().any(runs));
        assert!(!directory.exists());
    }
}
