//! The part of the tar format that a backup needs: regular files with short names, written and read
//! piece by piece. Any tar program can unpack these archives, and create archives that can be read
//! here.

use std::io;

/// The block size: headers and contents are padded to it.
pub(crate) const BLOCK_BYTES: usize = 512;
/// Maximum length of a file's name in a header.
const NAME_BYTES_MAX: usize = 100;
/// The largest size that fits into a header in octal digits.
const OCTAL_MAX: u64 = 0o777_7777_7777;
const SIZE: std::ops::Range<usize> = 124..136;
const CHECKSUM: std::ops::Range<usize> = 148..156;
const KIND: usize = 156;

/// The header before a file.
pub(crate) fn header(name: &str, bytes: u64, at_ms: u64) -> io::Result<[u8; BLOCK_BYTES]> {
    if name.len() > NAME_BYTES_MAX {
        return Err(io::Error::other(format!("the name {name} is too long")));
    }
    let mut header = [0; BLOCK_BYTES];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..107].copy_from_slice(b"0000600");
    header[108..115].copy_from_slice(b"0000000");
    header[116..123].copy_from_slice(b"0000000");
    if bytes <= OCTAL_MAX {
        header[SIZE].copy_from_slice(format!("{bytes:011o}\0").as_bytes());
    } else {
        header[SIZE.start] = 0x80;
        header[SIZE.end - 8..SIZE.end].copy_from_slice(&bytes.to_be_bytes());
    }
    let seconds = (at_ms / 1_000).min(OCTAL_MAX);
    header[136..148].copy_from_slice(format!("{seconds:011o}\0").as_bytes());
    header[KIND] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum = checksum(&header);
    header[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(header)
}

/// How many zeros follow a file's bytes.
pub(crate) fn padding(bytes: u64) -> usize {
    let block = BLOCK_BYTES as u64;
    ((block - bytes % block) % block) as usize
}

fn checksum(header: &[u8; BLOCK_BYTES]) -> u32 {
    let counted = |(at, byte): (usize, &u8)| match CHECKSUM.contains(&at) {
        true => u32::from(b' '),
        false => u32::from(*byte),
    };
    header.iter().enumerate().map(counted).sum()
}

