//! Passwords of principals, for clients whose protocol knows only users and passwords: set, removed, and proved, either by the password
//! itself or by a SCRAM exchange. The text of a password that the host makes is in the answer that makes it, and nowhere else.
//!
//! Who asks with a name that no principal has, or one without a password, waits as long and sees the same as who has a wrong password.

use std::sync::Arc;
use std::time::Duration;

use millrace_model::{Password, PrincipalName, ScramHash, ScramVerifier};
use subtle::ConstantTimeEq as _;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::access::book::PasswordProof;
use crate::access::error::PrincipalError;
use crate::access::handle::Access;
use crate::access::proving::{Proved, Unproved};
use crate::access::scram::{ClientFirst, Exchange, ScramError};
use crate::access::secret::{PasswordText, can_be_password};
use crate::access::verifying::{hmac, is_of, verifier};
use crate::ground::standing::Standing;
use crate::ground::verbs::Verb;

/// How often the hash is applied: four times what RFC 7677 asks for, and no more than all clients accept.
const ITERATIONS: u32 = 16_384;
const SALT_BYTES: usize = 16;
/// Passwords that are checked at the same time, so that guessing does not take all cores. A further check waits, see
/// `PASSWORD_WAIT_MAX`.
pub(crate) const PASSWORDS_CHECKED_AT_ONCE_MAX: usize = 2;
/// How long the check of a password waits for others; then the caller is told that the host is busy.
const PASSWORD_WAIT_MAX: Duration = Duration::from_secs(1);

/// A password that was set.
#[derive(Clone, Debug)]
pub struct SetPassword {
    /// The password as it is stored.
    pub password: Password,
    /// The only copy of its text, if the host made it.
    pub text: Option<PasswordText>,
}

impl Access {
    /// Sets the password of a principal: the chosen one, or one that the host makes. What was proved with the one before ends.
    ///
    /// # Errors
    /// [`PrincipalError`].
    pub async fn set_password(
        &self,
        principal: &PrincipalName,
        chosen: Option<PasswordText>,
    ) -> Result<SetPassword, PrincipalError> {
        self.caller.may(Verb::SetPassword, principal.as_str())?;
        let (text, made) = match chosen {
            Some(chosen) => (chosen, None),
            None => {
                let made = PasswordText::random()?;
                (made.clone(), Some(made))
            }
        };
        let verifiers = derived(text).await?;
        let password = Password {
            verifiers,
            set_at: self.inner.clock.wall(),
            set_by: self.caller.signature().to_owned(),
        };
        self.change(principal, |principal| {
            // Who knows the password has what the principal has.
            self.check_gives(principal.rules.iter())?;
            principal.password = Some(password.clone());
            Ok(())
        })
        .await?;
        let text = made;
        Ok(SetPassword { password, text })
    }

    /// Removes the password of a principal; does nothing if it has none. What was proved with it ends.
    ///
    /// # Errors
    /// [`PrincipalError`].
    pub async fn remove_password(&self, principal: &PrincipalName) -> Result<(), PrincipalError> {
        self.caller.may(Verb::RemovePassword, principal.as_str())?;
        self.change(principal, |principal| {
            principal.password = None;
            Ok(())
        })
        .await?;
        Ok(())
    }

    /// Whether there is a principal of this name that has a password.
    #[must_use]
    pub fn has_password(&self, principal: &str) -> bool {
        self.password_of(principal).is_some()
    }

    /// Whether this password is one that was right before, so that checking it again costs next to nothing.
    #[must_use]
    pub fn remembers_password(&self, name: &str, password: &str) -> bool {
        let Some(proof) = self.password_of(name) else {
            return false;
        };
        let mark = self.inner.strangers.mark(name, password);
        let remembered = proof.remembered.get();
        remembered.is_some_and(|remembered| remembered.ct_eq(&mark).into())
    }

    /// Who presents this name and this password.
    ///
    /// # Errors
    /// [`Unproved::Password`], [`Unproved::Busy`].
    pub async fn prove_password(&self, name: &str, password: &str) -> Result<Proved, Unproved> {
        if !can_be_password(password) {
            return Err(Unproved::Password);
        }
        let proof = self.password_of(name);
        let mark = self.inner.strangers.mark(name, password);
        if let Some(proof) = &proof
            && let Some(remembered) = proof.remembered.get()
            && bool::from(remembered.ct_eq(&mark))
        {
            return Ok(proof.proved());
        }
        let free = self.inner.deriving.clone().acquire_owned();
        let free = timeout(PASSWORD_WAIT_MAX, free).await;
        let Ok(Ok(permit)) = free else {
            return Err(Unproved::Busy);
        };
        let known = self.verifier_of(proof.as_ref(), name, ScramHash::Sha256);
        let password = Zeroizing::new(password.to_owned());
        let checked = spawn_blocking(move || {
            // Until it is done, though its caller may have gone.
            let _permit = permit;
            is_of(&password, &known)
        });
        let is_right = checked.await.unwrap_or(false);
        self.inner.follow();
        match proof {
            Some(proof) if is_right && !proof.proof.ended.is_cancelled() => {
                // Another may have been quicker with the same.
                let _ = proof.remembered.set(mark);
                Ok(proof.proved())
            }
            _ => Err(Unproved::Password),
        }
    }

