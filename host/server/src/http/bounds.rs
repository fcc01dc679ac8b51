//! Bounds of the HTTP door, by name and unit, and what happens at each. Those of connections and
//! memory are in [`crate::net::bounds`].

/// Body of a produce request; a larger one gets 413.
pub(crate) const PRODUCE_BODY_BYTES_MAX: usize = 32 << 20;
/// Body of any other JSON request; a larger one gets 413.
pub(crate) const JSON_BODY_BYTES_MAX: usize = 1 << 20;
/// Body of a request that writes state; a larger one gets 413. Any single entry fits, even a text
/// in which each byte takes six bytes of JSON.
pub(crate) const STATE_BODY_BYTES_MAX: usize = 2 << 20;
/// Body of a request for a backup, which lists the files that the client already has; a larger one
/// gets 413.
pub(crate) const BACKUP_BODY_BYTES_MAX: usize = 64 << 20;
/// Body of a request that a component answers; a longer one is cut off, which the component sees.
pub(crate) const ROUTE_BODY_BYTES_MAX: u64 = 32 << 20;
/// Messages of one produce request; more get 413.
pub(crate) const PRODUCE_MESSAGES_MAX: usize = 100_000;
/// Uploads that are being checked and compiled, or wait for it; a further one gets 503. It is more
/// than the module host lets wait, because the module host refuses the uploader with the most
/// waiting.
pub(crate) const UPLOADS_MAX: usize = 128;
/// How long an upload waits for its module to be compiled if it does not say; then it gets 202, and
/// the compile continues. A deployment waits this long for the module that it names.
pub(crate) const UPLOAD_WAIT_MS: u64 = 30_000;
/// The longest that an upload may wait for its module; a request for longer waits this long.
pub(crate) const UPLOAD_WAIT_MS_MAX: u64 = 60_000;
/// How long a request waits for room for its body.
pub(crate) const BODY_ROOM_WAIT_MS_MAX: u64 = 5_000;
/// Silence within a body after which the sender gets 408.
pub(crate) const BODY_SILENCE_MS_MAX: u64 = 15_000;
/// The longest time for a whole body; after that its sender gets 408.
pub(crate) const BODY_MS_MAX: u64 = 300_000;
/// Bytes of a refused body that are read before its sender gets the answer; if it is longer, the
/// connection ends with the answer.
pub(crate) const DISCARDED_BYTES_MAX: u64 = 64 << 20;
/// How long reading a refused body may take.
pub(crate) const DISCARD_MS_MAX: u64 = 5_000;
/// How long a request continues after its caller closed its side of the connection; then it gets
/// 408, because most such callers have disconnected. A waiting fetch is answered at once.
pub(crate) const HALF_CLOSED_MS_MAX: u64 = 10_000;
/// A request's head; a larger one gets 431 and the connection is closed.
pub(crate) const HEAD_BYTES_MAX: usize = 64 << 10;
/// Fetches that may wait at the same time, in percent of `connections_max`; a further one that
/// would have to wait gets 503.
pub(crate) const WAITING_PERCENT_MAX: usize = 75;
/// Header lines of a request; more get 431.
pub(crate) const HEAD_LINES_MAX: usize = 128;
/// Messages of one fetch; a request for more gets this many.
pub(crate) const FETCH_MESSAGES_MAX: usize = 10_000;
/// Bytes of one fetch; a request for more gets this many, or fewer if memory is scarce. One larger
/// message is still returned.
pub(crate) const FETCH_BYTES_MAX: usize = 16 << 20;
/// The memory for answers has room for at least this many fetches at once.
pub(crate) const FETCHES_LEAST: usize = 8;
/// Partitions of one fetch over several partitions; a request for more gets 413.
pub(crate) const FETCH_PARTITIONS_MAX: usize = 2_000;
/// How long a fetch waits for messages; a request for longer waits this long.
pub(crate) const FETCH_WAIT_MS_MAX: u64 = 30_000;
/// How long a produce request with `wait` waits for the processor if it does not say.
pub(crate) const PRODUCE_WAIT_MS: u64 = 10_000;
/// How long a request waits for room for its answer.
pub(crate) const ANSWER_ROOM_WAIT_MS_MAX: u64 = 1_000;
/// Memory of a list of dead letters, as messages and as JSON; the list ends where the next one
/// might not fit.
pub(crate) const DEAD_LETTERS_ROOM_BYTES: usize = 128 << 20;
/// Memory of one dead letter, as a message and as JSON.
pub(crate) const DEAD_LETTER_ROOM_BYTES: usize = 112 << 20;
/// Memory of a list of delayed messages as JSON: the worst case is 4 MiB of messages that consist
/// of headers.
pub(crate) const DELAYED_ROOM_BYTES: usize = 72 << 20;
/// Dead letters in one HTTP answer; a request for more gets this many.
pub(crate) const DEAD_LETTERS_MAX: usize = 1_000;
/// Refusals of credentials that are held back at the same time; beyond these, the answer is sent at once and ends its connection.
pub(super) const HELD_BACK_MAX: usize = 256;
/// Characters of a request id chosen by the caller; a longer one is replaced.
pub(crate) const REQUEST_ID_CHARS_MAX: usize = 64;
/// Bytes of the caller's name in the header `Millrace-By`; longer ones are cut.
pub(crate) const BY_BYTES_MAX: usize = 64;
/// How long another host may take to say what it counts; after that it is shown as missing.
pub(crate) const OTHERS_MS_MAX: u64 = 1_000;
/// Other hosts that are asked what they count; further ones are shown as missing.
pub(crate) const OTHERS_HOSTS_MAX: usize = 32;
/// Bytes of all answers of other hosts to one question; hosts whose answers no longer fit are shown
/// as missing.
pub(crate) const OTHERS_BYTES_MAX: usize = 16 << 20;
/// Head of another host's answer; a host whose answer has a larger one is shown as missing.
pub(crate) const OTHERS_HEAD_BYTES_MAX: usize = 16 << 10;
/// Requests that ask other hosts at the same time; a further one waits, see [`OTHERS_WAIT_MS_MAX`].
pub(crate) const OTHERS_ASKING_MAX: usize = 8;
/// How long a request waits to ask other hosts; then it shows them all as missing.
pub(crate) const OTHERS_WAIT_MS_MAX: u64 = 3_000;
