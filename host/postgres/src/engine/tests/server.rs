//! A PostgreSQL server for the tests of this process, started with the first of them. A shell watches over it: when the process ends,
//! however it ends, the shell's input ends, and it stops the server and removes its data.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

/// The address of a server to use instead.
const GIVEN: &str = "MILLRACE_TEST_POSTGRES";

struct Server {
    url: String,
    /// Its input is open for as long as this process lives.
    _shell: Option<Child>,
}

static SERVER: OnceLock<Server> = OnceLock::new();

/// Its user may be root, whom PostgreSQL refuses; then it runs as the user that its package made.
const SCRIPT: &str = r#"
set -eu
bin="$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -1)"
dir="$(mktemp -d)"
as() { if [ "$(id -u)" -eq 0 ]; then setpriv --reuid postgres --regid postgres --clear-groups "$@"; else "$@"; fi; }
if [ "$(id -u)" -eq 0 ]; then chown postgres "$dir"; fi
cd "$dir"
as "$bin/initdb" -D "$dir/data" -U millrace -A trust --no-sync >/dev/null
{ echo "listen_addresses = ''"; echo "unix_socket_directories = '$dir'"; echo "max_connections = 400"; echo "shared_buffers = 64MB"
  echo "max_locks_per_transaction = 256"; } >>"$dir/data/postgresql.conf"
as "$bin/pg_ctl" -D "$dir/data" -l "$dir/log" -w -t 120 start >/dev/null
echo "$dir"
exec >/dev/null 2>&1
cat
as "$bin/pg_ctl" -D "$dir/data" -m immediate stop || true
rm -rf "$dir"
"#;

/// The address of the server.
pub(super) fn url() -> String {
    SERVER.get_or_init(start).url.clone()
}

/// Each directory has a schema of its own.
pub(super) fn schema_of(directory: &Path) -> String {
    let name = directory.file_name().unwrap_or_default();
    let digits = name.to_string_lossy();
    // Capital and small letters are the same in a schema's name.
    let digits = digits.bytes().map(|byte| format!("{byte:02x}"));
    format!("t{}", digits.collect::<String>())
}

fn start() -> Server {
    if let Ok(url) = std::env::var(GIVEN) {
        return Server { url, _shell: None };
    }
    let mut shell = Command::new("setsid");
    shell.args(["sh", "-c", SCRIPT]);
    let shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut shell = shell.expect("a shell");
    let mut directory = String::new();
    let output = shell.stdout.take().expect("it was asked for");
    let read = BufReader::new(output).read_line(&mut directory);
    read.expect("it says where the server is");
    let directory = directory.trim();
    assert!(
        !directory.is_empty(),
        "PostgreSQL does not start; its errors are above"
    );
    Server {
        url: format!("postgres://millrace@localhost/postgres?host={directory}"),
        _shell: Some(shell),
    }
}
