//! Content codings of HTTP bodies (RFC 9110, section 8.4.1), decoded piece by piece: the decoded size is only known at the end, so
//! callers reserve memory as bytes are produced, and stop at their own bound.

use std::io::{BufRead, Read};

use crate::compression::{InflateError, ZSTD_WINDOW_LOG_MAX};

/// The coding of a compressed body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// RFC 1952.
    Gzip,
    /// RFC 1950: what HTTP calls deflate.
    Deflate,
    /// RFC 8878.
    Zstd,
}

impl Coding {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Gzip, Self::Deflate, Self::Zstd];

    /// Its name in the headers `Content-Encoding` and `Accept-Encoding`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
            Self::Zstd => "zstd",
        }
    }

    /// The coding with that name, in upper or lower case; `x-gzip` is gzip's old name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let is_gzip = name.eq_ignore_ascii_case("x-gzip");
        let mut all = Self::ALL.into_iter();
        all.find(|coding| name.eq_ignore_ascii_case(coding.name()))
            .or_else(|| is_gzip.then_some(Self::Gzip))
    }

    /// Starts decompressing.
    ///
    /// # Errors
    /// [`InflateError`] if the codec cannot start.
    pub fn inflate<R: BufRead + Send>(self, compressed: R) -> Result<Inflating<R>, InflateError> {
        Ok(Inflating(match self {
            Self::Gzip => Form::Gzip(flate2::bufread::MultiGzDecoder::new(compressed)),
            Self::Deflate => Form::Deflate(flate2::bufread::ZlibDecoder::new(compressed)),
            Self::Zstd => {
                let mut decoder =
                    zstd::stream::read::Decoder::with_buffer(compressed).map_err(broken)?;
                decoder
                    .window_log_max(ZSTD_WINDOW_LOG_MAX)
                    .map_err(broken)?;
                Form::Zstd(decoder)
            }
        }))
    }
}

/// A body being decompressed.
pub struct Inflating<R: BufRead>(Form<R>);

enum Form<R: BufRead> {
    Gzip(flate2::bufread::MultiGzDecoder<R>),
    Deflate(flate2::bufread::ZlibDecoder<R>),
    Zstd(zstd::stream::read::Decoder<'static, R>),
}

impl<R: BufRead> Inflating<R> {
    /// The next decompressed bytes; 0 at the end.
    ///
    /// # Errors
    /// [`InflateError`]; earlier bytes are then useless.
    pub fn read(&mut self, plain: &mut [u8]) -> Result<usize, InflateError> {
        let read = match &mut self.0 {
            Form::Gzip(decoder) => decoder.read(plain),
            Form::Deflate(decoder) => decoder.read(plain),
            Form::Zstd(decoder) => decoder.read(plain),
        };
        let read = read.map_err(broken)?;
        // The other two accept several members in sequence, and fail on anything else.
        if read == 0
            && let Form::Deflate(decoder) = &mut self.0
            && !decoder.get_mut().fill_buf().map_err(broken)?.is_empty()
        {
            return Err(InflateError::Trailing);
        }
        Ok(read)
    }
}

fn broken(error: std::io::Error) -> InflateError {
    InflateError::Broken(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::compression::Compression;

    fn compressed(coding: Coding, plain: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        match coding {
            Coding::Gzip => Compression::Gzip.deflate(plain, &mut out).unwrap(),
            Coding::Zstd => Compression::Zstd.deflate(plain, &mut out).unwrap(),
            Coding::Deflate => {
                let level = flate2::Compression::default();
                let mut encoder = flate2::write::ZlibEncoder::new(&mut out, level);
                encoder.write_all(plain).unwrap();
                encoder.finish().unwrap();
            }
        }
        out
    }

    fn inflated(coding: Coding, bytes: &[u8]) -> Result<Vec<u8>, InflateError> {
        let mut inflating = coding.inflate(bytes)?;
        let (mut out, mut piece) = (Vec::new(), [0; 100]);
        loop {
            match inflating.read(&mut piece)? {
                0 => return Ok(out),
                read => out.extend_from_slice(&piece[..read]),
            }
        }
    }

    #[test]
    fn what_was_compressed_is_inflated_piece_by_piece() {
        let plain: Vec<u8> = (0..10_000u32).flat_map(u32::to_le_bytes).collect();
        for coding in Coding::ALL {
            assert_eq!(Coding::from_name(coding.name()), Some(coding));
            for plain in [&plain[..], b"", b"a"] {
                let bytes = compressed(coding, plain);
                assert_eq!(inflated(coding, &bytes).unwrap(), plain, "{coding:?}");
            }
        }
        assert_eq!(Coding::from_name("X-GZip"), Some(Coding::Gzip));
        assert_eq!(Coding::from_name("br"), None);
    }

    #[test]
    fn what_is_cut_off_changed_or_followed_by_something_is_refused() {
        for coding in Coding::ALL {
            let bytes = compressed(coding, &[7; 10_000]);
            assert!(inflated(coding, &bytes[..bytes.len() - 1]).is_err());
            assert!(inflated(coding, &[&bytes[..], b"more"].concat()).is_err());
            assert!(inflated(coding, b"{\"value\":\"plain\"}").is_err());
        }
    }
}
