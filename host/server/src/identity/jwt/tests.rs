//! Which credentials on the path of a route are for the host, which for the component, and which for neither.

use millrace_tests::identity::{Signer, unsigned};
use serde_json::{Value, json};

use super::super::bounds::CLAIMS_DEPTH_MAX;
use super::*;

const ISSUER: &str = "https://id.example";
const HEADER: &str = r#"{"alg":"ES256","kid":"k"}"#;

/// Whether it is for this host, and not for the component.
fn is_ours(presented: &str) -> Result<bool, Refusal> {
    of_route(presented, |issuer| issuer == ISSUER).map(|jwt| jwt.is_some())
}

fn with_payload(payload: &str) -> String {
    unsigned(HEADER, payload) + ".c2ln"
}

fn of(issuer: &str) -> String {
    let claims = json!({"iss": issuer, "sub": "ann"});
    with_payload(&claims.to_string())
}

#[test]
fn a_jwt_is_for_the_host_if_its_issuer_is_configured_and_for_the_component_if_not() {
    let signed = Signer::ed25519("k").sign(&json!({"iss": ISSUER}));
    let spaced = unsigned(&format!(" {HEADER}"), &json!({"iss": ISSUER}).to_string()) + ".c2ln";
    for ours in [signed, of(ISSUER), spaced] {
        assert_eq!(is_ours(&ours), Ok(true), "{ours}");
    }
    let more = format!("{ISSUER}.evil");
    for other in ["https://other.example", "", &more] {
        assert_eq!(is_ours(&of(other)), Ok(false), "{other}");
    }
}

#[test]
fn what_cannot_be_a_jwt_is_for_the_component() {
    for opaque in [
        "",
        "opaque",
        "e30",
        "a.b",
        "a.b.c.d",
        // An encrypted one has five parts.
        "e30.b.c.d.e",
        "c29tZQ==",
        "two words",
    ] {
        assert_eq!(is_ours(opaque), Ok(false), "{opaque}");
    }
}

#[test]
fn what_may_be_a_jwt_and_cannot_be_read_strictly_is_refused() {
    let good = of(ISSUER);
    let foreign = of("https://other.example");
    let twice = |first: &str, second: &str| {
        with_payload(&format!(r#"{{"iss":"{first}","iss":"{second}"}}"#))
    };
    let nested = "[".repeat(CLAIMS_DEPTH_MAX) + &"]".repeat(CLAIMS_DEPTH_MAX);
    let with_more = |more: &str| with_payload(&format!(r#"{{"iss":"{ISSUER}","x":{more}}}"#));
    let long = with_more(&format!("\"{}\"", "x".repeat(JWT_BYTES_MAX)));
    let without_issuer = with_payload(r#"{"sub":"ann"}"#);
    let several_issuers = with_payload(&json!({"iss": [ISSUER]}).to_string());
    let missing = Refusal::Missing("iss".to_owned());
    let table: Vec<(&str, String, Refusal)> = vec![
        (
            "an issuer twice, the last of them another's",
            twice(ISSUER, "https://other.example"),
            Refusal::Twice("payload"),
        ),
        (
            "an issuer twice, the last of them ours",
            twice("https://other.example", ISSUER),
            Refusal::Twice("payload"),
        ),
        ("nested", with_more(&nested), Refusal::TooDeep("payload")),
        ("long", long.clone(), Refusal::TooLong(long.len())),
        ("no issuer", without_issuer, missing),
        (
            "an issuer that is a list",
            several_issuers,
            Refusal::Kind("iss".to_owned()),
        ),
        ("padding", format!("{good}="), Refusal::NotCompact),
        (
            "a letter that is not ASCII",
            format!("{good}\u{e9}"),
            Refusal::NotCompact,
        ),
        (
            "bytes that are no text, in place of letters",
            "opaque\u{fffd}".to_owned(),
            Refusal::NotCompact,
        ),
        (
            "a second word",
            format!("{good} opaque"),
            Refusal::NotCompact,
        ),
        (
            "a second word with a dot",
            format!("{good} a.b"),
            Refusal::NotCompact,
        ),
        (
            "after an opaque one",
            format!("opaque, Bearer {good}"),
            Refusal::NotCompact,
        ),
        (
            "after one of another issuer",
            format!("{foreign},{good}"),
            Refusal::NotCompact,
        ),
        ("quotes", format!("\"{good}\""), Refusal::NotCompact),
        (
            "a payload that is a text",
            with_payload(&Value::from(ISSUER).to_string()),
            Refusal::NotJson("payload"),
        ),
        ("nothing", "..".to_owned(), Refusal::NotJson("header")),
    ];
    for (what, presented, expected) in table {
        assert_eq!(is_ours(&presented), Err(expected), "{what}");
    }
}
