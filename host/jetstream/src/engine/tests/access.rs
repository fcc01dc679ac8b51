//! Who may connect, and to whom: passwords, and certificates of an authority of one's own.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use millrace_engine::Engine as _;
use millrace_model::{Durability, SystemClock};

use super::nats::Nats;
use super::options;
use super::own::spec;
use crate::options::Credentials;
use crate::{JetstreamEngine, JetstreamOptions, OpenError};

/// An authority that signs the servers' certificate, and one that does not.
const CERTIFICATES: &str = r#"
set -eu
cd "$1"
for name in ours theirs; do
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj "/CN=$name" -keyout "$name.key" -out "$name.crt"
done
openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=localhost" -keyout server.key -out server.csr
printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\n' >extensions
openssl x509 -req -in server.csr -CA ours.crt -CAkey ours.key -CAcreateserial -days 30 -extfile extensions -out server.crt
"#;

/// As the documentation has it.
fn settings(directory: &Path) -> String {
    let file = |name: &str| directory.join(name).display().to_string();
    format!(
        "tls {{ cert_file: \"{}\", key_file: \"{}\" }}|\
         accounts {{ millrace {{ jetstream: enabled, users: [{{ user: millrace, password: \"s3cret\" }}] }}, \
         other {{ users: [{{ user: other, password: \"s3cret\" }}] }} }}",
        file("server.crt"),
        file("server.key")
    )
}

fn password(user: &str, password: &str) -> Credentials {
    Credentials::Password {
        user: user.to_owned(),
        password: password.to_owned(),
    }
}

async fn why_not(options: JetstreamOptions) -> OpenError {
    let opened = JetstreamEngine::open(options, Arc::new(SystemClock::new())).await;
    opened.err().expect("it is refused")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_ask_for_a_password_and_hosts_for_a_certificate_and_each_refusal_says_what_to_do() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut make = Command::new("sh");
    make.args(["-c", CERTIFICATES, "sh"]).arg(directory.path());
    match make.output() {
        Ok(made) if made.status.success() => {}
        _ => {
            println!("skipped: openssl is not installed on this machine");
            return;
        }
    }
    let servers = Nats::start_with(3, &settings(directory.path())).expect("they start");
    let base = JetstreamOptions {
        servers: servers.urls(),
        ..options(directory.path())
    };
    let with = |credentials: Credentials, authority: Option<&str>| JetstreamOptions {
        credentials,
        tls_ca: authority.map(|name| directory.path().join(name)),
        ..base.clone()
    };
    let right = || password("millrace", "s3cret");

    for authority in [None, Some("theirs.crt")] {
        let error = why_not(with(right(), authority)).await;
        assert!(matches!(error, OpenError::Certificate(_)), "{error}");
        assert!(
            error.to_string().contains("engine.jetstream.ca_file"),
            "{error}"
        );
    }
    let error = why_not(with(right(), Some("nowhere.crt"))).await;
    assert!(
        error.to_string().contains("nowhere.crt cannot be read"),
        "{error}"
    );
    for credentials in [Credentials::None, password("millrace", "s3cre7")] {
        let error = why_not(with(credentials, Some("ours.crt"))).await;
        assert!(matches!(error, OpenError::NotLetIn(_)), "{error}");
        assert!(!error.to_string().contains("s3cre7"), "{error}");
    }

    let mut opened = None;
    // A cluster needs a moment until it can have streams.
    for _ in 0..300 {
        let options = with(right(), Some("ours.crt"));
        match JetstreamEngine::open(options, Arc::new(SystemClock::new())).await {
            Ok(engine) => {
                opened = Some(engine);
                break;
            }
            Err(error) => eprintln!("not yet: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let engine = opened.expect("it opens");
    // On the disks of two servers.
    let spec = spec("orders", Durability::Durable);
    engine.create_topic(spec, Vec::new()).await.expect("made");
    engine.close().await;
}
