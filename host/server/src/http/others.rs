//! What other hosts count by themselves. Several hosts on one store share the work of a processor, and each knows only how its own part
//! goes. A request for the whole asks the others the same question with `hosts=this`, which they answer without asking anyone, so
//! questions never go in circles. A host that does not answer in time is named, and the rest is shown.
//!
//! A question carries what any request between machines carries today: who asks, and the id of the request that it belongs to. The caller's
//! credentials go with it, to another machine by TLS only. Its answer
//! names the host, because an address may lead to another one: a host started again, or one behind the same proxy.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Json;
use axum::http::header::{AUTHORIZATION, HOST};
use axum::http::{HeaderName, HeaderValue, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use millrace_broker::Standing;
use millrace_engine::{HostId, HostInfo};
use millrace_model::{Right, Rights, Target};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::time::timeout;
use utoipa::ToSchema;

use super::bounds::{
    OTHERS_BYTES_MAX, OTHERS_HEAD_BYTES_MAX, OTHERS_HOSTS_MAX, OTHERS_MS_MAX, OTHERS_WAIT_MS_MAX,
};
use super::called::Called;
use crate::net::Duplex;

/// Names the host that gives an answer about itself.
const ANSWERED_BY: HeaderName = HeaderName::from_static("millrace-host");
const BY: HeaderName = HeaderName::from_static("millrace-by");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Whose counts are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(default = "all")]
pub(super) enum Whose {
    /// Those of all hosts.
    #[default]
    All,
    /// Those of the host that is asked.
    This,
}

/// Which hosts' counts are shown.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct HostsParams {
    /// `all`: what the hosts on this store count, added up. `this`: only what this host counts.
    #[serde(default)]
    #[param(inline)]
    pub(super) hosts: Whose,
}

/// Which hosts' counts an answer lacks.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct Gathered {
    /// Whether hosts are missing, so that counts are too low; absent if none is.
    #[serde(skip_serializing_if = "is_false")]
    partial: bool,
    /// The hosts that are missing; absent if none is.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missing_hosts: Vec<MissingHost>,
}

/// A host that gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct MissingHost {
    /// Its id, as in `GET /v1/hosts`.
    id: String,
    /// Its address; empty if it gave none.
    address: String,
    /// Why it is missing, and what to do.
    why: String,
}

/// What other hosts answered.
#[derive(Debug)]
pub(super) struct Answers<T> {
    /// By the name of the host. A host that has nothing to say is not here, and is not missing.
    pub(super) given: Vec<(String, T)>,
    missing: Vec<MissingHost>,
}

fn is_false(value: &bool) -> bool {
    !value
}

impl<T> Answers<T> {
    /// The answer of a host that is alone, or was asked only for itself.
    fn none() -> Self {
        Self {
            given: Vec::new(),
            missing: Vec::new(),
        }
    }

    /// Whether this host, by its name, was asked in vain.
    pub(super) fn lacks(&self, name: &str) -> bool {
        let is_named = |host: &MissingHost| host.address == name || host.id == name;
        self.missing.iter().any(is_named)
    }

    /// Which hosts are missing.
    pub(super) fn gathered(self) -> Gathered {
        Gathered {
            partial: !self.missing.is_empty(),
            missing_hosts: self.missing,
        }
    }
}

/// Bytes that the answers to one question may still have, all together.
#[derive(Clone)]
struct Room(Arc<AtomicUsize>);

impl Room {
    fn take(&self, bytes: usize) -> Result<(), String> {
        let less = |left: usize| left.checked_sub(bytes);
        let taken = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        let too_many = |_| {
            format!(
                "the answers of all hosts are larger than {OTHERS_BYTES_MAX} bytes; ask it itself, with hosts=this"
            )
        };
        taken.map(|_| ()).map_err(too_many)
    }
}

impl Called {
    /// Whether the caller may hear whatever another host answers. With the caller's token, that host decides; without one it is this host
    /// that asks there, by its certificate, and may see more than the caller.
    fn may_hear_all(&self) -> bool {
        let view = Rights::of(&[Right::View]);
        self.token.is_some()
            || match self.session.caller().rights() {
                Standing::Everything => true,
                Standing::Principal(known) => known
                    .rules
                    .iter()
                    .any(|rule| rule.on == Target::All && rule.granted.rights().has_any(view)),
                Standing::Nobody => false,
            }
    }

