//! A batch as its handler sees it: as messages. Its columns are in the scratch, where outputs refer
//! to them.

use std::rc::Rc;

use crate::columns::Columns;
use crate::message::Message;
use crate::scratch::Scratch;

/// Messages of one partition, in order.
#[derive(Debug)]
pub struct Batch {
    pub(crate) scratch: Rc<Scratch>,
}

impl Batch {
    /// A batch from columns; tests use [`crate::Sample`].
    #[must_use]
    pub fn new(columns: Columns) -> Self {
        Self {
            scratch: Rc::new(Scratch::new(columns)),
        }
    }

    /// The number of messages.
    #[must_use]
    pub fn len(&self) -> usize {
        self.scratch.input.offsets.len()
    }

    /// Whether the batch has no messages.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The topic that the messages come from.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.scratch.input.topic
    }

    /// The partition that the messages come from.
    #[must_use]
    pub fn partition(&self) -> u32 {
        self.scratch.input.partition
    }

    /// The message at this index, from 0. Panics if there is none.
    #[must_use]
    pub fn message(&self, index: usize) -> Message<'_> {
        assert!(
            index < self.len(),
            "a batch of {} has no message {index}",
            self.len()
        );
        Message { batch: self, index }
    }

    /// All messages, in order.
    pub fn messages(&self) -> impl ExactSizeIterator<Item = Message<'_>> {
        (0..self.len()).map(|index| Message { batch: self, index })
    }
}
