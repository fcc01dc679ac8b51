//! One message of a batch: a cheap view without copies.

use std::rc::Rc;

use crate::batch::Batch;
use crate::columns::{Columns, span};
use crate::output::Output;

/// A message. The returned bytes live as long as its batch.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    pub(crate) batch: &'a Batch,
    pub(crate) index: usize,
}

impl<'a> Message<'a> {
    /// The key, if there is one.
    #[must_use]
    pub fn key(&self) -> Option<&'a [u8]> {
        span(&self.columns().data, &self.columns().keys, self.index)
    }

    /// The value, if it has one. A message without a value is a tombstone, as in Kafka.
    #[must_use]
    pub fn value(&self) -> Option<&'a [u8]> {
        span(&self.columns().data, &self.columns().values, self.index)
    }

    /// The value of the last header with this name, if there is one and it is not null.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        let named = self
            .headers()
            .filter(|(found, _)| *found == name.as_bytes());
        named.last().and_then(|(_, value)| value)
    }

    /// Names and values of all headers, in order.
    pub fn headers(&self) -> impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + use<'a> {
        let columns = self.columns();
        self.batch.scratch.input_headers(self.index).map(|header| {
            let name = span(&columns.data, &columns.headers, header * 2);
            (
                name.unwrap_or_default(),
                span(&columns.data, &columns.headers, header * 2 + 1),
            )
        })
    }

    /// The timestamp, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn timestamp(&self) -> u64 {
        self.columns().timestamps[self.index]
    }

    /// Its offset in the partition. Not yet known when a partitioner is called.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.columns().offsets[self.index]
    }

    /// The number of this attempt, from 1, including attempts of earlier revisions.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.columns().attempts[self.index]
    }

    /// The topic that it comes from.
    #[must_use]
    pub fn topic(&self) -> &'a str {
        self.batch.topic()
    }

    /// The partition that it comes from.
    #[must_use]
    pub fn partition(&self) -> u32 {
        self.batch.partition()
    }

    /// Its index in the batch, from 0.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// An output that is this message unchanged; call its methods to change parts of it.
    pub fn output(&self) -> Output {
        Output::unchanged(Rc::clone(&self.batch.scratch), self.index as u32)
    }

    fn columns(&self) -> &'a Columns {
        &self.batch.scratch.input
    }
}
