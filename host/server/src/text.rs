//! Text in the forms that editors and other systems write, parsed in the same way everywhere: JSON bodies, lines of a request, of a
//! file and of standard input, specification files.
//!
//! Text is UTF-8. A byte order mark at its beginning is ignored. UTF-16 and UTF-32 are detected and refused instead of being guessed at
//! or stored unchanged. Lines end with LF or CR LF, which are not part of them; the last line needs no line ending, and a CR within a
//! line stays.

/// Some editors put this before UTF-8.
pub(crate) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// Bytes at the beginning of a text that reveal its encoding.
pub(crate) const MARK_BYTES: usize = 64;
/// Minimum number of bytes that reveal UTF-16 without a byte order mark.
const UNMARKED_BYTES_MIN: usize = 4;

/// What to do about another encoding.
pub(crate) const SEND_UTF8: &str =
    "write it as UTF-8, for example with `iconv -f utf-16 -t utf-8`, or give its bytes as base64";

/// A text's bytes without a byte order mark; the name of its encoding if it is not UTF-8.
pub(crate) fn unmarked(text: &[u8]) -> Result<&[u8], &'static str> {
    match another_encoding(text) {
        Some(name) => Err(name),
        None => Ok(text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text)),
    }
}

/// A whole text; what is wrong with it if it is not valid.
pub(crate) fn whole(text: &[u8]) -> Result<&str, String> {
    let text = unmarked(text).map_err(|encoding| format!("it is {encoding}; {SEND_UTF8}"))?;
    str::from_utf8(text).map_err(|error| {
        let line = text[..error.valid_up_to()].split(|&b| b == b'\n').count();
        format!("line {line} is not UTF-8; {SEND_UTF8}")
    })
}

/// The encoding that a text's first bytes reveal, if it is not UTF-8.
fn another_encoding(text: &[u8]) -> Option<&'static str> {
    match text {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => Some("UTF-32"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some("UTF-16"),
        _ if is_unmarked_utf16(text) => Some("UTF-16 without a byte order mark"),
        _ => None,
    }
}

/// Whether every second byte is zero, and no other: no text in an 8-bit encoding begins like this.
fn is_unmarked_utf16(text: &[u8]) -> bool {
    let text = &text[..text.len().min(MARK_BYTES) / 2 * 2];
    let zero_at = |odd: usize| {
        let mut bytes = text.iter().enumerate();
        bytes.all(|(at, &byte)| (byte == 0) == (at % 2 == odd))
    };
    text.len() >= UNMARKED_BYTES_MIN && (zero_at(0) || zero_at(1))
}

/// A line without its line ending.
pub(crate) fn without_end(line: &[u8]) -> &[u8] {
    let Some(line) = line.strip_suffix(b"\n") else {
        return line;
    };
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// A text's lines without their line endings; nothing follows the last one.
pub(crate) fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split_inclusive(|&byte| byte == b'\n').map(without_end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8]) -> Vec<&[u8]> {
        lines(unmarked(text).unwrap()).collect()
    }

    #[test]
    fn a_line_ends_with_lf_or_cr_lf_and_the_mark_is_no_part_of_the_first() {
        let none: [&[u8]; 0] = [];
        assert_eq!(read(b""), none);
        assert_eq!(
            read(b"\xef\xbb\xbfa\r\nb\n\r\nc"),
            [&b"a"[..], b"b", b"", b"c"]
        );
        assert_eq!(
            read(b"a\rb\r\n\xef\xbb\xbfc\r"),
            [&b"a\rb"[..], b"\xef\xbb\xbfc\r"]
        );
    }

    #[test]
    fn other_encodings_are_known_by_their_marks_and_by_their_zeros() {
        let wide = |text: &str, bytes: fn(u16) -> [u8; 2]| {
            let units = text.encode_utf16();
            units.flat_map(bytes).collect::<Vec<u8>>()
        };
        for bytes in [u16::to_le_bytes, u16::to_be_bytes] {
            for text in ["\u{feff}a\r\nb", "a\n", "{\"value\":1}\r\n"] {
                let told = unmarked(&wide(text, bytes)).unwrap_err();
                assert!(told.contains("UTF-16"), "{told}");
            }
        }
        assert_eq!(unmarked(b"\xff\xfe\0\0a\0\0\0"), Err("UTF-32"));
        // Bytes with zeros in them are stored as they are.
        for bytes in [
            &b"\0\0\0\0"[..],
            b"a\0",
            b"a\0b\0c",
            b"\x05\0\0\0\0\0\0\0",
            b"\xff",
        ] {
            let utf16 = bytes == b"a\0b\0c";
            assert_eq!(unmarked(bytes).is_err(), utf16, "{bytes:?}");
        }
        assert!(whole(b"a\nb\xff").unwrap_err().starts_with("line 2 "));
    }
}
