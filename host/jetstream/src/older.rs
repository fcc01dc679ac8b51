//! The messages that were there before this host began to follow the stream: where they are, by their headers.

use async_nats::jetstream::consumer::{DeliverPolicy, push};
use futures_util::StreamExt as _;
use millrace_engine::ReadError;
use millrace_model::{Offset, TopicPartition};

use crate::atomic::Note;
use crate::fetch::{ANSWER_DURATION_MAX, number};
use crate::index::{Anchor, Index, Piece};
use crate::store::Store;
use crate::trouble::Trouble;

impl Store {
    /// Reads the headers of the messages that were there before this host began to follow the stream.
    pub(crate) async fn fill_index(&self, partition: TopicPartition) -> Result<(), ReadError> {
        let (beginnings, anchor, from) = {
            let heard = self.mirror.heard.read();
            let known = heard.partition(partition)?;
            (heard.beginnings, known.anchor, known.index.from)
        };
        if from.offset <= anchor.offset {
            return Ok(());
        }
        let (index, end) = self.headers(partition, anchor, from).await?;
        if end != from.offset {
            // It may have been trimmed meanwhile.
            self.sync().await?;
        }
        let mut heard = self.mirror.heard.write();
        let is_same = heard.beginnings == beginnings;
        let known = heard.partitions.get_mut(&partition);
        let known = known.ok_or(ReadError::UnknownPartition(partition))?;
        if !is_same || known.index.from != from || known.anchor != anchor {
            // Somebody else was faster, or it was trimmed meanwhile; whoever needs it looks again.
            return Ok(());
        }
        if end != from.offset {
            tracing::error!(
                %partition, counted = end.0, expected = from.offset.0,
                "the messages in the stream are not those that were counted: some are lost or were removed by somebody else"
            );
            let lost = "the messages in the stream are not those that were counted";
            return Err(ReadError::Unavailable(lost.into()));
        }
        known.index.prepend(anchor, index.into_blocks());
        Ok(())
    }

    /// An index of the messages between two places, and their end: less than the second place only if some of them are gone.
    async fn headers(
        &self,
        partition: TopicPartition,
        anchor: Anchor,
        to: Anchor,
    ) -> Result<(Index, Offset), Trouble> {
        let mut older = Older::new(anchor, to);
        if !older.is_done {
            let pieces = self.subjects.piece(partition);
            let see = &mut |seq, note: Option<&Note>, size| {
                older.see(seq, note, size);
                !older.is_done
            };
            self.each_header(pieces, anchor.seq + 1, see).await?;
        }
        Ok((older.index, older.next))
    }

    /// Passes the headers of a subject's messages from a sequence on, with the sizes of their bodies, until `see` has seen enough. They may
    /// come more than once.
    pub(crate) async fn each_header(
        &self,
        subject: String,
        from: u64,
        see: &mut (dyn FnMut(u64, Option<&Note>, u64) -> bool + Send),
    ) -> Result<(), Trouble> {
        let config = push::OrderedConfig {
            deliver_subject: self.client.new_inbox(),
            filter_subject: subject,
            deliver_policy: DeliverPolicy::ByStartSequence {
                start_sequence: from,
            },
            headers_only: true,
            ..push::OrderedConfig::default()
        };
        let older = self.stream.create_consumer(config).await;
        let older = older.map_err(Trouble::unavailable)?;
        let mut messages = older.messages().await.map_err(Trouble::unavailable)?;
        // A server that was away has the last of them when it has caught up.
        loop {
            let message = tokio::time::timeout(ANSWER_DURATION_MAX, messages.next()).await;
            let late = |_| Trouble::unavailable("what is older is not delivered in time");
            let message = message.map_err(late)?;
            let ended = || Trouble::unavailable("what is older cannot be read to its end");
            let message = message.ok_or_else(ended)?.map_err(Trouble::unavailable)?;
            let seq = message
                .info()
                .map_err(Trouble::unavailable)?
                .stream_sequence;
            let headers = message.headers.as_ref();
            let size = headers.and_then(|headers| number(headers, "Nats-Msg-Size"));
            let note = headers.and_then(Note::of);
            if !see(seq, note.as_ref(), size.unwrap_or_default()) {
                return Ok(());
            }
        }
    }
}

/// An index of the messages between two places, while their headers arrive. They may arrive more than once, and begin too early: a
/// subscription that is lost at its beginning is made again from the beginning of the stream.
struct Older {
    index: Index,
    /// The offset of the next one.
    next: Offset,
    /// Everything up to this sequence was seen.
    seen: u64,
    to: Anchor,
    is_done: bool,
}

impl Older {
    fn new(from: Anchor, to: Anchor) -> Self {
        Self {
            index: Index::beginning(from),
            next: from.offset,
            seen: from.seq,
            to,
            is_done: from.offset >= to.offset,
        }
    }

    fn see(&mut self, seq: u64, note: Option<&Note>, size: u64) {
        if self.is_done || seq <= self.seen {
            return;
        }
        self.seen = seq;
        if seq > self.to.seq {
            self.is_done = true;
            return;
        }
        let Some(piece) = note.and_then(|note| Piece::of(seq, note, size)) else {
            return;
        };
        self.index.push(self.next, piece);
        self.next = self.next.plus(piece.span);
        self.is_done = self.next >= self.to.offset;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Batches of two offsets, in so many parts each.
    fn see(older: &mut Older, seqs: impl IntoIterator<Item = u64>, parts: u64) {
        for seq in seqs {
            let words = [seq % parts, parts, 2, 2, 1000 + seq].map(|word| word.to_string());
            let note = Note {
                commit: 1,
                index: 0,
                count: 1,
                words: words.into(),
            };
            older.see(seq, Some(&note), 100);
        }
    }

    fn anchor(offset: u64, seq: u64) -> Anchor {
        Anchor {
            offset: Offset(offset),
            seq,
        }
    }

    #[test]
    fn what_arrives_twice_or_is_before_the_start_is_not_counted() {
        let mut older = Older::new(anchor(6, 13), anchor(14, 17));
        see(&mut older, 10..16, 1);
        assert_eq!((older.next, older.is_done), (Offset(10), false));
        // The subscription is made again.
        see(&mut older, 1..18, 1);
        assert_eq!((older.next, older.is_done), (Offset(14), true));
        assert_eq!(older.index.blocks()[0].seq, 14);
        assert_eq!(older.index.blocks()[0].messages, Some(8));
        see(&mut older, 18..30, 1);
        assert_eq!(older.next, Offset(14));
    }

    #[test]
    fn a_batch_in_parts_counts_once() {
        let mut older = Older::new(anchor(0, 0), anchor(4, 9));
        see(&mut older, 3..9, 3);
        assert_eq!((older.next, older.is_done), (Offset(4), true));
        assert_eq!(older.index.blocks()[0].bytes, 600);
    }

    #[test]
    fn what_is_gone_is_missing_at_the_end() {
        let mut older = Older::new(anchor(0, 0), anchor(8, 4));
        see(&mut older, [1, 2, 4], 1);
        assert!(!older.is_done, "the last one may still arrive");
        see(&mut older, [5], 1);
        assert_eq!((older.next, older.is_done), (Offset(6), true));
        let older = Older::new(anchor(3, 8), anchor(3, 8));
        assert!(older.is_done);
    }

    #[test]
    fn what_others_have_written_has_no_offsets() {
        let mut older = Older::new(anchor(0, 0), anchor(2, 4));
        older.see(1, None, 100);
        see(&mut older, [2], 1);
        assert_eq!((older.next, older.is_done), (Offset(2), true));
    }
}
