//! Bounds of every door, by name and unit, and what happens at each.

/// Memory for incoming data that all doors together hold in memory. When it is full, senders wait a
/// little and are then told that the host is busy.
pub(crate) const BODIES_KIB_MAX: usize = 256 << 10;
/// Memory for answers with messages that all doors together hold in memory. When it is full, a reader
/// waits a little and is then told that the host is busy. Any single answer fits, even 16 MiB of
/// messages that consist of headers, in which each byte takes thirteen bytes of JSON.
pub(crate) const ANSWERS_KIB_MAX: usize = 256 << 10;
/// How long incoming data is discarded after an answer that ends its connection, so that the sender
/// can read the answer; then the connection is cut.
pub(crate) const LINGER_MS_MAX: u64 = 30_000;
/// Silence after which discarding ends.
pub(crate) const LINGER_SILENCE_MS_MAX: u64 = 3_000;
/// How long discarding takes at most when the host stops.
pub(crate) const STOPPING_LINGER_MS_MAX: u64 = 500;
/// The longest time for a request's head, from its first byte on; then the connection is closed,
/// over HTTP with 408.
pub(crate) const HEAD_MS_MAX: u64 = 30_000;
/// The longest time for the beginning of TLS; then the connection is closed.
pub(crate) const HANDSHAKE_MS_MAX: u64 = 10_000;
/// Alternative names of a client's certificate that are looked at, from the first on.
pub(crate) const CERTIFICATE_NAMES_MAX: usize = 64;
/// Connections at the Unix socket, which is for administration on the machine itself. At the bound an idle connection makes room.
pub(crate) const SOCKET_CONNECTIONS_MAX: usize = 64;
/// Connections that wait at the Unix socket to be accepted; further ones are refused.
pub(crate) const SOCKET_BACKLOG_MAX: u32 = 64;
/// Bytes of a certificate's file, and of a key's. A larger one is refused.
pub(crate) const TLS_FILE_BYTES_MAX: u64 = 1 << 20;
/// A new connection that sends nothing for this long is closed.
pub(crate) const FIRST_BYTE_MS_MAX: u64 = 15_000;
/// Connections of each door that are reserved for administration, so that a busy host can still be
/// inspected and managed. Over HTTP each takes one request; a request that produces or fetches gets
/// 503.
pub(crate) const RESERVED_CONNECTIONS_MAX: usize = 32;
/// A reserved connection that sends nothing for this long is closed.
pub(crate) const RESERVED_IDLE_MS_MAX: u64 = 2_000;
/// Further connections that get a refusal (over HTTP 503) at the same time; beyond these,
/// connections are closed without an answer.
pub(crate) const REFUSED_CONNECTIONS_MAX: usize = 32;
/// Connections that are being closed to make room for new ones; at this number, further new ones
/// use the reserve.
pub(crate) const ENDING_CONNECTIONS_MAX: usize = 32;
/// A reader that takes nothing of its answer for this long is disconnected.
pub(crate) const WRITE_SILENCE_MS_MAX: u64 = 30_000;
