//! Opens the stream: the connection, what must be so for the promises to hold, and the stream with its settings.

use std::time::Duration;

use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType, Stream};
use async_nats::jetstream::{self, Context, ErrorCode};
use async_nats::{Client, ConnectError, ConnectErrorKind, ConnectOptions};

use crate::options::{Credentials, JetstreamOptions};
use crate::subjects::Subjects;

/// The first version in which batches with several checks are right.
const SERVER_VERSION_MIN: (u32, u32) = (2, 15);
/// Characters of the stream's name, which begins every subject.
const STREAM_CHARS_MAX: usize = 32;
/// How long the first connection may take.
const CONNECT_DURATION_MAX: Duration = Duration::from_secs(10);
/// How long it is tried to find or create the stream.
const STREAM_DURATION_MAX: Duration = Duration::from_secs(20);
const STREAM_INTERVAL: Duration = Duration::from_millis(300);
/// How long an answer about the stream may take.
const REQUEST_DURATION_MAX: Duration = Duration::from_secs(5);
/// Messages that wait for the reader of one subscription. More than that is a reader that stands still: the feed then begins anew.
const SUBSCRIPTION_MESSAGES_MAX: usize = 64 << 10;

/// Why the stream cannot be used. Nothing was lost.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Not a name that is one word of a subject.
    #[error("{0:?} cannot be the stream's name: use 1 to 32 letters, digits, `-` and `_`")]
    Stream(String),
    /// The credentials cannot be used.
    #[error("the credentials for NATS cannot be used: {0}")]
    Credentials(String),
    /// A wrong password, or none.
    #[error(
        "NATS does not let this host in ({0}); check its user and password, token, nkey or credentials file (engine.jetstream), and that \
         the servers know them"
    )]
    NotLetIn(String),
    /// The certificate of the server is not trusted, or is another server's.
    #[error(
        "the servers' certificate is not accepted ({0}); give the file of the authority that signed it as engine.jetstream.ca_file, and \
         call the servers by names in their certificates"
    )]
    Certificate(String),
    /// It cannot be reached.
    #[error("NATS cannot be reached ({0}); check the addresses, and that a server runs there")]
    Unreachable(String),
    /// It does not do what the engine needs.
    #[error(
        "NATS {found} is too old: batches with several conditions are wrong before 2.15. Upgrade the servers to 2.15 or newer"
    )]
    ServerVersion {
        /// Its version.
        found: String,
    },
    /// It keeps nothing.
    #[error(
        "the server has no JetStream for this account: start it with a `jetstream` block in its configuration, and enable it for the account"
    )]
    NoJetstream,
    /// A stream of this name is something else, or was changed.
    #[error(
        "stream {stream} has {what}; give another name (engine.jetstream.stream), or correct it with `nats stream edit {stream}`"
    )]
    Settings {
        /// Its name.
        stream: String,
        /// What is not as it must be.
        what: String,
    },
    /// There is no stream, and none is to be created.
    #[error("the servers have no stream {0}; name the one that the hosts use")]
    NoStream(String),
    /// A request failed.
    #[error("NATS refused to be opened ({0})")]
    Refused(String),
}

/// What is connected.
pub(crate) struct Connected {
    pub(crate) client: Client,
    pub(crate) stream: Stream<()>,
}

pub(crate) async fn open(options: &JetstreamOptions) -> Result<Connected, OpenError> {
    let name = &options.stream;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || name.len() > STREAM_CHARS_MAX || !name.chars().all(is_plain) {
        return Err(OpenError::Stream(name.clone()));
    }
    let connecting = connect_options(options)?.connect(options.servers.clone());
    let client = tokio::time::timeout(CONNECT_DURATION_MAX, connecting).await;
    let client = client
        .map_err(|_| OpenError::Unreachable("no answer".to_owned()))?
        .map_err(|error| not_connected(&error))?;
    let info = client.server_info();
    if version_of(&info.version).is_none_or(|version| version < SERVER_VERSION_MIN) {
        let found = info.version;
        return Err(OpenError::ServerVersion { found });
    }
    if !info.jetstream {
        return Err(OpenError::NoJetstream);
    }
    let mut context = jetstream::new(client.clone());
    context.set_timeout(REQUEST_DURATION_MAX);
    let is_cluster = info.cluster.is_some();
    let stream = stream(options, &context, is_cluster).await?;
    Ok(Connected { client, stream })
}

fn not_connected(error: &ConnectError) -> OpenError {
    let text = error.to_string();
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
            OpenError::NotLetIn(text)
        }
        // That it was a certificate is only in the text of the TLS library.
        _ if text.contains("certificate") => OpenError::Certificate(text),
        _ => OpenError::Unreachable(text),
    }
}

