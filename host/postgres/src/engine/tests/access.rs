//! Ways to the database: encrypted, and through a pooler. Each has a server of its own.

use std::net::TcpListener;
use std::process::Command;
use std::sync::Arc;

use millrace_engine::Engine as _;
use millrace_model::{SystemClock, TopicSettings};
use sqlx::{Connection as _, Executor as _};

use super::own::{produce, rows, topic};
use super::server::Postgres;
use crate::engine::PostgresEngine;
use crate::{OpenError, PostgresOptions};

/// Two authorities; one has signed the server's certificate for `localhost`.
const CERTIFICATES: &str = r#"
key='-nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1'
for name in ours theirs; do openssl req -x509 $key -days 2 -subj "/CN=$name" -keyout $name.key -out $name.crt; done
openssl req $key -subj /CN=localhost -keyout server.key -out server.csr
printf 'subjectAltName = DNS:localhost\nbasicConstraints = CA:FALSE\n' >ext
openssl x509 -req -in server.csr -CA ours.crt -CAkey ours.key -CAcreateserial -days 2 -extfile ext -out server.crt
chmod 600 server.key
if [ "$(id -u)" -eq 0 ]; then chown postgres server.key server.crt; fi
chmod 755 .
{ echo "ssl = on"; echo "ssl_cert_file = '$dir/server.crt'"; echo "ssl_key_file = '$dir/server.key'"; } >>data/postgresql.conf
"#;

/// A pooler with one database in each mode.
const POOLER: &str = r#"
cat >pooler.ini <<END
[databases]
session = host=$dir dbname=postgres user=millrace pool_mode=session
transaction = host=$dir dbname=postgres user=millrace pool_mode=transaction
[pgbouncer]
listen_addr =
listen_port = 6432
unix_socket_dir = $dir
auth_type = any
pidfile = $dir/pooler.pid
ignore_startup_parameters = extra_float_digits
END
chmod 644 pooler.ini
as "$(command -v pgbouncer || echo /usr/sbin/pgbouncer)" -q pooler.ini >/dev/null 2>&1 &
for _ in $(seq 600); do if [ -S .s.PGSQL.6432 ] && [ -s pooler.pid ]; then break; fi; sleep 0.1; done
beside="$(cat pooler.pid)"
"#;

async fn open(url: String) -> Result<Arc<PostgresEngine>, OpenError> {
    let options = PostgresOptions {
        url,
        ..PostgresOptions::default()
    };
    PostgresEngine::open(options, Arc::new(SystemClock::new())).await
}

async fn why_not(url: String) -> OpenError {
    match open(url).await {
        Ok(_) => panic!("it opens"),
        Err(error) => error,
    }
}

/// The engine does what it does through any connection, and hears of what it did.
async fn works(url: String) {
    let engine = open(url).await.expect("it opens");
    let orders = topic(&engine, "orders", TopicSettings::default()).await;
    produce(&engine, &orders, 1, &["a", "b"]).await;
    assert_eq!(rows(&engine, "select count(*) from run_1").await, 1);
    engine.close().await;
}

fn is_installed(command: &str) -> bool {
    let found = [command.to_owned(), format!("/usr/sbin/{command}")];
    let is_there = |path: &String| Command::new(path).arg("--help").output().is_ok();
    let is_there = found.iter().any(is_there);
    if !is_there {
        println!("skipped: {command} is not installed on this machine");
    }
    is_there
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_trusted_by_its_certificate_and_a_wrong_one_is_refused_with_what_to_do() {
    if !is_installed("openssl") {
        return;
    }
    // Free again at the end of the statement.
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let port = port.expect("a port").port();
    let before = format!(
        "{CERTIFICATES}\n{{ echo \"listen_addresses = '127.0.0.1'\"; echo 'port = {port}'; }} >>data/postgresql.conf"
    );
    let server = Postgres::start_with(&before, "").expect("PostgreSQL starts");
    let url = |host: &str, authority: &str| {
        let file = server.directory().join(authority);
        let file = file.display();
        format!("postgres://millrace@{host}:{port}/postgres?sslmode=verify-full&sslrootcert={file}")
    };
    for (host, authority) in [("localhost", "theirs.crt"), ("127.0.0.1", "ours.crt")] {
        let error = why_not(url(host, authority)).await;
        assert!(matches!(error, OpenError::Certificate(_)), "{error}");
        assert!(error.to_string().contains("sslrootcert"), "{error}");
    }
    works(url("localhost", "ours.crt")).await;
    let mut direct = url("localhost", "ours.crt");
    direct.truncate(direct.find('?').unwrap_or(direct.len()));
    let direct = sqlx::PgConnection::connect(&direct).await;
    let mut direct = direct.expect("connected");
    for statement in ["alter system set ssl = off", "select pg_reload_conf()"] {
        let done = direct.execute(sqlx::raw_sql(statement)).await;
        done.expect("TLS is off");
    }
    let without = async {
        loop {
            match why_not(url("localhost", "ours.crt")).await {
                OpenError::NoTls(_) => break,
                // It still reads its settings.
                _ => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            }
        }
    };
    let without = tokio::time::timeout(std::time::Duration::from_secs(60), without).await;
    without.expect("it says that there is no TLS");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_in_session_mode_works_and_one_in_transaction_mode_is_refused() {
    if !is_installed("pgbouncer") {
        return;
    }
    let server = Postgres::start_with("", POOLER).expect("PostgreSQL starts");
    let url = |database: &str| {
        let directory = server.directory().display();
        format!("postgres://millrace@localhost:6432/{database}?host={directory}")
    };
    for _ in 0..3 {
        let error = why_not(url("transaction")).await;
        assert!(matches!(error, OpenError::Pooler), "{error}");
    }
    works(url("session")).await;
}
