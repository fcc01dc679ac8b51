//! An output: its message, with some parts changed. Bytes are written to the batch's scratch as
//! they are given, so an output itself is only a few numbers.

use std::ops::Range;
use std::rc::Rc;

use crate::columns::{NO_TIME, NONE};
use crate::scratch::{Scratch, Span};

/// An output of a message; created by [`crate::Message::output`]. Bytes that are part of the input
/// are not copied.
#[derive(Debug)]
#[must_use = "an output is sent by returning it: Outcome::Emit(output)"]
pub struct Output {
    pub(crate) scratch: Rc<Scratch>,
    pub(crate) source: u32,
    /// `None` keeps the message's key.
    pub(crate) key: Option<Span>,
    /// `None` keeps the message's value.
    pub(crate) value: Option<Span>,
    /// A range of the scratch's headers, counted in numbers; `None` keeps the message's headers.
    pub(crate) headers: Option<Range<usize>>,
    pub(crate) topic: u32,
    pub(crate) partition: u32,
    /// Timestamp and time of delivery; [`NO_TIME`] keeps the message's timestamp, and delivers at
    /// once.
    pub(crate) times: [u64; 2],
}

impl Output {
    pub(crate) fn unchanged(scratch: Rc<Scratch>, source: u32) -> Self {
        Self {
            scratch,
            source,
            key: None,
            value: None,
            headers: None,
            topic: NONE,
            partition: NONE,
            times: [NO_TIME; 2],
        }
    }

    /// Sends the output to this topic instead of the processor's default output; the processor
    /// needs a grant for it.
    pub fn topic(mut self, name: &str) -> Self {
        self.topic = self.scratch.topic(name);
        self
    }

    /// Sends the output to this partition instead of letting the topic's partitioner choose.
    pub fn partition(mut self, partition: u32) -> Self {
        self.partition = partition;
        self
    }

    /// Replaces the timestamp, in milliseconds since the Unix epoch.
    pub fn timestamp(mut self, ms: u64) -> Self {
        self.times[0] = ms;
        self
    }

    /// Delays it until this time, in milliseconds since the Unix epoch; a time in the past means at
    /// once. The host stores it, and it appears in its topic at that time, never before, with that
    /// timestamp unless another one is given.
    ///
    /// ```
    /// use millrace_guest::{Message, Outcome};
    ///
    /// /// Sends a reminder an hour after each order.
    /// fn process(message: &Message) -> Outcome {
    ///     let in_an_hour = message.timestamp() + 3_600_000;
    ///     Outcome::Emit(message.output().topic("reminders").deliver_at(in_an_hour))
    /// }
    /// ```
    pub fn deliver_at(mut self, ms: u64) -> Self {
        self.times[1] = ms;
        self
    }

    /// Replaces the key.
    pub fn key(mut self, key: impl AsRef<[u8]>) -> Self {
        self.key = Some(self.scratch.place(key.as_ref()));
        self
    }

    /// Removes the key.
    pub fn without_key(mut self) -> Self {
        self.key = Some(Span::NULL);
        self
    }

    /// Replaces the value.
    pub fn value(mut self, value: impl AsRef<[u8]>) -> Self {
        self.value = Some(self.scratch.place(value.as_ref()));
        self
    }

    /// Replaces the value by the bytes that `build` appends to the buffer. This is the fastest way,
    /// because the buffer is part of the answer.
    #[inline]
    pub fn build_value(mut self, build: impl FnOnce(&mut Vec<u8>)) -> Self {
        self.value = Some(self.scratch.write(build));
        self
    }

    /// Removes the value.
    pub fn without_value(mut self) -> Self {
        self.value = Some(Span::NULL);
        self
    }

    /// Removes all headers that it has so far.
    pub fn without_headers(mut self) -> Self {
        let end = self.scratch.headers.borrow().len();
        self.headers = Some(end..end);
        self
    }

    /// Adds a header to those that it has so far, which are initially the message's.
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let (name, value) = (
            self.scratch.place(name.as_bytes()),
            self.scratch.place(value.as_ref()),
        );
        let start = self.open_headers();
        let end = {
            let mut headers = self.scratch.headers.borrow_mut();
            name.push_to(&mut headers);
            value.push_to(&mut headers);
            headers.len()
        };
        self.headers = Some(start..end);
        self
    }

    /// Moves this output's headers to the end of the scratch, where they can grow; returns their
    /// start.
    fn open_headers(&self) -> usize {
        let mut headers = self.scratch.headers.borrow_mut();
        let end = headers.len();
        match self.headers.clone() {
            Some(mine) if mine.end == end => return mine.start,
            Some(mine) => headers.extend_from_within(mine),
            None => {
                let mine = self.scratch.input_headers(self.source as usize);
                headers
                    .extend_from_slice(&self.scratch.input.headers[mine.start * 4..mine.end * 4]);
            }
        }
        end
    }
}
