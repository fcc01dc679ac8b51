//! The shapes of revisions: what they are made of, and how they did.

use utoipa::ToSchema;

use super::ProcessorSpecSchema;

#[derive(ToSchema)]
#[schema(as = Revision)]
pub(super) struct RevisionSchema {
    number: u32,
    spec: ProcessorSpecSchema,
    /// Milliseconds since the Unix epoch.
    deployed_at: u64,
    /// Who deployed it, as far as they said.
    deployed_by: Option<String>,
    /// The revision that it took over from.
    predecessor: Option<u32>,
    /// Whether it was never the current one.
    trial: Option<bool>,
    /// What the host did with it by itself, and why.
    note: Option<String>,
    /// The number of the run that it belongs to: of revisions that came one after the other without one of them being proven.
    unproven_run: u32,
    /// What the host has yet to send again of what it gave up; absent if nothing.
    redrive_due: Option<RedriveDueSchema>,
    record: RecordSchema,
}

/// Dead letters that the host sends again by itself: of these revisions up to the one that it is said of.
#[derive(ToSchema)]
#[schema(as = RedriveDue)]
struct RedriveDueSchema {
    /// The first revision.
    from: u32,
    /// Of letters that died at this time or later, in milliseconds since the Unix epoch.
    since: u64,
}

/// How a revision did.
#[derive(ToSchema)]
#[schema(as = RevisionRecord)]
struct RecordSchema {
    /// When it processed its first message; absent if it never did.
    worked_at: Option<u64>,
    /// Whether it has processed enough for its failures to be the messages', now or when it was current before.
    proven: bool,
    /// Whether it was proven since it became current last.
    proven_anew: bool,
    /// How many messages it processed since it became current last, as far as that matters for its proof; absent if none.
    processed: Option<u32>,
    /// When it processed the first of them, or the first after it stood still; absent if it processed none since.
    processed_since: Option<u64>,
    /// Why it stands still, or stood still when another revision took over; absent if it does not.
    stopped: Option<StoppedSchema>,
    /// Its place in the order in which revisions were left, the last time it was; absent if it never was.
    left_as: Option<u32>,
    /// What it rejected as a matter of course; absent if nothing.
    rejections: Option<Vec<RejectionsSchema>>,
    /// Of how many messages those are shares; absent if of none.
    measured: Option<u32>,
    /// Whether its word counts no longer: it was taken back or withdrawn; absent if not.
    voided: Option<bool>,
    /// Classes that were usual, and of which it rejected so many that they no longer are; absent if there are none.
    doubted: Option<Vec<String>>,
}

#[derive(ToSchema)]
#[schema(as = Stopped)]
struct StoppedSchema {
    /// What its failures were like; absent where the component said that something outside is down.
    class: Option<String>,
    text: String,
}

#[derive(ToSchema)]
#[schema(as = Rejections)]
struct RejectionsSchema {
    class: String,
    /// Of a million messages so many.
    per_million: u32,
}
