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

    /// Whether these counts were the same as of an earlier checkpoint; `None` if that is not known any more. Topics that are gone may still
    /// be in the checkpoint.
    pub(crate) fn agrees(
        &self,
        checkpoint: &Self,
        is_gone: impl Fn(TopicId) -> bool,
    ) -> Option<bool> {
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
        let same = |(at, next): (&TopicPartition, &Offset)| {
            let since = since.get(at).copied().unwrap_or_default();
            next.0.checked_sub(since) == Some(checkpoint.next(*at).0)
        };
        let known = |(at, next): (&TopicPartition, &Offset)| {
            next.0 == 0 || self.next.contains_key(at) || is_gone(at.topic)
        };
        Some(self.next.iter().all(same) && checkpoint.next.iter().all(known))
    }
}

/// The newest counts in the stream, and whether this host agrees with them. Only then may it write newer ones, or remove what nobody needs
/// any more: what a host writes that counts wrongly, others would begin with.
#[derive(Debug, Default)]
pub(crate) struct Agreement {
    newest: u64,
    newest_as_of: u64,
    agreed: u64,
}

impl Agreement {
    /// This host begins with the counts that have this sequence.
    pub(crate) fn begin(&mut self, seq: u64, as_of: u64) {
        self.agreed = seq;
        self.know(seq, as_of);
    }

    /// There are such counts; what they say is not known.
    pub(crate) fn know(&mut self, seq: u64, as_of: u64) {
        self.newest = self.newest.max(seq);
        self.newest_as_of = self.newest_as_of.max(as_of);
    }

    /// This host came to these counts, and agrees or not; `None` if it could not compare them.
    pub(crate) fn hear(&mut self, seq: u64, as_of: u64, agrees: Option<bool>) {
        self.know(seq, as_of);
        if agrees == Some(true) {
            self.agreed = self.agreed.max(seq);
        }
    }

    /// The sequence of the newest counts, if this host agrees with them.
    pub(crate) fn reached(&self) -> Option<u64> {
        (self.agreed == self.newest).then_some(self.newest)
    }

    /// What is removed has at most this sequence, or this host has not heard for long.
    pub(crate) fn newest_as_of(&self) -> u64 {
        self.newest_as_of
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
    use crate::loading::Loading;

    const COUNTED_AFTER: u64 = 60;

    fn at(partition: u32) -> TopicPartition {
        TopicPartition {
            topic: TopicId(1),
            partition: PartitionId(partition),
        }
    }

    /// How the server that a host is connected to has the stream.
    #[derive(Clone, Copy, Debug)]
    struct View {
        /// So many messages are yet to come to it.
        lag: u64,
        /// It was killed, and has again what was removed.
        has_removed: Again,
        /// The subscription was lost at its beginning, and begins with everything.
        begins_anew: bool,
    }

    /// What a server has again.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Again {
        Nothing,
        Cells,
        Everything,
    }

