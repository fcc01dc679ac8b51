//! Who may do what: rights, roles that bundle them, and rules that grant them on things by name.
//!
//! A rule is one line that people can read: `producer on topic:orders-*`. [`Rule`] parses and prints it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::advice::{Advice, Advised};
use crate::bounds::{RESOURCE_NAME_CHARS_MAX, TOPIC_NAME_CHARS_MAX};
use crate::codes::Code;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$meaning:meta])* $word:ident $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$meaning])* $word,)*
        }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$word,)*];

            /// Its word in rules.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$word => $text,)*
                }
            }

            fn of_word(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|known| known.as_str() == word)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

words! {
    /// What a rule allows.
    Right {
        /// See that a thing exists, its settings, and how it does; no contents of messages.
        View "view",
        /// Send messages to a topic.
        Produce "produce",
        /// Read a topic's messages, and keep positions in it.
        Consume "consume",
        /// Send requests to a route.
        Call "call",
        /// Read a processor's state.
        ReadState "read-state",
        /// Write a processor's state.
        WriteState "write-state",
        /// Create, change and delete things: topics, modules, processors, schedules and routes.
        Deploy "deploy",
        /// Keep things running: pause, resume, roll back, retry, reset positions, read what components log.
        Operate "operate",
        /// Read dead letters, and send them again.
        Redrive "redrive",
        /// Manage principals and the host itself: rights, tokens, backups.
        Administer "administer",
        /// Read the audit log.
        Audit "audit",
    }
}

words! {
    /// A bundle of rights.
    Role {
        /// Sees everything, and no messages.
        Viewer "viewer",
        /// Sends messages.
        Producer "producer",
        /// Reads messages.
        Consumer "consumer",
        /// Builds: everything except administration.
        Developer "developer",
        /// Keeps things running, and deploys nothing.
        Operator "operator",
        /// Sees everything, no messages, and the audit log.
        Auditor "auditor",
        /// Everything.
        Admin "admin",
    }
}

words! {
    /// The kinds of things on which there are rights.
    ResourceKind {
        /// A topic, with its consumers.
        Topic "topic",
        /// A processor, with its state and dead letters.
        Processor "processor",
        /// A module, by the name in its tag.
        Module "module",
        /// A schedule.
        Schedule "schedule",
        /// A route, by its path.
        Route "route",
        /// A secret of the host, which components may be given.
        Secret "secret",
        /// A principal, with its tokens.
        Principal "principal",
        /// The host: what is not about any of the others.
        Host "host",
    }
}

/// A set of rights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rights(u16);

impl Rights {
    /// These rights.
    #[must_use]
    pub const fn of(rights: &[Right]) -> Self {
        let mut set = 0;
        let mut index = 0;
        while index < rights.len() {
            set |= 1 << rights[index] as u16;
            index += 1;
        }
        Self(set)
    }

    /// Whether it contains any of the others.
    #[must_use]
    pub const fn has_any(self, others: Self) -> bool {
        self.0 & others.0 != 0
    }

    /// The rights in it, in the order of [`Right::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Right> {
        let all = Right::ALL.iter().copied();
        all.filter(move |right| self.has_any(Self::of(&[*right])))
    }
}

impl Role {
    /// The rights that it bundles.
    #[must_use]
    pub const fn rights(self) -> Rights {
        match self {
            Self::Viewer => Rights::of(&[Right::View]),
            Self::Producer => Rights::of(&[Right::View, Right::Produce]),
            Self::Consumer => Rights::of(&[Right::View, Right::Consume]),
            Self::Developer => Rights::of(&[
                Right::View,
                Right::Produce,
                Right::Consume,
                Right::Call,
                Right::ReadState,
                Right::WriteState,
                Right::Deploy,
                Right::Operate,
                Right::Redrive,
            ]),
            Self::Operator => Rights::of(&[
                Right::View,
                Right::ReadState,
                Right::Operate,
                Right::Redrive,
            ]),
            Self::Auditor => Rights::of(&[Right::View, Right::Audit]),
            Self::Admin => Rights::of(Right::ALL),
        }
    }
}

/// What a rule grants: a role, or a single right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Granted {
    /// All rights of a role.
    Role(Role),
    /// One right.
    Right(Right),
}

impl Granted {
    /// The rights that it stands for.
    #[must_use]
    pub const fn rights(self) -> Rights {
        match self {
            Self::Role(role) => role.rights(),
            Self::Right(right) => Rights::of(&[right]),
        }
    }
}

impl fmt::Display for Granted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Role(role) => f.pad(role.as_str()),
            Self::Right(right) => f.pad(right.as_str()),
        }
    }
}

/// The name of a thing, for a decision about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resource<'a> {
    /// Its kind.
    pub kind: ResourceKind,
    /// Its name; empty for the host.
    pub name: &'a str,
}

