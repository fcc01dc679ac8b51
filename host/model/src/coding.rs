//! Codings in which HTTP carries a body (RFC 9110, section 8.4.1), undone a piece at a time: how much room the plain bytes take is
//! known only when they are there, so whoever inflates takes room as they come, and stops at a bound of their own.

use std::io::{BufRead, Read};

use crate::compression::{InflateError, ZSTD_WINDOW_LOG_MAX};

/// How a body is compressed.
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

    /// Its name, as the headers `Content-Encoding` and `Accept-Encoding` spell it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
            Self::Zstd => "zstd",
        }
    }

    /// The coding of that name, in any case; `x-gzip` is gzip's old name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let is_gzip = name.eq_ignore_ascii_case("x-gzip");
        let mut all = Self::ALL.into_iter();
        all.find(|coding| name.eq_ignore_ascii_case(coding.name()))
            .or_else(|| is_gzip.then_some(Self::Gzip))
    }

    /// Begins to inflate.
    ///
    /// # Errors
    /// [`InflateError`] where the codec cannot begin.
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

/// A compressed body on its way to plain bytes.
pub struct Inflating<R: BufRead>(Form<R>);

enum Form<R: BufRead> {
    Gzip(flate2::bufread::MultiGzDecoder<R>),
    Deflate(flate2::bufread::ZlibDecoder<R>),
    Zstd(zstd::stream::read::Decoder<'static, R>),
}

impl<R: BufRead> Inflating<R> {
    /// The next plain bytes; 0 at the end.
    ///
    /// # Errors
    /// [`InflateError`]; nothing that was read before it is of use then.
    pub fn read(&mut self, plain: &mut [u8]) -> Result<usize, InflateError> {
        let read = match &mut self.0 {
            Form::Gzip(decoder) => decoder.read(plain),
            Form::Deflate(decoder) => decoder.read(plain),
            Form::Zstd(decoder) => decoder.read(plain),
        };
        let read = read.map_err(broken)?;
        // The other two take several members behind each other, and fail at anything else.
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
