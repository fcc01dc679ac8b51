//! Offsets are counted: the offset of a batch is the number of offsets before it in its partition, in the order of the stream. All hosts
//! follow the stream from its beginning, or from a checkpoint that somebody has written, and so they all count the same.
//!
//! **The rule.** Nothing that somebody has yet to count may be removed. A checkpoint says how many there were as of a sequence. Below that
//! sequence something may be removed once the checkpoint is `counted_after` old. A host that starts, or that has fallen behind by half of
//! that time, begins at the newest checkpoint. So whoever counts has passed everything that is removed.
//!
//! Each host compares what it has counted with every checkpoint that it passes.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use millrace_model::{Offset, PartitionId, TopicId, TopicPartition};

use crate::encoding::{Reader, Writer};

/// Batches by which a count can be taken back, to compare it with a checkpoint from a moment ago.
const RECENT_MAX: usize = 64 << 10;

/// How many offsets each partition has, as of a sequence of the stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    as_of: u64,
    next: HashMap<TopicPartition, Offset>,
    recent: VecDeque<(u64, TopicPartition, u64)>,
    /// After this sequence, `recent` has everything.
    recent_from: u64,
}

impl Counts {
    /// Everything up to this sequence is counted.
    pub(crate) fn as_of(&self) -> u64 {
        self.as_of
    }

    pub(crate) fn next(&self, at: TopicPartition) -> Offset {
        self.next.get(&at).copied().unwrap_or_default()
    }

    /// Counts a batch that has this many offsets; returns its first one. `None` if it was counted before.
    pub(crate) fn count(&mut self, seq: u64, at: TopicPartition, span: u64) -> Option<Offset> {
        if seq <= self.as_of {
            return None;
        }
        self.as_of = seq;
        let next = self.next.entry(at).or_default();
        let base = *next;
        *next = base.plus(span);
        self.recent.push_back((seq, at, span));
        if self.recent.len() > RECENT_MAX
            && let Some((seq, ..)) = self.recent.pop_front()
        {
            self.recent_from = seq;
        }
        Some(base)
    }

    /// Passes something that has no offsets.
    pub(crate) fn pass(&mut self, seq: u64) {
        self.as_of = self.as_of.max(seq);
    }

    pub(crate) fn forget(&mut self, topic: TopicId) {
        self.next.retain(|at, _| at.topic != topic);
        self.recent.retain(|(_, at, _)| at.topic != topic);
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.number(self.as_of).number(self.next.len() as u64);
        for (at, next) in &self.next {
            out.number(at.topic.0).number(u64::from(at.partition.0));
            out.number(next.0);
        }
        out.done()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut read = Reader(bytes);
        let as_of = read.number()?;
        let count = read.number()?;
        let mut next = HashMap::new();
        for _ in 0..count {
            let at = TopicPartition {
                topic: TopicId(read.number()?),
                partition: PartitionId(u32::try_from(read.number()?).ok()?),
            };
            next.insert(at, Offset(read.number()?));
        }
        Some(Self {
            as_of,
            next,
            recent: VecDeque::new(),
            recent_from: as_of,
        })
    }

    /// Whether these counts were the same as of an earlier checkpoint; `None` if that is not known any more.
    pub(crate) fn agrees(&self, checkpoint: &Self) -> Option<bool> {
        if checkpoint.as_of < self.recent_from || checkpoint.as_of > self.as_of {
            return None;
        }
        let mut since: HashMap<TopicPartition, u64> = HashMap::new();
        for (seq, at, span) in self.recent.iter().rev() {
            if *seq <= checkpoint.as_of {
                break;
            }
            *since.entry(*at).or_default() += span;
        }
        // A topic that was deleted since is in the checkpoint only.
        let same = |(at, next): (&TopicPartition, &Offset)| {
            let since = since.get(at).copied().unwrap_or_default();
            next.0.checked_sub(since) == Some(checkpoint.next(*at).0)
        };
        Some(self.next.iter().all(same))
    }
}

