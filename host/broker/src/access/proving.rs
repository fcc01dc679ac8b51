//! Who a caller is, by the token that it presents; and the end of what tokens and passwords proved.

use std::sync::Weak;
use std::time::Duration;

use millrace_model::{Advice, Advised, Code, PrincipalName, TokenName};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::access::book::Proof;
use crate::access::handle::{Access, Inner};
use crate::access::secret;
use crate::ground::standing::Standing;

/// How often tokens that have expired are looked for. What they allowed ends within twice of that.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// What a token or a password proved.
#[derive(Clone, Debug)]
pub struct Proved {
    /// What the caller may do.
    pub standing: Standing,
    /// Cancelled when the token is revoked or expires, when the password changes, and when the rights of the principal change.
    pub ended: CancellationToken,
}

/// A token or a password proves nothing.
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
}

impl Advised for Unproved {
    fn advice(&self) -> Advice {
        match self {
            Self::Unknown | Self::Expired { .. } => Code::CredentialsRefused.advice(),
            Self::Password => Code::CredentialsRefused
                .hint("ask for a new password: `millrace access password set` makes one"),
            Self::Busy => Code::Occupied.advice(),
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
        let proof = self.inner.book.read().proof(id).cloned();
        // Somebody who guesses does not learn whether there is such a token.
        let Proof {
            token,
            known,
            ended,
        } = proof
            .filter(|proof| secret::is_of(secret, &proof.token.hash))
            .ok_or(Unproved::Unknown)?;
        if token.is_expired(self.inner.clock.wall()) {
            return Err(Unproved::Expired {
                principal: known.name.clone(),
                token: token.name,
            });
        }
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
        inner.book.read().expire(inner.clock.wall());
    }
}
