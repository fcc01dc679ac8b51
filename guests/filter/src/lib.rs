//! Emits orders whose JSON field `amount` is at least 100, and drops the others. Emitted orders are
//! not copied. The bench also runs `handle` natively.

mod json;

use json::{Field, Malformed, number_field};
use millrace_guest::{Message, Outcome, processor};

processor!(handle);

/// The smallest amount that passes.
pub const AMOUNT_MIN: f64 = 100.0;

/// Decides about one order.
#[inline]
pub fn handle(message: &Message) -> Outcome {
    match number_field(message.value().unwrap_or_default(), "amount") {
        Ok(Field::Number(amount)) if amount >= AMOUNT_MIN => Outcome::Emit(message.output()),
        Ok(Field::Number(_) | Field::Missing) => Outcome::Ack,
        Ok(Field::Other) => Outcome::reject("not-an-order", "no object whose amount is a number"),
        Err(Malformed { at }) => Outcome::reject("not-json", format!("no JSON from byte {at} on")),
    }
}

#[cfg(test)]
mod tests {
    use millrace_guest::Sample;
    use millrace_guest::testing::{Said, Sent, Tester};

    #[test]
    fn large_orders_pass_and_what_is_not_json_is_rejected() {
        let desk = r#"{"item":{"name":"desk"},"amount":100.0,"tags":[1]}"#;
        let run = Tester::new(super::handle).run(
            Sample::new("orders")
                .message("1", r#"{"item":"pen","amount":3}"#)
                .message("2", desk)
                .header("from", "shop")
                .message("3", "amount: 500")
                .message("4", r#"{"item":"nothing"}"#)
                .message("5", r#"{"amount":"much"}"#),
        );
        let expected = [
            Said::Acked,
            Said::Sent(vec![Sent::new("2", desk).with_header("from", "shop")]),
            Said::rejected("not-json", "no JSON from byte 0 on"),
            Said::Acked,
            Said::rejected("not-an-order", "no object whose amount is a number"),
        ];
        assert_eq!(run.all(), expected);
    }

    #[test]
    fn what_passes_is_not_copied() {
        let columns = Sample::new("orders")
            .message("1", r#"{"amount":3}"#)
            .message("2", r#"{"amount":100}"#)
            .columns();
        let answer = millrace_guest::process(columns, super::handle).unwrap();
        assert_eq!(answer.sources, [1]);
        assert!(answer.data.is_empty() && answer.values.is_empty());
    }
}
