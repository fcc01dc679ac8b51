//! The schemas of revisions: what they are made of, and their records.

use utoipa::ToSchema;

use super::ProcessorSpecSchema;

#[derive(ToSchema)]
#[schema(as = Revision)]
pub(super) struct RevisionSchema {
    number: u32,
    spec: ProcessorSpecSchema,
    /// Milliseconds since the Unix epoch.
    deployed_at: u64,
    /// Who deployed it, as claimed.
    deployed_by: Option<String>,
    /// The revision that it replaced.
    predecessor: Option<u32>,
    /// Whether it was never current.
    trial: Option<bool>,
    /// What the host did with it by itself, and why.
    note: Option<String>,
    /// The number of its run: consecutive revisions without a proven one among them.
    unproven_run: u32,
    /// What the host still has to redrive of what it gave up; absent if nothing.
    redrive_due: Option<RedriveDueSchema>,
    record: RecordSchema,
}

/// A due redrive: of these revisions, up to the one that it is stored with.
#[derive(ToSchema)]
#[schema(as = RedriveDue)]
struct RedriveDueSchema {
    /// The first revision.
    from: u32,
    /// Only dead letters given up at this time or later, in milliseconds since the Unix epoch.
    since: u64,
}

/// A revision's record.
#[derive(ToSchema)]
#[schema(as = RevisionRecord)]
struct RecordSchema {
    /// When it processed its first message; absent if it never did.
    worked_at: Option<u64>,
    /// Whether it has processed enough that failures count as the messages' fault, now or when it was current before.
    proven: bool,
    /// Whether it was proven since it last became current.
    proven_anew: bool,
    /// How many messages it has processed since it last became current, as far as that matters for its proof; absent if none.
    processed: Option<u32>,
    /// When it processed the first of them, or the first after a stop; absent if none.
    processed_since: Option<u64>,
    /// Why it is stopped, or was stopped when another revision replaced it; absent if it is not.
    stopped: Option<StoppedSchema>,
    /// Its position in the order in which revisions were last replaced; absent if it never was.
    left_as: Option<u32>,
    /// Its usual rejections; absent if there are none.
    rejections: Option<Vec<RejectionsSchema>>,
    /// Over how many messages these shares were measured; absent if none.
    measured: Option<u32>,
    /// Whether its decisions no longer count, because it was rolled back or withdrawn; absent if not.
    voided: Option<bool>,
    /// Classes that were usual and that it rejected too often; absent if there are none.
    doubted: Option<Vec<String>>,
}

#[derive(ToSchema)]
#[schema(as = Stopped)]
struct StoppedSchema {
    /// The kind of its failures; absent if the component reported an outage.
    class: Option<String>,
    text: String,
}

#[derive(ToSchema)]
#[schema(as = Rejections)]
struct RejectionsSchema {
    class: String,
    /// Rejections per million messages.
    per_million: u32,
}
