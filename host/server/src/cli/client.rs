//! A client of a host over HTTP, with clear errors when no host answers.

use std::io::{self, Read};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millrace_model::{Clock, SystemClock};
use serde_json::Value;
use ureq::http::header::AUTHORIZATION;
use ureq::http::{HeaderValue, Method, Request, Response, Uri};
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, AsSendBody, Body};
use zeroize::Zeroizing;

use super::failure::{Exit, Failure};
use super::feed::Interrupt;
use super::output::Output;
use super::target::{Credential, Target};
use super::unix::{self, UNIX};

/// A larger answer is not from a Millrace host.
const ANSWER_BYTES_MAX: u64 = 128 << 20;
/// The host counts as absent if connecting takes longer.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// The first delay before a request is repeated; doubles each time.
const RETRY_DELAY_FIRST: Duration = Duration::from_millis(100);
/// The longest delay before a request is repeated, unless the host asks for more.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(2);

/// A host's answer.
struct Reply {
    status: u16,
    retry_after: Option<Duration>,
    /// Whether an earlier request with the same key got this answer and this one did nothing. Unknown if this client repeated the
    /// request.
    replayed: bool,
    body: Vec<u8>,
}

impl Reply {
    /// Whether the same request may succeed later.
    fn asks_to_come_back(&self) -> bool {
        matches!(self.status, 408 | 429 | 503)
    }

    fn failure(&self) -> Failure {
        Failure::answered(self.status, &self.body)
    }

    fn success(self) -> Result<Vec<u8>, Failure> {
        match self.status {
            200..300 => Ok(self.body),
            _ => Err(self.failure()),
        }
    }
}

/// Why there is no answer.
struct Unreached {
    failure: Failure,
    /// Whether the host may have received the request, or part of it.
    may_have_come: bool,
}

/// What repeating a request means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Again {
    /// Safe: it only reads, or takes effect once.
    Harmless,
    /// Unsafe: it may take effect twice, so it is repeated only if it certainly had no effect.
    Twice,
}

/// What a client trusts, and presents.
#[derive(Clone, Copy, Default)]
pub(super) struct TlsFiles<'a> {
    /// The roots that the host's certificate is checked against; those of this machine if absent.
    pub(super) authority: Option<&'a Path>,
    /// The client's certificate.
    pub(super) certificate: Option<&'a Path>,
    /// Its key.
    pub(super) key: Option<&'a Path>,
}

/// A host, with a pool of connections. Cheap to clone.
#[derive(Clone)]
pub(super) struct Client {
    agent: Agent,
    /// The host as the user names it.
    host: String,
    /// How its URLs begin.
    base: String,
    /// The user's name as the environment has it: sent to the host, which records it with changes.
    user: Option<String>,
    /// The line with the token.
    token: Option<HeaderValue>,
    /// How long to keep trying while the host is absent or busy, if the user set it.
    retry_for: Option<Duration>,
    /// The same, by default.
    patience: Duration,
    /// Ends the retries when the user wants to stop.
    pub(super) interrupt: Interrupt,
    /// Whether it has been reported that the client waits for the host.
    waits: Arc<AtomicBool>,
    /// Whether it has been reported that others can read the token on its way.
    warned: Arc<AtomicBool>,
    /// Whether to print JSON.
    pub(super) json: bool,
}

