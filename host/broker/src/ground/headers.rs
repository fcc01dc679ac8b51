//! Headers that only the host may write, and those of them that stay with a message after it has
//! failed.

/// Only the host may write headers with this prefix.
pub(crate) const PREFIX: &str = "millrace-";

/// How many counting processors a message has passed.
pub(crate) const HOPS: &str = "millrace-hops";

/// In addition to `millrace-hops`: the message was already given up for its hops, and came round
/// again.
pub(crate) const ENDED: &str = "millrace-hops-ended";

/// The schedule that created a message.
pub(crate) const SCHEDULE: &str = "millrace-schedule";

/// The scheduled time, in milliseconds since the Unix epoch.
pub(crate) const DUE: &str = "millrace-due";

/// How many missed times it also stands for; absent if none.
pub(crate) const MISSED: &str = "millrace-missed";

/// Who ran a schedule by hand, outside its times, and so created this message; absent on all other
/// messages.
pub(crate) const RUN_BY: &str = "millrace-run-by";

/// The host's headers that a message had before it failed and keeps afterwards: a dead letter has these as well.
const KEPT: [&str; 6] = [HOPS, ENDED, SCHEDULE, DUE, MISSED, RUN_BY];

/// Whether the message had this header before it failed, so that it does not belong to the
/// evidence.
pub(crate) fn is_kept(name: &[u8]) -> bool {
    !is_reserved(name) || KEPT.iter().any(|kept| kept.as_bytes() == name)
}

/// Whether only the host may write a header with this name.
pub(crate) fn is_reserved(name: &[u8]) -> bool {
    name.starts_with(PREFIX.as_bytes())
}
