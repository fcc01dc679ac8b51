//! Modules on their way to a registry and back: a real registry, if there is one on this machine, and a hostile one.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use anyhow::{Context, Result, ensure};
use guest_artifacts as guests;
use millrace_tests::{Host, wait_for};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::{MILLRACE, host};

/// The registry of the Debian package.
const REGISTRY: &str = "docker-registry";
/// The user `ada` with the password `mill-pass`.
const USERS: &str = "ada:$2y$04$QkmD0atbNJ8GyNlYPJXlrOybGmveucovw.0nyUblE7hjG4dQBzSfa\n";

/// A real registry on a free port; its process ends with it.
struct Registry {
    child: Child,
    address: SocketAddr,
    _folder: TempDir,
}

impl Registry {
    /// `None`, with a line that says so, if no registry is installed.
    fn start(users: Option<&str>) -> Result<Option<Self>> {
        if Command::new(REGISTRY)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_err()
        {
            println!("skipped: {REGISTRY} is not installed on this machine");
            return Ok(None);
        }
        let folder = tempfile::tempdir()?;
        // Free now; nobody else asks for it in the moment until the registry has it.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let root = folder.path().join("data");
        let mut config = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
            root.display()
        );
        if let Some(users) = users {
            let file = folder.path().join("users");
            std::fs::write(&file, users)?;
            config += &format!(
                "auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
                file.display()
            );
        }
        let file = folder.path().join("config.yml");
        std::fs::write(&file, config)?;
        let child = Command::new(REGISTRY)
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        wait_for("the registry", || Ok(TcpStream::connect(address).ok()))?;
        Ok(Some(Self {
            child,
            address,
            _folder: folder,
        }))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command for a host, in a home without credentials.
fn run(host: &Host, arguments: &[&str], input: &str) -> Result<Output> {
    let home = tempfile::tempdir()?;
    run_at(host, arguments, input, home.path())
}

fn run_at(host: &Host, arguments: &[&str], input: &str, docker: &Path) -> Result<Output> {
    let mut command = host.command(arguments);
    let mut child = command
        .arg("--json")
        .env("DOCKER_CONFIG", docker)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // A command that needs no input may have ended already.
    let _ = child
        .stdin
        .take()
        .context("standard input")?
        .write_all(input.as_bytes());
    Ok(child.wait_with_output()?)
}

fn answer(output: &Output) -> Result<Value> {
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The code and the message of a command's error.
fn error(output: &Output) -> Result<(String, String)> {
    let said: Value = serde_json::from_slice(&output.stderr)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let text = |field: &str| said["error"][field].as_str().unwrap_or_default().to_owned();
    Ok((text("code"), text("message")))
}

#[test]
fn a_module_travels_through_a_registry_with_its_signature() -> Result<()> {
    let Some(registry) = Registry::start(None)? else {
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("upper.wasm"), guests::UPPERCASE)?;
    let local = |arguments: &[&str]| -> Result<()> {
        let status = Command::new(MILLRACE)
            .args(arguments)
            .current_dir(folder.path())
            .stdout(Stdio::null())
            .status()?;
        ensure!(status.success(), "{arguments:?}");
        Ok(())
    };
    local(&["module", "keygen", "key"])?;
    local(&[
        "module",
        "sign",
        "upper.wasm",
        "--key",
        "key",
        "--tag",
        "upper@1.0.0",
    ])?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    let options = ["--require-signature", "--trusted-key", &path("key.pub")];
    let (from, to) = (
        Host::start_with(MILLRACE, &options)?,
        Host::start_with(MILLRACE, &options)?,
    );
    let push = [
        "module",
        "push",
        &path("upper.wasm"),
        "--signature",
        &path("upper.wasm.minisig"),
    ];
    let pushed = answer(&run(&from, &push, "")?)?;
    let digest = pushed["digest"].as_str().context("a digest")?;
    let place = format!("oci://{}/modules/upper", registry.address);
    let tagged = format!("{place}:1.0.0");
    let published = answer(&run(&from, &["module", "publish", digest, &tagged], "")?)?;
    // Again: nothing changes, and the artefact is the same.
    let again = answer(&run(&from, &["module", "publish", digest, &tagged], "")?)?;
    assert_eq!(again, published);
    let manifest = published["manifest"].as_str().context("a manifest")?;
    for reference in [tagged, format!("{place}@{manifest}")] {
        let pulled = answer(&run(
            &to,
            &["module", "pull", &reference, "--tag", "upper@1.0.0"],
            "",
        )?)?;
        assert_eq!(pulled["digest"], digest);
        assert_eq!(pulled["signature"], pushed["signature"]);
        assert_eq!(pulled["tags"], json!(["upper@1.0.0"]));
    }
    let unknown = run(&to, &["module", "pull", &format!("{place}:2.0.0")], "")?;
    assert_eq!(unknown.status.code(), Some(3));
    assert_eq!(error(&unknown)?.0, "not-found");
    Ok(())
}

#[test]
fn a_registry_that_asks_for_a_password_gets_it_from_standard_input_or_from_docker_s_file()
-> Result<()> {
    let Some(registry) = Registry::start(Some(USERS))? else {
        return Ok(());
    };
    let host = host()?;
    let digest = host.client().push(guests::UPPERCASE)?;
    let place = format!("oci://{}/upper:1", registry.address);
    let publish = ["module", "publish", &digest, &place];
    let nobody = run(&host, &publish, "")?;
    assert!(
        error(&nobody)?.1.contains("a name and a password"),
        "{:?}",
        error(&nobody)?
    );
    let with_name = [&publish[..], &["--username", "ada"]].concat();
    let wrong = run(&host, &with_name, "guess\n")?;
    assert_eq!(wrong.status.code(), Some(4));
    answer(&run(&host, &with_name, "mill-pass\n")?)?;
    let docker = tempfile::tempdir()?;
    let address = registry.address.to_string();
    // `ada:mill-pass`, as `docker login` stores it.
    let config = json!({"auths": {address: {"auth": "YWRhOm1pbGwtcGFzcw=="}}});
    std::fs::write(docker.path().join("config.json"), config.to_string())?;
    let pulled = answer(&run_at(
        &host,
        &["module", "pull", &place],
        "",
        docker.path(),
    )?)?;
    assert_eq!(pulled["digest"], digest);
    Ok(())
}

/// A registry that answers each request line with these bytes, and then for as long as somebody reads with the tail.
struct Fake {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

/// An answer: what is sent, and what is sent again and again after it.
#[derive(Default)]
struct Sent {
    bytes: Vec<u8>,
    tail: Vec<u8>,
}

impl Fake {
    fn start(answers: impl Fn(&str, SocketAddr) -> Sent + Send + Sync + 'static) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let lines = Arc::clone(&asked);
        // Ends with the process.
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let _ = serve(stream, &lines, &|line| answers(line, address));
            }
        });
        Ok(Self { address, asked })
    }

