//! Lets orders through whose JSON field `amount` is at least 100, and drops the others. What passes is not copied. The bench
//! runs `handle` natively, too.

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

    #[test]
    fn large_orders_pass_and_what_is_not_json_is_rejected() {
        let columns = Sample::new("orders")
            .message("1", r#"{"item":"pen","amount":3}"#)
            .message("2", r#"{"item":{"name":"desk"},"amount":100.0,"tags":[1]}"#)
            .message("3", "amount: 500")
            .message("4", r#"{"item":"nothing"}"#)
            .message("5", r#"{"amount":"much"}"#)
            .columns();
        let answer = millrace_guest::process(columns, super::handle).unwrap();
        assert_eq!(answer.outcomes, [0, 1, 3, 0, 3]);
        assert!(
            answer.data.is_empty() && answer.values.is_empty(),
            "nothing is copied"
        );
        let classes: Vec<_> = answer
            .details
            .iter()
            .map(|detail| detail.class.as_str())
            .collect();
        assert_eq!(classes, ["not-json", "not-an-order"]);
    }
}
