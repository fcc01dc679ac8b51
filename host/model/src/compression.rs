//! The codecs of record batches, with the numbers of Kafka's batch attributes.
//!
//! Decoding trusts nothing: no codec may write beyond the room it is given, and nothing may follow the compressed data.

use std::fmt;
use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

/// How snappy streams of Kafka's Java clients begin; two version numbers follow, then chunks of `[length u32][block]`.
const XERIAL_MAGIC: [u8; 8] = [0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0];
const XERIAL_HEADER_BYTES: usize = 16;
/// How LZ4 frames begin.
const LZ4_MAGIC: [u8; 4] = 0x184D_2204u32.to_le_bytes();
/// Bytes that one chunk holds, as Kafka's Java clients write them.
const XERIAL_CHUNK_BYTES: usize = 32 << 10;
/// Maximum expansion of a snappy block: its densest element copies 64 bytes and takes 3.
const SNAPPY_RATIO_MAX: usize = 22;
/// Default level of zstd, which is its own default and that of Kafka's clients.
const ZSTD_LEVEL: i32 = 3;
/// Maximum window of a zstd frame, as a power of two: the most that any level of Kafka's clients writes (128 MiB of address space, of
/// which only the decompressed part is touched).
pub(crate) const ZSTD_WINDOW_LOG_MAX: u32 = 27;
/// The first guess of the expansion of compressed bytes.
const GROWTH: usize = 4;

/// A codec of record batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Uncompressed.
    #[default]
    None,
    /// RFC 1952.
    Gzip,
    /// Snappy, in the framing of Kafka's clients.
    Snappy,
    /// LZ4 frames.
    Lz4,
    /// RFC 8878.
    Zstd,
}

/// Why compressed bytes could not be decompressed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InflateError {
    /// They decompress to more than the bound.
    #[error("they have more than {max} bytes; send smaller batches")]
    TooLarge {
        /// The bound.
        max: usize,
    },
    /// They are not valid for the codec.
    #[error("{0}")]
    Broken(String),
    /// Bytes follow the end of the compressed data.
    #[error("bytes follow the end of the compressed data")]
    Trailing,
}

impl Compression {
    /// All of them, by number.
    pub const ALL: [Self; 5] = [Self::None, Self::Gzip, Self::Snappy, Self::Lz4, Self::Zstd];

    /// The codec's number in a batch's attributes.
    #[must_use]
    pub fn code(self) -> i16 {
        self as i16
    }