    fn reference(&self) -> String {
        format!("oci://{}/up:1", self.address)
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no test panicked").clone()
    }
}

/// Answers one request and closes the connection.
fn serve(
    stream: TcpStream,
    asked: &Mutex<Vec<String>>,
    answers: &dyn Fn(&str) -> Sent,
) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        first += &line;
        line.clear();
    }
    asked.lock().expect("no test panicked").push(first.clone());
    let sent = answers(first.lines().next().unwrap_or_default());
    let mut stream = stream;
    stream.write_all(&sent.bytes)?;
    while !sent.tail.is_empty() {
        stream.write_all(&sent.tail)?;
    }
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let _ = reader.read(&mut [0; 1]);
    Ok(())
}

fn digest(bytes: &[u8]) -> String {
    let digits: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{digits}")
}

fn ok(headers: &str, body: &[u8]) -> Sent {
    let head = format!(
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n",
        body.len()
    );
    Sent {
        bytes: [head.as_bytes(), body].concat(),
        tail: Vec::new(),
    }
}

fn says(status: &str, headers: &str) -> Sent {
    let bytes =
        format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n{headers}\r\n")
            .into_bytes();
    Sent {
        bytes,
        tail: Vec::new(),
    }
}

/// An answer without an end.
fn endless() -> Sent {
    Sent {
        bytes: b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n".to_vec(),
        tail: vec![b' '; 64 << 10],
    }
}

fn manifest(of: &[u8], bytes: u64) -> Vec<u8> {
    let layer = json!({"mediaType": "application/wasm", "digest": digest(of), "size": bytes});
    json!({"schemaVersion": 2, "layers": [layer]})
        .to_string()
        .into_bytes()
}

/// What becomes of a pull from a registry that answers like this.
fn pull_from(host: &Host, fake: &Fake) -> Result<(String, String)> {
    let output = run(host, &["module", "pull", &fake.reference()], "")?;
    ensure!(!output.status.success(), "it was refused");
    let said = error(&output)?;
    let modules = host.client().get("/v1/modules")?.ok()?;
    assert_eq!(modules["modules"], json!([]), "nothing was uploaded");
    Ok(said)
}

