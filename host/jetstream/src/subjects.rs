//! The names of everything in the stream. Subjects under `c` are cells: only their last message counts, and a host that starts reads all
//! of them. The others are logs, or are read when they are needed.

use std::fmt::Write as _;

use millrace_engine::{EntryKind, HostId};
use millrace_model::{Digest, GroupName, PartitionId, TopicId, TopicPartition};

/// Makes and reads subjects.
#[derive(Clone, Debug)]
pub(crate) struct Subjects {
    stream: String,
}

/// What a subject is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Messages of a partition: one batch, or a part of one.
    Piece(TopicPartition),
    /// Changes of the state of a group in a partition.
    Delta(TopicPartition, GroupName),
    /// All of that state, as of a delta.
    Snapshot(TopicPartition, GroupName),
    /// An entry of the catalogue.
    Entry(EntryKind, String),
    /// Written with each entry of the kind.
    Kind(EntryKind),
    /// Written with each change of topics.
    Topics,
    Topic(TopicId),
    /// The start of a partition.
    Start(TopicPartition),
    /// The lease and the progress of a group in a partition.
    Chain(TopicPartition, GroupName),
    /// Counts of partitions.
    Checkpoint,
    Host(HostId),
    /// What a host says before it reads the cells.
    Word(HostId),
    /// Anything that a host need not follow.
    Other,
}

impl Subjects {
    pub(crate) fn new(stream: &str) -> Self {
        Self {
            stream: stream.to_owned(),
        }
    }

    /// All of them.
    pub(crate) fn all(&self) -> String {
        format!("{}.>", self.stream)
    }

    /// All cells.
    pub(crate) fn cells(&self) -> String {
        format!("{}.c.>", self.stream)
    }

    fn at(&self, word: &str, at: TopicPartition) -> String {
        format!("{}.{word}.{}.{}", self.stream, at.topic.0, at.partition.0)
    }

    pub(crate) fn piece(&self, at: TopicPartition) -> String {
        self.at("p", at)
    }

    pub(crate) fn delta(&self, at: TopicPartition, group: &GroupName) -> String {
        format!("{}.{}", self.at("d", at), word(group.as_str()))
    }

    pub(crate) fn snapshot(&self, at: TopicPartition, group: &GroupName, part: usize) -> String {
        format!("{}.{}.{part}", self.at("s", at), word(group.as_str()))
    }

    /// All of a group's state.
    pub(crate) fn state_of(&self, group: &GroupName) -> [String; 2] {
        let (stream, group) = (&self.stream, word(group.as_str()));
        [
            format!("{stream}.d.*.*.{group}"),
            format!("{stream}.s.*.*.{group}.0"),
        ]
    }

    pub(crate) fn producer(&self, at: TopicPartition, id: i64) -> String {
        format!("{}.{id}", self.at("i", at))
    }

    pub(crate) fn request(&self, topic: TopicId, key: &[u8; 16]) -> String {
        let mut subject = format!("{}.r.{}.", self.stream, topic.0);
        for byte in key {
            // A string takes everything.
            let _ = write!(subject, "{byte:02x}");
        }
        subject
    }

    /// A named producer.
    pub(crate) fn name(&self, name: &str) -> String {
        format!("{}.n.{}", self.stream, word(name))
    }

    /// A producer's id, if it has a name.
    pub(crate) fn id(&self, id: i64) -> String {
        format!("{}.j.{id}", self.stream)
    }

    /// The sequence of its last message is the last id given to a producer.
    pub(crate) fn ids(&self) -> String {
        format!("{}.q", self.stream)
    }

    /// Messages that only carry the check of another subject.
    pub(crate) fn check(&self, host: HostId, number: usize) -> String {
        format!("{}.v.{host}.{number}", self.stream)
    }

    /// What a pass of compaction has left of a partition.
    pub(crate) fn compacted(&self, at: TopicPartition, pass: u64) -> String {
        format!("{}.{pass}", self.at("z", at))
    }

    /// What any pass has left of it.
    pub(crate) fn all_compacted(&self, at: TopicPartition) -> String {
        format!("{}.*", self.at("z", at))
    }

    pub(crate) fn module(&self, digest: Digest, part: usize) -> String {
        format!("{}.b.{digest}.{part}", self.stream)
    }

    pub(crate) fn module_parts(&self, digest: Digest) -> String {
        format!("{}.b.{digest}.*", self.stream)
    }

    pub(crate) fn entry(&self, kind: EntryKind, key: &str) -> String {
        format!("{}.c.e.{}.{}", self.stream, kind.as_str(), word(key))
    }

    pub(crate) fn kind(&self, kind: EntryKind) -> String {
        format!("{}.c.k.{}", self.stream, kind.as_str())
    }

    pub(crate) fn topics(&self) -> String {
        format!("{}.c.t", self.stream)
    }

    pub(crate) fn topic(&self, id: TopicId) -> String {
        format!("{}.c.t.{}", self.stream, id.0)
    }

    pub(crate) fn start(&self, at: TopicPartition) -> String {
        self.at("c.o", at)
    }

    pub(crate) fn chain(&self, at: TopicPartition, group: &GroupName) -> String {
        format!("{}.{}", self.at("c.g", at), word(group.as_str()))
    }