/// Which sequences are counted by everybody.
#[derive(Debug, Default)]
pub(crate) struct Counted {
    /// Checkpoints and when they were heard of.
    heard: VecDeque<(u64, Duration)>,
    safe: u64,
}

impl Counted {
    pub(crate) fn hear(&mut self, as_of: u64, now: Duration) {
        self.heard.push_back((as_of, now));
    }

    /// Everything up to this sequence may be removed.
    pub(crate) fn safe(&mut self, now: Duration, counted_after: Duration) -> u64 {
        while let Some(&(as_of, at)) = self.heard.front()
            && now.saturating_sub(at) >= counted_after
        {
            self.safe = self.safe.max(as_of);
            self.heard.pop_front();
        }
        self.safe
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const COUNTED_AFTER: u64 = 60;

    fn at(partition: u32) -> TopicPartition {
        TopicPartition {
            topic: TopicId(1),
            partition: PartitionId(partition),
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// A batch is appended.
        Append {
            partition: u32,
            span: u64,
        },
        /// A host goes on for some messages.
        Follow {
            host: usize,
            messages: usize,
        },
        /// A host writes its counts.
        Checkpoint {
            host: usize,
        },
        /// A host removes what it may: some of the messages.
        Remove {
            host: usize,
            share: u64,
        },
        /// A host begins anew.
        Restart {
            host: usize,
        },
        Time {
            passes: u64,
        },
    }

    fn step() -> impl Strategy<Value = Step> {
        let host = 0usize..3;
        prop_oneof![
            6 => (0u32..3, 1u64..5).prop_map(|(partition, span)| Step::Append { partition, span }),
            6 => (host.clone(), 1usize..20).prop_map(|(host, messages)| Step::Follow { host, messages }),
            1 => host.clone().prop_map(|host| Step::Checkpoint { host }),
            1 => (host.clone(), 0u64..3).prop_map(|(host, share)| Step::Remove { host, share }),
            1 => host.prop_map(|host| Step::Restart { host }),
            2 => (1u64..40).prop_map(|passes| Step::Time { passes }),
        ]
    }

    enum Message {
        Batch { partition: u32, span: u64 },
        Checkpoint(Vec<u8>),
    }

    #[derive(Default)]
    struct Stream {
        messages: BTreeMap<u64, Message>,
        last: u64,
        now: u64,
        /// The last sequence at each time.
        lasts: Vec<(u64, u64)>,
        /// The offset that each batch has.
        offsets: HashMap<u64, u64>,
        next: HashMap<u32, u64>,
    }

    impl Stream {
        fn push(&mut self, message: Message) {
            self.last += 1;
            self.messages.insert(self.last, message);
            self.lasts.push((self.now, self.last));
        }

        fn last_before(&self, time: u64) -> u64 {
            let before = self.lasts.iter().rev().find(|(at, _)| *at <= time);
            before.map_or(0, |(_, last)| *last)
        }

        fn newest_checkpoint(&self) -> Option<Counts> {
            let mut newest = self.messages.values().rev();
            newest.find_map(|message| match message {
                Message::Checkpoint(bytes) => Counts::decode(bytes),
                Message::Batch { .. } => None,
            })
        }
    }

    #[derive(Default)]
    struct Follower {
        counts: Counts,
        counted: Counted,
    }

    impl Follower {
        fn restart(&mut self, stream: &Stream) {
            self.counts = stream.newest_checkpoint().unwrap_or_default();
            self.counted = Counted::default();
        }

        fn follow(&mut self, stream: &Stream, messages: usize) {
            // Whoever has not passed what was there half of the time ago begins anew.
            let behind = stream.now.checked_sub(COUNTED_AFTER / 2);
            if behind.is_some_and(|time| self.counts.as_of() < stream.last_before(time)) {
                self.restart(stream);
            }
            let from = self.counts.as_of() + 1;
            for (&seq, message) in stream.messages.range(from..).take(messages) {
                match message {
                    Message::Batch { partition, span } => {
                        let base = self.counts.count(seq, at(*partition), *span);
                        let base = base.expect("it was not counted before");
                        assert_eq!(base.0, stream.offsets[&seq], "sequence {seq}");
                    }
                    Message::Checkpoint(bytes) => {
                        self.counts.pass(seq);
                        let checkpoint = Counts::decode(bytes).expect("as it was written");
                        let now = Duration::from_secs(stream.now);
                        self.counted.hear(checkpoint.as_of(), now);
                        assert_ne!(self.counts.agrees(&checkpoint), Some(false));
                    }
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        #[test]
        fn all_hosts_count_the_same_whatever_is_removed_and_whoever_restarts(steps in prop::collection::vec(step(), 1..300)) {
            let mut stream = Stream::default();
            let mut hosts: [Follower; 3] = Default::default();
            for step in steps {
                match step {
                    Step::Append { partition, span } => {
                        let next = stream.next.entry(partition).or_default();
                        let base = *next;
                        *next += span;
                        stream.push(Message::Batch { partition, span });
                        stream.offsets.insert(stream.last, base);
                    }
                    Step::Follow { host, messages } => hosts[host].follow(&stream, messages),
                    Step::Checkpoint { host } => {
                        // Only a newer one replaces the one that is there.
                        let newest = stream.newest_checkpoint().map_or(0, |counts| counts.as_of());
                        let counts = &hosts[host].counts;
                        if counts.as_of() > newest {
                            stream.messages.retain(|_, message| matches!(message, Message::Batch { .. }));
                            stream.push(Message::Checkpoint(counts.encode()));
                        }
                    }
                    Step::Remove { host, share } => {
                        hosts[host].follow(&stream, 0);
                        let now = Duration::from_secs(stream.now);
                        let safe = hosts[host].counted.safe(now, Duration::from_secs(COUNTED_AFTER));
                        stream.messages.retain(|seq, message| {
                            *seq > safe || seq % 3 < share || matches!(message, Message::Checkpoint(_))
                        });
                    }
                    Step::Restart { host } => hosts[host].restart(&stream),
                    Step::Time { passes } => stream.now += passes,
                }
            }
            for host in &mut hosts {
                host.restart(&stream);
                host.follow(&stream, usize::MAX);
                for (partition, next) in &stream.next {
                    prop_assert_eq!(host.counts.next(at(*partition)).0, *next);
                }
            }
        }

        #[test]
        fn a_wrong_count_is_noticed(spans in prop::collection::vec((0u32..3, 1u64..5), 2..50), wrong: prop::sample::Index, after in 0usize..20) {
            let mut right = Counts::default();
            let mut other = Counts::default();
            let wrong = wrong.index(spans.len());
            for (index, (partition, span)) in spans.iter().enumerate() {
                let seq = index as u64 + 1;
                right.count(seq, at(*partition), *span);
                other.count(seq, at(*partition), *span + u64::from(index == wrong));
            }
            let checkpoint = Counts::decode(&other.encode()).expect("as it was written");
            let same = Counts::decode(&right.encode()).expect("as it was written");
            for index in 0..after {
                right.count((spans.len() + index) as u64 + 1, at(0), 3);
            }
            prop_assert_eq!(right.agrees(&checkpoint), Some(false));
            prop_assert_eq!(right.agrees(&same), Some(true));
        }
    }

    #[test]
    fn nothing_is_counted_twice() {
        let mut counts = Counts::default();
        assert_eq!(counts.count(5, at(0), 3), Some(Offset(0)));
        assert_eq!(counts.count(5, at(0), 3), None);
        assert_eq!(counts.count(7, at(0), 1), Some(Offset(3)));
    }
}
