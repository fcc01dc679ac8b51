//! Compiles a component in a child process with little memory, little time and nothing else to lose.
//!
//! A few kilobytes of valid WASM can keep a compiler busy for minutes, and a compile in this process could not be stopped. Parent:
//! [`Compiler`]. Child: [`compile_child_main`], behind a hidden subcommand of the server's binary: it reads the component from stdin,
//! and writes the code to stdout and errors to stderr.

use std::any::Any;
use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::process::{ExitStatusExt, parent_id};
use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use metrics::{counter, gauge, histogram};
use millrace_broker::handler::AdmitError;
use millrace_model::{Clock, GuestLimits};
use parking_lot::Mutex;
use rustix::process::{Resource, Rlimit, Signal};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use crate::engine;
use crate::host::WasmOptions;
use crate::logs::{clean, without_places};
use crate::turns::{Asker, Turn, Turns};

/// CPU time of a compile in the quick lane, in milliseconds; a longer one continues in the slow lane, out of the way of others.
pub(crate) const QUICK_CPU_MS_MAX: u64 = 2_000;

/// How long an upload waits for its turns in both lanes together; then it is told to come back.
const WAIT_MS_MAX: u64 = 120_000;

/// The delay after which it may come back, in seconds.
const COME_BACK_S: u32 = 10;

/// Wall time of a compile per second of its CPU limit: more means that the machine is busy, not that the module is bad.
const WALL_PER_CPU_MAX: u32 = 20;

/// Minimum wall time of any compile, in milliseconds.
const WALL_MS_MIN: u64 = 300_000;

/// Consecutive compiles of an uploader that may exceed their limit before its slow ones must pause.
const STRIKES_FREE: u32 = 2;

/// The first pause of an uploader whose compiles exceed their limit; each further excess doubles
/// it.
const PAUSE_MS: u64 = 30_000;

/// The longest pause of an uploader whose compiles exceed their limit.
const PAUSE_MS_MAX: u64 = 600_000;

/// Maximum number of uploaders remembered for exceeding their limit; beyond it the one with the oldest excess is forgotten.
const OFFENDERS_MAX: usize = 1_000;

/// How often a running compile is checked.
const WATCH_INTERVAL: Duration = Duration::from_millis(50);

/// How often a child checks whether its host is still there.
const PARENT_WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// The unit in which Linux reports CPU times, whatever the real clock frequency.
const TICKS_PER_SECOND: u64 = 100;

/// Bytes of a child's error output.
const COMPLAINT_BYTES_MAX: u64 = 64 << 10;

/// Bytes of a child's error output that are shown in an error.
const COMPLAINT_SHOWN_BYTES_MAX: usize = 1_000;

/// Bytes of compiled code, and of a file of the code cache.
pub(crate) const CODE_BYTES_MAX: u64 = 256 << 20;

/// Stack of the thread that compiles.
const STACK_BYTES: usize = 16 << 20;

/// Memory that a child reserves and hardly uses: stacks, and the allocator's size classes.
const STACKS_BYTES: u64 = 48 << 20;

/// Address space of a child beyond its memory: its program and what that maps.
const ADDRESSES_BESIDE_BYTES: u64 = 512 << 20;

/// Maximum bytes that a child reads; the limit of uploads is a setting.
const MODULE_BYTES_TAKEN_MAX: u64 = GuestLimits::BOUNDS[0].2;

/// The child's exit code for an invalid component.
const EXIT_INVALID: u8 = 2;

/// The child's exit code if it could not work.
const EXIT_HOST: u8 = 3;

/// The child's exit code if its memory limit is too small for the component.
const EXIT_MEMORY: u8 = 4;

/// The compiler program: the server's own binary and its hidden subcommand.
#[derive(Clone, Debug)]
pub struct CompileChild {
    /// The program.
    pub program: PathBuf,
    /// The arguments before the limits, which the parent appends.
    pub args: Vec<String>,
}

/// Starts the children: one in the quick lane, one in the slow lane.
pub(crate) struct Compiler {
    child: CompileChild,
    limits: GuestLimits,
    quick_cpu: Duration,
    one_at_a_time: bool,
    code_bytes_max: u64,
    clock: Arc<dyn Clock>,
    quick: Arc<Turns>,
    slow: Arc<Turns>,
    offenders: Mutex<HashMap<Asker, Offence>>,
    children_started: AtomicU64,
}

