//! Looks up one number in a JSON object and checks the rest of it on the way, without building
//! anything. A general parser took twice as long in WASM as natively; this one takes one and a half
//! times as long, because its loops use bytes and 64-bit words, which WASM has as well.

/// Nesting of objects and arrays; deeper JSON counts as malformed.
const DEPTH_MAX: u32 = 128;

/// The value of a field in an object.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Field {
    /// This number; the last one if there are several.
    Number(f64),
    /// Absent or null.
    Missing,
    /// Something else; or the text is JSON, but not an object.
    Other,
}

/// The byte offset at which the text stops being JSON.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Malformed {
    pub(crate) at: usize,
}

/// The number in a field of an object. The name may be written in any way that JSON allows,
/// including escapes.
#[inline]
pub(crate) fn number_field(json: &[u8], name: &str) -> Result<Field, Malformed> {
    let mut scanner = Scanner { json, at: 0 };
    scanner
        .document(name.as_bytes())
        .ok_or(Malformed { at: scanner.at })
}

struct Scanner<'a> {
    json: &'a [u8],
    at: usize,
}

/// Every `None` means: malformed at `at`.
impl<'a> Scanner<'a> {
    fn document(&mut self, name: &[u8]) -> Option<Field> {
        let mut found = Field::Missing;
        self.space();
        if self.peek()? == b'{' {
            self.members(|scanner, key| {
                if says(key, name) {
                    found = scanner.field()?;
                    return Some(());
                }
                scanner.value(1)
            })?;
        } else {
            found = Field::Other;
            self.value(0)?;
        }
        self.space();
        (self.at == self.json.len()).then_some(found)
    }

    /// Reads the value of the field.
    fn field(&mut self) -> Option<Field> {
        match self.peek()? {
            b'-' | b'0'..=b'9' => self.number().map(Field::Number),
            b'n' => self.value(1).map(|()| Field::Missing),
            _ => self.value(1).map(|()| Field::Other),
        }
    }

    /// Skips any value.
    fn value(&mut self, depth: u32) -> Option<()> {
        match self.peek()? {
            b'"' => self.string().map(drop),
            b'-' | b'0'..=b'9' => self.digits_and_signs().map(drop),
            b't' => self.literal(b"true"),
            b'f' => self.literal(b"false"),
            b'n' => self.literal(b"null"),
            b'{' if depth < DEPTH_MAX => self.members(|scanner, _| scanner.value(depth + 1)),
            b'[' if depth < DEPTH_MAX => self.items(b']', |scanner| scanner.value(depth + 1)),
            _ => None,
        }
    }

    /// Reads an object; `member` is called with each key, before its value.
    fn members(&mut self, mut member: impl FnMut(&mut Self, &'a [u8]) -> Option<()>) -> Option<()> {
        self.items(b'}', |scanner| {
            let key = scanner.string()?;
            scanner.space();
            scanner.expect(b':')?;
            scanner.space();
            member(scanner, key)
        })
    }

    /// Reads comma-separated items from the bracket here to the closing one.
    #[inline]
    fn items(&mut self, close: u8, mut item: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.at += 1;
        self.space();
        if self.peek()? == close {
            self.at += 1;
            return Some(());
        }
        loop {
            item(self)?;
            self.space();
            let next = self.peek()?;
            if next != b',' {
                return self.expect(close);
            }
            self.at += 1;
            self.space();
        }
    }

    /// A string's bytes, with its escapes.
    #[inline]
    fn string(&mut self) -> Option<&'a [u8]> {
        self.expect(b'"')?;
        let start = self.at;
        loop {
            self.at += plain_run(&self.json[self.at..]);
            match self.peek()? {
                b'"' => break,
                b'\\' => self.escape()?,
                _ => return None,
            }
        }
        self.at += 1;
        Some(&self.json[start..self.at - 1])
    }

    fn escape(&mut self) -> Option<()> {
        let digits = match self.json.get(self.at + 1)? {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => 0,
            b'u' => 4,
            _ => return None,
        };
        let hex = self.json.get(self.at + 2..self.at + 2 + digits)?;
        self.at += 2 + digits;
        hex.iter().all(u8::is_ascii_hexdigit).then_some(())
    }

    fn number(&mut self) -> Option<f64> {
        let text = self.digits_and_signs()?;
        let exact = text.len() <= 15 && text.iter().all(u8::is_ascii_digit);
        if exact {
            // This few digits fit into a float's mantissa, so the general conversion is not needed.
            let whole = text
                .iter()
                .fold(0_u64, |whole, digit| whole * 10 + u64::from(digit - b'0'));
            return Some(whole as f64);
        }
        std::str::from_utf8(text).ok()?.parse().ok()
    }

