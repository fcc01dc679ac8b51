//! The names of groups: the owners of work, progress and state.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use crate::name::ProcessorName;

/// The prefix of the host's own services. No processor's name begins with it, nor with [`CONSUMER_MARK`].
const SERVICE_MARK: char = '~';
/// The prefix of consumer groups.
const CONSUMER_MARK: char = '=';

/// The name of a group. Names of different kinds never collide. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupName(Arc<str>);

/// The kinds of groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupKind {
    /// The workers of a processor.
    Processor,
    /// A service of the host.
    Service,
    /// Readers that share the partitions of topics, as in Kafka.
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

    /// A consumer group, under any name that it chooses.
    #[must_use]
    pub fn consumer(name: &str) -> Self {
        Self(format!("{CONSUMER_MARK}{name}").into())
    }

    /// A name from the text of [`GroupName::as_str`].
    #[must_use]
    pub fn stored(text: &str) -> Self {
        Self(text.into())
    }

    /// The kind of the group with this name.
    #[must_use]
    pub fn kind(&self) -> GroupKind {
        match self.0.chars().next() {
            Some(SERVICE_MARK) => GroupKind::Service,
            Some(CONSUMER_MARK) => GroupKind::Consumer,
            _ => GroupKind::Processor,
        }
    }

    /// The processor of these workers, if it is a processor's group.
    #[must_use]
    pub fn as_processor(&self) -> Option<ProcessorName> {
        ProcessorName::parse(&self.0).ok()
    }

    /// The stored name, including its kind.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Ordered and hashed like the text.
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
