//! The first principal of a store: without one, nobody could make another.

use millrace_model::{NameError, Principal, PrincipalName, RuleError, TokenName};

use crate::access::error::PrincipalError;
use crate::access::handle::Access;
use crate::access::secret::TokenText;
use crate::access::tokens::NewToken;

const NAME: &str = "admin";
const TOKEN: &str = "first";

/// A principal that may do everything, and its token, before it is stored.
pub struct First {
    principal: Principal,
    text: TokenText,
}

impl First {
    /// The token's text, for whoever starts the host.
    #[must_use]
    pub fn token(&self) -> &TokenText {
        &self.text
    }
}

impl Access {
    /// A principal that may do everything, if nobody can administer principals; [`Access::begin`] stores it. One of its name that exists is
    /// given that right, and loses its other credentials.
    ///
    /// # Errors
    /// [`PrincipalError::Random`].
    pub fn first(&self) -> Result<Option<First>, PrincipalError> {
        self.inner.follow();
        let now = self.inner.clock.wall();
        if self.inner.book.read().has_admin(now) {
            return Ok(None);
        }
        let name = PrincipalName::parse(NAME)?;
        let mut principal = self.known(&name).unwrap_or_else(|| self.fresh(&name));
        let token = TokenName::parse(TOKEN)?;
        // Whoever else could prove to be it would have everything, too.
        principal.tokens.clear();
        principal.identities.clear();
        principal.password = None;
        let made = self.made(NewToken {
            name: token,
            scope: None,
            expires_at: None,
        })?;
        principal.rules.push(NAME.parse()?);
        principal.tokens.push(made.token);
        Ok(Some(First {
            principal,
            text: made.text,
        }))
    }

    /// Stores the first principal, unless somebody can administer principals meanwhile; returns whether it did.
    ///
    /// # Errors
    /// [`PrincipalError`].
    pub async fn begin(&self, first: First) -> Result<bool, PrincipalError> {
        self.decide(async || {
            if self.inner.book.read().has_admin(self.inner.clock.wall()) {
                return Ok(false);
            }
            self.keep(first.principal.clone()).await?;
            Ok(true)
        })
        .await
    }
}

/// These names and rules are constants; a test parses them.
impl From<NameError> for PrincipalError {
    fn from(error: NameError) -> Self {
        Self::Catalogue(error.to_string())
    }
}

impl From<RuleError> for PrincipalError {
    fn from(error: RuleError) -> Self {
        Self::Catalogue(error.to_string())
    }
}