    const WHOLE: View = View {
        lag: 0,
        has_removed: Again::Nothing,
        begins_anew: false,
    };

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
            view: View,
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
            view: View,
        },
        Time {
            passes: u64,
        },
    }

    fn view() -> impl Strategy<Value = View> {
        let lag = prop_oneof![3 => Just(0u64), 1 => 1u64..30];
        let has_removed = prop_oneof![
            Just(Again::Nothing),
            Just(Again::Cells),
            Just(Again::Everything),
        ];
        (lag, has_removed, any::<bool>()).prop_map(|(lag, has_removed, begins_anew)| View {
            lag,
            has_removed,
            begins_anew,
        })
    }

    fn step() -> impl Strategy<Value = Step> {
        let host = 0usize..3;
        let followed = (host.clone(), 1usize..20, view());
        prop_oneof![
            6 => (0u32..3, 1u64..5).prop_map(|(partition, span)| Step::Append { partition, span }),
            6 => followed.prop_map(|(host, messages, view)| Step::Follow { host, messages, view }),
            1 => host.clone().prop_map(|host| Step::Checkpoint { host }),
            1 => (host.clone(), 0u64..3).prop_map(|(host, share)| Step::Remove { host, share }),
            1 => (host, view()).prop_map(|(host, view)| Step::Restart { host, view }),
            2 => (1u64..29).prop_map(|passes| Step::Time { passes }),
        ]
    }

    #[derive(Clone)]
    enum Message {
        Batch { partition: u32, span: u64 },
        Checkpoint(Vec<u8>),
        Word(usize),
    }

    #[derive(Default)]
    struct Stream {
        messages: BTreeMap<u64, Message>,
        removed: BTreeMap<u64, Message>,
        last: u64,
        now: u64,
        /// The last sequence at each time.
        lasts: Vec<(u64, u64)>,
        /// The offset that each batch has.
        offsets: HashMap<u64, u64>,
        next: HashMap<u32, u64>,
    }

    impl Stream {
        fn push(&mut self, message: Message) -> u64 {
            self.last += 1;
            self.messages.insert(self.last, message);
            self.lasts.push((self.now, self.last));
            self.last
        }

        fn remove(&mut self, is_removed: impl Fn(u64, &Message) -> bool) {
            let gone = self
                .messages
                .extract_if(.., |seq, message| is_removed(*seq, message));
            self.removed.extend(gone);
        }

        /// A cell has one message.
        fn put(&mut self, message: Message) -> u64 {
            let place = |message: &Message| match message {
                Message::Batch { .. } => None,
                Message::Checkpoint(_) => Some(usize::MAX),
                Message::Word(host) => Some(*host),
            };
            let own = place(&message);
            self.remove(|_, other| own.is_some() && place(other) == own);
            self.push(message)
        }

        fn last_before(&self, time: u64) -> u64 {
            let before = self.lasts.iter().rev().find(|(at, _)| *at <= time);
            before.map_or(0, |(_, last)| *last)
        }

        /// The newest counts, as the leader has them.
        fn newest_checkpoint(&self) -> Option<(u64, Counts)> {
            let mut newest = self.messages.iter().rev();
            newest.find_map(|(seq, message)| match message {
                Message::Checkpoint(bytes) => Some((*seq, Counts::decode(bytes)?)),
                _ => None,
            })
        }

        /// What a server delivers from a sequence on.
        fn seen(&self, from: u64, view: View) -> BTreeMap<u64, Message> {
            let from = if view.begins_anew { 0 } else { from };
            let to = self.last.saturating_sub(view.lag);
            let mut seen = self.messages.clone();
            let again = |message: &Message| match view.has_removed {
                Again::Nothing => false,
                Again::Cells => !matches!(message, Message::Batch { .. }),
                Again::Everything => true,
            };
            let again = self.removed.iter().filter(|(_, message)| again(message));
            seen.extend(again.map(|(seq, message)| (*seq, message.clone())));
            seen.retain(|seq, _| (from..=to).contains(seq));
            seen
        }
    }

    #[derive(Default)]
    struct Follower {
        number: usize,
        counts: Counts,
        counted: Counted,
        agreement: Agreement,
        is_down: bool,
    }

    impl Follower {
        /// What the host may write now: the server takes it only on top of the newest.
        fn checkpoint(&self, stream: &Stream) -> Option<Vec<u8>> {
            let newest = stream.newest_checkpoint();
            let (newest, as_of) = newest.map_or((0, 0), |(seq, counts)| (seq, counts.as_of()));
            if self.is_down || self.agreement.reached() != Some(newest) {
                return None;
            }
            assert!(self.counts.as_of() >= as_of, "counts never go back");
            Some(self.counts.encode())
        }

        /// Another host may write its counts meanwhile.
        fn restart(&mut self, stream: &mut Stream, view: View, meanwhile: Option<Vec<u8>>) {
            self.is_down = true;
            let newest = stream.newest_checkpoint();
            if let Some(counts) = meanwhile {
                stream.put(Message::Checkpoint(counts));
            }
            let said = stream.put(Message::Word(self.number));
            let mut cells = Loading::new("word".to_owned(), said);
            for (seq, message) in stream.seen(0, view) {
                match message {
                    Message::Word(host) if host == self.number => cells.see("word", seq, None),
                    Message::Checkpoint(bytes) => {
                        let as_of = Counts::decode(&bytes).expect("readable").as_of();
                        cells.see("checkpoint", seq, Some((seq, as_of)));
                    }
                    _ => {}
                }
            }
            if !cells.is_whole(0) {
                return;
            }
            let (seq, counts) = newest.unwrap_or_default();
            self.is_down = false;
            self.counts = counts;
            self.counted = Counted::default();
            self.agreement.begin(seq, self.counts.as_of());
            for (seq, as_of) in cells.into_cells().into_iter().flatten() {
                self.agreement.know(seq, as_of);
            }
        }

        fn follow(&mut self, stream: &mut Stream, messages: usize, view: View) {
            // Whoever has not passed what was there half of the time ago begins anew.
            let behind = stream.now.checked_sub(COUNTED_AFTER / 2);
            let is_behind =
                behind.is_some_and(|time| self.counts.as_of() < stream.last_before(time));
            if self.is_down || is_behind {
                self.restart(stream, view, None);
            }
            if self.is_down {
                return;
            }
            let from = self.counts.as_of();
            let seen = stream.seen(from + 1, view);
            let seen = seen.into_iter().filter(|(seq, _)| *seq > from);
            for (seq, message) in seen.take(messages) {
                match message {
                    Message::Batch { partition, span } => {
                        let base = self.counts.count(seq, at(partition), span);
                        let base = base.expect("it was not counted before");
                        assert_eq!(base.0, stream.offsets[&seq], "sequence {seq}");
                    }
                    Message::Checkpoint(bytes) => {
                        self.counts.pass(seq);
                        let checkpoint = Counts::decode(&bytes).expect("as it was written");
                        let now = Duration::from_secs(stream.now);
                        self.counted.hear(checkpoint.as_of(), now);
                        let agrees = self.counts.agrees(&checkpoint, |_| false);
                        assert_ne!(agrees, Some(false));
                        self.agreement.hear(seq, checkpoint.as_of(), agrees);
                    }
                    Message::Word(_) => self.counts.pass(seq),
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
            for (number, host) in hosts.iter_mut().enumerate() {
                host.number = number;
            }
            for step in steps {
                match step {
                    Step::Append { partition, span } => {
                        let next = stream.next.entry(partition).or_default();
                        let base = *next;
                        *next += span;
                        let seq = stream.push(Message::Batch { partition, span });
                        stream.offsets.insert(seq, base);
                    }
                    Step::Follow { host, messages, view } => hosts[host].follow(&mut stream, messages, view),
                    Step::Checkpoint { host } => {
                        if let Some(counts) = hosts[host].checkpoint(&stream) {
                            stream.put(Message::Checkpoint(counts));
                        }
                    }
                    Step::Remove { host, share } => {
                        hosts[host].follow(&mut stream, 0, WHOLE);
                        if hosts[host].agreement.reached().is_some() {
                            let now = Duration::from_secs(stream.now);
                            let safe = hosts[host].counted.safe(now, Duration::from_secs(COUNTED_AFTER));
                            stream.remove(|seq, message| {
                                seq <= safe && seq % 3 >= share && matches!(message, Message::Batch { .. })
                            });
                        }
                    }
                    Step::Restart { host, view } => {
                        let other = &hosts[(host + 1) % hosts.len()];
                        let meanwhile = other.checkpoint(&stream).filter(|_| view.begins_anew);
                        hosts[host].restart(&mut stream, view, meanwhile);
                    }
                    Step::Time { passes } => stream.now += passes,
                }
            }
            for host in &mut hosts {
                host.restart(&mut stream, WHOLE, None);
                host.follow(&mut stream, usize::MAX, WHOLE);
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
            prop_assert_eq!(right.agrees(&checkpoint, |_| false), Some(false));
            prop_assert_eq!(right.agrees(&same, |_| false), Some(true));
        }
    }

    #[test]
    fn what_is_not_counted_at_all_is_noticed() {
        let mut right = Counts::default();
        right.count(3, at(0), 2);
        let mut other = Counts::default();
        other.pass(5);
        assert_eq!(other.agrees(&right, |_| false), Some(false));
        // Unless its topic was deleted.
        assert_eq!(
            other.agrees(&right, |topic| topic == TopicId(1)),
            Some(true)
        );
    }

    #[test]
    fn a_host_agrees_once_it_has_come_to_the_newest_counts() {
        let mut agreement = Agreement::default();
        assert_eq!(agreement.reached(), Some(0), "there are none");
        agreement.begin(10, 8);
        // Others have written some since, as the cells say.
        agreement.know(20, 18);
        assert_eq!(agreement.reached(), None);
        agreement.hear(20, 18, Some(true));
        assert_eq!(agreement.reached(), Some(20));
        for agrees in [None, Some(false)] {
            agreement.hear(30, 28, agrees);
            assert_eq!(agreement.reached(), None);
        }
        assert_eq!(agreement.newest_as_of(), 28);
        agreement.begin(30, 28);
        assert_eq!(agreement.reached(), Some(30));
    }

    #[test]
    fn nothing_is_counted_twice() {
        let mut counts = Counts::default();
        assert_eq!(counts.count(5, at(0), 3), Some(Offset(0)));
        assert_eq!(counts.count(5, at(0), 3), None);
        assert_eq!(counts.count(7, at(0), 1), Some(Offset(3)));
    }
}
