//! The few calls of the OCI distribution specification that a module needs: a manifest and a blob, read and written.
//!
//! A registry is a stranger. Every answer has a bound, every digest is verified, redirects are few and do not take credentials along, and
//! nothing goes over plain HTTP unless the registry is on this machine or the user said so.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use millrace_model::plain::plain;
use serde_json::Value;
use ureq::http::{Method, Request, Response, Uri, header};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::super::failure::{Exit, Failure};
use super::artefact::{MANIFEST_TYPE, digest_of};
use super::credentials::Credentials;
use super::reference::{Reference, is_loopback};

/// Bytes of a manifest.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;
/// Bytes of a registry's other answers: tokens and errors.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
/// Redirects of one request.
const REDIRECTS_MAX: usize = 3;
/// Characters of a registry's error that are shown.
const ERROR_CHARS_MAX: usize = 200;
/// How long connecting to a registry may take.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// How long a registry may take to begin its answer.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(60);
/// How long a request or an answer may take on its way.
const TRANSFER_MAX: Duration = Duration::from_secs(600);

/// A repository of a registry.
pub(super) struct Registry {
    agent: Agent,
    reference: Reference,
    /// `http` or `https`.
    scheme: &'static str,
    credentials: Option<Credentials>,
    /// The header Authorization that the registry accepted last.
    authorization: Option<String>,
}

/// A request: what is asked for, and what it carries.
struct Asked<'a> {
    method: Method,
    url: String,
    headers: Vec<(&'static str, &'a str)>,
    body: &'a [u8],
}

impl<'a> Asked<'a> {
    fn get(url: String) -> Self {
        Self {
            method: Method::GET,
            url,
            headers: Vec::new(),
            body: &[],
        }
    }
}