    /// The name of this host among the others.
    pub(super) fn name_of_this(&self) -> String {
        let (this, hosts) = self.broker.hosts();
        let found = hosts.iter().find(|host| host.id == this);
        found.map_or_else(|| this.to_string(), HostInfo::name)
    }

    /// Asks all other hosts what they say at this path, each for itself.
    pub(super) async fn of_others<T: DeserializeOwned>(
        &self,
        whose: Whose,
        path: &str,
    ) -> Answers<T> {
        let (this, hosts) = self.broker.hosts();
        let others: Vec<&HostInfo> = hosts.iter().filter(|host| host.id != this).collect();
        if whose == Whose::This || others.is_empty() {
            return Answers::none();
        }
        let (asked, left) = others.split_at(others.len().min(OTHERS_HOSTS_MAX));
        let mut answers = Answers::none();
        if !self.may_hear_all() {
            let why = "it is asked with the caller's token, and the request has none; send one";
            answers.missing = others
                .iter()
                .map(|host| missing(host, why.to_owned()))
                .collect();
            return answers;
        }
        let beyond = format!("more than {OTHERS_HOSTS_MAX} others live; ask it itself");
        let unasked = left.iter().map(|host| missing(host, beyond.clone()));
        answers.missing.extend(unasked);
        let wait = Duration::from_millis(OTHERS_WAIT_MS_MAX);
        let Ok(Ok(_permit)) = timeout(wait, self.asking.acquire()).await else {
            let busy = "this host is asking for too many others at the moment; try again";
            let unasked = asked.iter().map(|host| missing(host, busy.to_owned()));
            answers.missing.extend(unasked);
            return answers;
        };
        let room = Room(Arc::new(AtomicUsize::new(OTHERS_BYTES_MAX)));
        let target = format!("{path}?hosts=this");
        let mut given: FuturesUnordered<_> = asked
            .iter()
            .map(async |host| {
                let asked = self.ask::<T>(host, &target, room.clone());
                let answer = timeout(Duration::from_millis(OTHERS_MS_MAX), asked).await;
                let late = || Err(format!("it does not answer within {OTHERS_MS_MAX} ms; ask again when it is less busy"));
                (*host, answer.unwrap_or_else(|_| late()))
            })
            .collect();
        while let Some((host, answer)) = given.next().await {
            match answer {
                Ok(Some(answer)) => answers.given.push((host.name(), answer)),
                Ok(None) => {}
                Err(why) => answers.missing.push(missing(host, why)),
            }
        }
        answers.given.sort_by(|(a, _), (b, _)| a.cmp(b));
        answers.missing.sort_by(|a, b| a.id.cmp(&b.id));
        answers
    }

    /// What one host says; `None` if it has nothing there.
    async fn ask<T: DeserializeOwned>(
        &self,
        host: &HostInfo,
        target: &str,
        room: Room,
    ) -> Result<Option<T>, String> {
        let (address, is_encrypted) = match host.address.strip_prefix("https://") {
            Some(address) => (address, true),
            None => (host.address.trim_start_matches("http://"), false),
        };
        let address = address.trim_end_matches('/');
        if address.is_empty() {
            return Err("it gave no address; start it with --advertise ADDRESS:PORT".to_owned());
        }
        let not_connected = |error| {
            format!(
                "it cannot be reached: {error}; if this host cannot connect to that address, start the other one with --advertise ADDRESS:PORT"
            )
        };
        let stream = TcpStream::connect(address).await.map_err(not_connected)?;
        let peer = stream.peer_addr().map_err(not_connected)?.ip();
        if self.token.is_some() && !may_carry_credentials(is_encrypted, peer) {
            tracing::debug!(
                host = %host.id, address, %peer,
                "another host is not asked: it has no TLS, and the caller's credentials would go to another machine unencrypted"
            );
            return Err(
                "it has no TLS, so the caller's credentials are not sent to it; start it with --tls-certificate and --tls-key"
                    .to_owned(),
            );
        }
        let stream: Box<dyn Duplex> = match is_encrypted {
            false => Box::new(stream),
            true => Box::new(
                self.trust
                    .begin(address, stream)
                    .await
                    .map_err(not_connected)?,
            ),
        };
        let mut builder = http1::Builder::new();
        builder.max_buf_size(OTHERS_HEAD_BYTES_MAX);
        let not_http = |error: hyper::Error| format!("it does not answer: {error}");
        let (mut sender, connection) = builder
            .handshake(TokioIo::new(stream))
            .await
            .map_err(not_http)?;
        let mut request = Request::get(target).header(HOST, address);
        let caller = self.session.caller();
        let carried = [(BY, caller.name()), (REQUEST_ID, caller.request())];
        for (name, value) in carried {
            if let Some(Ok(value)) = value.map(|value| HeaderValue::from_bytes(value.as_bytes())) {
                request = request.header(name, value);
            }
        }
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, token);
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| {
            format!("its address is not ADDRESS:PORT ({error}); correct its --advertise")
        })?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(not_http)?;
            answer_of(response, host.id, room).await
        };
        // The connection does nothing by itself. What is read ends with this future.
        tokio::pin!(exchange);
        tokio::select! {
            answer = &mut exchange => answer,
            _ = connection => exchange.await,
        }
    }
}

