//! Tokens of principals: made, rotated, revoked. The text of a token is in the answer that makes it, and nowhere else.

use std::time::Duration;

use millrace_model::bounds::{PRINCIPAL_RULES_MAX, PRINCIPAL_TOKENS_MAX};
use millrace_model::{Principal, PrincipalName, Rule, Timestamp, Token, TokenName};

use crate::access::error::PrincipalError;
use crate::access::handle::Access;
use crate::access::secret::TokenText;
use crate::ground::verbs::Verb;

/// A token to be made.
#[derive(Clone, Debug)]
pub struct NewToken {
    /// Its name.
    pub name: TokenName,
    /// If present, it may do only what one of these allows, too.
    pub scope: Option<Vec<Rule>>,
    /// When it expires; never if absent.
    pub expires_at: Option<Timestamp>,
}

/// A token that was made, and the only copy of its text.
#[derive(Clone, Debug)]
pub struct MadeToken {
    /// The token as it is stored.
    pub token: Token,
    /// What its holder presents.
    pub text: TokenText,
}

impl Access {
    /// Makes a token of a principal.
    ///
    /// # Errors
    /// [`PrincipalError`].
    pub async fn make_token(
        &self,
        principal: &PrincipalName,
        new: NewToken,
    ) -> Result<MadeToken, PrincipalError> {
        self.caller.may(Verb::MakeToken, principal.as_str())?;
        let made = self.made(new)?;
        self.change(principal, |principal| {
            // Who holds the token has what it gives.
            let gives = made.token.scope.as_ref().unwrap_or(&principal.rules);
            self.check_gives(gives.iter())?;
            if principal
                .tokens
                .iter()
                .any(|token| token.name == made.token.name)
            {
                return Err(PrincipalError::TokenExists {
                    principal: principal.name.clone(),
                    token: made.token.name.clone(),
                });
            }
            add(principal, made.token.clone())
        })
        .await?;
        Ok(made)
    }

    /// Makes a new token in place of one. The old one is accepted for `overlap` from now on, so that its holders can change over; under
    /// another name.
    ///
    /// # Errors
    /// [`PrincipalError`].
    pub async fn rotate_token(
        &self,
        principal: &PrincipalName,
        name: &TokenName,
        overlap: Duration,
    ) -> Result<MadeToken, PrincipalError> {
        self.caller.may(Verb::MakeToken, principal.as_str())?;
        let before = self.principal_now(principal)?;
        let before = found(&before, name)?;
        let lifetime = before.expires_at.map(|at| before.made_at.until(at));
        let now = self.inner.clock.wall();
        let made = self.made(NewToken {
            name: name.clone(),
            scope: before.scope.clone(),
            expires_at: lifetime.map(|lifetime| now.after(lifetime)),
        })?;
        let until = now.after(overlap);
        self.change(principal, |principal| {
            let gives = made.token.scope.as_ref().unwrap_or(&principal.rules);
            self.check_gives(gives.iter())?;
            let old = found(principal, name)?.id.clone();
            for token in principal.tokens.iter_mut().filter(|token| token.id == old) {
                let sooner = token.expires_at.map_or(until, |at| at.min(until));
                token.expires_at = Some(sooner);
                token.name = retired(&token.id, name)?;
            }
            if overlap.is_zero() {
                principal.tokens.retain(|token| token.id != old);
            }
            add(principal, made.token.clone())
        })
        .await?;
        Ok(made)
    }

    /// Revokes a token: it is refused from now on, and what is under way with it ends.
    ///
    /// # Errors
    /// [`PrincipalError`].
    pub async fn revoke_token(
        &self,
        principal: &PrincipalName,
        name: &TokenName,
    ) -> Result<(), PrincipalError> {
        self.caller.may(Verb::RevokeToken, principal.as_str())?;
        self.change(principal, |principal| {
            let id = found(principal, name)?.id.clone();
            principal.tokens.retain(|token| token.id != id);
            Ok(())
        })
        .await?;
        Ok(())
    }

    fn principal_now(&self, name: &PrincipalName) -> Result<Principal, PrincipalError> {
        self.inner.follow();
        let book = self.inner.book.read();
        let kept = book.principals.get(name);
        let kept = kept.ok_or_else(|| PrincipalError::Unknown(name.clone()))?;
        Ok(kept.principal.clone())
    }

    pub(super) fn made(&self, new: NewToken) -> Result<MadeToken, PrincipalError> {
        let now = self.inner.clock.wall();
        if new.expires_at.is_some_and(|at| at <= now) {
            return Err(PrincipalError::Expired);
        }
        if let Some(rules) = new.scope.as_ref().map(Vec::len)
            && rules > PRINCIPAL_RULES_MAX
        {
            return Err(PrincipalError::TooManyRules(rules));
        }
        let text = TokenText::random()?;
        let token = Token {
            id: text.id().to_owned(),
            name: new.name,
            hash: text.hash(),
            scope: new.scope,
            expires_at: new.expires_at,
            made_at: now,
            made_by: self.caller.signature().to_owned(),
        };
        Ok(MadeToken { token, text })
    }
}

fn found<'a>(principal: &'a Principal, name: &TokenName) -> Result<&'a Token, PrincipalError> {
    let token = principal.tokens.iter().find(|token| token.name == *name);
    token.ok_or_else(|| PrincipalError::UnknownToken {
        principal: principal.name.clone(),
        token: name.clone(),
    })
}

fn add(principal: &mut Principal, token: Token) -> Result<(), PrincipalError> {
    if principal.tokens.len() >= PRINCIPAL_TOKENS_MAX {
        return Err(PrincipalError::TooManyTokens(principal.name.clone()));
    }
    principal.tokens.push(token);
    Ok(())
}

/// The name of a token that another has replaced.
fn retired(id: &str, name: &TokenName) -> Result<TokenName, PrincipalError> {
    let beginning: String = name.as_str().chars().take(40).collect();
    let retired = TokenName::parse(&format!("{beginning}.old.{id}"));
    retired.map_err(|error| PrincipalError::Catalogue(error.to_string()))
}