    /// Begins a SCRAM exchange with a client's first message. `nonce` is the host's part of the nonce, as
    /// [`scram_nonce`](crate::scram_nonce) makes it.
    ///
    /// # Errors
    /// [`ScramError`].
    pub fn begin_scram(
        &self,
        hash: ScramHash,
        client_first: &[u8],
        nonce: &str,
    ) -> Result<ScramChallenge, ScramError> {
        let first = ClientFirst::read(client_first)?;
        let proof = self.password_of(first.name());
        let verifier = self.verifier_of(proof.as_ref(), first.name(), hash);
        Ok(ScramChallenge {
            access: self.clone(),
            exchange: first.challenge(verifier, nonce),
            proof,
        })
    }

    fn password_of(&self, name: &str) -> Option<PasswordProof> {
        let name: PrincipalName = name.parse().ok()?;
        self.inner.follow();
        self.inner.book.read().password(&name).cloned()
    }

    /// What the password is checked against, and for strangers something that no password passes.
    fn verifier_of(
        &self,
        proof: Option<&PasswordProof>,
        name: &str,
        hash: ScramHash,
    ) -> ScramVerifier {
        // In any case: the time that it takes says nothing.
        let stranger = self.inner.strangers.verifier(name, hash);
        let known = proof.and_then(|proof| proof.password.verifier(hash));
        known.cloned().unwrap_or(stranger)
    }
}

/// A SCRAM exchange that waits for the client's proof.
pub struct ScramChallenge {
    access: Access,
    exchange: Exchange,
    proof: Option<PasswordProof>,
}

impl ScramChallenge {
    /// The host's first message.
    #[must_use]
    pub fn message(&self) -> &str {
        self.exchange.message()
    }

    /// Checks the client's last message. Returns what it proved, and the host's last message.
    ///
    /// # Errors
    /// [`ScramError`].
    pub fn finish(self, client_final: &[u8]) -> Result<(Proved, String), ScramError> {
        let message = self.exchange.finish(client_final)?;
        let proof = self.proof.ok_or(ScramError::Proof)?;
        self.access.inner.follow();
        match proof.proof.ended.is_cancelled() {
            true => Err(ScramError::Changed),
            false => Ok((proof.proved(), message)),
        }
    }
}

impl PasswordProof {
    fn proved(&self) -> Proved {
        Proved {
            standing: Standing::Principal(Arc::clone(&self.proof.known)),
            ended: self.proof.ended.clone(),
        }
    }
}

/// What is stored of a password, for each hash.
async fn derived(text: PasswordText) -> Result<Vec<ScramVerifier>, PrincipalError> {
    let mut salts = [[0; SALT_BYTES]; ScramHash::ALL.len()];
    getrandom::fill(salts.as_flattened_mut())?;
    let derive = move || {
        let each = ScramHash::ALL.into_iter().zip(salts);
        each.map(|(hash, salt)| verifier(hash, text.reveal(), salt.to_vec(), ITERATIONS))
            .collect()
    };
    let derived = spawn_blocking(derive).await;
    derived.map_err(|error| PrincipalError::Catalogue(error.to_string()))
}

/// What those see who are no principal, or have no password: the same for the same name as long as this process runs.
pub(super) struct Strangers {
    /// Random, and known to nobody.
    key: Zeroizing<[u8; 32]>,
}

impl Strangers {
    pub(super) fn new() -> Self {
        let mut key = Zeroizing::new([0; 32]);
        if getrandom::fill(&mut *key).is_err() {
            // No password can be made either on such a system; the worst is that names can be guessed.
            tracing::warn!(
                "the system has no random numbers: who asks can find out names of principals"
            );
        }
        Self { key }
    }

    fn verifier(&self, name: &str, hash: ScramHash) -> ScramVerifier {
        let mechanism = hash.mechanism().as_bytes();
        let made = |what: &[u8]| hmac(hash, &*self.key, &[what, mechanism, b"\0", name.as_bytes()]);
        let mut salt = made(b"salt");
        salt.truncate(SALT_BYTES);
        ScramVerifier {
            hash,
            iterations: ITERATIONS,
            salt,
            stored_key: made(b"stored"),
            server_key: made(b"server"),
        }
    }

    /// By what a password is known again that was proved once: useless outside of this process.
    fn mark(&self, name: &str, password: &str) -> [u8; 32] {
        let parts = [
            b"mark".as_slice(),
            name.as_bytes(),
            b"\0",
            password.as_bytes(),
        ];
        let mark = hmac(ScramHash::Sha256, &*self.key, &parts);
        std::array::from_fn(|at| mark[at])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_sees_the_same_salt_again_and_no_password_passes() {
        let strangers = Strangers::new();
        for hash in ScramHash::ALL {
            let seen = strangers.verifier("nobody", hash);
            assert_eq!(seen, strangers.verifier("nobody", hash));
            assert_ne!(seen.salt, strangers.verifier("somebody", hash).salt);
            assert_ne!(seen.salt, Strangers::new().verifier("nobody", hash).salt);
            assert_eq!((seen.salt.len(), seen.iterations), (SALT_BYTES, ITERATIONS));
            assert!(!is_of("nobody", &seen));
        }
    }
}
