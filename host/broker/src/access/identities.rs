//! Identities of principals: who they are to others than this host, such as by a name in a certificate.

use millrace_model::bounds::PRINCIPAL_IDENTITIES_MAX;
use millrace_model::{Identity, Principal, PrincipalName};

use crate::access::error::PrincipalError;
use crate::access::handle::Access;
use crate::ground::verbs::Verb;

impl Access {
    /// Gives a principal an identity; repeating it changes nothing.
    ///
    /// # Errors
    /// [`PrincipalError`].
    pub async fn add_identity(
        &self,
        principal: &PrincipalName,
        identity: Identity,
    ) -> Result<Principal, PrincipalError> {
        self.caller.may(Verb::SetPrincipal, principal.as_str())?;
        // An identity that others present, too, would make them somebody else.
        self.check_administers_all()?;
        self.change(principal, |principal| {
            // Who has the identity has what the principal has.
            self.check_gives(principal.rules.iter())?;
            self.check_free(principal, &identity)?;
            if principal.identities.contains(&identity) {
                return Ok(());
            }
            if principal.identities.len() >= PRINCIPAL_IDENTITIES_MAX {
                return Err(PrincipalError::TooManyIdentities(principal.name.clone()));
            }
            principal.identities.push(identity.clone());
            Ok(())
        })
        .await
    }

    /// Takes an identity from a principal: it proves nothing from now on, and what is under way with it ends.
    ///
    /// # Errors
    /// [`PrincipalError`].
    pub async fn remove_identity(
        &self,
        principal: &PrincipalName,
        identity: &Identity,
    ) -> Result<(), PrincipalError> {
        self.caller.may(Verb::SetPrincipal, principal.as_str())?;
        self.change(principal, |principal| {
            let before = principal.identities.len();
            principal.identities.retain(|has| has != identity);
            match principal.identities.len() < before {
                true => Ok(()),
                false => Err(PrincipalError::UnknownIdentity {
                    principal: principal.name.clone(),
                    identity: identity.clone(),
                }),
            }
        })
        .await?;
        Ok(())
    }

    /// Whether no other principal has it. Whoever may not see the other one does not learn which it is.
    fn check_free(&self, principal: &Principal, identity: &Identity) -> Result<(), PrincipalError> {
        let book = self.inner.book.read();
        match book.holder(identity) {
            Some(other) if *other != principal.name => Err(PrincipalError::IdentityTaken {
                identity: identity.clone(),
                of: Some(other.clone())
                    .filter(|other| self.caller.sees(Verb::SeePrincipal, other.as_str())),
            }),
            _ => Ok(()),
        }
    }
}