impl Client {
    /// A client of the host at `url`, or at the Unix socket `unix:FILE`.
    pub(super) fn new(
        url: &str,
        files: TlsFiles<'_>,
        json: bool,
        retry_for: Option<u64>,
    ) -> Result<Self, Failure> {
        let host = url.trim_end_matches('/');
        let socket = host.strip_prefix(UNIX).filter(|file| !file.is_empty());
        if socket.is_none() && !(host.starts_with("http://") || host.starts_with("https://")) {
            let failure = Failure::usage(format!("--host {url} is not a valid URL"));
            return Err(failure.with_hint(
                "write http://ADDRESS:PORT, such as http://127.0.0.1:7400, https:// for a host with a certificate, or unix:FILE for its Unix socket",
            ));
        }
        let config = Agent::config_builder()
            .tls_config(tls(files)?)
            .http_status_as_error(false)
            .max_redirects(0)
            // Environment proxies are for the web, not for a local broker.
            .proxy(None)
            .timeout_connect(Some(CONNECT_MAX))
            .build();
        let (agent, base) = match socket {
            Some(file) => (unix::agent(config, file), unix::BASE),
            None => (config.new_agent(), host),
        };
        Ok(Self {
            agent,
            host: host.to_owned(),
            base: base.to_owned(),
            user: user(),
            token: None,
            retry_for: retry_for.map(Duration::from_secs),
            patience: Duration::ZERO,
            interrupt: Interrupt::default(),
            waits: Arc::default(),
            warned: Arc::default(),
            json,
        })
    }

    /// A client of the host that a command talks to.
    pub(super) fn of(target: Target, json: bool, retry_for: Option<u64>) -> Result<Self, Failure> {
        let files = TlsFiles {
            authority: target.authority.as_deref(),
            certificate: target.certificate.as_deref(),
            key: target.key.as_deref(),
        };
        let client = Self::new(&target.url, files, json, retry_for)?;
        match target.token {
            None => Ok(client),
            Some(Credential::Given(place)) => client.with_token(&place.read()?),
            Some(Credential::Kept(token)) => client.with_token(&token),
        }
    }

    /// The same client, which sends this token.
    pub(super) fn with_token(self, token: &str) -> Result<Self, Failure> {
        let line = Zeroizing::new(format!("Bearer {token}"));
        let mut line = HeaderValue::from_str(&line).map_err(|_| {
            let failure = Failure::usage("what was given cannot be a token");
            failure.with_hint("give one line, as `millrace access token create` prints it")
        })?;
        line.set_sensitive(true);
        Ok(Self {
            token: Some(line),
            ..self
        })
    }

    /// The same client, which keeps trying this long while the host is absent or busy, unless the user set another time.
    pub(super) fn patient(&self, patience: Duration) -> Self {
        Self {
            patience,
            ..self.clone()
        }
    }

    pub(super) fn get(&self, path: &str) -> Result<Value, Failure> {
        let asked = self.call(Again::Harmless, Method::GET, path, &[], &[]);
        self.json_of(&asked?)
    }

    /// The bytes of an answer, at most this many.
    pub(super) fn get_bytes(&self, path: &str, bytes_max: u64) -> Result<Vec<u8>, Failure> {
        let failed = |unreached: Unreached| unreached.failure;
        let response = self.run(Method::GET, path, &[], ()).map_err(failed)?;
        let reply = self.read_within(response, bytes_max).map_err(failed)?;
        reply.success()
    }

    /// Sends a DELETE and returns the JSON answer, or null if there is none.
    pub(super) fn delete(&self, path: &str) -> Result<Value, Failure> {
        let body = self.call(Again::Twice, Method::DELETE, path, &[], &[])?;
        match body.is_empty() {
            true => Ok(Value::Null),
            false => self.json_of(&body),
        }
    }

    /// Sends JSON and returns the JSON answer.
    pub(super) fn send(&self, method: Method, path: &str, body: &Value) -> Result<Value, Failure> {
        let (body, headers) = (body.to_string(), [("content-type", "application/json")]);
        let asked = self.call(Again::Twice, method, path, &headers, body.as_bytes());
        self.json_of(&asked?)
    }

    /// Like [`Client::send`], for requests that may be repeated.
    pub(super) fn send_again(
        &self,
        method: Method,
        path: &str,
        body: &Value,
    ) -> Result<Value, Failure> {
        let (body, headers) = (body.to_string(), [("content-type", "application/json")]);
        let asked = self.call(Again::Harmless, method, path, &headers, body.as_bytes());
        self.json_of(&asked?)
    }

