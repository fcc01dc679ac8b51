//! The buffer for the outputs of a batch while it is processed: bytes are written directly to the
//! answer's data, so an output needs no allocation of its own. Shared by a batch and its outputs,
//! on one thread, like everything in a guest.

use std::cell::RefCell;
use std::ops::Range;

use crate::columns::{Columns, NONE};

/// Start and length, as in the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: u32,
    pub(crate) length: u32,
}

impl Span {
    /// The span of null.
    pub(crate) const NULL: Self = Self {
        start: 0,
        length: NONE,
    };
    const EMPTY: Self = Self {
        start: 0,
        length: 0,
    };

    /// Appends both numbers to a column.
    #[inline]
    pub(crate) fn push_to(self, column: &mut Vec<u32>) {
        column.extend_from_slice(&[self.start, self.length]);
    }
}

/// The input, and the bytes, headers and topic names of its outputs so far.
#[derive(Debug)]
pub(crate) struct Scratch {
    pub(crate) input: Columns,
    pub(crate) data: RefCell<Vec<u8>>,
    /// Four numbers each, as in the answer, in the order of writing.
    pub(crate) headers: RefCell<Vec<u32>>,
    pub(crate) topic_names: RefCell<Vec<String>>,
}

impl Scratch {
    pub(crate) fn new(input: Columns) -> Self {
        Self {
            input,
            data: RefCell::default(),
            headers: RefCell::default(),
            topic_names: RefCell::default(),
        }
    }

    /// A span for these bytes: of the input if they are part of it, otherwise of a copy.
    #[inline]
    pub(crate) fn place(&self, bytes: &[u8]) -> Span {
        let input = self.input.data.as_ptr_range();
        if bytes.is_empty() {
            Span::EMPTY
        } else if input.contains(&bytes.as_ptr()) {
            let start = bytes.as_ptr().addr() - input.start.addr();
            Span {
                start: start as u32,
                length: bytes.len() as u32,
            }
        } else {
            self.write(|buffer| buffer.extend_from_slice(bytes))
        }
    }

    /// A span for the bytes that `build` appends.
    #[inline]
    pub(crate) fn write(&self, build: impl FnOnce(&mut Vec<u8>)) -> Span {
        let mut data = self.data.borrow_mut();
        if data.capacity() == 0 {
            // Most handlers return about as many bytes as they get.
            data.reserve(self.input.data.len());
        }
        let start = data.len();
        build(&mut data);
        let length = data
            .len()
            .checked_sub(start)
            .expect("a value is built by appending to the buffer");
        Span {
            start: self.input.data.len() as u32 + start as u32,
            length: length as u32,
        }
    }

    /// The range of a message's headers in the input, four numbers each.
    pub(crate) fn input_headers(&self, message: usize) -> Range<usize> {
        let ends = &self.input.header_ends;
        let start = message
            .checked_sub(1)
            .map_or(0, |before| ends[before] as usize);
        start..ends[message] as usize
    }

    /// The index of a topic's name.
    pub(crate) fn topic(&self, name: &str) -> u32 {
        let mut names = self.topic_names.borrow_mut();
        // There are few topics, and usually it is the last one again.
        let known = names.iter().rposition(|known| known == name);
        known.unwrap_or_else(|| {
            names.push(name.to_owned());
            names.len() - 1
        }) as u32
    }
}
