//! A frame of the journal: a group of transactions that exists completely or not at all.
//!
//! ```text
//! 0 length u32 (of the body)   4 CRC-32C u32 (of all that follows)   8 salt u64   16 sequence u64   24 synced u64   32 body
//! ```
//! Little-endian; frames begin at multiples of eight bytes. `synced` is the highest sequence known
//! to be durable when the frame was written. It distinguishes damage (of a frame that was durable)
//! from a torn tail (of one that never was).

use std::io;

use bytes::Bytes;

use crate::disk::DiskFile;

/// Bytes before the body.
pub const FRAME_HEADER_BYTES: usize = 32;
/// Frames begin at multiples of this.
pub const FRAME_ALIGN_BYTES: usize = 8;

/// Parts of at least this many bytes are written from where they are; smaller ones are first copied
/// together.
const PIECE_BYTES_MIN: usize = 16 << 10;

/// A frame being built: space for the header, then the body. Reused for each group.
#[derive(Debug)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
    /// Parts that belong between `bytes`, each with its position there.
    pieces: Vec<(usize, Bytes)>,
    piece_bytes: usize,
}

impl Default for FrameBuffer {
    fn default() -> Self {
        Self {
            bytes: vec![0; FRAME_HEADER_BYTES],
            pieces: Vec::new(),
            piece_bytes: 0,
        }
    }
}

impl FrameBuffer {
    /// Clears the frame. A buffer that a large group made grow is freed.
    pub fn clear(&mut self, bytes_kept_max: usize) {
        self.pieces.clear();
        self.piece_bytes = 0;
        self.bytes.truncate(FRAME_HEADER_BYTES);
        if self.bytes.capacity() > bytes_kept_max {
            self.bytes.shrink_to(bytes_kept_max);
        }
    }

    /// The body, for appending; existing bytes must not change.
    pub fn body(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Appends shared bytes, which may be large, without copying them.
    pub fn push(&mut self, bytes: &Bytes) {
        if bytes.len() < PIECE_BYTES_MIN {
            self.bytes.extend_from_slice(bytes);
        } else {
            self.pieces.push((self.bytes.len(), bytes.clone()));
            self.piece_bytes += bytes.len();
        }
    }

    /// Bytes of the body so far.
    #[must_use]
    pub fn body_bytes(&self) -> usize {
        (self.bytes.len() + self.piece_bytes).saturating_sub(FRAME_HEADER_BYTES)
    }

    /// Bytes from this frame's beginning to the next one's.
    pub(crate) fn stride(&self) -> u64 {
        (FRAME_HEADER_BYTES + self.body_bytes()).next_multiple_of(FRAME_ALIGN_BYTES) as u64
    }

    /// Fills in the header and writes the frame, padded to the next frame's beginning.
    pub(crate) fn write(
        &mut self,
        file: &dyn DiskFile,
        at: u64,
        [salt, sequence, synced]: [u64; 3],
    ) -> io::Result<()> {
        let length = self.body_bytes() as u32;
        self.bytes[0..4].copy_from_slice(&length.to_le_bytes());
        self.bytes[8..16].copy_from_slice(&salt.to_le_bytes());
        self.bytes[16..24].copy_from_slice(&sequence.to_le_bytes());
        self.bytes[24..32].copy_from_slice(&synced.to_le_bytes());
        let start = crc32c::crc32c(&length.to_le_bytes());
        let mut parts = self.parts();
        parts[0] = &parts[0][8..];
        let sum = |sum, part: &&[u8]| crc32c::crc32c_append(sum, part);
        let crc = parts.iter().fold(start, sum);
        self.bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        let padding = self.stride() as usize - FRAME_HEADER_BYTES - self.body_bytes();
        let mut parts = self.parts();
        parts.push(&[0; FRAME_ALIGN_BYTES][..padding]);
        file.write_pieces_at(&parts, at)
    }

    /// The frame's bytes in their order.
    fn parts(&self) -> Vec<&[u8]> {
        let mut parts = Vec::with_capacity(2 * self.pieces.len() + 2);
        let mut from = 0;
        for (before, piece) in &self.pieces {
            parts.extend([&self.bytes[from..*before], piece]);
            from = *before;
        }
        parts.push(&self.bytes[from..]);
        parts
    }
}

/// A complete, valid frame in a buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame<'a> {
    pub(crate) salt: u64,
    pub(crate) sequence: u64,
    pub(crate) synced: u64,
    pub(crate) body: &'a [u8],
    /// Distance to the next frame's beginning.
    pub(crate) stride: usize,
}

/// The frame at the beginning of `bytes`; `None` if there is no valid one.
pub(crate) fn decode(bytes: &[u8]) -> Option<Frame<'_>> {
    let header = bytes.first_chunk::<FRAME_HEADER_BYTES>()?;
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| header[at + i]));
    let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    let crc = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
    let end = FRAME_HEADER_BYTES.checked_add(length as usize)?;
    let body = bytes.get(FRAME_HEADER_BYTES..end)?;
    // An empty body is never written, and an unused file contains zeros.
    if length == 0 || checksum(length, &bytes[8..end]) != crc {
        return None;
    }
    Some(Frame {
        salt: word(8),
        sequence: word(16),
        synced: word(24),
        body,
        stride: end.next_multiple_of(FRAME_ALIGN_BYTES),
    })
}

fn checksum(length: u32, rest: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&length.to_le_bytes()), rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Disk;
    use crate::sim::SimDisk;
    use proptest::prelude::*;
    use std::path::Path;

    fn written(buffer: &mut FrameBuffer) -> Vec<u8> {
        let disk = SimDisk::default();
        let path = Path::new("/frame");
        let file = disk.create(path).unwrap();
        buffer.write(&*file, 0, [7, 8, 6]).unwrap();
        disk.contents(path).unwrap()
    }

    fn frame(body: &[u8]) -> Vec<u8> {
        let mut buffer = FrameBuffer::default();
        buffer.body().extend_from_slice(body);
        written(&mut buffer)
    }

    #[test]
    fn large_pieces_stand_where_they_were_pushed() {
        let pieces: Vec<Bytes> = [5, PIECE_BYTES_MIN, 7, PIECE_BYTES_MIN + 3, PIECE_BYTES_MIN]
            .iter()
            .zip(1..)
            .map(|(&length, fill)| vec![fill; length].into())
            .collect();
        let mut buffer = FrameBuffer::default();
        for _ in 0..2 {
            pieces.iter().for_each(|piece| buffer.push(piece));
            assert_eq!(written(&mut buffer), frame(&pieces.concat()));
            buffer.clear(1 << 20);
        }
    }

    proptest! {
        #[test]
        fn a_frame_reads_back_and_no_flipped_bit_or_cut_goes_unnoticed(
            body in proptest::collection::vec(any::<u8>(), 1..200),
            place: proptest::sample::Index,
            bit in 0u8..8,
        ) {
            let written = frame(&body);
            let read = decode(&written).expect("sound");
            prop_assert_eq!((read.salt, read.sequence, read.synced, read.body), (7, 8, 6, &body[..]));
            prop_assert_eq!(read.stride, written.len());
            let size = FRAME_HEADER_BYTES + body.len();
            let at = place.index(size);
            let mut damaged = written.clone();
            damaged[at] ^= 1 << bit;
            prop_assert!(decode(&damaged).is_none());
            prop_assert!(decode(&written[..at]).is_none());
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let _ = decode(&bytes);
        }
    }

    #[test]
    fn zeros_are_no_frame() {
        assert!(decode(&[0; 4096]).is_none());
    }
}