/// A piece of an archive's content.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// A file begins.
    Begin { name: &'a str, bytes: u64 },
    /// The file's next bytes.
    Data(&'a [u8]),
    /// The file ends.
    End,
}

/// An archive, being read.
#[derive(Default)]
pub(crate) struct Reader {
    header: Vec<u8>,
    /// Remaining bytes of the current file, and zeros after them.
    left: u64,
    padding: usize,
    /// Whether the current entry is skipped.
    passes_over: bool,
    is_over: bool,
}

impl Reader {
    /// Whether the archive has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Reads the next bytes.
    pub(crate) fn take(
        &mut self,
        mut bytes: &[u8],
        visit: &mut dyn FnMut(Piece<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        while !bytes.is_empty() && !self.is_over {
            if self.left > 0 {
                let count = self.left.min(bytes.len() as u64) as usize;
                let (data, rest) = bytes.split_at(count);
                bytes = rest;
                self.left -= count as u64;
                if !self.passes_over {
                    visit(Piece::Data(data))?;
                    if self.left == 0 {
                        visit(Piece::End)?;
                    }
                }
            } else if self.padding > 0 {
                let count = self.padding.min(bytes.len());
                bytes = &bytes[count..];
                self.padding -= count;
            } else {
                let count = (BLOCK_BYTES - self.header.len()).min(bytes.len());
                self.header.extend_from_slice(&bytes[..count]);
                bytes = &bytes[count..];
                if self.header.len() == BLOCK_BYTES {
                    self.begin(visit)?;
                    self.header.clear();
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, visit: &mut dyn FnMut(Piece<'_>) -> io::Result<()>) -> io::Result<()> {
        let Some(header) = self.header.first_chunk::<BLOCK_BYTES>() else {
            return Ok(());
        };
        if header.iter().all(|byte| *byte == 0) {
            self.is_over = true;
            return Ok(());
        }
        if octal(&header[CHECKSUM]) != Some(checksum(header).into()) {
            return Err(invalid("it is no tar archive, or damaged"));
        }
        let bytes = size(&header[SIZE]).ok_or_else(|| invalid("a size is malformed"))?;
        self.left = bytes;
        self.padding = padding(bytes);
        self.passes_over = match header[KIND] {
            b'0' | 0 => false,
            // Directories, and metadata that other programs add.
            b'5' | b'x' | b'g' => true,
            _ => return Err(invalid("it holds something that is no file")),
        };
        if self.passes_over {
            return Ok(());
        }
        let end = header[..NAME_BYTES_MAX].iter().position(|byte| *byte == 0);
        let name = &header[..end.unwrap_or(NAME_BYTES_MAX)];
        let name = std::str::from_utf8(name).map_err(|_| invalid("a name is no text"))?;
        let name = name.trim_start_matches("./");
        visit(Piece::Begin { name, bytes })?;
        match bytes {
            0 => visit(Piece::End),
            _ => Ok(()),
        }
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn size(field: &[u8]) -> Option<u64> {
    match field.first()? {
        0x80 => field.last_chunk::<8>().copied().map(u64::from_be_bytes),
        _ => octal(field),
    }
}

fn octal(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(field).ok()?;
    let digits = text.trim_matches([' ', '\0']);
    u64::from_str_radix(digits, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut archive = Vec::new();
        for (name, bytes) in files {
            let length = bytes.len() as u64;
            archive.extend(header(name, length, 1_700_000_000_000).unwrap());
            archive.extend_from_slice(bytes);
            archive.resize(archive.len() + padding(length), 0);
        }
        archive.resize(archive.len() + 2 * BLOCK_BYTES, 0);
        archive
    }

    /// Names and contents.
    type Files = Vec<(String, Vec<u8>)>;

    fn unpacked(archive: &[u8], step: usize) -> io::Result<(Files, bool)> {
        let mut files: Vec<(String, Vec<u8>)> = Vec::new();
        let mut reader = Reader::default();
        for bytes in archive.chunks(step) {
            reader.take(bytes, &mut |piece| {
                match piece {
                    Piece::Begin { name, .. } => files.push((name.to_owned(), Vec::new())),
                    Piece::Data(data) => files.last_mut().unwrap().1.extend_from_slice(data),
                    Piece::End => {}
                }
                Ok(())
            })?;
        }
        Ok((files, reader.is_over()))
    }

    #[test]
    fn what_is_packed_is_unpacked_in_pieces_of_any_size() {
        let long = vec![7; 1_500];
        let files: [(&str, &[u8]); 3] = [("topics/1/0-9", &long), ("empty", b""), ("m", b"x")];
        let archive = archive(&files);
        for step in [1, 100, 511, 512, 513, 10_000] {
            let (found, is_over) = unpacked(&archive, step).unwrap();
            assert!(is_over);
            let found: Vec<(&str, &[u8])> = found.iter().map(|(n, b)| (&**n, &**b)).collect();
            assert_eq!(found, files);
        }
        let (_, is_over) = unpacked(&archive[..archive.len() - 1_024], 512).unwrap();
        assert!(!is_over);
    }

    #[test]
    fn other_programs_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar");
        std::fs::write(&path, archive(&[("topics/1/file", b"kept")])).unwrap();
        let run = std::process::Command::new("tar")
            .arg("xf")
            .arg(&path)
            .arg("-C")
            .arg(dir.path())
            .status();
        // A machine without tar skips this test.
        if run.is_ok_and(|status| status.success()) {
            let read = std::fs::read(dir.path().join("topics/1/file")).unwrap();
            assert_eq!(read, b"kept");
        }
    }

    #[test]
    fn what_is_no_archive_is_refused_and_large_sizes_are_told() {
        assert!(unpacked(&[1; 600], 600).is_err());
        let mut changed = archive(&[("a", b"b")]);
        changed[3] ^= 1;
        assert!(unpacked(&changed, 512).is_err());
        for bytes in [0, OCTAL_MAX, OCTAL_MAX + 1, u64::MAX] {
            assert_eq!(size(&header("a", bytes, 0).unwrap()[SIZE]), Some(bytes));
        }
        assert!(header(&"n".repeat(101), 1, 0).is_err());
    }
}
