//! Bounds of every front door, by name and unit. What happens at each is said beside it.

/// What is being received, held in memory at once, all doors together, in KiB. Full means that senders wait a little, and are then told
/// that the host is busy.
pub(crate) const BODIES_KIB_MAX: usize = 256 << 10;
/// Answers that carry messages, held in memory at once, all doors and readers together, in KiB. Full means that a reader waits a little,
/// and is then told that the host is busy. The worst single answer fits: 16 MiB, of which each byte takes thirteen where all are headers.
pub(crate) const ANSWERS_KIB_MAX: usize = 256 << 10;
/// How long what still comes is thrown away after an answer that ends its connection, so that its sender reads the answer; then the
/// connection is cut.
pub(crate) const LINGER_MS_MAX: u64 = 30_000;
/// Silence after which that ends.
pub(crate) const LINGER_SILENCE_MS_MAX: u64 = 3_000;
/// How long that takes at the most when the host stops.
pub(crate) const STOPPING_LINGER_MS_MAX: u64 = 500;
/// A request's head takes no longer than this, from its first byte on; then its connection is ended, over HTTP with 408.
pub(crate) const HEAD_MS_MAX: u64 = 30_000;
/// A new connection that says nothing for so long is closed.
pub(crate) const FIRST_BYTE_MS_MAX: u64 = 15_000;
/// Connections for administration beyond a door's other ones, so that a busy host can still be looked at and steered. Over HTTP each takes
/// one request, and none that produces or fetches (503).
pub(crate) const RESERVED_CONNECTIONS_MAX: usize = 32;
/// Such a connection that says nothing for so long is closed.
pub(crate) const RESERVED_IDLE_MS_MAX: u64 = 2_000;
/// Connections beyond those that are told so (over HTTP by 503) at once; further ones are closed without a word.
pub(crate) const REFUSED_CONNECTIONS_MAX: usize = 32;
/// Connections that are being closed to make room for new ones; further new ones are of the reserve.
pub(crate) const ENDING_CONNECTIONS_MAX: usize = 32;
/// A reader that takes nothing of its answer for so long is disconnected.
pub(crate) const WRITE_SILENCE_MS_MAX: u64 = 30_000;