/// What is remembered of an uploader whose compiles exceeded their limit.
#[derive(Clone, Copy)]
struct Offence {
    in_a_row: u32,
    last: Duration,
}

/// One module on its way through the lanes.
pub(crate) struct Job {
    asker: Asker,
    /// How long it waited for its turns.
    pub(crate) waited: Duration,
    /// How long its children worked.
    pub(crate) compiled: Duration,
}

/// The result of a child.
enum Ran {
    Code(Vec<u8>),
    /// It takes too long for the quick lane, and the slow lane is busy.
    TooSlow,
}

impl Job {
    pub(crate) fn new(asker: Asker) -> Self {
        Self {
            asker,
            waited: Duration::ZERO,
            compiled: Duration::ZERO,
        }
    }
}

impl Compiler {
    pub(crate) fn new(options: &WasmOptions, clock: Arc<dyn Clock>) -> Self {
        Self {
            child: options.compile_child.clone(),
            limits: options.limits,
            quick_cpu: options.quick_compile,
            one_at_a_time: options.one_compile,
            code_bytes_max: options.code_bytes_max.min(CODE_BYTES_MAX),
            clock,
            quick: Turns::new(),
            slow: Turns::new(),
            offenders: Mutex::default(),
            children_started: AtomicU64::new(0),
        }
    }

    /// The number of children so far.
    pub(crate) fn children_started(&self) -> u64 {
        self.children_started.load(Ordering::Relaxed)
    }

    /// Waits until the job may begin.
    pub(crate) async fn turn(&self, job: &mut Job) -> Result<Turn, AdmitError> {
        self.wait(&self.quick, job).await
    }

    /// The code of a component; the job already has its first turn.
    pub(crate) async fn compile(
        &self,
        job: &mut Job,
        turn: Turn,
        component: &Bytes,
    ) -> Result<Vec<u8>, AdmitError> {
        let outcome = match self.timed(job, turn, true, component).await {
            Ok(Ran::TooSlow) => self.compile_slowly(job, component).await,
            ended => ended,
        };
        let outcome = outcome.and_then(|ran| match ran {
            Ran::Code(code) => Ok(code),
            Ran::TooSlow => Err(AdmitError::Host("the slow lane has no slower one".into())),
        });
        self.note(&job.asker, &outcome);
        histogram!("millrace_compile_wait_seconds").record(job.waited.as_secs_f64());
        histogram!("millrace_compile_seconds").record(job.compiled.as_secs_f64());
        outcome
    }

    async fn compile_slowly(&self, job: &mut Job, component: &Bytes) -> Result<Ran, AdmitError> {
        let turn = self.wait(&self.slow, job).await?;
        self.check_pause(&job.asker)?;
        self.timed(job, turn, false, component).await
    }

    async fn wait(&self, lane: &Arc<Turns>, job: &mut Job) -> Result<Turn, AdmitError> {
        let start = self.clock.monotonic();
        let left = Duration::from_millis(WAIT_MS_MAX).saturating_sub(job.waited);
        let took_turn = tokio::time::timeout(left, async {
            let taking = lane.take(&job.asker);
            self.show_waiting();
            taking.await
        })
        .await;
        job.waited += self.clock.monotonic().saturating_sub(start);
        self.show_waiting();
        took_turn.unwrap_or_else(|_| {
            let (waiting, seconds) = (self.waiting(), job.waited.as_secs());
            Err(AdmitError::Busy {
                reason: format!(
                    "it was not its turn to be compiled within {seconds} s; {waiting} more are waiting"
                ),
                retry_after_s: COME_BACK_S,
            })
        })
    }

    /// Compiles that wait for a turn.
    pub(crate) fn waiting(&self) -> usize {
        self.quick.waiting() + self.slow.waiting()
    }

    fn show_waiting(&self) {
        gauge!("millrace_compiles_waiting").set(self.waiting() as f64);
    }

    /// Runs a child, whose time counts whatever its result.
    async fn timed(
        &self,
        job: &mut Job,
        turn: Turn,
        is_quick: bool,
        component: &Bytes,
    ) -> Result<Ran, AdmitError> {
        let start = self.clock.monotonic();
        let ran = self.run(&job.asker, turn, is_quick, component).await;
        job.compiled += self.clock.monotonic().saturating_sub(start);
        ran
    }