#[test]
fn nothing_that_a_registry_sends_is_believed_or_read_without_end() -> Result<()> {
    let host = host()?;
    let good = guests::UPPERCASE;
    let size = good.len() as u64;
    // Another component of the same size.
    let mut changed = good.to_vec();
    changed[good.len() / 2] ^= 1;
    let other = changed.clone();
    let fake = Fake::start(move |line, _| match line.contains("/manifests/") {
        true => ok("", &manifest(good, size)),
        false => ok("", &other),
    })?;
    assert_eq!(pull_from(&host, &fake)?.0, "digest-mismatch");

    let fake = Fake::start(move |_, _| {
        let claimed = format!("docker-content-digest: {}\r\n", digest(b"another manifest"));
        ok(&claimed, &manifest(good, size))
    })?;
    assert_eq!(pull_from(&host, &fake)?.0, "digest-mismatch");

    let fake = Fake::start(|_, _| endless())?;
    let (_, message) = pull_from(&host, &fake)?;
    assert!(message.contains("more than the 1048576 bytes"), "{message}");

    let fake = Fake::start(move |line, _| match line.contains("/manifests/") {
        true => ok("", &manifest(good, size)),
        false => endless(),
    })?;
    let (_, message) = pull_from(&host, &fake)?;
    assert!(
        message.contains(&format!("more than the {size} bytes")),
        "{message}"
    );

    let fake = Fake::start(move |line, _| match line.contains("/manifests/") {
        true => ok("", &manifest(good, size)),
        false => ok("", &good[..1_000]),
    })?;
    let (_, message) = pull_from(&host, &fake)?;
    assert!(message.contains("sent 1000 bytes"), "{message}");

    let fake = Fake::start(move |_, _| ok("", &manifest(good, 1 << 40)))?;
    let (_, message) = pull_from(&host, &fake)?;
    assert!(message.contains("module_bytes_max"), "{message}");
    assert_eq!(fake.asked().len(), 1, "it was not downloaded");

    let fake = Fake::start(|_, _| ok("", b"<html>hello</html>"))?;
    assert!(
        pull_from(&host, &fake)?
            .1
            .contains("not of a WebAssembly component")
    );
    Ok(())
}

#[test]
fn a_registry_leads_nobody_elsewhere_and_gets_no_password_for_others() -> Result<()> {
    let host = host()?;
    let bystander = Fake::start(|_, _| ok("", b""))?;
    let elsewhere = format!("http://{}/secret", bystander.address);
    let location = format!("location: {elsewhere}\r\n");
    let fake = Fake::start(move |_, _| says("307 Temporary Redirect", &location))?;
    assert!(pull_from(&host, &fake)?.1.contains("not over TLS"));

    let realm = format!("www-authenticate: Bearer realm=\"{elsewhere}\",service=\"x\"\r\n");
    let fake = Fake::start(move |_, _| says("401 Unauthorized", &realm))?;
    assert!(pull_from(&host, &fake)?.1.contains("not over TLS"));
    assert_eq!(bystander.asked(), Vec::<String>::new());

    let fake =
        Fake::start(|_, own| says("302 Found", &format!("location: http://{own}/v2/round\r\n")))?;
    assert!(pull_from(&host, &fake)?.1.contains("again and again"));
    assert!(fake.asked().len() <= 5, "{}", fake.asked().len());

    let fake = Fake::start(|_, _| {
        says(
            "401 Unauthorized",
            "www-authenticate: Basic realm=\"x\"\r\n",
        )
    })?;
    let output = run(
        &host,
        &["module", "pull", &fake.reference(), "--username", "ada"],
        "secret\n",
    )?;
    assert_eq!(output.status.code(), Some(4));
    assert!(!String::from_utf8_lossy(&output.stderr).contains("secret"));
    // The password is sent when it is asked for, and not a second time.
    let sent = fake
        .asked()
        .iter()
        .filter(|head| head.to_ascii_lowercase().contains("authorization: basic"))
        .count();
    assert_eq!(sent, 1, "{:?}", fake.asked());

    let evil = b"{\"errors\":[{\"message\":\"\\u001b[2Jgone\"}]}";
    let fake = Fake::start(move |_, _| {
        let head = format!(
            "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            evil.len()
        );
        Sent {
            bytes: [head.as_bytes(), evil].concat(),
            tail: Vec::new(),
        }
    })?;
    let (_, message) = pull_from(&host, &fake)?;
    assert!(
        message.contains("gone") && !message.contains('\u{1b}'),
        "{message:?}"
    );
    let far = run(
        &host,
        &["module", "pull", "oci://registry.invalid/up:1"],
        "",
    )?;
    assert_eq!(far.status.code(), Some(5), "{:?}", error(&far)?);
    Ok(())
}
