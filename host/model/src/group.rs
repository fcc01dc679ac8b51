//! The names of groups: whose work, progress and state something is.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use crate::name::ProcessorName;

/// Before the name of a service of the host. No processor's name begins so, nor with [`CONSUMER_MARK`].
const SERVICE_MARK: char = '~';
/// Before the name of a consumer group.
const CONSUMER_MARK: char = '=';

/// The name of a group. What one kind of group is called is never taken for one of another kind. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupName(Arc<str>);

/// What a group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupKind {
    /// The workers of a processor.
    Processor,
    /// What the host itself does.
    Service,
    /// Readers that share the partitions of topics, as Kafka has them.
    Consumer,
}

impl GroupName {
    /// The workers of a processor.
    #[must_use]
    pub fn processor(name: &ProcessorName) -> Self {
        Self(name.into())
    }

    /// A service of the host.
    #[must_use]
    pub fn service(name: &str) -> Self {
        Self(format!("{SERVICE_MARK}{name}").into())
    }

    /// A consumer group, under whatever name it gives itself.
    #[must_use]
    pub fn consumer(name: &str) -> Self {
        Self(format!("{CONSUMER_MARK}{name}").into())
    }

    /// A name as [`GroupName::as_str`] gave it.
    #[must_use]
    pub fn stored(text: &str) -> Self {
        Self(text.into())
    }

    /// What kind of group has this name.
    #[must_use]
    pub fn kind(&self) -> GroupKind {
        match self.0.chars().next() {
            Some(SERVICE_MARK) => GroupKind::Service,
            Some(CONSUMER_MARK) => GroupKind::Consumer,
            _ => GroupKind::Processor,
        }
    }

    /// The processor whose workers it is, if it is one's.
    #[must_use]
    pub fn as_processor(&self) -> Option<ProcessorName> {
        ProcessorName::parse(&self.0).ok()
    }

    /// The name as it is stored, its kind included.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// In the order and with the hash of the text.
impl Borrow<str> for GroupName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl ProcessorName {
    /// The group of its workers.
    #[must_use]
    pub fn group(&self) -> GroupName {
        GroupName::processor(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_different_kinds_never_meet_whatever_they_are_called() {
        for name in ["orders", "a", "__x", "~delays", "=a", ""] {
            let groups = [GroupName::service(name), GroupName::consumer(name)];
            let kinds = groups.each_ref().map(GroupName::kind);
            assert_eq!(kinds, [GroupKind::Service, GroupKind::Consumer]);
            for group in groups {
                assert!(ProcessorName::parse(group.as_str()).is_err());
                let stored = GroupName::stored(group.as_str());
                assert_eq!((stored.kind(), &stored), (group.kind(), &group));
            }
        }
        let processor = ProcessorName::parse("orders").unwrap().group();
        assert_eq!(processor.kind(), GroupKind::Processor);
        assert_eq!(processor.to_string(), "orders");
    }
}
