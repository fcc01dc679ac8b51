//! Callers that prove who they are by a certificate.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace::config::ClientCertificates;
use millrace::{Config, Host};
use serde_json::Value;
use tempfile::TempDir;
use ureq::Agent;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};

use crate::access::{first_token, wait_for};
use crate::cli::{millrace, out};
use crate::support::{TestHost, config_in};

/// A directory with an authority, another one, and certificates; `None` without the tool that makes them.
struct Certificates(TempDir);

impl Certificates {
    fn made() -> Option<Self> {
        const MAKE: &str = r#"set -e
key="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
for authority in ours theirs; do
  openssl req -x509 $key -days 2 -subj /CN=$authority -keyout $authority.key -out $authority.crt
done
sign() { # NAME AUTHORITY SUBJECT ALTERNATIVE-NAMES
  printf "subjectAltName=$4\nextendedKeyUsage=serverAuth,clientAuth" > names
  openssl req $key -subj "$3" -keyout $1.key -out $1.csr
  openssl x509 -req -in $1.csr -CA $2.crt -CAkey $2.key -CAcreateserial -days 2 -extfile names -out $1.crt
}
sign host ours /CN=host DNS:localhost,IP:127.0.0.1
sign billing ours /CN=Billing URI:spiffe://prod/billing,DNS:billing.internal
sign unknown ours /CN=unknown DNS:unknown.internal
sign foreign theirs /CN=Billing URI:spiffe://prod/billing
printf 'subjectAltName=DNS:old.internal\nextendedKeyUsage=clientAuth' > names
mkdir ca; touch ca/index; echo 01 > ca/serial
printf '[ca]\ndefault_ca=d\n[d]\nnew_certs_dir=ca\ndatabase=ca/index\nserial=ca/serial\ndefault_md=sha256\npolicy=p\n[p]\ncommonName=supplied\n' > ca.cnf
openssl req $key -subj /CN=old -keyout old.key -out old.csr
openssl ca -batch -config ca.cnf -cert ours.crt -keyfile ours.key -in old.csr -extfile names -out old.crt -notext -startdate 20200101000000Z -enddate 20200102000000Z"#;
        let directory = tempfile::tempdir().expect("a directory");
        let made = Command::new("sh")
            .args(["-c", MAKE])
            .current_dir(directory.path())
            .output();
        match made {
            Ok(made) if made.status.success() => Some(Self(directory)),
            Ok(made) if Command::new("openssl").arg("version").output().is_ok() => {
                panic!("{}", String::from_utf8_lossy(&made.stderr))
            }
            _ => {
                println!("skipped: openssl is not installed on this machine");
                None
            }
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn path(&self, name: &str) -> String {
        self.file(name).display().to_string()
    }

    /// A host that knows its callers, with the token of its first principal in a file.
    fn host(&self, client_certificates: ClientCertificates) -> TestHost {
        let host = TestHost::with(self.config(client_certificates));
        std::fs::write(self.file("admin"), first_token(&self.file("data"))).expect("written");
        host
    }

    fn config(&self, client_certificates: ClientCertificates) -> Config {
        let mut config = config_in(&self.file("data"));
        config.access.required = true;
        let tls = &mut config.listen.tls;
        tls.certificate_file = Some(self.file("host.crt"));
        tls.key_file = Some(self.file("host.key"));
        tls.ca_file = Some(self.file("ours.crt"));
        tls.client_ca_file = Some(self.file("ours.crt"));
        tls.client_certificates = client_certificates;
        config
    }

    /// What a command says that presents this certificate, if any, and sends the admin's token if told so.
    fn run(
        &self,
        host: &TestHost,
        certificate: Option<&str>,
        token: bool,
        words: &[&str],
    ) -> Output {
        let url = format!("https://localhost:{}", host.address.port());
        let mut all: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        all.extend([
            "--host".to_owned(),
            url,
            "--ca".to_owned(),
            self.path("ours.crt"),
        ]);
        if let Some(name) = certificate {
            let [certificate, key] =
                ["crt", "key"].map(|kind| self.path(&format!("{name}.{kind}")));
            let flags = ["--client-certificate", &certificate, "--client-key", &key];
            all.extend(flags.map(str::to_owned));
        }
        if token {
            all.extend(["--token-file".to_owned(), self.path("admin")]);
        }
        let words: Vec<&str> = all.iter().map(String::as_str).collect();
        millrace(&words).output().expect("the binary runs")
    }

    fn admin(&self, host: &TestHost, words: &[&str]) -> String {
        out(&self.run(host, Some("unknown"), true, words))
    }

    /// The principal `billing`, which may read `orders` and is known by its certificate.
    fn with_billing(&self, host: &TestHost) {
        self.admin(host, &["topic", "create", "orders"]);
        self.admin(
            host,
            &["access", "grant", "billing", "consumer on topic:orders"],
        );
        let identity = "uri:spiffe://prod/billing";
        let added = self.admin(host, &["access", "identity", "add", "billing", identity]);
        assert!(added.contains(identity), "{added}");
    }
}

fn errors(output: &Output) -> String {
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_certificate_proves_its_principal_and_a_token_counts_before_it() {
    let Some(certificates) = Certificates::made() else {
        return;
    };
    let host = certificates.host(ClientCertificates::Optional);
    certificates.with_billing(&host);
    let oneself = |certificate, token| {
        let said = certificates.run(&host, certificate, token, &["access", "self", "--json"]);
        serde_json::from_str::<Value>(&out(&said)).expect("JSON")
    };
    let billing = oneself(Some("billing"), false);
    assert_eq!(billing["principal"], "billing");
    assert_eq!(billing["credentials"], "certificate");
    assert_eq!(billing["identities"][0], "uri:spiffe://prod/billing");
    assert_eq!(billing["identities"][2], "cn:Billing");
    out(&certificates.run(&host, Some("billing"), false, &["topic", "list"]));
    let refused = certificates.run(
        &host,
        Some("billing"),
        false,
        &["topic", "delete", "orders"],
    );
    assert!(
        errors(&refused).contains("principal billing may not"),
        "{refused:?}"
    );
    let with_token = oneself(Some("billing"), true);
    assert_eq!(with_token["principal"], "admin");
    assert_eq!(with_token["credentials"], "token");
    let nobody = oneself(None, false);
    assert_eq!(nobody["principal"], Value::Null);
    out(&certificates.run(&host, None, true, &["topic", "list"]));
}

#[test]
fn a_certificate_of_no_principal_is_told_its_identities() {
    let Some(certificates) = Certificates::made() else {
        return;
    };
    let host = certificates.host(ClientCertificates::Optional);
    let said = errors(&certificates.run(&host, Some("unknown"), false, &["topic", "list"]));
    for part in ["dns:unknown.internal", "cn:unknown", "access identity add"] {
        assert!(said.contains(part), "{said}");
    }
    let route = certificates.run(&host, Some("unknown"), false, &["access", "self"]);
    assert!(out(&route).contains("dns:unknown.internal"), "{route:?}");
    let without = errors(&certificates.run(&host, None, false, &["topic", "list"]));
    assert!(without.contains("--token-file"), "{without}");
}

#[test]
fn certificates_that_are_expired_or_of_another_authority_do_not_connect() {
    let Some(certificates) = Certificates::made() else {
        return;
    };
    let host = certificates.host(ClientCertificates::Optional);
    certificates.with_billing(&host);
    for name in ["foreign", "old"] {
        let refused = certificates.run(&host, Some(name), false, &["access", "self"]);
        assert_eq!(refused.status.code(), Some(5), "{name}: {refused:?}");
    }
    let unfitting = millrace(&["topic", "list", "--host", "https://localhost:1"])
        .args(["--client-certificate", &certificates.path("billing.crt")])
        .args(["--client-key", &certificates.path("unknown.key")])
        .output()
        .expect("the binary runs");
    assert!(errors(&unfitting).contains("--client-key"), "{unfitting:?}");
}

#[test]
fn a_host_that_requires_certificates_lets_nobody_connect_without_one_and_new_roots_count_at_once() {
    let Some(certificates) = Certificates::made() else {
        return;
    };
    let roots = certificates.file("roots.crt");
    std::fs::copy(certificates.file("ours.crt"), &roots).expect("copied");
    let mut config = certificates.config(ClientCertificates::Required);
    config.listen.tls.client_ca_file = Some(roots.clone());
    let host = TestHost::with(config);
    std::fs::write(
        certificates.file("admin"),
        first_token(&certificates.file("data")),
    )
    .expect("written");
    let without = certificates.run(&host, None, true, &["topic", "list"]);
    assert_eq!(without.status.code(), Some(5), "{without:?}");
    certificates.with_billing(&host);
    let connects = |name| {
        let said = certificates.run(&host, Some(name), false, &["access", "self"]);
        said.status.success()
    };
    assert!(connects("billing") && !connects("foreign"));
    let new = certificates.file("new");
    std::fs::copy(certificates.file("theirs.crt"), &new).expect("copied");
    std::fs::rename(&new, &roots).expect("renamed");
    wait_for(|| connects("foreign"));
    assert!(!connects("billing"));
}

#[test]
fn an_identity_that_is_removed_ends_requests_that_wait() {
    let Some(certificates) = Certificates::made() else {
        return;
    };
    let host = certificates.host(ClientCertificates::Optional);
    certificates.with_billing(&host);
    let waiting = || {
        let metrics = asked(&certificates, &host, "/metrics", true);
        metrics.contains("\nmillrace_fetches_waiting 1")
    };
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| {
            let path = "/v1/topics/orders/partitions/0/messages?wait_ms=30000";
            let answer = asked(&certificates, &host, path, false);
            (answer, Instant::now())
        });
        wait_for(waiting);
        let identity = "uri:spiffe://prod/billing";
        certificates.admin(
            &host,
            &["access", "identity", "remove", "billing", identity],
        );
        let removed = Instant::now();
        let (said, ended) = waits.join().expect("an answer");
        assert!(said.contains("credentials-refused"), "{said}");
        let took = ended.saturating_duration_since(removed);
        assert!(took < Duration::from_secs(1), "{took:?}");
    });
    let refused = certificates.run(&host, Some("billing"), false, &["topic", "list"]);
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
}

