//! The torture program: `cargo run -p millrace-tests --bin torture -- --help`.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use millrace_tests::torture::history::Fault;
use millrace_tests::torture::hosts::{self, StoreKind};
use millrace_tests::torture::{Plan, run};

const HELP: &str = "\
Torments a host until it breaks or the faults are over, and judges it by what its clients wrote down.

Five of six kills and power cuts are aimed at a step, and most of those meet it: before and after a commit of outputs, progress and state,
amid a deployment, a redrive, a checkpoint. The summary counts those that did.

Usage: torture [OPTIONS]

  --kills N            kill -9, some of them during recovery [default: 50]
  --power-cuts N       the file system stops and forgets what it had not written [default: 50]
  --others N           of each of full, eio, stop, memory [default: 3]
  --faults LIST        only these: kill,power,full,eio,stop,memory [default: all]
  --seed N             of all randomness [default: a random one, printed]
  --per-world N        faults until a fresh data directory is begun [default: 40]
  --at-once N          hosts at once [default: 2]
  --binary FILE        the host [default: millrace beside this program; cargo build -p millrace makes it]
  --keep DIR           where histories and data with findings are kept [default: torture-kept in the temporary directory]

Several hosts on one store, which this program starts:

  --engine NAME        postgres or jetstream
  --hosts N            hosts of each world [default: 3]
  --total N            faults in all, of all kinds [default: 100]
  --faults LIST        only these: host-kill,host-stop,host-restart,host-clock,cut,stall,store-kill; on postgres also
                       terminate,evict,promote,store-full; on jetstream also server-kill,leader-kill,server-stop,step-down

Power cuts, full disks and memory limits need root; what this machine cannot do is said to be skipped. Power cuts before a commit
are rare without strace.
Exit codes: 0 nothing found, 1 findings, 2 usage or trouble outside the host.";

struct Options {
    kills: u32,
    power_cuts: u32,
    others: u32,
    only: Vec<Fault>,
    plan: Plan,
    /// What several hosts share, and how many there are.
    store: Option<StoreKind>,
    hosts: usize,
    total: u32,
}

fn main() -> ExitCode {
    match torture() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("torture: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn torture() -> Result<ExitCode> {
    let mut options = Options::new()?;
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        if name == "--help" || name == "-h" {
            println!("{HELP}");
            return Ok(ExitCode::SUCCESS);
        }
        let value = arguments.next();
        let value = value.with_context(|| format!("{name} wants a value; see --help"))?;
        let set = options.set(&name, &value);
        set.with_context(|| format!("{name} {value}"))?;
    }
    let binary = options.plan.binary.display();
    ensure!(
        options.plan.binary.is_file(),
        "there is no {binary}; run cargo build -p millrace"
    );
    eprintln!("torture: seed {}", options.plan.seed);
    let (findings, broken) = match options.several() {
        Some(plan) => {
            let report = hosts::run(&plan);
            println!("{report}");
            (report.findings.len(), report.broken.len())
        }
        None => {
            let report = run(&options.plan());
            println!("{report}");
            (report.findings.len(), report.broken.len())
        }
    };
    Ok(match (findings, broken) {
        (0, 0) => ExitCode::SUCCESS,
        (0, _) => ExitCode::from(2),
        _ => ExitCode::from(1),
    })
}

impl Options {
    fn new() -> Result<Self> {
        let own = std::env::current_exe()?;
        Ok(Self {
            kills: 50,
            power_cuts: 50,
            others: 3,
            only: Vec::new(),
            store: None,
            hosts: 3,
            total: 100,
            plan: Plan {
                binary: own.with_file_name("millrace"),
                seed: fastrand::u64(..),
                faults: Vec::new(),
                faults_per_world: 40,
                worlds_at_once: 2,
                keep: std::env::temp_dir().join("torture-kept"),
            },
        })
    }

    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        match name {
            "--kills" => self.kills = value.parse()?,
            "--power-cuts" => self.power_cuts = value.parse()?,
            "--others" => self.others = value.parse()?,
            "--faults" => self.only = value.split(',').map(fault).collect::<Result<_>>()?,
            "--engine" => self.store = Some(value.parse()?),
            "--hosts" => self.hosts = value.parse::<usize>()?.max(2),
            "--total" => self.total = value.parse()?,
            "--seed" => self.plan.seed = value.parse()?,
            "--per-world" => self.plan.faults_per_world = value.parse::<u32>()?.max(1),
            "--at-once" => self.plan.worlds_at_once = value.parse()?,
            "--binary" => self.plan.binary = PathBuf::from(value),
            "--keep" => self.plan.keep = PathBuf::from(value),
            _ => bail!("no such option; see --help"),
        }
        Ok(())
    }

    /// The plan for several hosts.
    fn several(&self) -> Option<hosts::Plan> {
        let store = self.store?;
        let of = match self.only.is_empty() {
            true => store.faults(),
            false => self.only.clone(),
        };
        Some(hosts::Plan {
            binary: self.plan.binary.clone(),
            store,
            hosts: self.hosts,
            seed: self.plan.seed,
            faults: hosts::mixture(self.total, &of),
            faults_per_world: self.plan.faults_per_world as usize,
            worlds_at_once: self.plan.worlds_at_once,
            keep: self.plan.keep.clone(),
        })
    }

    fn plan(self) -> Plan {
        let count = |fault: &Fault| match fault {
            Fault::Kill => self.kills,
            Fault::Power => self.power_cuts,
            _ => self.others,
        };
        let all = Fault::ALL.to_vec();
        let only = if self.only.is_empty() { all } else { self.only };
        Plan {
            faults: only.iter().map(|fault| (*fault, count(fault))).collect(),
            ..self.plan
        }
    }
}

fn fault(word: &str) -> Result<Fault> {
    let mut all = Fault::ALL.into_iter().chain(Fault::OF_SEVERAL);
    let found = all.find(|fault| fault.word() == word);
    found.with_context(|| {
        format!("{word} is no fault; there are kill, power, full, eio, stop, memory")
    })
}
