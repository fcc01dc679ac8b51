//! `serve`: runs a host until it is told to stop.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use super::failure::{Exit, Failure};
use crate::config::{Config, Settings, unknown_variables};
use crate::host::Host;
use crate::telemetry;

const AFTER_HELP: &str = "\
Examples:
  millrace serve                                   on 127.0.0.1:7400, data in ./millrace-data
  millrace serve --listen 127.0.0.1:0              on a free port; the first line says which
  millrace serve --config millrace.toml
  millrace serve --engine memory                   keeps nothing

The file has the same settings, with underscores: listen = \"127.0.0.1:7400\". Flags go before
environment variables, these before the file, and that before the defaults.
SIGTERM and ctrl-c stop gracefully; a second one stops at once.";

/// How long after its deadline a stop is cut short.
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
    let config = Config::load(args.settings, args.config.as_deref())?;
    telemetry::start_logging(&config)?;
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    for name in unknown_variables(names) {
        tracing::warn!("environment variable {name} means nothing to this host");
    }
    super::wait_for(serve(config))
}

async fn serve(config: Config) -> Result<(), Failure> {
    // From here on a signal is ours: one that comes while the host starts stops it as well.
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
        // All that is left then is the engine: what it acknowledged is safe, and what it was at is begun anew.
        () = tokio::time::sleep(deadline + STOP_SLACK) => tracing::warn!("the engine was not closed at the deadline; recovery will tidy up"),
        () = stop.asked() => tracing::warn!("stopped at once; recovery will tidy up"),
    }
    if poisoned {
        let message = "the engine stopped after a disk error; look into the log, mend the disk, then start again";
        return Err(Failure::new(Exit::Poisoned, "engine-poisoned", message));
    }
    Ok(())
}

fn announce(host: &Host) {
    let mut out = std::io::stdout();
    // Nobody may be reading; that is no reason not to serve.
    let _ = writeln!(out, "millrace is ready at {}", host.url()).and_then(|()| out.flush());
}

struct Stop {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Stop {
    fn new() -> Result<Self, Failure> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn asked(&mut self) {
        let signal = tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal, "asked to stop");
    }
}