    async fn run(
        &self,
        asker: &Asker,
        mut turn: Turn,
        is_quick: bool,
        component: &Bytes,
    ) -> Result<Ran, AdmitError> {
        self.children_started.fetch_add(1, Ordering::Relaxed);
        let cpu_seconds = self.limits.compile_cpu_seconds(component.len());
        let child = self.start(cpu_seconds).map_err(|error| {
            let text = without_places(&error.to_string());
            AdmitError::Host(format!("the compiler cannot be started: {text}"))
        })?;
        let pid = child.id();
        let wall = (Duration::from_secs(cpu_seconds) * WALL_PER_CPU_MAX)
            .max(Duration::from_millis(WALL_MS_MIN));
        let conversation = self.converse(child, component.clone());
        let mut conversation = std::pin::pin!(tokio::time::timeout(wall, conversation));
        // A dropped child is killed.
        let mut is_quick = is_quick;
        let ended = loop {
            tokio::select! {
                ended = conversation.as_mut() => break ended,
                () = tokio::time::sleep(WATCH_INTERVAL), if is_quick => {}
            }
            if cpu_time(pid) < self.quick_cpu {
                continue;
            }
            self.check_pause(asker)?;
            if self.one_at_a_time {
                // The quick lane is the only one.
                is_quick = false;
            } else if let Some(slow) = self.slow.try_take(asker) {
                // The quick lane is free from here on.
                turn = slow;
                is_quick = false;
            } else if self.quick.waiting() > 0 {
                return Ok(Ran::TooSlow);
            }
        };
        drop(turn);
        let code = ended.unwrap_or_else(|_| {
            let seconds = wall.as_secs();
            Err(AdmitError::Busy {
                reason: format!(
                    "compiling it took {seconds} s without reaching its CPU limit: the machine is too busy"
                ),
                retry_after_s: COME_BACK_S,
            })
        });
        code.map_err(|error| self.told(error, cpu_seconds))
            .map(Ran::Code)
    }

    fn start(&self, cpu_seconds: u64) -> std::io::Result<Child> {
        Command::new(&self.child.program)
            .args(&self.child.args)
            .arg(self.limits.compile_memory_bytes_max.to_string())
            .arg(cpu_seconds.to_string())
            .env_clear()
            // The allocator reserves only what it needs, not pieces larger than the child's whole memory.
            .env("MIMALLOC_DISALLOW_ARENA_ALLOC", "1")
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
        let ((), code, complaint) = tokio::join!(
            feed,
            read_bounded(stdout, self.code_bytes_max),
            read_bounded(stderr, COMPLAINT_BYTES_MAX),
        );
        let (code, complaint) = (code.map_err(host)?, complaint.map_err(host)?);
        if code.len() as u64 > self.code_bytes_max {
            let max = self.code_bytes_max;
            return Err(AdmitError::CompileLimit(format!("{max} bytes of code")));
        }
        let status = child.wait().await.map_err(host)?;
        let complaint = without_places(&String::from_utf8_lossy(&complaint));
        judge(status, code, &clean(&complaint, COMPLAINT_SHOWN_BYTES_MAX))
    }

    /// The same, naming the setting of a limit.
    fn told(&self, error: AdmitError, cpu_seconds: u64) -> AdmitError {
        let AdmitError::CompileLimit(which) = error else {
            return error;
        };
        AdmitError::CompileLimit(match which.as_str() {
            CPU_TIME => {
                let setting = self.limits.compile_cpu_seconds_max;
                let more = cpu_seconds - setting;
                let more = match more {
                    0 => String::new(),
                    more => format!(", and {more} for its size"),
                };
                format!(
                    "{cpu_seconds} s of CPU time; setting compile_cpu_seconds_max = {setting}{more}"
                )
            }
            MEMORY => {
                let max = self.limits.compile_memory_bytes_max;
                format!("{max} bytes of memory; setting compile_memory_bytes_max = {max}")
            }
            other => other.to_owned(),
        })
    }

