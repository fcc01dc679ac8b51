//! Refusals that wait to be written: those that are alike become one record with their number, so that whoever tries a million times
//! fills neither memory nor disk, and none goes uncounted.

use std::collections::HashMap;
use std::net::IpAddr;

use millrace_model::PrincipalName;
use millrace_model::bounds::AUDIT_REFUSALS_MAX;

use crate::audit::record::AuditRecord;

/// What counts as alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Alike {
    principal: Option<PrincipalName>,
    /// Its user. What callers without a principal call themselves makes no difference: they can call themselves anything.
    user: Option<String>,
    from: Option<IpAddr>,
    verb: String,
    on: Option<String>,
    code: Option<String>,
}

/// The refusals since they were last taken.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    kept: HashMap<Alike, AuditRecord>,
    /// All beyond the bound, by who sent them from where: whoever floods the log hides nobody else in it.
    sources: HashMap<(Option<PrincipalName>, Option<IpAddr>), AuditRecord>,
    /// All beyond the bound of sources, too.
    others: Option<AuditRecord>,
}

impl Refusals {
    pub(super) fn add(&mut self, record: AuditRecord) {
        let alike = Alike {
            principal: record.principal.clone(),
            user: record.by.clone().filter(|_| record.principal.is_some()),
            from: record.from,
            verb: record.verb.clone(),
            on: record.on.clone(),
            code: record.code.clone(),
        };
        if let Some(before) = self.kept.get_mut(&alike) {
            before.count += record.count;
        } else if self.kept.len() < AUDIT_REFUSALS_MAX {
            self.kept.insert(alike, record);
        } else {
            self.add_several(record);
        }
    }

    fn add_several(&mut self, record: AuditRecord) {
        let several = AuditRecord {
            by: None,
            request: None,
            verb: "several".to_owned(),
            on: None,
            code: None,
            ..record
        };
        let source = (several.principal.clone(), several.from);
        if let Some(before) = self.sources.get_mut(&source) {
            before.count += several.count;
        } else if self.sources.len() < AUDIT_REFUSALS_MAX {
            self.sources.insert(source, several);
        } else if let Some(others) = &mut self.others {
            others.count += several.count;
        } else {
            self.others = Some(AuditRecord {
                principal: None,
                from: None,
                ..several
            });
        }
    }

    /// All of them, oldest first; none are left.
    pub(super) fn take(&mut self) -> Vec<AuditRecord> {
        let Self {
            kept,
            sources,
            others,
        } = std::mem::take(self);
        let collected = kept.into_values().chain(sources.into_values());
        let mut all: Vec<AuditRecord> = collected.chain(others).collect();
        all.sort_by(|one, other| (one.at, &one.request).cmp(&(other.at, &other.request)));
        all
    }
}

#[cfg(test)]
mod tests {
    use millrace_model::Timestamp;
    use proptest::prelude::*;

    use super::*;
    use crate::audit::record::AuditResult;

    fn refusal(from: u8, on: u16) -> AuditRecord {
        AuditRecord {
            at: Timestamp(u64::from(on)),
            principal: None,
            by: None,
            from: Some(IpAddr::from([127, 0, 0, from])),
            request: Some(format!("r-{from}-{on}")),
            verb: "produce".to_owned(),
            on: Some(format!("topic:t{on}")),
            result: AuditResult::Refused,
            code: Some("not-allowed".to_owned()),
            count: 1,
        }
    }

    proptest! {
        #[test]
        fn none_goes_uncounted_and_memory_is_bounded(asked in prop::collection::vec((0..4u8, 0..200u16), 0..600)) {
            let mut refusals = Refusals::default();
            for (from, on) in &asked {
                refusals.add(refusal(*from, *on));
            }
            let taken = refusals.take();
            prop_assert!(taken.len() <= 2 * AUDIT_REFUSALS_MAX + 1);
            prop_assert_eq!(taken.iter().map(|record| record.count).sum::<u64>(), asked.len() as u64);
            prop_assert!(refusals.take().is_empty());
        }
    }
}
