//! Reads the audit log, newest first.

use millrace_model::bounds::{AUDIT_LISTED_MAX, AUDIT_SCANNED_MAX};
use millrace_model::{Offset, PartitionId, PrincipalName};
use serde::Serialize;

use crate::audit::log::{AuditLog, topic};
use crate::audit::record::{AuditRecord, AuditResult};
use crate::ground::verbs::Verb;
use crate::messages::fetch::{FetchError, FetchRequest};

/// Records that are read at once, backwards.
const STEP: u64 = 256;
/// Bytes of one read.
const STEP_BYTES_MAX: usize = 1 << 20;

/// Which records to show.
#[derive(Clone, Debug, Default)]
pub struct AuditQuery {
    /// The maximum number of records; at most [`AUDIT_LISTED_MAX`].
    pub max: usize,
    /// Only those before this offset, from an earlier answer.
    pub before: Option<Offset>,
    /// Only those of this principal.
    pub principal: Option<PrincipalName>,
    /// Only refusals.
    pub only_refused: bool,
}

/// Records of the audit log.
#[derive(Clone, Debug, Default, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditRecords {
    /// Newest first.
    pub records: Vec<AuditRecord>,
    /// Where to continue, as `before`; null if there are no earlier ones.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u64>))]
    pub next: Option<Offset>,
}

impl AuditQuery {
    fn wants(&self, record: &AuditRecord) -> bool {
        let is_of = self.principal.is_none() || record.principal == self.principal;
        is_of && (!self.only_refused || record.result == AuditResult::Refused)
    }
}

impl AuditLog {
    /// Records, newest first. A call looks at [`AUDIT_SCANNED_MAX`] records at most, and says where to continue.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn records(&self, query: &AuditQuery) -> Result<AuditRecords, FetchError> {
        self.caller.may(Verb::ReadAudit, "")?;
        let mut page = AuditRecords::default();
        let known = topic().and_then(|topic| self.inner.catalogue.topic(&topic));
        let Some(known) = known else {
            return Ok(page);
        };
        let Some(ends) = self.inner.catalogue.ends(&known, PartitionId(0)) else {
            return Ok(page);
        };
        let max = query.max.clamp(1, AUDIT_LISTED_MAX);
        let mut end = query.before.map_or(ends.end, |before| before.min(ends.end));
        let least = Offset(end.0.saturating_sub(AUDIT_SCANNED_MAX)).max(ends.start);
        while end > least {
            let from = Offset(end.0.saturating_sub(STEP)).max(least);
            let found = self.between(&known.spec.name, from, end).await?;
            for (offset, record) in found.into_iter().rev() {
                if !query.wants(&record) {
                    continue;
                }
                if page.records.len() == max {
                    page.next = Some(offset.next());
                    return Ok(page);
                }
                page.records.push(record);
            }
            end = from;
        }
        page.next = (end > ends.start).then_some(end);
        Ok(page)
    }

    /// The records of a range, oldest first. What cannot be read as one was written by a later version.
    async fn between(
        &self,
        topic: &millrace_model::TopicName,
        from: Offset,
        end: Offset,
    ) -> Result<Vec<(Offset, AuditRecord)>, FetchError> {
        let mut found = Vec::new();
        let mut next = from;
        while next < end {
            let request = FetchRequest {
                topic: topic.clone(),
                partition: PartitionId(0),
                from: next,
                messages_max: usize::try_from(STEP).unwrap_or(usize::MAX),
                bytes_max: STEP_BYTES_MAX,
                wait: std::time::Duration::ZERO,
            };
            let read = self.inner.messages.fetch(request).await?;
            if read.next <= next {
                break;
            }
            next = read.next;
            let records = read.messages.into_iter().filter(|read| read.offset < end);
            found.extend(records.filter_map(|read| {
                let record = serde_json::from_slice(read.message.value.as_deref()?).ok()?;
                Some((read.offset, record))
            }));
        }
        Ok(found)
    }
}