    /// Sends bytes of a content type and returns the JSON answer. The bytes are sent only once; only the connection attempt is
    /// repeated.
    pub(super) fn upload(
        &self,
        path: &str,
        content_type: &str,
        body: impl AsSendBody,
    ) -> Result<Value, Failure> {
        self.upload_with(path, content_type, &[], body)
    }

    /// Like [`Client::upload`], with further headers.
    pub(super) fn upload_with(
        &self,
        path: &str,
        content_type: &str,
        more: &[(&str, &str)],
        body: impl AsSendBody,
    ) -> Result<Value, Failure> {
        if !self.patience().is_zero() {
            self.call(Again::Harmless, Method::GET, "/health/ready", &[], &[])?;
        }
        let headers = [&[("content-type", content_type)], more].concat();
        let sent = self.exchange(Method::POST, path, &headers, body);
        let reply = sent.map_err(|unreached| unreached.failure)?;
        self.json_of(&reply.success()?)
    }

    /// Like [`Client::upload`], for bytes that may be sent again because their key makes the request take effect once. Also returns
    /// whether it had already taken effect.
    pub(super) fn upload_once(
        &self,
        path: &str,
        content_type: &str,
        body: &[u8],
        key: &str,
    ) -> Result<(Value, bool), Failure> {
        let headers = [("content-type", content_type), ("idempotency-key", key)];
        let reply = self.ask(Again::Harmless, Method::POST, path, &headers, body)?;
        let replayed = reply.replayed;
        Ok((self.json_of(&reply.success()?)?, replayed))
    }

