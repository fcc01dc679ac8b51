//! How a command fails: what happened, what to do, and the exit code for its kind.

use std::io;
use std::process::ExitCode;

use millrace_model::Code;
use millrace_model::plain::plain;
use serde_json::{Value, json};

use super::table::{harmless, harmless_json};
use crate::config::ConfigError;
use crate::host::StartError;

/// The kinds of failure that a script treats differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    Failed = 1,
    Usage = 2,
    Unknown = 3,
    Refused = 4,
    Unreachable = 5,
    DataDirInUse = 6,
    Poisoned = 7,
    /// As shells do for SIGINT.
    Interrupted = 130,
}

/// Why a command failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The reader of our output went away, so there is nothing left to report.
    ClosedPipe,
    /// A failure to report.
    Told {
        exit: Exit,
        code: String,
        message: String,
        hint: Option<String>,
        /// Where to continue after unreadable messages.
        next: Option<u64>,
        /// The partition it applies to, if several were read.
        partition: Option<u64>,
    },
}

impl Failure {
    pub(super) fn new(exit: Exit, code: &str, message: impl Into<String>) -> Self {
        Self::Told {
            exit,
            code: code.to_owned(),
            message: message.into(),
            hint: None,
            next: None,
            partition: None,
        }
    }

    pub(super) fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, "failed", message)
    }

    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, "usage", message)
    }

    pub(super) fn refused(message: impl Into<String>) -> Self {
        Self::new(Exit::Refused, "refused", message)
    }

    pub(super) fn with_hint(mut self, text: impl Into<String>) -> Self {
        if let Self::Told { hint, .. } = &mut self {
            *hint = Some(text.into());
        }
        self
    }

    /// Adds the offset where reading can continue.
    pub(super) fn with_next(mut self, from: Option<u64>, of: Option<u64>) -> Self {
        if let Self::Told {
            next, partition, ..
        } = &mut self
        {
            (*next, *partition) = (from, of);
        }
        self
    }

    /// Whether the host is only too busy at the moment, so that the same request may succeed later.
    pub(super) fn asks_to_come_back(&self) -> bool {
        let busy = [Code::TooManyWaiting, Code::TooManyConnections, Code::Busy];
        busy.into_iter().any(|code| self.has_code(code))
    }

    /// Whether it has this error code.
    pub(super) fn has_code(&self, wanted: Code) -> bool {
        matches!(self, Self::Told { code, .. } if code == wanted.as_str())
    }

    /// Adds to the message what failed, such as a chunk of lines.
    pub(super) fn about(mut self, what: &str) -> Self {
        if let Self::Told { message, .. } = &mut self {
            *message = format!("{what}: {message}");
        }
        self
    }

    /// Whether no host answered.
    pub(super) fn is_unreachable(&self) -> bool {
        matches!(
            self,
            Self::Told {
                exit: Exit::Unreachable,
                ..
            }
        )
    }

    /// An error answer of the host.
    pub(super) fn answered(status: u16, body: &[u8]) -> Self {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let error = &body["error"];
        let text = |field: &str| error[field].as_str().map(str::to_owned);
        let message = text("message").unwrap_or_else(|| {
            format!(
                "the answer was {status} and did not come from a Millrace host; is --host right?"
            )
        });
        let exit = match status {
            404 => Exit::Unknown,
            400 | 401 | 403 | 405 | 409 | 413 | 422 => Exit::Refused,
            _ => Exit::Failed,
        };
        Self::Told {
            exit,
            code: text("code").unwrap_or_else(|| "failed".to_owned()),
            message,
            hint: text("hint"),
            next: error["next"].as_u64(),
            partition: error["partition"].as_u64(),
        }
    }

    /// The exit code.
    pub(super) fn exit(&self) -> ExitCode {
        match self {
            Self::ClosedPipe => ExitCode::SUCCESS,
            Self::Told { exit, .. } => ExitCode::from(*exit as u8),
        }
    }

    /// Reports to people or programs, and returns the exit code.
    pub(super) fn report(self, as_json: bool) -> ExitCode {
        let Self::Told {
            exit,
            code,
            message,
            hint,
            ..
        } = self
        else {
            return ExitCode::SUCCESS;
        };
        let text = if as_json {
            harmless_json(&json!({"error": {"code": code, "message": message, "hint": hint}}))
        } else {
            // The texts may quote outside input.
            let hint = hint.map_or_else(String::new, |hint| format!("\n  {}", plain(&hint)));
            format!("error: {}{hint}", harmless(&message))
        };
        // Standard error may be closed as well; the exit code still tells.
        let _ = io::Write::write_fmt(&mut io::stderr(), format_args!("{text}\n"));
        ExitCode::from(exit as u8)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ClosedPipe => f.write_str("the reader of the output went away"),
            Self::Told { message, .. } => f.write_str(message),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::ClosedPipe,
            _ => Self::failed(error.to_string()),
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(Exit::Usage, "config", error.to_string())
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let (exit, code) = match &error {
            StartError::Config(_) => (Exit::Usage, "config"),
            StartError::Socket(_) => (Exit::Usage, "socket"),
            StartError::DataDirName(_) => (Exit::Usage, "data-dir-name"),
            StartError::DataDirInUse(_) => (Exit::DataDirInUse, "data-dir-in-use"),
            StartError::Poisoned(_) => (Exit::Poisoned, Code::EnginePoisoned.as_str()),
            _ => (Exit::Failed, "failed"),
        };
        Self::new(exit, code, error.to_string())
    }
}