    /// A number in JSON's form.
    #[inline]
    fn digits_and_signs(&mut self) -> Option<&'a [u8]> {
        let start = self.at;
        self.skip(|byte| byte == b'-');
        let leading_zero = self.peek()? == b'0';
        if self.digits()? > 1 && leading_zero {
            return None;
        }
        if self.skip(|byte| byte == b'.') {
            self.digits()?;
        }
        if self.skip(|byte| matches!(byte, b'e' | b'E')) {
            self.skip(|byte| matches!(byte, b'+' | b'-'));
            self.digits()?;
        }
        Some(&self.json[start..self.at])
    }

    /// Reads at least one digit; returns their number.
    #[inline]
    fn digits(&mut self) -> Option<usize> {
        let start = self.at;
        while self.skip(|byte| byte.is_ascii_digit()) {}
        (self.at > start).then_some(self.at - start)
    }

    fn literal(&mut self, word: &[u8]) -> Option<()> {
        let found = self.json[self.at..].starts_with(word);
        self.at += if found { word.len() } else { 0 };
        found.then_some(())
    }

    #[inline]
    fn space(&mut self) {
        while self.skip(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')) {}
    }

    #[inline]
    fn skip(&mut self, wanted: impl Fn(u8) -> bool) -> bool {
        let found = self.peek().is_some_and(wanted);
        self.at += usize::from(found);
        found
    }

    #[inline]
    fn expect(&mut self, byte: u8) -> Option<()> {
        self.skip(|found| found == byte).then_some(())
    }

    #[inline]
    fn peek(&self) -> Option<u8> {
        self.json.get(self.at).copied()
    }
}

/// Whether a string means this text. Nearly all are written without escapes.
#[inline]
fn says(written: &[u8], text: &[u8]) -> bool {
    // An escape is longer than its meaning.
    let may_be_escaped = || written.len() > text.len() && written.contains(&b'\\');
    written == text || may_be_escaped() && says_with_escapes(written, text)
}

/// Escapes are well-formed, because the string was already read.
#[cold]
fn says_with_escapes(mut written: &[u8], mut text: &[u8]) -> bool {
    while let Some((&byte, rest)) = written.split_first() {
        let mut utf8 = [0; 4];
        let said: &[u8] = match byte {
            b'\\' => {
                let Some((escaped, rest)) = unescaped(rest) else {
                    return false;
                };
                written = rest;
                escaped.encode_utf8(&mut utf8).as_bytes()
            }
            _ => {
                written = rest;
                utf8[0] = byte;
                &utf8[..1]
            }
        };
        let Some(rest) = text.strip_prefix(said) else {
            return false;
        };
        text = rest;
    }
    text.is_empty()
}

/// The character of an escape (given without its backslash), and the text after it; `None` for half
/// a surrogate pair.
fn unescaped(escape: &[u8]) -> Option<(char, &[u8])> {
    let (&kind, rest) = escape.split_first()?;
    let plain = match kind {
        b'u' => return unicode(rest),
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        other => char::from(other),
    };
    Some((plain, rest))
}

fn unicode(digits: &[u8]) -> Option<(char, &[u8])> {
    let (first, rest) = unit(digits)?;
    if !(0xd800..0xdc00).contains(&first) {
        return Some((char::from_u32(first)?, rest));
    }
    let (second, rest) = unit(rest.strip_prefix(b"\\u")?)?;
    let low = second.checked_sub(0xdc00).filter(|low| *low < 0x400)?;
    let both = 0x10000 + ((first - 0xd800) << 10) + low;
    Some((char::from_u32(both)?, rest))
}

fn unit(digits: &[u8]) -> Option<(u32, &[u8])> {
    let (digits, rest) = digits.split_at_checked(4)?;
    let digits = std::str::from_utf8(digits).ok()?;
    Some((u32::from_str_radix(digits, 16).ok()?, rest))
}

/// The number of bytes before the next quote, backslash or control character. Checks eight at a
/// time, because this is most of the work.
#[inline]
fn plain_run(bytes: &[u8]) -> usize {
    let (words, _) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let special = specials(u64::from_le_bytes(*word));
        if special != 0 {
            return index * 8 + special.trailing_zeros() as usize / 8;
        }
    }
    let rest = words.len() * 8;
    let special = bytes[rest..]
        .iter()
        .position(|&byte| byte < b' ' || byte == b'"' || byte == b'\\');
    special.map_or(bytes.len(), |place| rest + place)
}

