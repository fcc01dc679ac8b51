//! The frames of the native protocol: `[type: 1][message-id: 8][length: 4][payload]`, integers big-endian.
//!
//! A [`Decoder`] takes bytes as they arrive and returns frames as they become complete. It holds at
//! most one unfinished frame besides the last input, and checks every length against
//! [`FRAME_PAYLOAD_BYTES_MAX`] before using it. The meaning of a payload depends on the frame's
//! type; here it is only bytes.

use bytes::{Buf, Bytes, BytesMut};
use millrace_model::bounds::BATCH_BYTES_MAX;

/// Bytes before the payload.
pub const FRAME_HEADER_BYTES: usize = 13;
/// Bytes of one frame's payload: one record batch. A frame that announces more is refused before
/// memory is allocated for it.
pub const FRAME_PAYLOAD_BYTES_MAX: usize = BATCH_BYTES_MAX;

/// The type of a frame, with its number on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameType {
    /// Messages, pushed to a subscriber.
    Data = 1,
    /// The frame with this message id has taken effect.
    Ack = 2,
    /// Asks for messages to be pushed.
    Subscribe = 3,
    /// Commits the subscriber's position.
    CommitOffset = 4,
    /// All data sent so far is void; it is sent again from the start.
    Reset = 5,
    /// The data sent since the reset is complete.
    Ready = 6,
    /// The sender is about to close the connection.
    Disconnect = 7,
    /// Only a sign of life.
    Heartbeat = 8,
}

impl FrameType {
    /// All types, by number.
    pub const ALL: [Self; 8] = [
        Self::Data,
        Self::Ack,
        Self::Subscribe,
        Self::CommitOffset,
        Self::Reset,
        Self::Ready,
        Self::Disconnect,
        Self::Heartbeat,
    ];

    fn parse(number: u8) -> Result<Self, FrameError> {
        let known = Self::ALL.into_iter().find(|kind| *kind as u8 == number);
        known.ok_or(FrameError::UnknownType { number })
    }
}

/// Why bytes are not frames. The stream cannot be read any further: close the connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// An unknown type: a newer peer, another protocol, or a stream out of step.
    #[error("frame type {number} is unknown; this host reads types 1 to 8")]
    UnknownType {
        /// The byte found.
        number: u8,
    },
    /// Longer than the bound.
    #[error("the frame's payload has {bytes} bytes, at most {max} are read; send smaller frames")]
    TooLarge {
        /// The announced or actual length.
        bytes: usize,
        /// The bound.
        max: usize,
    },
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its type.
    pub kind: FrameType,
    /// Chosen by the sender; an answer repeats it.
    pub message_id: u64,
    /// Its content, which depends on the type.
    pub payload: Bytes,
}

impl Frame {
    /// Appends the encoded frame.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] for a payload that no peer would accept; nothing is appended then.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        check_length(self.payload.len())?;
        out.reserve(FRAME_HEADER_BYTES + self.payload.len());
        out.push(self.kind as u8);
        out.extend_from_slice(&self.message_id.to_be_bytes());
        out.extend_from_slice(&(self.payload.len() as u32).to_be_bytes());
        out.extend_from_slice(&self.payload);
        Ok(())
    }
}

/// Decodes frames from a byte stream, however it is divided.
#[derive(Debug, Default)]
pub struct Decoder {
    unread: BytesMut,
}

impl Decoder {
    /// A decoder at the beginning of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds received bytes. Call [`Decoder::next`] until it returns `None` before adding more,
    /// because frames that are not taken stay in memory.
    pub fn push(&mut self, bytes: &[u8]) {
        self.unread.extend_from_slice(bytes);
    }

    /// The next complete frame; `None` until more bytes arrive.
    ///
    /// # Errors
    /// [`FrameError`] for an invalid header, as soon as it is seen; the same error from then on.
    #[expect(
        clippy::should_implement_trait,
        reason = "`None` is not the end, as it is for iterators"
    )]
    pub fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(&number) = self.unread.first() else {
            return Ok(None);
        };
        let kind = FrameType::parse(number)?;
        let Some(mut header) = self.unread.get(1..FRAME_HEADER_BYTES) else {
            return Ok(None);
        };
        let message_id = header.get_u64();
        let length = check_length(header.get_u32() as usize)?;
        if self.unread.len() < FRAME_HEADER_BYTES + length {
            return Ok(None);
        }
        self.unread.advance(FRAME_HEADER_BYTES);
        Ok(Some(Frame {
            kind,
            message_id,
            payload: self.unread.split_to(length).freeze(),
        }))
    }
}

