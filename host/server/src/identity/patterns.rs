//! Patterns of keys in settings: `user:{sub}`, `{org.id}/orders/*`. Claims of a JWT are put into them.
//!
//! What a claim says must not widen a pattern. So a `*` in it is a character like any other, it is never empty, and it does not contain
//! the character that follows it in the pattern: with `user:{sub}:*`, nobody whose name is `ann:x` gets a part of what is `ann`'s.

use std::str::FromStr;

use millrace_broker::KeyPattern;
use serde_json::Value;

use super::claims::Claims;
use super::refusal::{Refusal, shown};

/// A pattern before claims are put into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern {
    parts: Vec<Part>,
    /// Whether it stands for all keys that begin so.
    is_beginning: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Claim(String),
}

impl FromStr for Pattern {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (mut rest, is_beginning) = match text.strip_suffix('*') {
            Some(beginning) => (beginning, true),
            None => (text, false),
        };
        if rest.contains('*') {
            return Err("a * stands at the end only");
        }
        let mut parts = Vec::new();
        while let Some((before, after)) = rest.split_once('{') {
            let (claim, after) = after.split_once('}').ok_or("a { has no }")?;
            if claim.is_empty() || claim.contains('{') {
                return Err("write the name of a claim between { and }");
            }
            match (before.is_empty(), parts.last()) {
                (true, Some(_)) => {
                    return Err(
                        "between two claims stands a text that neither contains, such as `:`",
                    );
                }
                (true, None) => {}
                (false, _) => parts.push(Part::Text(before.to_owned())),
            }
            parts.push(Part::Claim(claim.to_owned()));
            rest = after;
        }
        let ends_with_claim = rest.is_empty() && !parts.is_empty();
        if is_beginning && ends_with_claim {
            return Err(
                "between a claim and the * stands a text that the claim does not contain, as in `user:{sub}:*`: otherwise `ann` gets what is `anna`'s",
            );
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        let has_brace = |part: &Part| matches!(part, Part::Text(text) if text.contains('}'));
        if parts.iter().any(has_brace) {
            return Err("a } has no {");
        }
        if parts.is_empty() && !is_beginning {
            return Err("it is empty");
        }
        Ok(Self {
            parts,
            is_beginning,
        })
    }
}

impl Pattern {
    /// With the claims of a JWT in it.
    pub(super) fn filled(&self, claims: &Claims) -> Result<KeyPattern, Refusal> {
        let mut key = String::new();
        for (at, part) in self.parts.iter().enumerate() {
            let (name, text) = match part {
                Part::Text(text) => {
                    key.push_str(text);
                    continue;
                }
                Part::Claim(name) => (name, text_of(claims, name)?),
            };
            let follows = match self.parts.get(at + 1) {
                Some(Part::Text(next)) => next.chars().next(),
                _ => None,
            };
            if text.is_empty() || follows.is_some_and(|c| text.contains(c)) {
                return Err(Refusal::NoPart(shown(name)));
            }
            key.push_str(&text);
        }
        let key = key.into_bytes().into();
        Ok(match self.is_beginning {
            true => KeyPattern::Beginning(key),
            false => KeyPattern::One(key),
        })
    }
}

/// A claim as a part of a key: a text, or a whole number.
fn text_of(claims: &Claims, name: &str) -> Result<String, Refusal> {
    match claims.needed(name)? {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) if !number.is_f64() => Ok(number.to_string()),
        _ => Err(Refusal::Kind(shown(name))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn claims(value: &Value) -> Claims {
        Claims::read(value.to_string().as_bytes(), "payload").expect("claims")
    }

    fn filled(pattern: &str, value: &Value) -> Result<String, Refusal> {
        let pattern: Pattern = pattern.parse().expect(pattern);
        pattern.filled(&claims(value)).map(|key| key.to_string())
    }

    #[test]
    fn claims_are_put_into_a_pattern() {
        let said = json!({"sub": "ann", "org": {"id": 7}, "https://a.example/t": "x"});
        for (pattern, expected) in [
            ("user:{sub}", "user:ann"),
            ("{org.id}/{sub}/*", "7/ann/*"),
            ("{https://a.example/t}", "x"),
            ("shared", "shared"),
            ("*", "*"),
        ] {
            assert_eq!(filled(pattern, &said).as_deref(), Ok(expected));
        }
        for (pattern, refused) in [
            ("{none}", Refusal::Missing("none".to_owned())),
            ("{org}", Refusal::Kind("org".to_owned())),
            ("{sub.x}", Refusal::Missing("sub.x".to_owned())),
        ] {
            assert_eq!(filled(pattern, &said), Err(refused));
        }
    }

    #[test]
    fn a_pattern_that_a_claim_could_widen_is_refused() {
        for wrong in [
            "{sub}*", "{a}{b}", "a*b", "{}", "{a", "a}", "", "x{a{b}}", "**",
        ] {
            assert!(wrong.parse::<Pattern>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn two_users_never_share_a_key(
            one in "[ab:*{}]{0,4}", other in "[ab:*{}]{0,4}", rest in "[ab:*]{0,4}",
            pattern in prop::sample::select(vec!["user:{sub}", "user:{sub}:*", "{sub}:*"]),
        ) {
            prop_assume!(one != other);
            let pattern: Pattern = pattern.parse().expect("a pattern");
            let key = |name: &str| pattern.filled(&claims(&json!({"sub": name})));
            let (Ok(ones), Ok(others)) = (key(&one), key(&other)) else {
                return Ok(());
            };
            let text = match &ones {
                KeyPattern::One(text) => text.to_vec(),
                KeyPattern::Beginning(text) => [text, rest.as_bytes()].concat(),
            };
            prop_assert!(ones.covers(&text));
            prop_assert!(!others.covers(&text));
        }

        #[test]
        fn no_text_breaks_the_parser(text in "\\PC{0,20}") {
            let _ = text.parse::<Pattern>();
        }
    }
}
