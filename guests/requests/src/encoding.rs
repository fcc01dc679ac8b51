//! Forms, base64 and hexadecimal.

/// The fields of a form, in order; what is not UTF-8 is replaced.
#[must_use]
pub fn form(text: &[u8]) -> Vec<(String, String)> {
    let fields = text
        .split(|&byte| byte == b'&')
        .filter(|field| !field.is_empty());
    let field = |field: &[u8]| {
        let at = field.iter().position(|&byte| byte == b'=');
        let (name, value) = match at {
            Some(at) => (&field[..at], &field[at + 1..]),
            None => (field, &[][..]),
        };
        (unescaped(name), unescaped(value))
    };
    fields.map(field).collect()
}

fn unescaped(text: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        rest = after;
        match (*first, after) {
            (b'+', _) => bytes.push(b' '),
            (b'%', [high, low, more @ ..]) => match (digit(*high), digit(*low)) {
                (Some(high), Some(low)) => {
                    bytes.push(high << 4 | low);
                    rest = more;
                }
                _ => bytes.push(b'%'),
            },
            (byte, _) => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The bytes as a part of a path, in which every other character than letters, digits, `-`, `.`, `_` and `~` is escaped.
#[must_use]
pub fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            true => text.push(char::from(byte)),
            false => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

/// The bytes that hexadecimal digits stand for.
#[must_use]
pub fn of_hex(text: &[u8]) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_chunks::<2>();
    let byte = |[high, low]: &[u8; 2]| Some(digit(*high)? << 4 | digit(*low)?);
    rest.is_empty().then(|| pairs.iter().map(byte).collect())?
}

/// Standard base64, with padding.
#[must_use]
pub fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for part in bytes.chunks(3) {
        let byte = |index: usize| u32::from(part.get(index).copied().unwrap_or_default());
        let group = byte(0) << 16 | byte(1) << 8 | byte(2);
        for index in 0..4 {
            text.push(match index <= part.len() {
                true => char::from(DIGITS[(group >> (18 - 6 * index) & 63) as usize]),
                false => '=',
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_read_as_browsers_write_it() {
        let fields = form(b"From=whatsapp%3A%2B491701&Body=a+b%26c%3Dd%C3%A9&&empty&x=%zz%4");
        let expected = [
            ("From", "whatsapp:+491701"),
            ("Body", "a b&c=d\u{e9}"),
            ("empty", ""),
            ("x", "%zz%4"),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(fields, expected);
    }

    #[test]
    fn what_is_escaped_is_read_back() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(escaped(b"a-Z/?% \xff"), "a-Z%2F%3F%25%20%FF");
        assert_eq!(escaped(b"+"), "%2B");
        let ascii = String::from_utf8(bytes[..128].to_vec()).expect("ASCII");
        assert_eq!(unescaped(escaped(&bytes[..128]).as_bytes()), ascii);
    }

    #[test]
    fn base64_and_hexadecimal_are_those_of_the_standards() {
        let known = [
            "", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy",
        ];
        for (length, text) in known.into_iter().enumerate() {
            assert_eq!(base64(&b"foobar"[..length]), text);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
        assert_eq!(of_hex(b"00fFa1"), Some(vec![0, 0xff, 0xa1]));
        for wrong in ["0", "0g", "+1", "zz"] {
            assert_eq!(of_hex(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
