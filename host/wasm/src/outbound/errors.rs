//! What a failed exchange is called in `wasi:http`.
//!
//! SDKs read the code to tell an outage, after which the batch waits, from a mistake in the guest's own request.

use std::error::Error as _;
use std::io::{self, ErrorKind};

use tokio_rustls::rustls;
use wasmtime_wasi_http::Error;
use wasmtime_wasi_http::p2::bindings::http::types::ErrorCode;

/// A connection that was not made.
pub(super) fn of_connect(error: &io::Error) -> Error {
    match error.kind() {
        ErrorKind::ConnectionRefused => Error::ConnectionRefused,
        ErrorKind::TimedOut => Error::ConnectionTimeout,
        ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable => {
            Error::DestinationIpUnroutable
        }
        _ => Error::DestinationUnavailable,
    }
}

/// A handshake of TLS that failed.
pub(super) fn of_tls(error: &io::Error) -> Error {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    match inner {
        Some(rustls::Error::InvalidCertificate(_)) => Error::TlsCertificateError,
        Some(rustls::Error::AlertReceived(alert)) => Error::TlsAlertReceived {
            alert_id: Some(u8::from(*alert)),
            alert_message: Some(format!("{alert:?}")),
        },
        Some(_) => Error::TlsProtocolError,
        None => Error::ConnectionTerminated,
    }
}

/// A name without addresses.
pub(super) fn of_resolving(error: &io::Error) -> Error {
    match error.kind() {
        ErrorKind::TimedOut => Error::DnsTimeout,
        _ => Error::DnsError {
            rcode: Some("the name could not be resolved".to_owned()),
            info_code: None,
        },
    }
}

/// An exchange that broke off.
pub(super) fn of_hyper(error: &hyper::Error) -> Error {
    let source = error.source();
    // The guest's own body: its bound, or that it was given up.
    if let Some(body) = source.and_then(|source| source.downcast_ref::<Error>()) {
        return match body {
            Error::HttpRequestBodySize(size) => Error::HttpRequestBodySize(*size),
            _ => Error::HttpProtocolError,
        };
    }
    let io = source.and_then(|source| source.downcast_ref::<io::Error>());
    let is_cut_off = io.is_some_and(|error| error.kind() == ErrorKind::UnexpectedEof);
    match () {
        () if error.is_parse_too_large() => Error::HttpResponseHeaderSectionSize(None),
        () if error.is_incomplete_message() || is_cut_off => Error::HttpResponseIncomplete,
        () if error.is_timeout() => Error::ConnectionReadTimeout,
        () if io.is_some() || error.is_closed() || error.is_canceled() => {
            Error::ConnectionTerminated
        }
        () => Error::HttpProtocolError,
    }
}

/// The code of a body that broke off, as [`of_hyper`] and the bounds name it.
pub(crate) fn code_of(error: &Error) -> ErrorCode {
    match error {
        Error::ConnectionReadTimeout => ErrorCode::ConnectionReadTimeout,
        Error::ConnectionTerminated => ErrorCode::ConnectionTerminated,
        Error::HttpRequestBodySize(size) => ErrorCode::HttpRequestBodySize(*size),
        Error::HttpResponseBodySize(size) => ErrorCode::HttpResponseBodySize(*size),
        Error::HttpResponseIncomplete => ErrorCode::HttpResponseIncomplete,
        Error::HttpResponseHeaderSectionSize(size) => {
            ErrorCode::HttpResponseHeaderSectionSize(*size)
        }
        _ => ErrorCode::HttpProtocolError,
    }
}