    /// An uploader of several bombs in a row gets only quick compiles for a while.
    fn check_pause(&self, asker: &Asker) -> Result<(), AdmitError> {
        let Some(offence) = self.offenders.lock().get(asker).copied() else {
            return Ok(());
        };
        let over = offence.last + offence.pause();
        let left = over.saturating_sub(self.clock.monotonic());
        if left.is_zero() {
            return Ok(());
        }
        let (Asker::Uploader(uploader), Offence { in_a_row, .. }) = (asker, offence) else {
            return Ok(());
        };
        let seconds = u32::try_from(left.as_secs())
            .unwrap_or(u32::MAX)
            .saturating_add(1);
        let quick = self.quick_cpu.as_millis();
        Err(AdmitError::Busy {
            reason: format!(
                "the last {in_a_row} modules of {uploader} exceeded the compile limit; for {seconds} s none of its compiles may take \
                 longer than {quick} ms of CPU time"
            ),
            retry_after_s: seconds,
        })
    }

    fn note(&self, asker: &Asker, outcome: &Result<Vec<u8>, AdmitError>) {
        let word = match outcome {
            Ok(_) => "ok",
            Err(AdmitError::CompileLimit(_)) => "limit",
            Err(AdmitError::Busy { .. }) => "busy",
            Err(AdmitError::Host(_)) => "failed",
            Err(_) => "invalid",
        };
        counter!("millrace_compiles_total", "outcome" => word).increment(1);
        let mut offenders = self.offenders.lock();
        match word {
            "limit" if *asker != Asker::Host => {
                let last = self.clock.monotonic();
                let offence = offenders.entry(asker.clone());
                let offence = offence.or_insert(Offence { in_a_row: 0, last });
                offence.in_a_row = offence.in_a_row.saturating_add(1);
                offence.last = last;
                if offenders.len() > OFFENDERS_MAX {
                    let oldest = offenders.iter().min_by_key(|(_, offence)| offence.last);
                    if let Some(oldest) = oldest.map(|(asker, _)| asker.clone()) {
                        offenders.remove(&oldest);
                    }
                }
            }
            "ok" => drop(offenders.remove(asker)),
            _ => {}
        }
    }
}

impl Offence {
    /// How long slow compiles must pause after the last excess.
    fn pause(self) -> Duration {
        let Some(doublings) = self.in_a_row.checked_sub(STRIKES_FREE) else {
            return Duration::ZERO;
        };
        let pause = PAUSE_MS.saturating_mul(1 << doublings.min(16));
        Duration::from_millis(pause.min(PAUSE_MS_MAX))
    }
}

/// The limits of a child.
const CPU_TIME: &str = "CPU time";
const MEMORY: &str = "memory";

fn judge(status: ExitStatus, code: Vec<u8>, complaint: &str) -> Result<Vec<u8>, AdmitError> {
    match status.code().map(u8::try_from) {
        Some(Ok(0)) if !code.is_empty() => Ok(code),
        Some(Ok(EXIT_INVALID)) => Err(AdmitError::Invalid(complaint.to_owned())),
        Some(Ok(EXIT_MEMORY)) => Err(AdmitError::CompileLimit(MEMORY.to_owned())),
        None => Err(AdmitError::CompileLimit(limit_behind(status))),
        _ => Err(AdmitError::Host(format!(
            "the compile child ended with {status}: {complaint}"
        ))),
    }
}

/// Which limit ended a child that was ended by a signal.
fn limit_behind(status: ExitStatus) -> String {
    match status.signal().and_then(Signal::from_named_raw) {
        Some(Signal::KILL | Signal::XCPU) => CPU_TIME.to_owned(),
        // A failed allocation aborts the process.
        Some(Signal::ABORT) => MEMORY.to_owned(),
        _ => format!("the compiler ended with {status}"),
    }
}

/// CPU time that a child has used; none if it is gone.
fn cpu_time(pid: Option<u32>) -> Duration {
    let Some(pid) = pid else {
        return Duration::ZERO;
    };
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The program's name is in parentheses and may contain anything.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields = after_name.split_ascii_whitespace();
    let ticks: u64 = fields
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    Duration::from_millis(ticks.saturating_mul(1_000 / TICKS_PER_SECOND))
}

/// All output, and one byte beyond the bound if there is more.
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

