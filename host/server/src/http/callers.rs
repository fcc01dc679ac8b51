//! Which requests are accepted: by which names this host may be called, and from pages of which
//! sites.
//!
//! The host trusts everyone who can connect, and a browser on this machine can. So a request sent by a page of another site (Origin,
//! Sec-Fetch-Site) is refused, and so is one with a foreign Host name, which is a sign of DNS rebinding.

use std::net::IpAddr;

use axum::http::header::{HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderName, Uri};

use super::error::{ApiError, own};
use super::settings::HttpSettings;

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The names by which this host may be called.
pub(super) struct Callers {
    names: Vec<String>,
    /// A host that listens for other machines has addresses that it does not know. Rebinding needs a name, so addresses are safe to
    /// accept.
    any_address: bool,
}

impl Callers {
    /// `advertised`: the address by which other hosts call this one. `any_address`: whether the host listens for other machines.
    pub(super) fn new(http: &HttpSettings, advertised: Option<&str>, any_address: bool) -> Self {
        let mut names = http.allowed_hosts.clone();
        names.extend(advertised.map(|address| name_of(address).to_owned()));
        names.push(name_of(&http.address).to_owned());
        names
            .iter_mut()
            .for_each(|name| name.make_ascii_lowercase());
        Self { names, any_address }
    }

    pub(super) fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
        // All of them: others might choose a different one of several.
        let mut hosts = headers.get_all(HOST).iter();
        if !hosts.all(|host| self.is_ours(name_of_bytes(host.as_bytes()))) {
            return Err(foreign("the Host header names another host"));
        }
        if !uri.host().is_none_or(|host| self.is_ours(host)) {
            return Err(foreign("the request names another host"));
        }
        let mut origins = headers.get_all(ORIGIN).iter();
        if !origins.all(|origin| self.is_our_origin(origin.as_bytes())) {
            return Err(foreign("the request comes from a page of another site"));
        }
        if headers
            .get(FETCH_SITE)
            .is_some_and(|site| site == "cross-site")
        {
            return Err(foreign("the request comes from a page of another site"));
        }
        Ok(())
    }

    fn is_our_origin(&self, origin: &[u8]) -> bool {
        let text = str::from_utf8(origin).unwrap_or_default();
        let rest = text.strip_prefix("http://");
        rest.or_else(|| text.strip_prefix("https://"))
            .is_some_and(|authority| self.is_ours(name_of(authority)))
    }

    fn is_ours(&self, name: &str) -> bool {
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse::<IpAddr>()
            && (address.is_loopback() || self.any_address)
        {
            return true;
        }
        let name = name.to_ascii_lowercase();
        name == "localhost" || self.names.contains(&name)
    }
}

/// The name in `name:port`, `[::1]:port` or `name`.
fn name_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => authority,
    }
}

fn name_of_bytes(authority: &[u8]) -> &str {
    str::from_utf8(authority).map_or("", name_of)
}

fn foreign(message: &str) -> ApiError {
    let hint = "call the host by the address that it listens on, from outside a browser; add further names of it with \
                --allowed-host";
    ApiError::own(&own::FOREIGN_CALLER, message, hint)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn callers(listen: &str) -> Callers {
        let http = HttpSettings {
            address: listen.to_owned(),
            allowed_hosts: vec!["Broker.example".to_owned()],
            ..HttpSettings::default()
        };
        Callers::new(&http, Some("queue-1.example:7400"), false)
    }

    fn check(name: HeaderName, value: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(value).expect("a header"));
        let uri = Uri::from_static("/v1/topics");
        callers("127.0.0.1:7400").check(&uri, &headers).is_ok()
    }

    #[test]
    fn a_host_header_that_names_somebody_else_is_refused() {
        for ours in [
            "127.0.0.1:7400",
            "localhost",
            "LOCALHOST:80",
            "[::1]:7400",
            "broker.example:1",
            "queue-1.example",
        ] {
            assert!(check(HOST, ours), "{ours}");
        }
        for foreign in [
            "evil.example:7400",
            "10.0.0.1",
            "localhost.evil.example",
            "",
            "::",
        ] {
            assert!(!check(HOST, foreign), "{foreign}");
        }
    }

    #[test]
    fn a_page_of_another_site_is_refused() {
        assert!(check(ORIGIN, "http://localhost:3000"));
        assert!(check(ORIGIN, "https://127.0.0.1"));
        for foreign in [
            "https://evil.example",
            "null",
            "http://127.0.0.1.evil.example",
            "localhost",
        ] {
            assert!(!check(ORIGIN, foreign), "{foreign}");
        }
        assert!(check(FETCH_SITE, "same-origin"));
        assert!(!check(FETCH_SITE, "cross-site"));
    }

    #[test]
    fn an_absolute_request_target_is_checked_too() {
        let uri = Uri::from_static("http://evil.example/v1/topics");
        assert!(
            callers("127.0.0.1:1")
                .check(&uri, &HeaderMap::new())
                .is_err()
        );
    }
}