impl Registry {
    pub(super) fn new(
        reference: Reference,
        credentials: Option<Credentials>,
        is_insecure: bool,
    ) -> Self {
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::PlatformVerifier)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            // Followed here, where credentials and schemes are watched.
            .max_redirects(0)
            .tls_config(tls)
            .timeout_connect(Some(CONNECT_MAX))
            .timeout_recv_response(Some(ANSWER_WAIT_MAX))
            .timeout_send_body(Some(TRANSFER_MAX))
            .timeout_recv_body(Some(TRANSFER_MAX))
            .build()
            .new_agent();
        let plain = is_insecure || reference.is_loopback();
        Self {
            agent,
            reference,
            scheme: if plain { "http" } else { "https" },
            credentials,
            authorization: None,
        }
    }

    /// The manifest's bytes, which have the digest that was asked for.
    pub(super) fn manifest(&mut self) -> Result<Vec<u8>, Failure> {
        let url = self.url(&format!("manifests/{}", self.reference.manifest()));
        let accept = vec![("accept", MANIFEST_TYPE)];
        let response = self.ask(&Asked {
            headers: accept,
            ..Asked::get(url)
        })?;
        let response = self.successful(response)?;
        let claimed = header_of(&response, "docker-content-digest");
        let bytes = self.read(response, MANIFEST_BYTES_MAX)?;
        let found = digest_of(&bytes);
        let wanted = self.reference.digest.clone().or(claimed);
        self.check_digest("manifest", wanted.as_deref().unwrap_or(&found), &found)?;
        Ok(bytes)
    }

    /// A blob of this many bytes and with this digest.
    pub(super) fn blob(&mut self, digest: &str, bytes: u64) -> Result<Vec<u8>, Failure> {
        let url = self.url(&format!("blobs/{digest}"));
        let response = self.ask(&Asked::get(url))?;
        let response = self.successful(response)?;
        let read = self.read(response, bytes)?;
        if read.len() as u64 != bytes {
            let message = format!(
                "{} sent {} bytes of the module instead of {bytes}",
                self.reference.registry,
                read.len()
            );
            return Err(Failure::refused(message).with_hint("try again; nothing was uploaded"));
        }
        self.check_digest("module", digest, &digest_of(&read))?;
        Ok(read)
    }

    /// Stores a blob, unless it is there already.
    pub(super) fn put_blob(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let digest = digest_of(bytes);
        let there = self.ask(&Asked {
            method: Method::HEAD,
            ..Asked::get(self.url(&format!("blobs/{digest}")))
        })?;
        if there.status().is_success() {
            return Ok(());
        }
        let begun = self.ask(&Asked {
            method: Method::POST,
            ..Asked::get(self.url("blobs/uploads/"))
        })?;
        let begun = self.successful(begun)?;
        let location = header_of(&begun, "location")
            .ok_or_else(|| self.strange("it names no place for the upload"))?;
        let place = self.resolved(&self.url("blobs/uploads/"), &location)?;
        let joint = if place.contains('?') { '&' } else { '?' };
        let url = format!("{place}{joint}digest={digest}");
        let sent = self.ask(&Asked {
            method: Method::PUT,
            url,
            headers: vec![("content-type", "application/octet-stream")],
            body: bytes,
        })?;
        self.successful(sent).map(drop)
    }

    /// Stores the manifest under the reference; returns its digest.
    pub(super) fn put_manifest(&mut self, bytes: &[u8]) -> Result<String, Failure> {
        let digest = digest_of(bytes);
        if let Some(wanted) = &self.reference.digest {
            self.check_digest("manifest", wanted, &digest)?;
        }
        let sent = self.ask(&Asked {
            method: Method::PUT,
            url: self.url(&format!("manifests/{}", self.reference.manifest())),
            headers: vec![("content-type", MANIFEST_TYPE)],
            body: bytes,
        })?;
        self.successful(sent)?;
        Ok(digest)
    }

    fn url(&self, rest: &str) -> String {
        let Reference {
            registry,
            repository,
            ..
        } = &self.reference;
        format!("{}://{registry}/v2/{repository}/{rest}", self.scheme)
    }

    /// Sends a request, once more with credentials if the registry asks for them.
    fn ask(&mut self, asked: &Asked<'_>) -> Result<Response<Body>, Failure> {
        let (response, url) = self.follow(asked)?;
        // Another server, to which the registry redirects, gets no credentials.
        if response.status() != 401 || !self.is_own(&url) {
            return Ok(response);
        }
        let challenge = header_of(&response, "www-authenticate").unwrap_or_default();
        self.authorization = Some(self.authorize(&challenge)?);
        self.follow(asked).map(|(response, _)| response)
    }

    /// Sends a request and follows redirects of reading ones; also returns the URL that answered.
    fn follow(&self, asked: &Asked<'_>) -> Result<(Response<Body>, String), Failure> {
        let mut url = asked.url.clone();
        for _ in 0..=REDIRECTS_MAX {
            let response = self.send(asked, &url)?;
            let is_redirect = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            if !is_redirect || !matches!(asked.method, Method::GET | Method::HEAD) {
                return Ok((response, url));
            }
            let location = header_of(&response, "location")
                .ok_or_else(|| self.strange("it redirects to nowhere"))?;
            url = self.resolved(&url, &location)?;
        }
        Err(self.strange("it redirects again and again"))
    }

    fn send(&self, asked: &Asked<'_>, url: &str) -> Result<Response<Body>, Failure> {
        let mut request = Request::builder().method(asked.method.clone()).uri(url);
        for (name, value) in &asked.headers {
            request = request.header(*name, *value);
        }
        // Credentials are for the registry itself, not for where it redirects to.
        if let Some(authorization) = self.authorization.as_ref().filter(|_| self.is_own(url)) {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let sent = match asked.body {
            [] => request.body(()).map(|request| self.agent.run(request)),
            body => request.body(body).map(|request| self.agent.run(request)),
        };
        let sent = sent.map_err(|error| self.strange(&error.to_string()))?;
        sent.map_err(|error| self.unreached(&error))
    }

    /// Whether a URL leads to the registry itself.
    fn is_own(&self, url: &str) -> bool {
        let own = format!("{}://{}/", self.scheme, self.reference.registry);
        url.starts_with(&own)
    }

    /// Where a redirect or an upload leads to: over TLS, or to the registry itself if that is spoken to without.
    fn resolved(&self, from: &str, location: &str) -> Result<String, Failure> {
        let url = match location.starts_with('/') && !location.starts_with("//") {
            true => {
                let uri: Uri = from
                    .parse()
                    .map_err(|_| self.strange("its URL cannot be read"))?;
                let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
                format!(
                    "{}://{authority}{location}",
                    uri.scheme_str().unwrap_or(self.scheme)
                )
            }
            false => location.to_owned(),
        };
        let uri: Uri = url
            .parse()
            .map_err(|_| self.strange("it sends to what is no URL"))?;
        let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
        let is_sound = !authority.is_empty() && !authority.contains('@');
        let is_private = uri.scheme_str() == Some("https")
            && (!is_loopback(&authority) || self.reference.is_loopback());
        match is_sound && (is_private || self.is_own(&url)) {
            true => Ok(url),
            false => Err(self.strange(&format!(
                "it sends to {}, which is not over TLS, or on this machine",
                plain(&url)
            ))),
        }
    }

    /// What the header Authorization must be, for the challenge of a 401.
    fn authorize(&self, challenge: &str) -> Result<String, Failure> {
        let (scheme, rest) = challenge.split_once(' ').unwrap_or((challenge, ""));
        let needs = || {
            let message = format!("{} asks for a name and a password", self.reference.registry);
            Failure::refused(message).with_hint("sign in with `docker login`, or give --username NAME and the password on standard input")
        };
        if scheme.eq_ignore_ascii_case("basic") {
            let credentials = self.credentials.as_ref().ok_or_else(needs)?;
            // They were sent already, and not accepted.
            if self.authorization.as_deref() == Some(&credentials.basic()) {
                return Err(needs());
            }
            return Ok(credentials.basic());
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(self.strange("it asks for an unknown kind of authorization"));
        }
        let realm =
            parameter(rest, "realm").ok_or_else(|| self.strange("it names no server of tokens"))?;
        let realm = self.resolved(&self.url(""), &realm)?;
        let mut query: Vec<String> = Vec::new();
        for name in ["service", "scope"] {
            let value = parameter(rest, name);
            query.extend(
                value.map(|value| format!("{name}={}", super::super::client::escaped(&value))),
            );
        }
        let joint = if realm.contains('?') { '&' } else { '?' };
        let url = format!("{realm}{joint}{}", query.join("&"));
        let mut request = Request::builder().uri(&url);
        if let Some(credentials) = &self.credentials {
            request = request.header(header::AUTHORIZATION, credentials.basic());
        }
        let request = request
            .body(())
            .map_err(|error| self.strange(&error.to_string()))?;
        let response = self
            .agent
            .run(request)
            .map_err(|error| self.unreached(&error))?;
        if matches!(response.status().as_u16(), 401 | 403) {
            return Err(needs());
        }
        let response = self.successful(response)?;
        let answer = self.read(response, ANSWER_BYTES_MAX)?;
        let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
        let token = answer["token"]
            .as_str()
            .or_else(|| answer["access_token"].as_str());
        let token = token.filter(|token| token.bytes().all(|byte| byte.is_ascii_graphic()));
        let token = token.ok_or_else(|| self.strange("its server of tokens sent none"))?;
        Ok(format!("Bearer {token}"))
    }

    /// The answer, if it is a success; otherwise what the registry says.
    fn successful(&self, response: Response<Body>) -> Result<Response<Body>, Failure> {
        let status = response.status().as_u16();
        if (200..300).contains(&status) {
            return Ok(response);
        }
        let body = self.read(response, ANSWER_BYTES_MAX).unwrap_or_default();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let said = body["errors"][0]["message"].as_str().unwrap_or("no reason");
        let said: String = said.chars().take(ERROR_CHARS_MAX).collect();
        let message = format!("{} answers {status}: {}", self.reference, plain(&said));
        Err(match status {
            404 => Failure::new(Exit::Unknown, "not-found", message)
                .with_hint("see which tags the repository has"),
            401 | 403 => Failure::refused(message)
                .with_hint("sign in with `docker login`, or give --username NAME"),
            429 | 500..600 => Failure::failed(message).with_hint("try again later"),
            _ => Failure::refused(message),
        })
    }

    /// Reads an answer of at most this many bytes; reading ends with the first byte too many.
    fn read(&self, response: Response<Body>, bytes_max: u64) -> Result<Vec<u8>, Failure> {
        let too_large = || {
            let message = format!(
                "{} sends more than the {bytes_max} bytes that this may have",
                self.reference.registry
            );
            Failure::refused(message)
        };
        let promised = header_of(&response, "content-length");
        if promised.and_then(|text| text.parse::<u64>().ok()) > Some(bytes_max) {
            return Err(too_large());
        }
        let mut bytes = Vec::new();
        let body = response.into_body().into_reader();
        let read = body.take(bytes_max + 1).read_to_end(&mut bytes);
        read.map_err(|error| self.unreached(&ureq::Error::Io(error)))?;
        match bytes.len() as u64 > bytes_max {
            true => Err(too_large()),
            false => Ok(bytes),
        }
    }

    fn check_digest(&self, what: &str, wanted: &str, found: &str) -> Result<(), Failure> {
        if wanted == found {
            return Ok(());
        }
        let wanted: String = plain(wanted).chars().take(ERROR_CHARS_MAX).collect();
        let message = format!(
            "the {what} from {} is {found}, not {wanted}: it was changed",
            self.reference.registry
        );
        Err(Failure::new(Exit::Refused, "digest-mismatch", message)
            .with_hint("nothing was uploaded; ask the keeper of the registry"))
    }

    fn strange(&self, what: &str) -> Failure {
        Failure::refused(format!(
            "{} does not answer as a registry: {what}",
            self.reference.registry
        ))
    }

    fn unreached(&self, error: &ureq::Error) -> Failure {
        let message = format!("{} cannot be reached ({error})", self.reference.registry);
        Failure::new(Exit::Unreachable, "unreachable", message).with_hint(
            "check the address; a registry without TLS that is not on this machine needs --insecure",
        )
    }
}

