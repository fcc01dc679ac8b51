//! What a JWT proves: decided from its text, the keys and the settings of its provider, and the time, which are handed in (RFC 7519
//! section 7.2, RFC 8725). It touches nothing else.

use std::sync::Arc;

use millrace_broker::Presented;
use millrace_model::bounds::PRINCIPAL_RULES_MAX;
use millrace_model::plain::plain;
use millrace_model::{PrincipalName, Rule, Timestamp};
use serde_json::Value;

use super::bounds::SUBJECT_BYTES_MAX;
use super::claims::Claims;
use super::jwt::Jwt;
use super::keys::{Keys, algorithm_of};
use super::refusal::{Refusal, shown};
use super::settings::{Provider, Whose};

/// What a JWT proves.
#[derive(Clone, Debug)]
pub(super) struct Verified {
    /// As whom the caller acts, and how far.
    pub(super) presented: Presented,
    /// The key that signed it.
    pub(super) print: [u8; 32],
}

/// The provider that a JWT says it is from, and whose audience it has.
pub(super) fn provider_of(claims: &Claims, providers: &[Provider]) -> Result<usize, Refusal> {
    let issuer = claims.text("iss")?;
    let mut of_issuer = providers.iter().enumerate();
    let mut of_issuer = of_issuer
        .by_ref()
        .filter(|(_, one)| one.issuer == issuer)
        .peekable();
    if of_issuer.peek().is_none() {
        return Err(Refusal::UnknownIssuer(shown(issuer)));
    }
    for (at, provider) in of_issuer {
        if is_for(claims, provider)? {
            return Ok(at);
        }
    }
    Err(Refusal::Audience)
}

/// What a JWT proves now.
pub(super) fn verify(
    jwt: &Jwt<'_>,
    keys: &Keys,
    provider: &Provider,
    now: Timestamp,
) -> Result<Verified, Refusal> {
    let algorithm = algorithm_of(jwt.header.text("alg")?, &provider.algorithms)?;
    jwt.check_header()?;
    let key = keys.find(jwt.header.maybe_text("kid")?, algorithm)?;
    // Nothing that the claims say counts before this.
    if !key.signed(algorithm, jwt.signed, &jwt.signature) {
        return Err(Refusal::Signature);
    }
    let claims = &jwt.claims;
    if claims.text("iss")? != provider.issuer {
        return Err(Refusal::UnknownIssuer(shown(claims.text("iss")?)));
    }
    if !is_for(claims, provider)? {
        return Err(Refusal::Audience);
    }
    Ok(Verified {
        presented: Presented {
            until: lifetime(claims, provider.leeway_ms, now)?,
            principal: principal(claims, provider)?,
            subject: subject(claims)?,
            scope: scope(claims, provider)?,
            keys: match &provider.keys {
                Some(keys) => {
                    let filled = keys.iter().map(|pattern| pattern.filled(claims));
                    Some(filled.collect::<Result<_, _>>()?)
                }
                None => None,
            },
        },
        print: key.print,
    })
}

/// Whether it is meant for this host.
fn is_for(claims: &Claims, provider: &Provider) -> Result<bool, Refusal> {
    let is_ours = |text: &str| provider.audience.iter().any(|ours| ours == text);
    match claims.needed("aud")? {
        Value::String(text) => Ok(is_ours(text)),
        Value::Array(several) => Ok(several.iter().filter_map(Value::as_str).any(is_ours)),
        _ => Err(Refusal::Kind("aud".to_owned())),
    }
}

/// Until when it counts, if it does now.
fn lifetime(claims: &Claims, leeway_ms: u64, now: Timestamp) -> Result<Timestamp, Refusal> {
    let expires = claims.time_ms("exp")?;
    let expires = expires.ok_or_else(|| Refusal::Missing("exp".to_owned()))?;
    let until = Timestamp(expires.saturating_add(leeway_ms));
    if until <= now {
        return Err(Refusal::Expired);
    }
    for begins in ["nbf", "iat"] {
        let from = claims.time_ms(begins)?.unwrap_or_default();
        if from > now.0.saturating_add(leeway_ms) {
            return Err(Refusal::NotYet);
        }
    }
    Ok(until)
}

fn principal(claims: &Claims, provider: &Provider) -> Result<PrincipalName, Refusal> {
    match &provider.principal {
        Whose::One(name) => Ok(name.clone()),
        Whose::Claim(claim) => {
            let parsed = PrincipalName::parse(claims.text(claim)?);
            parsed.map_err(|_| Refusal::NoName(shown(claim)))
        }
    }
}

/// Whom the caller is for records: `sub`, without what could mislead who reads them.
fn subject(claims: &Claims) -> Result<Option<Arc<str>>, Refusal> {
    let Some(subject) = claims.maybe_text("sub")? else {
        return Ok(None);
    };
    let subject = plain(subject);
    Ok(Some(
        subject[..subject.floor_char_boundary(SUBJECT_BYTES_MAX)].into(),
    ))
}

/// The rules of which one must allow something, too. What is not a rule grants nothing: a scope has words for others, such as `openid`.
fn scope(claims: &Claims, provider: &Provider) -> Result<Option<Vec<Rule>>, Refusal> {
    let Some(claim) = &provider.rules_claim else {
        return Ok(None);
    };
    let rules: Vec<Rule> = match claims.needed(claim)? {
        Value::String(words) => words
            .split_ascii_whitespace()
            .filter_map(rule_of_word)
            .collect(),
        Value::Array(several) => {
            let texts = several.iter().filter_map(Value::as_str);
            texts
                .filter_map(|text| text.parse().ok().or_else(|| rule_of_word(text)))
                .collect()
        }
        _ => return Err(Refusal::Kind(shown(claim))),
    };
    match rules.len() > PRINCIPAL_RULES_MAX {
        true => Err(Refusal::Kind(shown(claim))),
        false => Ok(Some(rules)),
    }
}

/// A rule as one word of a scope (RFC 6749 section 3.3): `consume:topic:orders-*` is `consume on topic:orders-*`.
fn rule_of_word(word: &str) -> Option<Rule> {
    match word.split_once(':') {
        Some((granted, on)) => format!("{granted} on {on}").parse().ok(),
        None => word.parse().ok(),
    }
}

#[cfg(test)]
mod tests;