impl<'a> Resource<'a> {
    /// The host.
    pub const HOST: Resource<'static> = Resource {
        kind: ResourceKind::Host,
        name: "",
    };

    /// A thing of this kind.
    #[must_use]
    pub const fn new(kind: ResourceKind, name: &'a str) -> Self {
        Self { kind, name }
    }
}

impl fmt::Display for Resource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            ResourceKind::Host => f.write_str("host"),
            kind => write!(f, "{kind}:{}", self.name),
        }
    }
}

impl FromStr for Right {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let unknown = || RuleError::Right(text.chars().take(TOPIC_NAME_CHARS_MAX).collect());
        Self::of_word(text).ok_or_else(unknown)
    }
}

/// The things that a rule is about: all, all of a kind, one, or those whose names begin alike.
///
/// Written `*`, `topic:*`, `topic:orders`, `topic:orders-*`, `host`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// Everything.
    All,
    /// Things of a kind whose names begin so; all of the kind if it is empty.
    Beginning(ResourceKind, Arc<str>),
    /// One thing.
    One(ResourceKind, Arc<str>),
}

impl Target {
    /// Whether the rule is about this thing.
    #[must_use]
    pub fn covers(&self, resource: Resource<'_>) -> bool {
        match self {
            Self::All => true,
            Self::Beginning(kind, beginning) => {
                *kind == resource.kind && resource.name.starts_with(&**beginning)
            }
            Self::One(kind, name) => *kind == resource.kind && *resource.name == **name,
        }
    }

    /// Whether the rule is about anything of this kind.
    #[must_use]
    pub fn covers_some(&self, kind: ResourceKind) -> bool {
        match self {
            Self::All => true,
            Self::Beginning(of, _) | Self::One(of, _) => *of == kind,
        }
    }

    /// The one thing that it is about; `None` if it is about several.
    #[must_use]
    pub fn thing(&self) -> Option<Resource<'_>> {
        match self {
            Self::One(kind, name) => Some(Resource::new(*kind, name)),
            Self::All | Self::Beginning(..) => None,
        }
    }

    /// Whether everything that the other covers is covered.
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::All, _) => true,
            (_, Self::All) => false,
            (_, Self::One(kind, name)) => self.covers(Resource::new(*kind, name)),
            (Self::One(..), Self::Beginning(..)) => false,
            (Self::Beginning(kind, own), Self::Beginning(of, others)) => {
                kind == of && others.starts_with(&**own)
            }
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Beginning(kind, beginning) => write!(f, "{kind}:{beginning}*"),
            Self::One(ResourceKind::Host, _) => f.write_str("host"),
            Self::One(kind, name) => write!(f, "{kind}:{name}"),
        }
    }
}

/// Grants rights on things.
///
/// Written `producer on topic:orders-*`; the part after `on` may be left out if it is `*`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rule {
    /// What it grants.
    pub granted: Granted,
    /// On what.
    pub on: Target,
}

impl Rule {
    /// Whether it grants any of these rights on the thing.
    #[must_use]
    pub fn grants(&self, any: Rights, resource: Resource<'_>) -> bool {
        self.granted.rights().has_any(any) && self.on.covers(resource)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.on {
            Target::All => self.granted.fmt(f),
            on => write!(f, "{} on {on}", self.granted),
        }
    }
}

/// Why a text is not a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// What it grants is neither a role nor a right.
    #[error("{0:?} is neither a role ({roles}) nor a right ({rights})", roles = listed(Role::ALL), rights = listed(Right::ALL))]
    Granted(String),
    /// It is no right.
    #[error("{0:?} is not a right; the rights are {rights}", rights = listed(Right::ALL))]
    Right(String),
    /// What it is about cannot be read.
    #[error(
        "{0:?} names nothing: write *, or host, or KIND:NAME, where KIND is one of {kinds}, and NAME may end with *", kinds = listed(ResourceKind::ALL)
    )]
    Target(String),
    /// A name is longer than any thing's name.
    #[error("a name in a rule has at most {RESOURCE_NAME_CHARS_MAX} characters")]
    TooLong,
}

fn listed(all: &[impl fmt::Display]) -> String {
    let words: Vec<String> = all.iter().map(ToString::to_string).collect();
    words.join(", ")
}

impl Advised for RuleError {
    fn advice(&self) -> Advice {
        Code::BadRule.advice()
    }
}