    pub(crate) fn checkpoint(&self, part: usize) -> String {
        format!("{}.c.x.{part}", self.stream)
    }

    pub(crate) fn host(&self, id: HostId) -> String {
        format!("{}.c.h.{id}", self.stream)
    }

    /// What a host says only to find it again.
    pub(crate) fn word(&self, id: HostId) -> String {
        format!("{}.c.w.{id}", self.stream)
    }

    /// Everything of a topic but the topic itself.
    pub(crate) fn of_topic(&self, id: TopicId) -> Vec<String> {
        let words = ["p", "z", "d", "s", "i", "r", "c.o", "c.g"];
        let all = words.map(|word| format!("{}.{word}.{}.>", self.stream, id.0));
        all.to_vec()
    }

    /// What a subject of the stream is about.
    pub(crate) fn parse(&self, subject: &str) -> Place {
        let rest = subject.strip_prefix(&self.stream);
        let rest = rest.and_then(|rest| rest.strip_prefix('.'));
        rest.and_then(parse).unwrap_or(Place::Other)
    }
}

fn parse(rest: &str) -> Option<Place> {
    let words: Vec<&str> = rest.split('.').collect();
    Some(match &*words {
        ["p", topic, part] => Place::Piece(place(topic, part)?),
        ["d", topic, part, group] => Place::Delta(place(topic, part)?, group_of(group)?),
        ["s", topic, part, group, "0"] => Place::Snapshot(place(topic, part)?, group_of(group)?),
        ["c", "e", kind, key] => Place::Entry(EntryKind::parse(kind)?, unword(key)?),
        ["c", "k", kind] => Place::Kind(EntryKind::parse(kind)?),
        ["c", "t"] => Place::Topics,
        ["c", "t", id] => Place::Topic(TopicId(id.parse().ok()?)),
        ["c", "o", topic, part] => Place::Start(place(topic, part)?),
        ["c", "g", topic, part, group] => Place::Chain(place(topic, part)?, group_of(group)?),
        ["c", "x", "0"] => Place::Checkpoint,
        ["c", "h", id] => Place::Host(HostId(u64::from_str_radix(id, 16).ok()?)),
        ["c", "w", id] => Place::Word(HostId(u64::from_str_radix(id, 16).ok()?)),
        _ => Place::Other,
    })
}

fn place(topic: &str, part: &str) -> Option<TopicPartition> {
    Some(TopicPartition {
        topic: TopicId(topic.parse().ok()?),
        partition: PartitionId(part.parse().ok()?),
    })
}

fn group_of(word: &str) -> Option<GroupName> {
    Some(GroupName::stored(&unword(word)?))
}

/// A text as one word of a subject: other characters than letters, digits, `-` and `_` are `=` and two hexadecimal digits.
pub(crate) fn word(text: &str) -> String {
    let mut word = String::with_capacity(text.len() + 1);
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => word.push(byte as char),
            // A string takes everything.
            other => drop(write!(word, "={other:02x}")),
        }
    }
    if word.is_empty() {
        word.push('=');
    }
    word
}

/// The text of a word.
pub(crate) fn unword(word: &str) -> Option<String> {
    if word == "=" {
        return Some(String::new());
    }
    let mut bytes = Vec::with_capacity(word.len());
    let mut left = word.bytes();
    while let Some(byte) = left.next() {
        match byte {
            b'=' => {
                let mut digit = || (left.next()? as char).to_digit(16);
                let (high, low) = (digit()?, digit()?);
                bytes.push((high * 16 + low) as u8);
            }
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_one_word_and_comes_back() {
        for text in ["", "=", "a.b c*>", "größe", "plain-1_2", "a/b\n"] {
            let word = word(text);
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_=".contains(c);
            assert!(!word.is_empty() && word.chars().all(is_plain), "{word}");
            assert_eq!(unword(&word).as_deref(), Some(text));
        }
    }

    #[test]
    fn a_subject_says_what_it_is_about() {
        let subjects = Subjects::new("one");
        let at = TopicPartition {
            topic: TopicId(3),
            partition: PartitionId(4),
        };
        let group = GroupName::stored("a.b");
        for (subject, place) in [
            (subjects.piece(at), Place::Piece(at)),
            (subjects.delta(at, &group), Place::Delta(at, group.clone())),
            (subjects.chain(at, &group), Place::Chain(at, group.clone())),
            (
                subjects.snapshot(at, &group, 0),
                Place::Snapshot(at, group.clone()),
            ),
            (subjects.start(at), Place::Start(at)),
            (subjects.topics(), Place::Topics),
            (subjects.topic(TopicId(9)), Place::Topic(TopicId(9))),
            (subjects.host(HostId(77)), Place::Host(HostId(77))),
            (subjects.word(HostId(77)), Place::Word(HostId(77))),
            (
                subjects.entry(EntryKind::Route, "/a b"),
                Place::Entry(EntryKind::Route, "/a b".to_owned()),
            ),
            (
                subjects.kind(EntryKind::Route),
                Place::Kind(EntryKind::Route),
            ),
            (subjects.ids(), Place::Other),
            ("two.p.3.4".to_owned(), Place::Other),
        ] {
            assert_eq!(subjects.parse(&subject), place, "{subject}");
        }
    }
}