    /// The codec with that number; `None` if there is none.
    #[must_use]
    pub fn from_code(code: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|codec| codec.code() == code)
    }

    /// Its name in settings.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    /// Appends `plain` to `out`, compressed.
    ///
    /// # Errors
    /// The codec's error; none fails on memory alone.
    pub fn deflate(self, plain: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::None => out.extend_from_slice(plain),
            Self::Gzip => {
                let mut encoder =
                    flate2::write::GzEncoder::new(out, flate2::Compression::default());
                encoder.write_all(plain)?;
                encoder.finish()?;
            }
            Self::Snappy => deflate_snappy(plain, out)?,
            Self::Lz4 => deflate_lz4(plain, out)?,
            Self::Zstd => out.extend(zstd::bulk::compress(plain, ZSTD_LEVEL)?),
        }
        Ok(())
    }

    /// Appends the decompressed data to `out`: all of it, and at most `max` bytes.
    ///
    /// # Errors
    /// [`InflateError`]; the content of `out` is then useless.
    pub fn inflate(
        self,
        compressed: &[u8],
        out: &mut Vec<u8>,
        max: usize,
    ) -> Result<(), InflateError> {
        let guess = compressed.len().saturating_mul(GROWTH);
        match self {
            Self::None if compressed.len() > max => return Err(InflateError::TooLarge { max }),
            Self::None => out.extend_from_slice(compressed),
            // Both accept several members or frames in sequence, and nothing else.
            Self::Gzip => read_all(
                flate2::bufread::MultiGzDecoder::new(compressed),
                out,
                guess,
                max,
            )?,
            Self::Zstd => {
                let mut decoder =
                    zstd::stream::read::Decoder::with_buffer(compressed).map_err(broken)?;
                decoder
                    .window_log_max(ZSTD_WINDOW_LOG_MAX)
                    .map_err(broken)?;
                read_all(decoder, out, guess, max)?;
            }
            Self::Lz4 => inflate_lz4(compressed, out, guess, max)?,
            Self::Snappy => inflate_snappy(compressed, out, max)?,
        }
        Ok(())
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn broken(error: impl fmt::Display) -> InflateError {
    InflateError::Broken(error.to_string())
}

/// Reads to the end. The buffer doubles, but never exceeds the limit by more than one byte.
fn read_all(
    mut from: impl Read,
    out: &mut Vec<u8>,
    guess: usize,
    max: usize,
) -> Result<(), InflateError> {
    let start = out.len();
    let limit = start + max + 1;
    let mut filled = start;
    let mut room = guess.max(512);
    loop {
        if filled == out.len() {
            if filled == limit {
                return Err(InflateError::TooLarge { max });
            }
            let grown = filled.saturating_add(room).min(limit);
            out.reserve_exact(grown - filled);
            out.resize(grown, 0);
            room = grown - start;
        }
        match from.read(&mut out[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(broken(error)),
        }
    }
    if filled == limit {
        return Err(InflateError::TooLarge { max });
    }
    out.truncate(filled);
    Ok(())
}

/// Frames that Kafka's Java clients can read: independent blocks of 64 KiB.
fn deflate_lz4(plain: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
    let mut info = FrameInfo::new();
    info.block_size = BlockSize::Max64KB;
    info.block_mode = BlockMode::Independent;
    let mut encoder = FrameEncoder::with_frame_info(info, out);
    encoder.write_all(plain)?;
    encoder.finish()?;
    Ok(())
}

fn inflate_lz4(
    compressed: &[u8],
    out: &mut Vec<u8>,
    guess: usize,
    max: usize,
) -> Result<(), InflateError> {
    // The decoder accepts a frame without its end, and an older format with blocks of 8 MiB.
    match lz4_frame_end(compressed) {
        None => return Err(broken("it is not a complete lz4 frame")),
        Some(end) if end < compressed.len() => return Err(InflateError::Trailing),
        Some(_) => {}
    }
    let decoder = lz4_flex::frame::FrameDecoder::new(compressed);
    read_all(decoder, out, guess, max)
}

/// The end of the frame, found by walking its blocks; `None` if the bytes end first.
fn lz4_frame_end(frame: &[u8]) -> Option<usize> {
    let flags = *frame.strip_prefix(&LZ4_MAGIC)?.first()?;
    let bytes_if = |flag: u8, bytes: usize| if flags & flag != 0 { bytes } else { 0 };
    let (block_checksum, content_checksum) = (bytes_if(0b1_0000, 4), bytes_if(0b100, 4));
    // Magic, flags, block size; the content's size and the dictionary's id where there are; the header's checksum.
    let mut at = LZ4_MAGIC.len() + 2 + bytes_if(0b1000, 8) + bytes_if(1, 4) + 1;
    loop {
        let length = frame.get(at..)?.first_chunk::<4>()?;
        at += 4;
        // The highest bit marks a block that is stored as it is; a length of zero is the end.
        match u32::from_le_bytes(*length) & 0x7fff_ffff {
            0 => break,
            length => at = at.checked_add(length as usize + block_checksum)?,
        }
    }
    at += content_checksum;
    (at <= frame.len()).then_some(at)
}

fn deflate_snappy(plain: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    out.extend(XERIAL_MAGIC);
    // Its version, and the oldest that can read it.
    out.extend(1u32.to_be_bytes());
    out.extend(1u32.to_be_bytes());
    let mut encoder = snap::raw::Encoder::new();
    let mut block = vec![0; snap::raw::max_compress_len(XERIAL_CHUNK_BYTES)];
    for chunk in plain.chunks(XERIAL_CHUNK_BYTES) {
        let length = encoder.compress(chunk, &mut block)?;
        out.extend((length as u32).to_be_bytes());
        out.extend_from_slice(&block[..length]);
    }
    Ok(())
}

fn inflate_snappy(compressed: &[u8], out: &mut Vec<u8>, max: usize) -> Result<(), InflateError> {
    let limit = out.len() + max;
    let mut decoder = snap::raw::Decoder::new();
    if !compressed.starts_with(&XERIAL_MAGIC) {
        return inflate_block(&mut decoder, compressed, out, limit, max);
    }
    let cut = || InflateError::Broken("a chunk is incomplete".to_owned());
    let mut rest = compressed.get(XERIAL_HEADER_BYTES..).ok_or_else(cut)?;
    while !rest.is_empty() {
        let (length, after) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
        let (block, after) = after
            .split_at_checked(u32::from_be_bytes(*length) as usize)
            .ok_or_else(cut)?;
        inflate_block(&mut decoder, block, out, limit, max)?;
        rest = after;
    }
    Ok(())
}

/// One snappy block, which begins with its decompressed size: a claim that is checked against what is possible before memory is
/// reserved.
fn inflate_block(
    decoder: &mut snap::raw::Decoder,
    block: &[u8],
    out: &mut Vec<u8>,
    limit: usize,
    max: usize,
) -> Result<(), InflateError> {
    let claimed = snap::raw::decompress_len(block).map_err(broken)?;
    if claimed > limit - out.len() {
        return Err(InflateError::TooLarge { max });
    }
    if claimed > block.len().saturating_mul(SNAPPY_RATIO_MAX) {
        let claim = "a block claims more than its bytes can hold".to_owned();
        return Err(InflateError::Broken(claim));
    }
    let start = out.len();
    if out.capacity() < start + claimed {
        // Doubling, as vectors do, but never beyond the bound.
        let room = (out.capacity() * 2).clamp(start + claimed, limit);
        out.reserve_exact(room - start);
    }
    out.resize(start + claimed, 0);
    let written = decoder.decompress(block, &mut out[start..]);
    let written = written.map_err(broken)?;
    out.truncate(start + written);
    Ok(())
}

#[cfg(test)]
mod tests;