/// The hidden subcommand: limits itself, reads a component from stdin, writes its code to stdout. `args` are appended by the parent:
/// bytes of memory, seconds of CPU time.
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
    // If memory is short, the system ends this process and not the host.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    limit_this_process(args)?;
    end_with_the_parent()?;
    let mut component = Vec::new();
    std::io::stdin()
        .take(MODULE_BYTES_TAKEN_MAX)
        .read_to_end(&mut component)
        .map_err(|error| match error.kind() {
            ErrorKind::OutOfMemory => (EXIT_MEMORY, error.to_string()),
            _ => (EXIT_HOST, error.to_string()),
        })?;
    // A panic's message names files of the build machine, and threads; the message below replaces it.
    std::panic::set_hook(Box::new(|_| ()));
    let code = std::thread::Builder::new()
        .stack_size(STACK_BYTES)
        .spawn(move || compile(&component))
        .map_err(|error| (EXIT_HOST, error.to_string()))?
        .join()
        .map_err(|panic| (EXIT_INVALID, given_up(&*panic)))??;
    std::io::stdout()
        .write_all(&code)
        .map_err(|error| (EXIT_HOST, error.to_string()))
}

fn limit_this_process(args: &[String]) -> Result<(), Complaint> {
    let number = |index: usize| args.get(index).and_then(|text| text.parse::<u64>().ok());
    let (Some(memory_bytes), Some(cpu_seconds)) = (number(0), number(1)) else {
        return Err((
            EXIT_HOST,
            "expected: bytes of memory, seconds of CPU time".into(),
        ));
    };
    for (resource, max) in [
        // Limits writable memory; mapped files do not count.
        (Resource::Data, memory_bytes.saturating_add(STACKS_BYTES)),
        (
            Resource::As,
            memory_bytes.saturating_add(ADDRESSES_BESIDE_BYTES),
        ),
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
    // Messages come first; a system that refuses the nice value still compiles.
    let _ = rustix::process::nice(10);
    Ok(())
}

/// Ends this process when its host is gone: nobody takes the code any more.
fn end_with_the_parent() -> Result<(), Complaint> {
    let parent = parent_id();
    let watch = move || {
        while parent_id() == parent {
            std::thread::sleep(PARENT_WATCH_INTERVAL);
        }
        std::process::exit(EXIT_HOST.into());
    };
    // The system's own signal for this would also come when only the thread that started the child ends.
    let watching = std::thread::Builder::new().spawn(watch).map(drop);
    watching.map_err(|error| (EXIT_HOST, error.to_string()))
}

/// The compiler's message when it gave up on a component that it considered valid.
fn given_up(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    let text = text.unwrap_or("no reason given");
    format!("the compiler gave up on it: {text}")
}

fn compile(component: &[u8]) -> Result<Vec<u8>, Complaint> {
    let engine = engine::compiler().map_err(|error| (EXIT_HOST, format!("{error:#}")))?;
    engine
        .precompile_component(component)
        .map_err(|error| (EXIT_INVALID, explained(&format!("{error:#}"))))
}

/// What is wrong with a component, with what to do about it where the compiler's words do not say it.
fn explained(error: &str) -> String {
    if error.contains("component model async feature") {
        return format!(
            "it uses calls of WASI 0.3, which are asynchronous; build it with the synchronous option of its toolchain, such as `--sync` \
             of componentize-qjs, or with `millrace build` ({error})"
        );
    }
    error.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compiler_that_gives_up_is_quoted_without_where_it_did() {
        let said = |panic: Box<dyn Any + Send>| given_up(&*panic);
        assert_eq!(
            said(Box::new("no such thing")),
            "the compiler gave up on it: no such thing"
        );
    }

    #[test]
    fn asynchronous_calls_are_refused_with_the_option_that_avoids_them() {
        let error = explained("`task.cancel` requires the component model async feature");
        assert!(
            error.contains("--sync") && error.contains("task.cancel"),
            "{error}"
        );
        assert_eq!(explained("unknown section"), "unknown section");
    }

    #[test]
    fn each_compile_beyond_the_limit_doubles_the_pause_up_to_a_bound() {
        let pause = |in_a_row| {
            let last = Duration::ZERO;
            Offence { in_a_row, last }.pause().as_secs()
        };
        assert_eq!([1, 2, 3, 4].map(pause), [0, 30, 60, 120]);
        assert_eq!(pause(u32::MAX), 600);
    }

    #[test]
    fn a_process_s_own_cpu_time_is_read() {
        let mut sum = 0_u64;
        while cpu_time(Some(std::process::id())).is_zero() {
            sum = (0..1_000_000_u64).fold(sum, |sum, n| sum.wrapping_mul(31).wrapping_add(n));
        }
        assert_eq!(cpu_time(None), Duration::ZERO, "{sum}");
    }
}
