//! Bounds of the front door for HTTP, by name and unit. What happens at each is said beside it; those of connections and memory are
//! [`crate::net::bounds`].

/// Body of a produce request; a larger one gets 413.
pub(crate) const PRODUCE_BODY_BYTES_MAX: usize = 32 << 20;
/// Body of any other JSON request; a larger one gets 413.
pub(crate) const JSON_BODY_BYTES_MAX: usize = 1 << 20;
/// Body of a request that writes state; a larger one gets 413. The worst single entry fits: a text of which each byte takes six.
pub(crate) const STATE_BODY_BYTES_MAX: usize = 2 << 20;
/// Body of a request for a backup, which names what need not be sent; a larger one gets 413.
pub(crate) const BACKUP_BODY_BYTES_MAX: usize = 64 << 20;
/// Messages of one produce request; more get 413.
pub(crate) const PRODUCE_MESSAGES_MAX: usize = 100_000;
/// Uploads that are checked and compiled, or wait for it, at once; a further one gets 503. More than the module host lets wait: it
/// sends away whoever has most waiting.
pub(crate) const UPLOADS_MAX: usize = 128;
/// How long a request waits for room for its body.
pub(crate) const BODY_ROOM_WAIT_MS_MAX: u64 = 5_000;
/// Silence within a body after which the sender gets 408.
pub(crate) const BODY_SILENCE_MS_MAX: u64 = 15_000;
/// A body takes no longer than this in all, or its sender gets 408.
pub(crate) const BODY_MS_MAX: u64 = 300_000;
/// Bytes of an unwanted body that are taken before its sender is answered; of more the connection ends with the answer.
pub(crate) const DISCARDED_BYTES_MAX: u64 = 64 << 20;
/// How long that may take.
pub(crate) const DISCARD_MS_MAX: u64 = 5_000;
/// How long a request is worked on whose caller has closed its side of the connection; then it gets 408. Most such callers have gone
/// altogether. A fetch that waits is answered at once.
pub(crate) const HALF_CLOSED_MS_MAX: u64 = 10_000;
/// A request's head; a larger one gets 431 and the connection is closed.
pub(crate) const HEAD_BYTES_MAX: usize = 64 << 10;
/// Fetches that wait at once, as a share of `connections_max`, in percent; a further one that would wait gets 503.
pub(crate) const WAITING_PERCENT_MAX: usize = 75;
/// Header lines of a request; more get 431.
pub(crate) const HEAD_LINES_MAX: usize = 128;
/// Messages of one fetch; asking for more gives this many.
pub(crate) const FETCH_MESSAGES_MAX: usize = 10_000;
/// Bytes of one fetch; asking for more gives this many (one larger message still comes), or fewer where memory is scarce.
pub(crate) const FETCH_BYTES_MAX: usize = 16 << 20;
/// So many fetches at least have room for their answers at once, as they are read.
pub(crate) const FETCHES_LEAST: usize = 8;
/// Partitions of one fetch over several; asking for more gets 413.
pub(crate) const FETCH_PARTITIONS_MAX: usize = 2_000;
/// How long a fetch waits for messages; asking for longer waits this long.
pub(crate) const FETCH_WAIT_MS_MAX: u64 = 30_000;
/// How long a request waits for room for its answer.
pub(crate) const ANSWER_ROOM_WAIT_MS_MAX: u64 = 1_000;
/// What a list of dead letters may take, read and as JSON; it ends where the next one might not fit.
pub(crate) const DEAD_LETTERS_ROOM_BYTES: usize = 128 << 20;
/// What one dead letter may take, read and as JSON.
pub(crate) const DEAD_LETTER_ROOM_BYTES: usize = 112 << 20;
/// What a list of delayed messages may take as JSON: 4 MiB of them at the worst, where all are headers.
pub(crate) const DELAYED_ROOM_BYTES: usize = 72 << 20;
/// Dead letters of one list; asking for more gives this many.
pub(crate) const DEAD_LETTERS_MAX: usize = 1_000;
/// Characters of a request id that is taken over from the caller; a longer one is replaced.
pub(crate) const REQUEST_ID_CHARS_MAX: usize = 64;
/// Bytes of who says to ask, in the header `Millrace-By`; more are cut.
pub(crate) const BY_BYTES_MAX: usize = 64;