fn check_length(bytes: usize) -> Result<usize, FrameError> {
    if bytes > FRAME_PAYLOAD_BYTES_MAX {
        let max = FRAME_PAYLOAD_BYTES_MAX;
        return Err(FrameError::TooLarge { bytes, max });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn any_frame() -> impl Strategy<Value = Frame> {
        let kind = proptest::sample::select(FrameType::ALL.to_vec());
        (kind, any::<u64>(), vec(any::<u8>(), 0..60)).prop_map(|(kind, message_id, payload)| {
            Frame {
                kind,
                message_id,
                payload: payload.into(),
            }
        })
    }

    fn header(number: u8, length: u32) -> Vec<u8> {
        let mut bytes = vec![number, 0, 0, 0, 0, 0, 0, 0, 9];
        bytes.extend(length.to_be_bytes());
        bytes
    }

    fn all_ready(decoder: &mut Decoder) -> Vec<Frame> {
        std::iter::from_fn(|| decoder.next().expect("sound")).collect()
    }

    proptest! {
        #[test]
        fn however_the_stream_is_cut_the_frames_are_the_same(
            frames in vec(any_frame(), 1..8),
            sizes in vec(1usize..40, 1..20),
        ) {
            let mut stream = Vec::new();
            for frame in &frames {
                frame.encode(&mut stream).expect("fits");
            }
            let (mut decoder, mut decoded, mut rest) = (Decoder::new(), Vec::new(), &stream[..]);
            for size in sizes.into_iter().cycle() {
                let (piece, after) = rest.split_at(size.min(rest.len()));
                decoder.push(piece);
                decoded.extend(all_ready(&mut decoder));
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(decoded, frames);
            prop_assert_eq!(decoder.unread.len(), 0);
        }

        #[test]
        fn hostile_bytes_are_frames_or_errors_but_no_panic(pieces in vec(vec(any::<u8>(), 0..40), 0..20)) {
            let mut decoder = Decoder::new();
            for piece in pieces {
                decoder.push(&piece);
                while let Ok(Some(frame)) = decoder.next() {
                    prop_assert!(frame.payload.len() <= FRAME_PAYLOAD_BYTES_MAX);
                }
            }
        }
    }

    #[test]
    fn a_frame_has_the_bytes_that_the_protocol_says() {
        let mut bytes = Vec::new();
        let payload = Bytes::from_static(b"hi");
        let (kind, message_id) = (FrameType::CommitOffset, 0x0102);
        let frame = Frame {
            kind,
            message_id,
            payload,
        };
        frame.encode(&mut bytes).unwrap();
        assert_eq!(bytes, [4, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 2, b'h', b'i']);
    }

    #[test]
    fn an_unknown_type_is_named_at_its_first_byte_and_ends_the_stream() {
        for number in [0, 9, 255] {
            let mut decoder = Decoder::new();
            decoder.push(&[number]);
            assert_eq!(decoder.next(), Err(FrameError::UnknownType { number }));
            decoder.push(&header(8, 0));
            assert_eq!(decoder.next(), Err(FrameError::UnknownType { number }));
        }
    }

    #[test]
    fn a_length_over_the_bound_is_refused_before_its_payload_comes() {
        let (bytes, max) = (FRAME_PAYLOAD_BYTES_MAX + 1, FRAME_PAYLOAD_BYTES_MAX);
        let mut decoder = Decoder::new();
        decoder.push(&header(1, bytes as u32));
        assert_eq!(decoder.next(), Err(FrameError::TooLarge { bytes, max }));

        let mut decoder = Decoder::new();
        decoder.push(&header(1, max as u32));
        assert_eq!(decoder.next(), Ok(None));
        assert!(decoder.unread.capacity() < 1000, "no room before the bytes");

        let payload = Bytes::from(vec![0; bytes]);
        let (kind, message_id) = (FrameType::Data, 1);
        let mut out = Vec::new();
        let refused = Frame {
            kind,
            message_id,
            payload,
        }
        .encode(&mut out);
        assert_eq!(refused, Err(FrameError::TooLarge { bytes, max }));
        assert!(out.is_empty());
    }
}
