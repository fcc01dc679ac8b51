//! NATS servers of its own for tests: one, or a cluster of three on loopback. A shell watches over them: when the process of the tests ends,
//! however it ends, the shell's input ends, and it stops the servers and removes their data. The engine's own tests include this file.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// Each line of its input is a configuration; the servers run until the input ends.
const SCRIPT: &str = r#"
set -eu
server="$1"; count="$2"; dir="$(mktemp -d)"
stop() { kill $pids 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$dir"; }
pids=""
trap stop EXIT
for number in $(seq "$count"); do
  IFS= read -r configuration
  printf '%s' "$configuration" | sed "s#@#$dir/$number#g" | tr '|' '\n' >"$dir/$number.conf"
  "$server" -c "$dir/$number.conf" >"$dir/$number.log" 2>&1 </dev/null &
  pids="$pids $!"
done
echo "$dir"
echo "$pids"
exec >/dev/null 2>&1
cat
"#;

/// Servers with nothing in them; they are stopped when this is dropped.
pub struct Nats {
    ports: Vec<u16>,
    directory: PathBuf,
    pids: Vec<u32>,
    shell: Child,
}

/// The server's program: as `MILLRACE_TEST_NATS` says, or on the path.
#[must_use]
pub fn nats_server() -> Option<PathBuf> {
    let given = std::env::var_os("MILLRACE_TEST_NATS").map(PathBuf::from);
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&paths).map(|path| path.join("nats-server"));
    let mut all = given.into_iter().chain(on_path);
    all.find(|server| server.is_file())
}

impl Nats {
    /// Starts one server, or a cluster of several that each have a copy of everything.
    ///
    /// # Errors
    /// If there is no program, or it does not start.
    pub fn start(count: usize) -> std::io::Result<Self> {
        let server = nats_server().ok_or_else(|| {
            std::io::Error::other("there is no nats-server (MILLRACE_TEST_NATS, or on the PATH)")
        })?;
        // Free now; who takes one in between makes a server fail, which is seen below.
        let listeners: Result<Vec<TcpListener>, _> = (0..count * 2)
            .map(|_| TcpListener::bind("127.0.0.1:0"))
            .collect();
        let listeners = listeners?;
        let ports: Result<Vec<u16>, _> = listeners
            .iter()
            .map(|listener| Ok::<_, std::io::Error>(listener.local_addr()?.port()))
            .collect();
        let ports = ports?;
        drop(listeners);
        let (clients, routes) = ports.split_at(count);
        let mut shell = Command::new("setsid");
        shell.args(["sh", "-c", SCRIPT, "nats"]);
        shell.arg(server).arg(count.to_string());
        let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        if let Some(input) = &mut shell.stdin {
            use std::io::Write as _;
            for number in 0..count {
                writeln!(input, "{}", configuration(number, clients, routes))?;
            }
        }
        let mut lines = Vec::new();
        if let Some(output) = shell.stdout.take() {
            let output = BufReader::new(output).lines().take(2);
            lines.extend(output.map_while(Result::ok));
        }
        let [directory, pids] = &*lines else {
            return Err(std::io::Error::other("nats-server does not start"));
        };
        Ok(Self {
            ports: clients.to_vec(),
            directory: directory.into(),
            pids: pids.split(' ').filter_map(|pid| pid.parse().ok()).collect(),
            shell,
        })
    }

    /// Their addresses.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        let url = |port: &u16| format!("nats://127.0.0.1:{port}");
        self.ports.iter().map(url).collect()
    }

    /// Kills a server without notice; it does not come back.
    ///
    /// # Errors
    /// If the signal cannot be sent.
    pub fn kill(&self, number: usize) -> std::io::Result<()> {
        let pid = self.pids.get(number).map(u32::to_string);
        let pid = pid.unwrap_or_default();
        let killed = Command::new("kill").args(["-9", &pid]).status()?;
        match killed.success() {
            true => Ok(()),
            false => Err(std::io::Error::other("no such server")),
        }
    }

    /// What a server has logged.
    #[must_use]
    pub fn log(&self, number: usize) -> String {
        let log = self.directory.join(format!("{}.log", number + 1));
        std::fs::read_to_string(log).unwrap_or_default()
    }
}

/// One line: `|` ends a line of the file, and `@` is the server's directory.
fn configuration(number: usize, clients: &[u16], routes: &[u16]) -> String {
    let port = clients[number];
    let mut lines = vec![
        format!("server_name: n{number}"),
        format!("listen: \"127.0.0.1:{port}\""),
        "max_payload: 8MB".to_owned(),
        "jetstream { store_dir: \"@\", sync_interval: always, max_file_store: 8GB, max_memory_store: 1GB }".to_owned(),
    ];
    if clients.len() > 1 {
        let own = routes[number];
        let others: Vec<String> = routes
            .iter()
            .map(|port| format!("\"nats://127.0.0.1:{port}\""))
            .collect();
        let others = others.join(", ");
        lines.push(format!(
            "cluster {{ name: test, listen: \"127.0.0.1:{own}\", routes: [{others}] }}"
        ));
    }
    lines.join("|")
}

impl Drop for Nats {
    fn drop(&mut self) {
        // Its input ends.
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}
