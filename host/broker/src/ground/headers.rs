//! Headers that the host alone writes, and those of them that stay with a message beyond its death.

/// Header names that begin so are written by the host alone.
pub(crate) const PREFIX: &str = "millrace-";

/// By how many counting processors a message came.
pub(crate) const HOPS: &str = "millrace-hops";

/// Beside the former: the message was given up for its hops before, and came round all the same.
pub(crate) const ENDED: &str = "millrace-hops-ended";

/// Names the schedule that made a message.
pub(crate) const SCHEDULE: &str = "millrace-schedule";

/// When it was due, in milliseconds since the Unix epoch.
pub(crate) const DUE: &str = "millrace-due";

/// How many earlier ones it stands for as well; absent if none.
pub(crate) const MISSED: &str = "millrace-missed";

/// Who had a message made by hand, between the times of its schedule; absent of all others.
pub(crate) const RUN_BY: &str = "millrace-run-by";

/// What the host said of a message before it died, and says of it after: a dead letter has these as well.
const KEPT: [&str; 6] = [HOPS, ENDED, SCHEDULE, DUE, MISSED, RUN_BY];

/// Whether a header is no evidence of the death: the message had it before.
pub(crate) fn is_kept(name: &[u8]) -> bool {
    !is_reserved(name) || KEPT.iter().any(|kept| kept.as_bytes() == name)
}

/// Whether only the host may write a header of this name.
pub(crate) fn is_reserved(name: &[u8]) -> bool {
    name.starts_with(PREFIX.as_bytes())
}
