//! `serve`: runs a host until it is told to stop.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::failure::{Exit, Failure};
use crate::config::{Config, Settings, unknown_variables};
use crate::host::Host;
use crate::telemetry;

const AFTER_HELP: &str = "\
Examples:
  millrace serve                                   on 127.0.0.1:7400, data in ./millrace-data
  millrace serve --listen 127.0.0.1:0              on a free port; the first line of output names it
  millrace serve --config millrace.toml
  millrace serve --engine memory                   stores nothing on disk

The file has the same settings in sections, such as [listen.http] with address = \"127.0.0.1:7400\";
variables are named by the same path: MILLRACE_LISTEN_HTTP_ADDRESS. Flags override environment
variables, those override the file, and the file overrides the defaults.
SIGTERM, ctrl-c and SIGHUP stop gracefully; a second one stops at once. Under nohup SIGHUP does nothing.";

/// Maximum wait for the last log lines to be written: their reader may be stuck.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);

/// How long after its deadline a stop is forced.
const STOP_SLACK: Duration = Duration::from_millis(700);

/// Run a host
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    /// A TOML file with settings
    #[arg(long, value_name = "FILE", env = "MILLRACE_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    let (config, hints) = Config::load(&args.settings, args.config.as_deref())?;
    let log = telemetry::start_logging(&config.log)?;
    for hint in hints {
        tracing::warn!("{hint}");
    }
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    for name in unknown_variables(names) {
        tracing::warn!("environment variable {name} is unknown to this host");
    }
    let served = super::wait_for(serve(config));
    log.flush(LAST_WORDS_MAX);
    served
}

/// Reports the result, and ends even if nobody reads it.
pub(super) fn report(failure: Failure, as_json: bool) -> ExitCode {
    let exit = failure.exit();
    let (said, hears) = mpsc::channel();
    // The thread is abandoned if standard error is blocked.
    thread::spawn(move || said.send(failure.report(as_json)));
    hears.recv_timeout(LAST_WORDS_MAX).unwrap_or(exit)
}

async fn serve(config: Config) -> Result<(), Failure> {
    // From here on we handle signals: one that arrives during the start stops the host as well.
    let mut stop = Stop::new()?;
    let host = tokio::select! {
        host = Host::start(config) => host?,
        () = stop.asked() => return Ok(()),
    };
    announce(&host);
    let poisoned = tokio::select! {
        () = stop.asked() => false,
        () = host.poisoned() => true,
    };
    let deadline = host.stop_deadline();
    tokio::select! {
        () = host.stop() => {}
        // Only the engine is left then: what it acknowledged is safe, and recovery redoes its unfinished work.
        () = tokio::time::sleep(deadline + STOP_SLACK) => tracing::warn!("the engine was not closed by the deadline; the next start recovers"),
        () = stop.asked() => tracing::warn!("stopped at once; the next start recovers"),
    }
    if poisoned {
        let message = "the engine stopped after a disk error; check the log, repair the disk, then start again";
        return Err(Failure::new(Exit::Poisoned, "engine-poisoned", message));
    }
    Ok(())
}

fn announce(host: &Host) {
    let line = format!("millrace is ready at {}\n", host.url());
    // The reader may be gone or stuck; that is no reason not to serve.
    thread::spawn(move || {
        let mut out = std::io::stdout();
        let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
    });
}

struct Stop {
    terminate: Signal,
    interrupt: Signal,
    /// `None` if the signal was ignored when the host was started (nohup): then it stays ignored.
    hangup: Option<Signal>,
}

impl Stop {
    fn new() -> Result<Self, Failure> {
        let hangup = match ignores_hangup() {
            true => None,
            false => Some(signal(SignalKind::hangup())?),
        };
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup,
        })
    }

    async fn asked(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        let signal = tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = hangup => "SIGHUP",
        };
        tracing::info!(signal, "received a signal to stop");
    }
}

/// Whether this process was started to outlive its terminal, as the system reports it; otherwise assumed not.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignored_of(&status) & 1 != 0
}

/// The ignored signals as a bit mask, from the first signal on.
fn ignored_of(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_what_the_system_says() {
        assert_eq!(ignored_of("Name:\tx\nSigIgn:\t0000000000001001\n"), 0x1001);
        assert_eq!(ignored_of("nothing of the kind"), 0);
    }
}
