//! A PostgreSQL server of its own for tests. A shell watches over it: when the process of the tests ends, however it ends, the shell's input
//! ends, and it stops the server and removes its data. The engine's own tests include this file.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The server's user must not be root, so root runs it as the user that its package made.
const TOOLS: &str = r#"
set -eu
bin="$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -1)"
as() { if [ "$(id -u)" -eq 0 ]; then setpriv --reuid postgres --regid postgres --clear-groups "$@"; else "$@"; fi; }
"#;
const SCRIPT: &str = r#"
dir="$(mktemp -d)"
if [ "$(id -u)" -eq 0 ]; then chown postgres "$dir"; fi
cd "$dir"
as "$bin/initdb" -D "$dir/data" -U millrace -A trust --no-sync >/dev/null
{ echo "listen_addresses = ''"; echo "unix_socket_directories = '$dir'"; echo "max_connections = 400"; echo "shared_buffers = 64MB"
  echo "max_locks_per_transaction = 256"; } >>"$dir/data/postgresql.conf"
eval "$BEFORE"
as "$bin/pg_ctl" -D "$dir/data" -l "$dir/log" -w -t 120 start >/dev/null
beside=''
eval "$BESIDE"
echo "$dir"
exec >/dev/null 2>&1
cat
if [ -n "$beside" ]; then kill "$beside" || true; fi
as "$bin/pg_ctl" -D "$dir/data" -m immediate stop || true
rm -rf "$dir"
"#;

/// A server with nothing in it; it is stopped when this is dropped.
pub struct Postgres {
    directory: PathBuf,
    shell: Child,
}

impl Postgres {
    /// Starts a server.
    ///
    /// # Errors
    /// If it does not start; its own errors are on standard error.
    pub fn start() -> std::io::Result<Self> {
        Self::start_with("", "")
    }

    /// Starts a server. Statements of the shell run in its directory before it starts, and others when it runs; these may set `beside` to a
    /// process that ends with it. `as` runs a command as the server's user.
    ///
    /// # Errors
    /// If it does not start; its own errors are on standard error.
    pub fn start_with(before: &str, when_it_runs: &str) -> std::io::Result<Self> {
        let mut shell = Command::new("setsid");
        shell.args(["sh", "-c", &format!("{TOOLS}{SCRIPT}")]);
        shell.env("BEFORE", before).env("BESIDE", when_it_runs);
        let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut directory = String::new();
        if let Some(output) = shell.stdout.take() {
            BufReader::new(output).read_line(&mut directory)?;
        }
        match directory.trim() {
            "" => Err(std::io::Error::other("PostgreSQL does not start")),
            directory => Ok(Self {
                directory: directory.into(),
                shell,
            }),
        }
    }

    /// Stops the server in a mode of `pg_ctl`, runs statements of the shell in its directory, as its user, and starts it again.
    ///
    /// # Errors
    /// If any of it fails.
    pub fn start_again(&self, mode: &str, meanwhile: &str) -> std::io::Result<()> {
        const AGAIN: &str = r#"
cd "$1"
as "$bin/pg_ctl" -D data -m "$2" -w -t 120 stop
as sh -euc "$3"
as "$bin/pg_ctl" -D data -l log -w -t 120 start
"#;
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{TOOLS}{AGAIN}"), "sh"]);
        let shell = shell.arg(&self.directory).args([mode, meanwhile]);
        match shell.stdout(Stdio::null()).status()?.success() {
            true => Ok(()),
            false => Err(std::io::Error::other("PostgreSQL does not start again")),
        }
    }

    /// Where its files are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its address.
    #[must_use]
    pub fn url(&self) -> String {
        let directory = self.directory.display();
        format!("postgres://millrace@localhost/postgres?host={directory}")
    }

    /// What `psql` answers to statements, a line for each row.
    ///
    /// # Errors
    /// If a statement fails; the error has what the server says.
    pub fn sql(&self, statements: &str) -> std::io::Result<String> {
        sql(&self.url(), statements)
    }
}

/// As [`Postgres::sql`], on the database at an address.
///
/// # Errors
/// If a statement fails; the error has what the server says.
pub fn sql(url: &str, statements: &str) -> std::io::Result<String> {
    let answer = Command::new("psql")
        .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"])
        .args(["-c", statements, url])
        .output()?;
    match answer.status.success() {
        true => Ok(String::from_utf8_lossy(&answer.stdout).trim().to_owned()),
        false => Err(std::io::Error::other(
            String::from_utf8_lossy(&answer.stderr).into_owned(),
        )),
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Its input ends.
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}
