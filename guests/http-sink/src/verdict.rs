//! What becomes of a message, by what the server said.

use std::time::Duration;

use millrace_guest::{Outcome, Unavailable};
use wasip2::http::types::ErrorCode;

use crate::sending::Answered;

/// The longest delay that a server can ask for; a longer one is shortened to it.
const RETRY_AFTER_S_MAX: u64 = 24 * 60 * 60;

pub(crate) fn of_answer(answered: &Answered) -> Result<Outcome, Unavailable> {
    let status = answered.status;
    let (class, reason) = (format!("http-{status}"), reason(answered));
    let after = answered
        .retry_after_s
        .map(|seconds| seconds.min(RETRY_AFTER_S_MAX));
    match (status, after) {
        (200..300, _) => Ok(Outcome::Ack),
        (429 | 503, Some(seconds)) => {
            let after = Duration::from_secs(seconds);
            Ok(Outcome::retry_after(after, class, reason))
        }
        // The server, or what is before it, is down, whatever the message.
        (502..=504, _) => Err(Unavailable::new(reason)),
        (408 | 425 | 429 | 500..=u16::MAX, _) => Ok(Outcome::retry(class, reason)),
        _ => Ok(Outcome::reject(class, reason)),
    }
}

fn reason(answered: &Answered) -> String {
    let Answered { status, said, .. } = answered;
    match said.is_empty() {
        true => format!("the server answered {status}"),
        false => format!("the server answered {status}: {said}"),
    }
}

/// Everything is an outage, or needs an operator, except what is wrong with the message itself.
pub(crate) fn of_error(code: &ErrorCode) -> Result<Outcome, Unavailable> {
    match code {
        ErrorCode::HttpRequestBodySize(_)
        | ErrorCode::HttpRequestUriInvalid
        | ErrorCode::HttpRequestUriTooLong => {
            Ok(Outcome::reject("not-sendable", format!("{code:?}")))
        }
        code => Err(Unavailable::new(format!(
            "the server was not reached: {code:?}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(status: u16, retry_after_s: Option<u64>) -> String {
        let answered = Answered {
            status,
            retry_after_s,
            said: "no".to_owned(),
        };
        match of_answer(&answered) {
            Ok(Outcome::Ack) => "done".to_owned(),
            Ok(Outcome::Retry { after, class, .. }) => format!("retry {class} {after:?}"),
            Ok(Outcome::Reject { class, reason }) => format!("reject {class}: {reason}"),
            Ok(other) => format!("{other:?}"),
            Err(unavailable) => format!("outage: {}", unavailable.reason),
        }
    }

    #[test]
    fn an_outage_a_busy_server_and_a_bad_message_are_told_apart() {
        for status in [200, 201, 204, 299] {
            assert_eq!(word(status, None), "done");
        }
        for status in [301, 400, 404, 422] {
            let expected = format!("reject http-{status}: the server answered {status}: no");
            assert_eq!(word(status, Some(1)), expected);
        }
        for status in [408, 425, 429, 500, 501, 599] {
            assert_eq!(word(status, None), format!("retry http-{status} None"));
        }
        for status in [502, 503, 504] {
            assert!(word(status, None).starts_with("outage: "));
        }
        assert_eq!(word(429, Some(7)), "retry http-429 Some(7s)");
        assert_eq!(word(503, Some(7)), "retry http-503 Some(7s)");
        assert_eq!(word(429, Some(u64::MAX)), "retry http-429 Some(86400s)");
    }

    #[test]
    fn only_what_is_wrong_with_the_message_is_its_fault() {
        assert!(of_error(&ErrorCode::HttpRequestBodySize(None)).is_ok());
        for code in [
            ErrorCode::ConnectionRefused,
            ErrorCode::HttpRequestDenied,
            ErrorCode::InternalError(None),
        ] {
            assert!(of_error(&code).is_err(), "{code:?}");
        }
    }
}