    /// Sends a request once, and returns the status and the body of its answer, whatever they are.
    pub(super) fn raw(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<(u16, Vec<u8>), Failure> {
        let sent = self.exchange(method, path, headers, body);
        let reply = sent.map_err(|unreached| unreached.failure)?;
        Ok((reply.status, reply.body))
    }

    /// How long to keep trying.
    pub(super) fn patience(&self) -> Duration {
        self.retry_for.unwrap_or(self.patience)
    }

    /// Sends JSON and returns a stream of the answer, however long it is.
    pub(super) fn stream(&self, path: &str, body: &Value) -> Result<impl Read, Failure> {
        let headers = [("content-type", "application/json")];
        let failed = |unreached: Unreached| unreached.failure;
        let response = self.run(Method::POST, path, &headers, body.to_string());
        let response = response.map_err(failed)?;
        let status = response.status().as_u16();
        match status {
            200..300 => Ok(response.into_body().into_reader()),
            _ => {
                let reply = self.read(response).map_err(failed)?;
                Err(Failure::answered(status, &reply.body))
            }
        }
    }

    fn call(
        &self,
        again: Again,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Vec<u8>, Failure> {
        self.ask(again, method, path, headers, body)?.success()
    }

    /// Sends a request and, while the client's patience lasts, repeats it if the host is absent or asks to come back: the retry rule of
    /// all commands.
    fn ask(
        &self,
        again: Again,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Reply, Failure> {
        let clock = SystemClock::new();
        let mut delay = RETRY_DELAY_FIRST;
        loop {
            let failure = match self.exchange(method.clone(), path, headers, body) {
                Ok(mut reply) if !reply.asks_to_come_back() => {
                    self.waits.store(false, Ordering::Relaxed);
                    reply.replayed &= delay == RETRY_DELAY_FIRST;
                    return Ok(reply);
                }
                Ok(reply) => {
                    delay = delay.max(reply.retry_after.unwrap_or_default());
                    reply.failure()
                }
                Err(unreached) if again == Again::Twice && unreached.may_have_come => {
                    return Err(unreached.failure);
                }
                Err(unreached) if unreached.failure.is_unreachable() => unreached.failure,
                Err(unreached) => return Err(unreached.failure),
            };
            if clock.monotonic() + delay >= self.patience() || self.interrupt.is_wanted() {
                return Err(failure);
            }
            self.say_waiting(&failure);
            self.sleep(delay);
            delay = (delay * 2).min(RETRY_DELAY_MAX);
        }
    }

    /// Once per absence, so that a user sees why nothing happens.
    fn say_waiting(&self, failure: &Failure) {
        if !self.json && !self.waits.swap(true, Ordering::Relaxed) {
            let seconds = self.patience().as_secs();
            // Standard error may be closed; that is no reason to stop.
            let note = format_args!("note: {failure}; trying again for {seconds} s\n");
            let _ = io::Write::write_fmt(&mut io::stderr(), note);
        }
    }

    /// Once, if everyone on the way to the host can read the token.
    fn say_readable(&self) {
        if !self.json && is_readable(&self.base) && !self.warned.swap(true, Ordering::Relaxed) {
            let note = format_args!(
                "warning: {} is not encrypted, so others can read the token on its way; use https://\n",
                self.base
            );
            let _ = io::Write::write_fmt(&mut io::stderr(), note);
        }
    }

    /// Sleeps, unless the user wants to stop.
    pub(super) fn sleep(&self, delay: Duration) {
        let clock = SystemClock::new();
        while clock.monotonic() < delay && !self.interrupt.is_wanted() {
            std::thread::sleep(delay.min(RETRY_DELAY_FIRST));
        }
    }

    fn exchange(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl AsSendBody,
    ) -> Result<Reply, Unreached> {
        self.read(self.run(method, path, headers, body)?)
    }

    fn run(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl AsSendBody,
    ) -> Result<Response<Body>, Unreached> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(user) = &self.user {
            request = request.header("millrace-by", user);
        }
        if let Some(token) = &self.token {
            self.say_readable();
            request = request.header(AUTHORIZATION, token);
        }
        let request = request.body(body).map_err(|error| Unreached {
            failure: Failure::usage(format!("--host {} is not a valid URL: {error}", self.host)),
            may_have_come: false,
        })?;
        let response = self.agent.run(request);
        response.map_err(|error| self.unreached(error))
    }

    fn read(&self, response: Response<Body>) -> Result<Reply, Unreached> {
        self.read_within(response, ANSWER_BYTES_MAX)
    }

    fn read_within(&self, response: Response<Body>, bytes_max: u64) -> Result<Reply, Unreached> {
        let status = response.status().as_u16();
        let replayed = response.headers().contains_key("idempotent-replayed");
        let retry_after = response.headers().get("retry-after");
        let retry_after = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
        let body = response.into_body().into_with_config().limit(bytes_max);
        let body = body.read_to_vec().map_err(|error| self.unreached(error))?;
        Ok(Reply {
            status,
            retry_after: retry_after.map(Duration::from_secs),
            replayed,
            body,
        })
    }

    fn json_of(&self, body: &[u8]) -> Result<Value, Failure> {
        serde_json::from_slice(body).map_err(|_| {
            Failure::failed(format!(
                "the server at {} is not a Millrace host",
                self.host
            ))
        })
    }

    fn unreached(&self, error: ureq::Error) -> Unreached {
        if let ureq::Error::BadUri(_) | ureq::Error::Http(_) = error {
            return Unreached {
                failure: Failure::usage(format!(
                    "--host {} is not a valid URL: {error}",
                    self.host
                )),
                may_have_come: false,
            };
        }
        let may_have_come = !matches!(
            &error,
            ureq::Error::HostNotFound
                | ureq::Error::ConnectionFailed
                | ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve)
        ) && !matches!(&error, ureq::Error::Io(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied));
        let message = format!("no Millrace host answers at {} ({error})", self.host);
        let failure = Failure::new(Exit::Unreachable, "unreachable", message);
        let failure = failure.with_hint(way_to_reach(&error.to_string()));
        Unreached {
            failure,
            may_have_come,
        }
    }

    /// The host's URL.
    pub(super) fn url(&self) -> &str {
        &self.host
    }

    /// Where answers are printed.
    pub(super) fn output(&self) -> Output {
        Output::new(self.json)
    }
}

/// What to do when there is no answer, by what TLS and HTTP say of it.
fn way_to_reach(error: &str) -> &'static str {
    if error.contains("CaUsedAsEndEntity") {
        return "make the host's certificate anew, as that of a host and not of an authority: with openssl, -addext basicConstraints=critical,CA:FALSE";
    }
    if error.contains("invalid peer certificate") {
        return "name the file with the certificates that its own is checked against with --ca FILE, and the host by a name that is in its certificate";
    }
    if error.contains("invalid HTTP version") {
        return "it seems to encrypt: write https:// in --host";
    }
    "start one with `millrace serve`, or choose another with --host URL, MILLRACE_HOST or `millrace context use`"
}