fn header_of(response: &Response<Body>, name: &str) -> Option<String> {
    let value = response.headers().get(name)?;
    value.to_str().ok().map(str::to_owned)
}

/// A parameter of a challenge: `name="value"`, separated by commas.
fn parameter(challenge: &str, name: &str) -> Option<String> {
    let mut rest = challenge;
    loop {
        let (key, after) = rest.split_once('=')?;
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_at(after.find(',').unwrap_or(after.len())),
        };
        if key.trim().eq_ignore_ascii_case(name) {
            return Some(value.to_owned());
        }
        rest = after.trim_start().strip_prefix(',')?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_taken_apart() {
        let challenge = r#"realm="https://auth.example/token",service="reg.example", scope="repository:up:pull,push""#;
        assert_eq!(
            parameter(challenge, "realm").as_deref(),
            Some("https://auth.example/token")
        );
        assert_eq!(
            parameter(challenge, "service").as_deref(),
            Some("reg.example")
        );
        assert_eq!(
            parameter(challenge, "scope").as_deref(),
            Some("repository:up:pull,push")
        );
        assert_eq!(parameter("realm=plain,x=y", "x").as_deref(), Some("y"));
        for broken in ["", "realm", "realm=\"open", "=", ",,,", "a=b c=d"] {
            assert_eq!(parameter(broken, "scope"), None, "{broken}");
        }
    }

    #[test]
    fn a_registry_leads_only_to_itself_or_to_where_tls_protects() {
        let to = |reference: &str, location: &str| {
            let reference = Reference::parse(reference).expect("a reference");
            let registry = Registry::new(reference, None, false);
            registry.resolved(&registry.url("blobs/x"), location).ok()
        };
        let far = "oci://reg.example/up";
        assert_eq!(
            to(far, "/v2/up/y").as_deref(),
            Some("https://reg.example/v2/up/y")
        );
        assert_eq!(
            to(far, "https://cdn.example/y").as_deref(),
            Some("https://cdn.example/y")
        );
        for bad in [
            "http://cdn.example/y",
            "http://reg.example/y",
            "https://127.0.0.1/y",
            "https://localhost:7400/v1/host",
            "//cdn.example/y",
            "file:///etc/passwd",
            "https://a@b/y",
            "",
            "y",
        ] {
            assert_eq!(to(far, bad), None, "{bad}");
        }
        let near = "oci://127.0.0.1:5000/up";
        assert_eq!(to(near, "/y").as_deref(), Some("http://127.0.0.1:5000/y"));
        assert_eq!(to(near, "http://127.0.0.1:7400/v1/topics"), None);
    }
}