fn connect_options(options: &JetstreamOptions) -> Result<ConnectOptions, OpenError> {
    let refused = |error: std::io::Error| OpenError::Credentials(error.to_string());
    let mut connect = ConnectOptions::new()
        .name(format!("millrace {}", options.stream))
        .subscription_capacity(SUBSCRIPTION_MESSAGES_MAX)
        .request_timeout(Some(REQUEST_DURATION_MAX))
        .ping_interval(Duration::from_secs(10))
        .reconnect_delay_callback(|tries| {
            Duration::from_millis(50 * u64::try_from(tries).unwrap_or(20).min(20))
        });
    connect = match &options.credentials {
        Credentials::None => connect,
        Credentials::Password { user, password } => {
            connect.user_and_password(user.clone(), password.clone())
        }
        Credentials::Token(token) => connect.token(token.clone()),
        Credentials::Nkey(seed) => connect.nkey(seed.clone()),
        Credentials::File(content) => connect.credentials(content).map_err(refused)?,
    };
    let identity = options.tls_identity.iter();
    let identity = identity.flat_map(|(certificate, key)| [certificate, key]);
    for file in options.tls_ca.iter().chain(identity) {
        // Otherwise the error of the connection does not name it.
        std::fs::File::open(file).map_err(|error| {
            OpenError::Credentials(format!("{} cannot be read: {error}", file.display()))
        })?;
    }
    if let Some(authorities) = &options.tls_ca {
        connect = connect
            .add_root_certificates(authorities.clone())
            .require_tls(true);
    }
    if let Some((certificate, key)) = &options.tls_identity {
        connect = connect
            .add_client_certificate(certificate.clone(), key.clone())
            .require_tls(true);
    }
    Ok(connect)
}

fn version_of(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(['.', '-']);
    let mut number = || numbers.next()?.parse().ok();
    Some((number()?, number()?))
}

/// Creates the stream, or checks the one that is there.
async fn stream(
    options: &JetstreamOptions,
    context: &Context,
    is_cluster: bool,
) -> Result<Stream<()>, OpenError> {
    let wanted = Config {
        name: options.stream.clone(),
        subjects: vec![Subjects::new(&options.stream).all()],
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        num_replicas: options.replicas.unwrap_or(if is_cluster { 3 } else { 1 }),
        discard: DiscardPolicy::New,
        allow_direct: true,
        allow_rollup: true,
        allow_message_ttl: true,
        allow_atomic_publish: true,
        ..Config::default()
    };
    // A cluster that has just started takes a moment until it can have streams.
    let mut why = String::new();
    let making = tokio::time::timeout(STREAM_DURATION_MAX, async {
        loop {
            match context.get_stream(&options.stream).await {
                Ok(found) => return Ok(found),
                Err(error) if !options.makes_stream && is_missing(error.kind()) => {
                    return Err(OpenError::NoStream(options.stream.clone()));
                }
                Err(error) if !options.makes_stream => {
                    why = error.to_string();
                    tokio::time::sleep(STREAM_INTERVAL).await;
                    continue;
                }
                Err(_) => {}
            }
            // Several hosts may create it at once, with the same settings.
            if let Err(error) = context.create_stream(wanted.clone()).await {
                let is_first = why.is_empty();
                why = error.to_string();
                if is_first {
                    tracing::warn!(%error, "the stream cannot be created yet; it is tried again");
                }
                tokio::time::sleep(STREAM_INTERVAL).await;
            }
        }
    });
    let made = making.await;
    let found = made.map_err(|_| {
        OpenError::Refused(match options.makes_stream {
            true => format!(
                "the stream cannot be created: {why}. Is there a server for each of its copies, and is JetStream enabled for the account?"
            ),
            false => format!("no answer about the stream: {why}"),
        })
    })??;
    check(&options.stream, &wanted, &found.cached_info().config)?;
    let handle = context.get_stream_no_info(&options.stream).await;
    handle.map_err(|error| OpenError::Refused(error.to_string()))
}

fn is_missing(kind: GetStreamErrorKind) -> bool {
    matches!(kind, GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

fn check(name: &str, wanted: &Config, found: &Config) -> Result<(), OpenError> {
    let wrong = [
        (
            found.subjects != wanted.subjects,
            "other subjects than its own",
        ),
        (
            found.storage != StorageType::File,
            "its data in memory, not in files",
        ),
        (
            found.retention != RetentionPolicy::Limits,
            "a retention policy other than `limits`",
        ),
        (!found.allow_direct, "allow_direct off"),
        (!found.allow_rollup, "allow_rollup_hdrs off"),
        (!found.allow_message_ttl, "allow_msg_ttl off"),
        (!found.allow_atomic_publish, "allow_atomic off"),
        (
            found.deny_delete || found.deny_purge,
            "deny_delete or deny_purge on",
        ),
        (found.sealed, "been sealed"),
        (
            found.max_messages > 0
                || found.max_messages_per_subject > 0
                || !found.max_age.is_zero(),
            "a limit on messages, messages per subject or age, so the server would remove what is in use",
        ),
        (
            found.max_bytes > 0 && found.discard != DiscardPolicy::New,
            "a limit on bytes that discards old messages (discard must be `new`)",
        ),
        (
            found.max_message_size > 0 && found.max_message_size < 1 << 20,
            "a maximum message size below 1 MiB",
        ),
    ];
    match wrong.iter().find(|(is_wrong, _)| *is_wrong) {
        Some((_, what)) => Err(OpenError::Settings {
            stream: name.to_owned(),
            what: (*what).to_owned(),
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::version_of;

    #[test]
    fn versions_are_compared_by_number() {
        assert_eq!(version_of("2.15.1"), Some((2, 15)));
        assert_eq!(version_of("2.9.10"), Some((2, 9)));
        assert_eq!(version_of("3.0.0-RC.1"), Some((3, 0)));
        assert_eq!(version_of("latest"), None);
        assert!(version_of("2.9.10") < version_of("2.15.0"));
    }
}