/// Whether what is sent to this URL leaves the machine, and is not encrypted.
fn is_readable(url: &str) -> bool {
    let uri: Option<Uri> = url.parse().ok();
    let Some(uri) = uri.filter(|uri| uri.scheme_str() == Some("http")) else {
        return false;
    };
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let address: Option<IpAddr> = host.parse().ok();
    let is_here = match address {
        Some(address) => address.is_loopback(),
        None => host.eq_ignore_ascii_case("localhost"),
    };
    !is_here
}

/// Which certificates of hosts are trusted, and which one is presented to a host that asks.
fn tls(files: TlsFiles<'_>) -> Result<TlsConfig, Failure> {
    let roots = match files.authority {
        None => RootCerts::PlatformVerifier,
        Some(file) => {
            let unreadable = |why: String| {
                Failure::usage(format!(
                    "--ca {} has no certificates: {why}",
                    file.display()
                ))
                .with_hint("name a PEM file with the certificate of whoever signed the host's")
            };
            let pem = std::fs::read(file).map_err(|error| unreadable(error.to_string()))?;
            let found: Result<Vec<PemItem<'static>>, _> = parse_pem(&pem).collect();
            let found = found.map_err(|error| unreadable(error.to_string()))?;
            let certificates: Vec<Certificate<'static>> = found
                .into_iter()
                .filter_map(|item| match item {
                    PemItem::Certificate(certificate) => Some(certificate),
                    _ => None,
                })
                .collect();
            if certificates.is_empty() {
                return Err(unreadable(
                    "no -----BEGIN CERTIFICATE----- is in it".to_owned(),
                ));
            }
            RootCerts::from(certificates)
        }
    };
    let own = match (files.certificate, files.key) {
        (Some(certificate), Some(key)) => Some(presented(certificate, key)?),
        (None, None) => None,
        _ => {
            let failure = Failure::usage("a client's certificate and its key are given together");
            return Err(failure.with_hint("write --client-certificate FILE --client-key FILE"));
        }
    };
    Ok(TlsConfig::builder()
        .root_certs(roots)
        .client_cert(own)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build())
}

