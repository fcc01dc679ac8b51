//! Converts values to ASCII upper case; keys and headers stay. The bench also runs `handle`
//! natively.

use millrace_guest::{Message, Outcome, processor};

processor!(handle);

/// Converts a value to upper case, directly into the answer.
#[inline]
pub fn handle(message: &Message) -> Outcome {
    match message.value() {
        None => Outcome::Emit(message.output()),
        Some(value) => Outcome::Emit(message.output().build_value(|buffer| {
            buffer.extend(value.iter().map(u8::to_ascii_uppercase));
        })),
    }
}

#[cfg(test)]
mod tests {
    use millrace_guest::Sample;
    use millrace_guest::testing::{Sent, Tester};

    #[test]
    fn values_are_raised_and_all_else_stays() {
        let words = Sample::new("in")
            .message("key", "Zürich")
            .header("from", "shop")
            .nullable(Some(b"gone"), None);
        let run = Tester::new(super::handle).run(words);
        let expected = [
            Sent::new("key", "ZüRICH").with_header("from", "shop"),
            Sent::nullable(Some(b"gone"), None),
        ];
        assert_eq!(run.outputs(), expected);
    }

    #[test]
    fn letters_are_raised_and_other_bytes_stay() {
        let columns = Sample::new("in").message("key", b"abc \xff z").columns();
        let answer = millrace_guest::process(columns, super::handle).unwrap();
        assert_eq!(answer.data, b"ABC \xff Z");
        assert!(answer.keys.is_empty(), "keys stay as they are");
    }
}