/// The answer to a request with the certificate of `billing`.
fn asked(certificates: &Certificates, host: &TestHost, path: &str, token: bool) -> String {
    let read = |name: &str| std::fs::read(certificates.file(name)).expect("a file");
    let certificate = |name: &str| Certificate::from_pem(&read(name)).expect("a certificate");
    let key = PrivateKey::from_pem(&read("billing.key")).expect("a key");
    let own = ClientCert::new_with_certs(&[certificate("billing.crt")], key);
    let provider = rustls::crypto::ring::default_provider();
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::from(vec![certificate("ours.crt")]))
        .client_cert(Some(own))
        .unversioned_rustls_crypto_provider(Arc::new(provider))
        .build();
    let agent = Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .tls_config(tls)
        .build()
        .new_agent();
    let mut request = agent.get(format!("https://localhost:{}{path}", host.address.port()));
    if token {
        let token = std::fs::read_to_string(certificates.file("admin")).expect("a token");
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let mut answer = request.call().expect("an answer");
    answer.body_mut().read_to_string().expect("a body")
}

#[test]
fn settings_of_certificates_that_cannot_work_are_refused() {
    let Some(certificates) = Certificates::made() else {
        return;
    };
    let refused = |change: &dyn Fn(&mut Config)| {
        let mut config = certificates.config(ClientCertificates::Optional);
        config.listen.http.address = "127.0.0.1:0".to_owned();
        change(&mut config);
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let started = runtime.block_on(Host::start(config));
        started.err().expect("it is refused").to_string()
    };
    let said = refused(&|config| config.listen.tls.client_ca_file = Some("none.crt".into()));
    assert!(
        said.contains("client_ca_file") && said.contains("none.crt"),
        "{said}"
    );
    let said = refused(&|config| {
        config.listen.tls.client_ca_file = None;
        config.listen.tls.client_certificates = ClientCertificates::Required;
    });
    assert!(said.contains("--tls-client-ca"), "{said}");
    let said = refused(&|config| {
        config.listen.tls.certificate_file = None;
        config.listen.tls.key_file = None;
    });
    assert!(said.contains("--tls-certificate"), "{said}");
}