/// The high bit of each byte that ends a plain run; exact up to and including the first such byte.
#[inline]
fn specials(word: u64) -> u64 {
    const ONES: u64 = u64::MAX / 255;
    let below = |word: u64, bound: u8| word.wrapping_sub(ONES * u64::from(bound)) & !word;
    let equal = |byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
    (below(word, b' ') | equal(b'"') | equal(b'\\')) & (ONES << 7)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEDS: [&str; 5] = [
        r#"{"item":"a \"quoted\" thing","amount":-12.5e1,"tags":[1,{"a":null}]}"#,
        r#" { "amount" : 99 , "nested" : { "amount" : 500 , "list":[[],{}] } } "#,
        r#"{"a":true,"b":false,"amount":null,"c":"\u00e9\\/\b\f\n\r\t"}"#,
        r#"[0,-0,10.25,1E+9,"a rather long string that fills some words"]"#,
        r#"{"amount":123456789012345678901}"#,
    ];

    #[test]
    fn the_field_of_the_outermost_object_counts() {
        let found = SEEDS.map(|seed| number_field(seed.as_bytes(), "amount").unwrap());
        let number = Field::Number;
        assert_eq!(found[..2], [number(-125.0), number(99.0)]);
        assert_eq!(
            found[2..],
            [
                Field::Missing,
                Field::Other,
                number(123_456_789_012_345_678_901.0)
            ]
        );
    }

    #[test]
    fn a_name_counts_by_what_it_says_however_it_is_written() {
        for json in [
            r#"{"\u0061mount":250}"#,
            r#"{"amoun\u0074":250}"#,
            r#"{"\u0061\u006D\u006f\u0075\u006E\u0074":250}"#,
            r#"{"amount":1,"\u0061mount":250.0}"#,
            r#"{"\u0061mounts":1,"amount":2.5e2}"#,
            r#"{"nested":{"\u0061mount":1},"\u0061mount":250}"#,
        ] {
            let found = number_field(json.as_bytes(), "amount");
            assert_eq!(found, Ok(Field::Number(250.0)), "{json}");
        }
        for json in [
            r#"{"\u0061mount\u0000":250}"#,
            r#"{"\ud800mount":250}"#,
            r#"{"\u0041mount":250}"#,
            r#"{"\\u0061mount":250}"#,
            r#"{"a\tmount":250}"#,
        ] {
            let found = number_field(json.as_bytes(), "amount");
            assert_eq!(found, Ok(Field::Missing), "{json}");
        }
    }

    #[test]
    fn what_serde_json_reads_of_any_escape_is_read() {
        let texts = [
            "a", "\"", "\\", "/", "\u{8}", "\u{c}", "\n", "\r", "\t", "\u{0}", "é", "€", "🌀",
            "a🌀b",
        ];
        for text in texts {
            let units: String = text.encode_utf16().map(|u| format!("\\u{u:04x}")).collect();
            let short = serde_json::to_string(text).unwrap();
            let short = &short[1..short.len() - 1];
            for written in [&units, short] {
                let read: String = serde_json::from_str(&format!("\"{written}\"")).unwrap();
                assert_eq!(read, text);
                assert!(says(written.as_bytes(), text.as_bytes()), "{written}");
                for other in texts.iter().filter(|other| **other != text) {
                    assert!(
                        !says(written.as_bytes(), other.as_bytes()),
                        "{written} {other}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_serde_json_takes_and_refuses_is_taken_and_refused() {
        let alphabet = b" \"\\{}[]:,019-+.eEtunl\x01a";
        for seed in SEEDS {
            for at in 0..seed.len() {
                check(&seed.as_bytes()[..at]);
                for &byte in alphabet {
                    let mut changed = seed.as_bytes().to_vec();
                    changed[at] = byte;
                    check(&changed);
                    changed.insert(at, b'"');
                    check(&changed);
                }
            }
        }
    }

    fn check(json: &[u8]) {
        let reference = serde_json::from_slice::<serde::de::IgnoredAny>(json);
        let found = number_field(json, "amount");
        assert_eq!(
            found.is_ok(),
            reference.is_ok(),
            "{}",
            String::from_utf8_lossy(json)
        );
    }

    #[test]
    fn nesting_without_end_is_malformed() {
        let at = DEPTH_MAX as usize;
        assert_eq!(
            number_field(&[b'['; 1_000_000], "amount"),
            Err(Malformed { at })
        );
    }
}
