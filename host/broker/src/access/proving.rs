//! Who a caller is, by the token or the password that it presents, or by what others say of it; and the end of what was proved.

use std::sync::{Arc, Weak};
use std::time::Duration;

use millrace_model::{Advice, Advised, Code, Identity, PrincipalName, TokenName};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::access::book::{Proof, TokenProof};
use crate::access::handle::{Access, Inner};
use crate::access::presented::PRESENTED_MAX;
use crate::access::secret;
use crate::ground::standing::Standing;

/// How often tokens that have expired are looked for. What they allowed ends within twice of that.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// What a token, a password or an identity proved.
#[derive(Clone, Debug)]
pub struct Proved {
    /// What the caller may do.
    pub standing: Standing,
    /// Cancelled when the token is revoked or expires, the password changes, the identity is removed, or the rights of the principal change.
    pub ended: CancellationToken,
}

/// A token, a password or an identity proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unproved {
    /// It is none of this host, or was revoked.
    #[error("the token is none of this host, or was revoked")]
    Unknown,
    /// It is too old.
    #[error("token {token} of principal {principal} has expired")]
    Expired {
        /// Its principal.
        principal: PrincipalName,
        /// Its name.
        token: TokenName,
    },
    /// No principal has this name and this password. Which of the two is wrong is not said.
    #[error("no principal has this name and this password")]
    Password,
    /// As many passwords as possible are being checked.
    #[error("the host is checking as many passwords as it checks at once")]
    Busy,
    /// It stands for a principal that does not exist.
    #[error("the credentials stand for principal {0}, which this host does not have")]
    NoPrincipal(PrincipalName),
    /// As many callers are known at once as the host keeps.
    #[error("{PRESENTED_MAX} callers of identity providers are known at once, the maximum")]
    TooMany,
    /// No principal has any of the identities.
    #[error("{}", stranger(.0))]
    NoIdentity(Vec<Identity>),
}

fn stranger(identities: &[Identity]) -> String {
    match identities {
        [] => "nothing says who the caller is".to_owned(),
        [only] => format!("no principal has the identity {only}"),
        several => {
            let several: Vec<String> = several.iter().map(ToString::to_string).collect();
            format!(
                "no principal has one of the identities {}",
                several.join(", ")
            )
        }
    }
}

impl Advised for Unproved {
    fn advice(&self) -> Advice {
        match self {
            Self::Unknown | Self::Expired { .. } => Code::CredentialsRefused.advice(),
            Self::Password => Code::CredentialsRefused
                .hint("ask for a new password: `millrace access password set` makes one"),
            Self::Busy => Code::Occupied.advice(),
            Self::NoPrincipal(name) => Code::CredentialsRefused.hint(format!(
                "a principal that may administer principals can make it: `millrace access grant {name} RULE`"
            )),
            Self::TooMany => Code::Busy.advice(),
            // It may still send a token.
            Self::NoIdentity(identities) => match identities.first() {
                Some(identity) => Code::CredentialsMissing.hint(format!(
                    "a principal that may administer principals can add one: `millrace access identity add PRINCIPAL '{identity}'`; or send a token: `millrace --token-file FILE`"
                )),
                None => Code::CredentialsMissing.advice(),
            },
        }
    }
}

impl Access {
    /// Who presents this token.
    ///
    /// # Errors
    /// [`Unproved`].
    pub fn prove(&self, presented: &str) -> Result<Proved, Unproved> {
        self.inner.follow();
        let (id, secret) = secret::parts(presented).ok_or(Unproved::Unknown)?;
        let book = self.inner.book.read();
        let found = book.token(id);
        // Somebody who guesses does not learn whether there is such a token.
        let TokenProof { token, proof } = found
            .filter(|found| secret::is_of(secret, &found.token.hash))
            .ok_or(Unproved::Unknown)?;
        let Proof { known, ended } = proof;
        if token.is_expired(self.inner.clock.wall()) {
            return Err(Unproved::Expired {
                principal: known.name.clone(),
                token: token.name.clone(),
            });
        }
        Ok(Proved {
            standing: Standing::Principal(Arc::clone(known)),
            ended: ended.clone(),
        })
    }

    /// Whom others say that this is: the principal that has the first of these identities that any has.
    ///
    /// # Errors
    /// [`Unproved::NoIdentity`].
    pub fn prove_identity(&self, identities: &[Identity]) -> Result<Proved, Unproved> {
        self.inner.follow();
        let proof = self.inner.book.read().identity(identities).cloned();
        let Proof { known, ended } =
            proof.ok_or_else(|| Unproved::NoIdentity(identities.to_vec()))?;
        let standing = Standing::Principal(known);
        Ok(Proved { standing, ended })
    }
}

/// Ends what tokens proved that are revoked or have expired, until it is told to stop.
pub(crate) async fn run(inner: Weak<Inner>, mut stop: watch::Receiver<bool>) {
    let Some(mut changed) = inner.upgrade().map(|inner| inner.engine.watch_catalogue()) else {
        return;
    };
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            changed = changed.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
        let Some(inner) = inner.upgrade() else { return };
        inner.follow();
        inner.book.write().expire(inner.clock.wall());
    }
}