impl FromStr for Target {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let unreadable = || RuleError::Target(text.chars().take(TOPIC_NAME_CHARS_MAX).collect());
        match text {
            "*" => return Ok(Self::All),
            "host" => return Ok(Self::One(ResourceKind::Host, "".into())),
            _ => {}
        }
        let (kind, name) = text.split_once(':').ok_or_else(unreadable)?;
        let kind = ResourceKind::of_word(kind).ok_or_else(unreadable)?;
        if name.chars().count() > RESOURCE_NAME_CHARS_MAX {
            return Err(RuleError::TooLong);
        }
        let (beginning, is_whole) = match name.strip_suffix('*') {
            Some(beginning) => (beginning, false),
            None => (name, true),
        };
        let is_plain = |c: char| c.is_ascii_graphic() && c != '*';
        let needs_name = is_whole && beginning.is_empty();
        if kind == ResourceKind::Host || needs_name || !beginning.chars().all(is_plain) {
            return Err(unreadable());
        }
        Ok(match is_whole {
            true => Self::One(kind, beginning.into()),
            false => Self::Beginning(kind, beginning.into()),
        })
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let mut words = text.split_whitespace();
        let granted = words.next().unwrap_or_default();
        let role = Role::of_word(granted).map(Granted::Role);
        let granted = role
            .or_else(|| Right::of_word(granted).map(Granted::Right))
            .ok_or_else(|| {
                RuleError::Granted(granted.chars().take(TOPIC_NAME_CHARS_MAX).collect())
            })?;
        let rest: Vec<&str> = words.collect();
        let on = match rest[..] {
            [] => Target::All,
            ["on", on] => on.parse()?,
            _ => {
                return Err(RuleError::Target(
                    rest.join(" ").chars().take(TOPIC_NAME_CHARS_MAX).collect(),
                ));
            }
        };
        Ok(Self { granted, on })
    }
}

impl TryFrom<String> for Rule {
    type Error = RuleError;

    fn try_from(text: String) -> Result<Self, RuleError> {
        text.parse()
    }
}

impl From<Rule> for String {
    fn from(rule: Rule) -> Self {
        rule.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn topic(name: &str) -> Resource<'_> {
        Resource::new(ResourceKind::Topic, name)
    }

    fn rule(text: &str) -> Rule {
        text.parse().unwrap()
    }

    #[test]
    fn a_rule_reads_as_it_is_written() {
        for text in [
            "admin",
            "producer on topic:orders",
            "consume on topic:orders-*",
            "view on processor:*",
            "call on route:/hooks/*",
            "administer on host",
        ] {
            assert_eq!(rule(text).to_string(), text);
        }
        assert_eq!(rule("  viewer   on  * ").to_string(), "viewer");
    }

    #[test]
    fn what_is_no_rule_is_refused_with_the_words_that_are_known() {
        for text in [
            "",
            "boss",
            "producer topic:orders",
            "producer on",
            "producer on topic",
            "producer on topic:",
            "producer on topic:a*b",
            "producer on topic:a**",
            "producer on host:x",
            "producer on topic:a topic:b",
            "producer on thing:a",
        ] {
            let refused = text.parse::<Rule>().unwrap_err().to_string();
            assert!(
                refused.contains("producer") || refused.contains("KIND:NAME"),
                "{text}: {refused}"
            );
        }
        let long = format!("view on topic:{}", "x".repeat(RESOURCE_NAME_CHARS_MAX + 1));
        assert_eq!(long.parse::<Rule>(), Err(RuleError::TooLong));
    }

    #[test]
    fn a_rule_grants_what_it_says_and_nothing_else() {
        let produce = Rights::of(&[Right::Produce]);
        let orders = rule("producer on topic:orders-*");
        assert!(orders.grants(produce, topic("orders-eu")));
        assert!(!orders.grants(produce, topic("order")));
        assert!(!orders.grants(produce, Resource::new(ResourceKind::Processor, "orders-eu")));
        assert!(!orders.grants(Rights::of(&[Right::Consume]), topic("orders-eu")));
        assert!(!rule("produce on topic:orders").grants(produce, topic("orders-eu")));
        assert!(
            !rule("administer on host").grants(Rights::of(&[Right::Administer]), topic("host"))
        );
    }

    #[test]
    fn no_role_but_admin_administers() {
        let administer = Rights::of(&[Right::Administer]);
        for role in Role::ALL {
            assert_eq!(
                role.rights().has_any(administer),
                *role == Role::Admin,
                "{role}"
            );
        }
    }

    proptest! {
        #[test]
        fn what_a_target_contains_covers_no_more_than_it(
            one in "(\\*|host|(topic|route):[ab]{0,2}\\*|(topic|route):[ab]{1,3})",
            other in "(\\*|host|(topic|route):[ab]{0,2}\\*|(topic|route):[ab]{1,3})",
            name in "[ab]{1,4}",
        ) {
            let (one, other): (Target, Target) = (one.parse().unwrap(), other.parse().unwrap());
            for kind in [ResourceKind::Topic, ResourceKind::Route] {
                let resource = Resource::new(kind, &name);
                if one.contains(&other) && other.covers(resource) {
                    prop_assert!(one.covers(resource));
                }
            }
        }

        #[test]
        fn no_text_breaks_the_parser(text in "\\PC{0,40}") {
            if let Ok(rule) = text.parse::<Rule>() {
                prop_assert_eq!(rule.to_string().parse::<Rule>().unwrap(), rule);
            }
        }
    }
}