/// The client's certificate, with its key.
fn presented(certificate: &Path, key: &Path) -> Result<ClientCert, Failure> {
    let unusable = |flag: &str, file: &Path, why: String| {
        Failure::usage(format!("{flag} {} cannot be used: {why}", file.display()))
            .with_hint("name PEM files with the certificate that you were given, and with its key")
    };
    let chain = |why: String| unusable("--client-certificate", certificate, why);
    let pem = std::fs::read(certificate).map_err(|error| chain(error.to_string()))?;
    let mut certificates = Vec::new();
    for item in parse_pem(&pem) {
        if let PemItem::Certificate(one) = item.map_err(|error| chain(error.to_string()))? {
            certificates.push(one);
        }
    }
    if certificates.is_empty() {
        return Err(chain("no -----BEGIN CERTIFICATE----- is in it".to_owned()));
    }
    let of_key = |why: String| unusable("--client-key", key, why);
    let pem = std::fs::read(key).map(Zeroizing::new);
    let pem = pem.map_err(|error| of_key(error.to_string()))?;
    let own = PrivateKey::from_pem(&pem).map_err(|error| of_key(error.to_string()))?;
    // The client panics with a key that does not fit, at its first connection.
    let der = |one: &Certificate<'_>| rustls::pki_types::CertificateDer::from(one.der().to_vec());
    let parsed = rustls::pki_types::PrivateKeyDer::try_from(own.der().to_vec());
    let parsed = parsed.map_err(|error| of_key(error.to_owned()))?;
    let provider = rustls::crypto::ring::default_provider();
    let chain_of = certificates.iter().map(der).collect();
    rustls::sign::CertifiedKey::from_der(chain_of, parsed, &provider)
        .map_err(|error| of_key(format!("it is not that of the certificate ({error})")))?;
    Ok(ClientCert::new_with_certs(&certificates, own))
}

/// The operating-system user, as far as a header can carry the name: the number if it has no name, as in many containers; otherwise
/// what the environment says.
fn user() -> Option<String> {
    let name = system_user().or_else(|| {
        let mut names = ["USER", "LOGNAME", "USERNAME"].iter();
        names.find_map(|name| std::env::var(name).ok())
    })?;
    let plain: String = name.chars().filter(char::is_ascii_graphic).collect();
    (!plain.is_empty()).then_some(plain)
}

fn system_user() -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let uid = uids.split_ascii_whitespace().next()?;
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    Some(name_of(uid, &users).unwrap_or_else(|| format!("uid-{uid}")))
}

/// The name of a user number in the system's user list.
fn name_of(uid: &str, users: &str) -> Option<String> {
    let mut names = users.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1) == Some(uid)).then_some(name)
    });
    names.next().map(str::to_owned)
}

/// Escapes a text for use as one path segment or query value.
pub(super) fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~@".contains(&byte);
    text.bytes()
        .map(|byte| match plain(byte) {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_is_the_one_that_the_system_knows_by_number() {
        let users = "root:x:0:0:root:/:/bin/bash\nada:x:1000:1000::/:/bin/sh\n";
        assert_eq!(name_of("1000", users).as_deref(), Some("ada"));
        assert_eq!(name_of("4711", users), None);
        assert!(user().is_some());
    }

    #[test]
    fn a_text_cannot_leave_its_segment() {
        assert_eq!(escaped("upper@1.0.0"), "upper@1.0.0");
        assert_eq!(escaped("../a b?é"), "..%2Fa%20b%3F%C3%A9");
    }

    #[test]
    fn a_token_can_be_read_on_its_way_unless_it_is_encrypted_or_stays_here() {
        for safe in [
            "https://mill.example",
            "http://127.0.0.1:7400",
            "http://127.9.9.9",
            "http://LOCALHOST:1",
            "http://[::1]:7400",
        ] {
            assert!(!is_readable(safe), "{safe}");
        }
        for open in [
            "http://mill.example:7400",
            "http://10.0.0.1",
            "http://localhost.example",
            "http://[fe80::1]:7400",
        ] {
            assert!(is_readable(open), "{open}");
        }
    }

    #[test]
    fn a_host_that_is_not_there_is_said_to_be_unreachable() {
        let client =
            Client::new("http://127.0.0.1:1/", TlsFiles::default(), false, None).expect("a client");
        let failure = client.get("/v1/topics").expect_err("nobody there");
        let Failure::Told {
            exit,
            message,
            hint,
            ..
        } = failure
        else {
            panic!("told");
        };
        assert_eq!(exit, Exit::Unreachable);
        assert!(message.contains("http://127.0.0.1:1 "), "{message}");
        assert!(hint.expect("a hint").contains("millrace serve"));
    }
}