/// Whether a connection may carry what proves who the caller is. `peer` is the address that was reached: a name may stand for any.
fn may_carry_credentials(is_encrypted: bool, peer: IpAddr) -> bool {
    is_encrypted || peer.to_canonical().is_loopback()
}

async fn answer_of<T: DeserializeOwned>(
    response: hyper::Response<Incoming>,
    id: HostId,
    room: Room,
) -> Result<Option<T>, String> {
    let status = response.status();
    if matches!(status, StatusCode::NOT_FOUND | StatusCode::CONFLICT) {
        // It has not heard of it yet, or not begun.
        return Ok(None);
    }
    // Also what is under way there, and what was refused there.
    let says = [
        StatusCode::OK,
        StatusCode::ACCEPTED,
        StatusCode::UNPROCESSABLE_ENTITY,
    ];
    if status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN {
        return Err(format!(
            "it answers with status {status}: send a token, or give a principal that may see this an identity of this host's certificate"
        ));
    }
    if !says.contains(&status) {
        return Err(format!("it answers with status {status}; its log says why"));
    }
    let by = response.headers().get(&ANSWERED_BY).cloned();
    if by.is_none_or(|by| by.as_bytes() != id.to_string().as_bytes()) {
        return Err(
            "another host answers at its address; give each host its own with --advertise"
                .to_owned(),
        );
    }
    let (mut body, mut bytes) = (response.into_body(), Vec::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| format!("its answer breaks off: {error}"))?;
        if let Ok(data) = frame.into_data() {
            room.take(data.len())?;
            bytes.extend_from_slice(&data);
        }
    }
    let answer = serde_json::from_slice(&bytes);
    answer.map(Some).map_err(|error| {
        format!(
            "its answer cannot be read: {error}; if it has another version, bring both to the same one"
        )
    })
}

fn missing(host: &HostInfo, why: String) -> MissingHost {
    MissingHost {
        id: host.id.to_string(),
        address: host.address.to_string(),
        why,
    }
}

/// An answer that says which host gives it, if it was asked only for itself.
pub(super) struct OfThis<T> {
    whose: Whose,
    id: HostId,
    body: T,
}

impl Called {
    /// Answers with this.
    pub(super) fn answer_of_this<T>(&self, whose: Whose, body: T) -> OfThis<T> {
        let (id, _) = self.broker.hosts();
        OfThis { whose, id, body }
    }
}

impl<T: Serialize> IntoResponse for OfThis<T> {
    fn into_response(self) -> Response {
        OfThis {
            whose: self.whose,
            id: self.id,
            body: Json(self.body).into_response(),
        }
        .signed()
    }
}

impl OfThis<Response> {
    /// An answer that is complete but for the host's name.
    pub(super) fn signed(self) -> Response {
        let mut response = self.body;
        if self.whose == Whose::This
            && let Ok(id) = HeaderValue::from_str(&self.id.to_string())
        {
            response.headers_mut().insert(ANSWERED_BY, id);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_leave_the_machine_only_encrypted() {
        for (peer, stays) in [
            ("127.0.0.1", true),
            ("127.1.2.3", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("0.0.0.0", false),
            ("10.0.0.1", false),
            ("192.0.2.1", false),
            ("2001:db8::1", false),
            ("fe80::1", false),
            ("::ffff:10.0.0.1", false),
        ] {
            let peer = peer.parse().expect("an address");
            assert_eq!(may_carry_credentials(false, peer), stays, "{peer}");
            assert!(may_carry_credentials(true, peer), "{peer}");
        }
    }
}
