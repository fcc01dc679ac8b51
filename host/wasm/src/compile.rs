//! Compiles a component in a child process, which has little memory, little time and nothing else to lose.
//!
//! A few kilobytes of valid WASM can keep a compiler busy for minutes, and a compile within this process could not be
//! stopped. Parent: [`Compiler`]. Child: [`compile_child_main`], behind a hidden subcommand of the server's binary: the
//! component comes in by stdin, the code goes out by stdout, a complaint by stderr.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use millrace_broker::handler::AdmitError;
use millrace_model::bounds::MODULE_BYTES_MAX;
use rustix::process::{Resource, Rlimit, Signal};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::engine;
use crate::logs::clean;

/// Compiles that run at once. Compiling is rare and must leave the cores to messages.
const CHILDREN_MAX: usize = 1;

/// Uploads that wait for their compile; more are told to try again.
const WAITING_MAX: usize = 32;

/// Bytes of a child's complaint.
const COMPLAINT_BYTES_MAX: u64 = 64 << 10;

/// Stack of the thread that compiles.
const STACK_BYTES: usize = 16 << 20;

/// The child says with it that the component is not valid.
const EXIT_INVALID: u8 = 2;

/// The child says with it that it could not do its work.
const EXIT_HOST: u8 = 3;

/// The program that compiles: the server's own binary and its hidden subcommand.
#[derive(Clone, Debug)]
pub struct CompileChild {
    /// The program.
    pub program: PathBuf,
    /// What comes before the limits, which the parent appends.
    pub args: Vec<String>,
}

/// What one compile may use.
#[derive(Clone, Debug)]
pub struct CompileLimits {
    /// Address space of the child.
    pub memory_bytes_max: u64,
    /// CPU time of the child.
    pub cpu_seconds_max: u64,
    /// Wall time of the child.
    pub wall_time_max: Duration,
    /// Bytes of the code it makes.
    pub code_bytes_max: u64,
}

impl Default for CompileLimits {
    fn default() -> Self {
        Self {
            memory_bytes_max: 2 << 30,
            cpu_seconds_max: 30,
            wall_time_max: Duration::from_secs(60),
            code_bytes_max: 256 << 20,
        }
    }
}

/// Starts the children, one after the other.
pub(crate) struct Compiler {
    child: CompileChild,
    limits: CompileLimits,
    turns: Semaphore,
    places: Semaphore,
    children_started: AtomicU64,
}

/// The right to compile now.
pub(crate) struct Turn<'a> {
    _held: [SemaphorePermit<'a>; 2],
}

impl Compiler {
    pub(crate) fn new(child: CompileChild, limits: CompileLimits) -> Self {
        Self {
            child,
            limits,
            turns: Semaphore::new(CHILDREN_MAX),
            places: Semaphore::new(CHILDREN_MAX + WAITING_MAX),
            children_started: AtomicU64::new(0),
        }
    }

    /// How many children there have been.
    pub(crate) fn children_started(&self) -> u64 {
        self.children_started.load(Ordering::Relaxed)
    }

