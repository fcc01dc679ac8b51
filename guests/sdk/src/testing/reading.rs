//! Reads outcomes from columns, as a host does. An answer that a host would refuse fails the test,
//! with the rule that it breaks.

use std::ops::Range;
use std::time::Duration;

use super::said::{Said, Sent};
use super::text::Text;
use crate::columns::{Answer, Columns, NO_TIME, NONE};
use crate::outcomes::{ACK, EMIT, REJECT, RETRY};

/// A part of a batch's messages as a batch of its own.
pub(super) fn part_of(columns: &Columns, part: Range<usize>) -> Columns {
    let pairs = part.start * 2..part.end * 2;
    let header = |message: usize| match message {
        0 => 0,
        _ => columns.header_ends[message - 1],
    };
    let (first, end) = (header(part.start), header(part.end));
    let ends = columns.header_ends[part.clone()].iter();
    Columns {
        topic: columns.topic.clone(),
        partition: columns.partition,
        data: columns.data.clone(),
        offsets: columns.offsets[part.clone()].to_vec(),
        timestamps: columns.timestamps[part.clone()].to_vec(),
        attempts: columns.attempts[part].to_vec(),
        keys: columns.keys[pairs.clone()].to_vec(),
        values: columns.values[pairs].to_vec(),
        header_ends: ends.map(|end| end - first).collect(),
        headers: columns.headers[first as usize * 4..end as usize * 4].to_vec(),
    }
}

/// The outcome of each message.
pub(super) fn said(columns: &Columns, answer: &Answer) -> Vec<Said> {
    let (given, wanted) = (answer.outcomes.len(), columns.offsets.len());
    assert!(
        given == wanted,
        "{given} outcomes for {wanted} messages: each message has one"
    );
    check_sources(answer, wanted);
    let reader = Reader { columns, answer };
    let outcomes = answer.outcomes.iter().enumerate();
    outcomes
        .map(|(message, &outcome)| reader.said_of(message, outcome))
        .collect()
}

/// Checks that outputs belong to messages with the outcome emit, in order, that each of these has
/// at least one, and that details ascend.
fn check_sources(answer: &Answer, messages: usize) {
    let sources = &answer.sources;
    assert!(sources.is_sorted(), "sources go back: {sources:?}");
    if let Some(beyond) = sources.iter().find(|source| **source as usize >= messages) {
        panic!("an output comes from message {beyond} of {messages}: they are counted from 0");
    }
    for (message, _) in answer
        .outcomes
        .iter()
        .enumerate()
        .filter(|(_, o)| **o == EMIT)
    {
        assert!(
            sources.binary_search(&(message as u32)).is_ok(),
            "message {message} is sent on without an output; one that is only done is acknowledged"
        );
    }
    let details: Vec<u32> = answer.details.iter().map(|detail| detail.message).collect();
    assert!(
        details.is_sorted_by(|before, after| before < after),
        "details are of ascending messages, at most one of each: {details:?}"
    );
}

struct Reader<'a> {
    columns: &'a Columns,
    answer: &'a Answer,
}

impl Reader<'_> {
    fn said_of(&self, message: usize, outcome: u8) -> Said {
        let outputs = self.outputs_of(message);
        let is_emitted = outcome == EMIT;
        assert!(
            is_emitted || outputs.is_empty(),
            "message {message} has outputs, and its outcome is not that it is sent on"
        );
        match outcome {
            ACK => Said::Acked,
            EMIT => Said::Sent(outputs),
            RETRY | REJECT => self.failure(message, outcome),
            other => {
                panic!("the outcome of message {message} is {other}: there is none of this number")
            }
        }
    }

    fn failure(&self, message: usize, outcome: u8) -> Said {
        let mut details = self.answer.details.iter();
        let detail = details.find(|detail| detail.message as usize == message);
        let (after, class, reason) = detail.map_or_else(Default::default, |detail| {
            let (class, reason) = (detail.class.clone(), detail.reason.clone());
            (detail.after_ms.map(Duration::from_millis), class, reason)
        });
        match outcome {
            RETRY => Said::Retried {
                after,
                class,
                reason,
            },
            _ => Said::Rejected { class, reason },
        }
    }

    fn outputs_of(&self, message: usize) -> Vec<Sent> {
        let sources = self.answer.sources.iter().enumerate();
        let own = sources.filter(|(_, source)| **source as usize == message);
        own.map(|(output, _)| self.sent(output, message)).collect()
    }

    fn sent(&self, output: usize, message: usize) -> Sent {
        let (columns, answer) = (self.columns, self.answer);
        let number = |column: &[u32]| column.get(output).copied().filter(|n| *n != NONE);
        let time = |which: usize| {
            let given = answer.times.get(output * 2 + which).copied();
            given.filter(|time| *time != NO_TIME)
        };
        Sent {
            topic: number(&answer.topics).map(|topic| answer.topic_names[topic as usize].clone()),
            partition: number(&answer.partitions),
            key: self.either(&answer.keys, output, &columns.keys, message),
            value: self.either(&answer.values, output, &columns.values, message),
            headers: self.headers(output, message),
            timestamp: time(0),
            deliver_at: time(1),
        }
    }

    /// The answer's span, or the message's if the column is empty.
    fn either(&self, given: &[u32], output: usize, kept: &[u32], message: usize) -> Option<Text> {
        match given {
            [] => self.text(&kept[message * 2..][..2]),
            given => self.text(&given[output * 2..][..2]),
        }
    }

    fn headers(&self, output: usize, message: usize) -> Vec<(Text, Option<Text>)> {
        let (columns, answer) = (self.columns, self.answer);
        let (ends, headers, index) = match answer.header_ends.as_slice() {
            [] => (&columns.header_ends, &columns.headers, message),
            _ => (&answer.header_ends, &answer.headers, output),
        };
        let start = index
            .checked_sub(1)
            .map_or(0, |before| ends[before] as usize);
        let header = |header: &[u32]| {
            let name = self.text(&header[..2]);
            let name = name.expect("a header has a name");
            (name, self.text(&header[2..]))
        };
        let own = &headers[start * 4..ends[index] as usize * 4];
        own.chunks(4).map(header).collect()
    }

    /// The bytes of a span: first those of the batch, then those of the answer.
    fn text(&self, span: &[u32]) -> Option<Text> {
        let (start, length) = (span[0] as usize, span[1]);
        if length == NONE {
            return None;
        }
        let input = &self.columns.data;
        let (bytes, start) = match start.checked_sub(input.len()) {
            // An empty span may be anywhere.
            Some(_) if length == 0 => return Some(Text::from(&[][..])),
            Some(start) => (&self.answer.data, start),
            None => (input, start),
        };
        let found = bytes.get(start..start + length as usize);
        Some(found.expect("a span lies within its bytes").into())
    }
}
