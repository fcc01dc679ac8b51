//! NATS servers of its own for tests: one, or a cluster of three on loopback. A shell watches over them: when the process of the tests ends,
//! however it ends, the shell's input ends, and it stops the servers and removes their data. The engine's own tests include this file.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Each line of its input is a configuration; the servers run until the input ends.
const SCRIPT: &str = r#"
set -eu
server="$1"; count="$2"; dir="$(mktemp -d)"
# A server that was started again, or stands still, ends as well.
stop() { kill -9 $(cat "$dir"/*.pid) 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$dir" || { sleep 1; rm -rf "$dir"; }; }
trap stop EXIT
for number in $(seq "$count"); do
  IFS= read -r configuration
  printf '%s' "$configuration" | sed "s#@#$dir/$number#g" | tr '|' '\n' >"$dir/$number.conf"
  "$server" -c "$dir/$number.conf" >"$dir/$number.log" 2>&1 </dev/null &
  echo "$!" >"$dir/$number.pid"
done
echo "$dir"
exec >/dev/null 2>&1
cat
"#;

/// How long servers may take until they listen.
const LISTEN_DURATION_MAX: Duration = Duration::from_secs(60);

/// Servers with nothing in them; they are stopped when this is dropped.
pub struct Nats {
    ports: Vec<u16>,
    server: PathBuf,
    directory: PathBuf,
    /// Those that were started again, by their number.
    again: BTreeMap<usize, Child>,
    shell: Child,
}

/// How long a server may take to start again.
const START_DURATION_MAX: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

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
        Self::start_as(count, "", "")
    }

    /// The same with further settings; `|` ends a line.
    ///
    /// # Errors
    /// If there is no program, or it does not start.
    pub fn start_with(count: usize, settings: &str) -> std::io::Result<Self> {
        Self::start_as(count, "", settings)
    }

    /// A cluster whose servers do not tell clients where the others are: clients know the addresses that they are given.
    ///
    /// # Errors
    /// If there is no program, or it does not start.
    pub fn start_discreet(count: usize) -> std::io::Result<Self> {
        Self::start_as(count, ", no_advertise: true", "")
    }

    fn start_as(count: usize, of_cluster: &str, settings: &str) -> std::io::Result<Self> {
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
        shell.arg(&server).arg(count.to_string());
        let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        if let Some(input) = &mut shell.stdin {
            use std::io::Write as _;
            for number in 0..count {
                let configuration = configuration(number, clients, routes, of_cluster);
                writeln!(input, "{configuration}|{settings}")?;
            }
        }
        let mut lines = Vec::new();
        if let Some(output) = shell.stdout.take() {
            let output = BufReader::new(output).lines().take(1);
            lines.extend(output.map_while(Result::ok));
        }
        let [directory] = &*lines else {
            return Err(std::io::Error::other("nats-server does not start"));
        };
        let servers = Self {
            ports: clients.to_vec(),
            server,
            directory: directory.into(),
            again: BTreeMap::new(),
            shell,
        };
        servers.wait_until_they_listen()?;
        Ok(servers)
    }

    fn wait_until_they_listen(&self) -> std::io::Result<()> {
        let deadline = Instant::now() + LISTEN_DURATION_MAX;
        for (number, port) in self.ports.iter().enumerate() {
            while TcpStream::connect(("127.0.0.1", *port)).is_err() {
                if Instant::now() > deadline {
                    let log = self.log(number);
                    return Err(std::io::Error::other(format!(
                        "nats-server does not listen: {log}"
                    )));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    /// Their addresses.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        let url = |port: &u16| format!("nats://127.0.0.1:{port}");
        self.ports.iter().map(url).collect()
    }

    /// Their ports.
    #[must_use]
    pub fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// Where their logs are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Kills a server without notice.
    ///
    /// # Errors
    /// If the signal cannot be sent.
    pub fn kill(&self, number: usize) -> std::io::Result<()> {
        self.signal(number, "-KILL")
    }

    /// A server does nothing, and tells nobody.
    ///
    /// # Errors
    /// If the signal cannot be sent.
    pub fn stand_still(&self, number: usize) -> std::io::Result<()> {
        self.signal(number, "-STOP")
    }

    /// It goes on where it stood still.
    ///
    /// # Errors
    /// If the signal cannot be sent.
    pub fn go_on(&self, number: usize) -> std::io::Result<()> {
        self.signal(number, "-CONT")
    }

    fn signal(&self, number: usize, signal: &str) -> std::io::Result<()> {
        let pid = std::fs::read_to_string(self.file(number, "pid"))?;
        let sent = Command::new("kill").args([signal, pid.trim()]).status()?;
        match sent.success() {
            true => Ok(()),
            false => Err(std::io::Error::other("no such server")),
        }
    }

    fn file(&self, number: usize, ending: &str) -> PathBuf {
        self.directory.join(format!("{}.{ending}", number + 1))
    }

    /// Starts a killed server again, and waits until it takes connections.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start_again(&mut self, number: usize) -> std::io::Result<()> {
        let port = self.ports[number];
        // The old process keeps its port until it has ended.
        wait_until(|| Ok(TcpStream::connect(("127.0.0.1", port)).is_err()))?;
        if let Some(mut ended) = self.again.remove(&number) {
            ended.wait()?;
        }
        let log = self.file(number, "log");
        let log = std::fs::File::options().append(true).open(log)?;
        let mut start = Command::new(&self.server);
        start.arg("-c").arg(self.file(number, "conf"));
        start.stdin(Stdio::null());
        start.stdout(log.try_clone()?).stderr(log);
        let child = start.spawn()?;
        std::fs::write(self.file(number, "pid"), format!("{}\n", child.id()))?;
        self.again.insert(number, child);
        // It takes connections once it has read its streams.
        wait_until(|| {
            if let Some(Some(status)) = self
                .again
                .get_mut(&number)
                .map(Child::try_wait)
                .transpose()?
            {
                let why = format!("nats-server ended with {status}");
                return Err(std::io::Error::other(why));
            }
            Ok(TcpStream::connect(("127.0.0.1", port)).is_ok())
        })
    }

    /// What a server has logged.
    #[must_use]
    pub fn log(&self, number: usize) -> String {
        std::fs::read_to_string(self.file(number, "log")).unwrap_or_default()
    }
}

fn wait_until(mut is_so: impl FnMut() -> std::io::Result<bool>) -> std::io::Result<()> {
    let began = Instant::now();
    while !is_so()? {
        if began.elapsed() > START_DURATION_MAX {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    Ok(())
}

/// One line: `|` ends a line of the file, and `@` is the server's directory.
fn configuration(number: usize, clients: &[u16], routes: &[u16], of_cluster: &str) -> String {
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
            "cluster {{ name: test, listen: \"127.0.0.1:{own}\", routes: [{others}]{of_cluster} }}"
        ));
    }
    lines.join("|")
}

impl Drop for Nats {
    fn drop(&mut self) {
        for (_, mut child) in std::mem::take(&mut self.again) {
            let _ = child.kill();
            let _ = child.wait();
        }
        // Its input ends.
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}