    /// Waits until it is the caller's turn to compile.
    pub(crate) async fn turn(&self) -> Result<Turn<'_>, AdmitError> {
        let place = self.places.try_acquire().map_err(|_| {
            AdmitError::Host(format!(
                "{WAITING_MAX} modules are already waiting to be compiled"
            ))
        })?;
        let turn = self.turns.acquire().await.map_err(host)?;
        Ok(Turn {
            _held: [place, turn],
        })
    }

    /// The code of a component.
    pub(crate) async fn compile(
        &self,
        _turn: &Turn<'_>,
        component: Bytes,
    ) -> Result<Vec<u8>, AdmitError> {
        self.children_started.fetch_add(1, Ordering::Relaxed);
        let child = self.start().map_err(|error| {
            AdmitError::Host(format!(
                "cannot start {}: {error}",
                self.child.program.display()
            ))
        })?;
        tokio::time::timeout(self.limits.wall_time_max, self.converse(child, component))
            .await
            .unwrap_or_else(|_| {
                let seconds = self.limits.wall_time_max.as_secs();
                Err(AdmitError::CompileLimit(format!(
                    "{seconds} s of wall time"
                )))
            })
    }

    fn start(&self) -> std::io::Result<Child> {
        Command::new(&self.child.program)
            .args(&self.child.args)
            .arg(self.limits.memory_bytes_max.to_string())
            .arg(self.limits.cpu_seconds_max.to_string())
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
    }

    async fn converse(&self, mut child: Child, component: Bytes) -> Result<Vec<u8>, AdmitError> {
        let (Some(mut stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(AdmitError::Host("the compile child has no pipes".into()));
        };
        let feed = async move {
            // A child that ends early closes the pipe; its status says more than this error would.
            let _ = stdin.write_all(&component).await;
            drop(stdin);
        };
        let code_bytes_max = self.limits.code_bytes_max;
        let ((), code, complaint) = tokio::join!(
            feed,
            read_bounded(stdout, code_bytes_max),
            read_bounded(stderr, COMPLAINT_BYTES_MAX),
        );
        let (code, complaint) = (code.map_err(host)?, complaint.map_err(host)?);
        if code.len() as u64 > code_bytes_max {
            return Err(AdmitError::CompileLimit(format!(
                "{code_bytes_max} bytes of code"
            )));
        }
        let status = child.wait().await.map_err(host)?;
        self.judge(
            status,
            code,
            &clean(&String::from_utf8_lossy(&complaint), 1_000),
        )
    }

    fn judge(
        &self,
        status: ExitStatus,
        code: Vec<u8>,
        complaint: &str,
    ) -> Result<Vec<u8>, AdmitError> {
        match status.code().map(u8::try_from) {
            Some(Ok(0)) if !code.is_empty() => Ok(code),
            Some(Ok(EXIT_INVALID)) => Err(AdmitError::Invalid(complaint.to_owned())),
            None => Err(AdmitError::CompileLimit(self.limit_behind(status))),
            _ => Err(AdmitError::Host(format!(
                "the compile child ended with {status}: {complaint}"
            ))),
        }
    }

    /// Which limit ended a child that was ended by a signal.
    fn limit_behind(&self, status: ExitStatus) -> String {
        match status.signal().and_then(Signal::from_named_raw) {
            Some(Signal::KILL | Signal::XCPU) => {
                format!("{} s of CPU time", self.limits.cpu_seconds_max)
            }
            // An allocation that fails ends in an abort.
            Some(Signal::ABORT) => format!("{} bytes of memory", self.limits.memory_bytes_max),
            _ => format!("the compiler ended with {status}"),
        }
    }
}

/// All that comes, and one byte beyond the bound if there is more.
async fn read_bounded(from: impl AsyncRead + Unpin, bytes_max: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(bytes_max.saturating_add(1))
        .read_to_end(&mut bytes)
        .await?;
    Ok(bytes)
}

fn host(error: impl std::fmt::Display) -> AdmitError {
    AdmitError::Host(error.to_string())
}

/// What the hidden subcommand does: limits itself, reads a component from stdin, writes its code to stdout. `args` are
/// what the parent appended: bytes of memory, seconds of CPU time.
#[must_use]
pub fn compile_child_main(args: &[String]) -> ExitCode {
    match compile_child(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, complaint)) => {
            eprint!("{complaint}");
            ExitCode::from(code)
        }
    }
}

type Complaint = (u8, String);

fn compile_child(args: &[String]) -> Result<(), Complaint> {
    // Where memory is short the system ends this process, and not the host.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    limit_this_process(args)?;
    let mut component = Vec::new();
    std::io::stdin()
        .take(MODULE_BYTES_MAX as u64)
        .read_to_end(&mut component)
        .map_err(|error| (EXIT_HOST, error.to_string()))?;
    let code = std::thread::Builder::new()
        .stack_size(STACK_BYTES)
        .spawn(move || compile(&component))
        .map_err(|error| (EXIT_HOST, error.to_string()))?
        .join()
        .map_err(|_| (EXIT_INVALID, "the compiler panicked on it".to_owned()))??;
    std::io::stdout()
        .write_all(&code)
        .map_err(|error| (EXIT_HOST, error.to_string()))
}

fn limit_this_process(args: &[String]) -> Result<(), Complaint> {
    let number = |index: usize| args.get(index).and_then(|text| text.parse().ok());
    let (Some(memory_bytes), Some(cpu_seconds)) = (number(0), number(1)) else {
        return Err((
            EXIT_HOST,
            "expected: bytes of memory, seconds of CPU time".into(),
        ));
    };
    for (resource, max) in [
        (Resource::As, memory_bytes),
        (Resource::Cpu, cpu_seconds),
        (Resource::Core, 0),
    ] {
        let limit = Rlimit {
            current: Some(max),
            maximum: Some(max),
        };
        rustix::process::setrlimit(resource, limit)
            .map_err(|error| (EXIT_HOST, format!("cannot limit {resource:?}: {error}")))?;
    }
    // Messages come first; a system that refuses to be nice still compiles.
    let _ = rustix::process::nice(10);
    Ok(())
}

fn compile(component: &[u8]) -> Result<Vec<u8>, Complaint> {
    let engine = engine::compiler().map_err(|error| (EXIT_HOST, format!("{error:#}")))?;
    engine
        .precompile_component(component)
        .map_err(|error| (EXIT_INVALID, format!("{error:#}")))
}
