//! Signatures of modules: detached, Ed25519 over the whole file, in minisign's format. An upload's signature is verified before the module
//! is compiled, and kept in its record; a deployment verifies it again with the keys that the host trusts by then.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use millrace_engine::ReadError;
use millrace_model::{Advice, Advised, Code, Digest};
use minisign_verify::{PublicKey, Signature};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::catalogue::handle::Catalogue;

/// Maximum bytes of a signature file; a larger one is refused.
pub const SIGNATURE_BYTES_MAX: usize = 2 << 10;
/// Lines of a signature: an untrusted comment, the signature, the trusted comment, and the signature of both.
const SIGNATURE_LINES: usize = 4;
/// Modules whose signatures are known to be good, so that they are not read and verified again.
pub(super) const VERIFIED_MODULES_MAX: usize = 1_000;
/// The field of a trusted comment that names a tag for which the file was signed.
const TAG_FIELD: &str = "tag:";

/// What a host demands of signatures.
#[derive(Clone, Debug, Default)]
pub struct SignaturePolicy {
    /// Whether a module without a signature by a trusted key is refused.
    pub required: bool,
    /// The keys.
    pub trusted: Vec<TrustedKey>,
}

/// A public key that the host trusts.
#[derive(Clone, Debug)]
pub struct TrustedKey {
    id: KeyId,
    key: PublicKey,
}

/// The number of a key, as minisign shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyId([u8; 8]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", u64::from_le_bytes(self.0))
    }
}

impl TrustedKey {
    /// The key of a file in minisign's format: a comment, and the key in base64.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let line = text.lines().nth(1)?.trim();
        let key = PublicKey::from_base64(line).ok()?;
        let id = KeyId(bytes_of(line)?);
        Some(Self { id, key })
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> KeyId {
        self.id
    }
}

/// The number of the key, which follows two bytes of the algorithm in a key and in a signature.
fn bytes_of(line: &str) -> Option<[u8; 8]> {
    STANDARD.decode(line).ok()?.get(2..10)?.try_into().ok()
}

/// A module's signature, once it was found good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleSignature {
    /// The number of the key that made it.
    pub key: String,
    /// The trusted comment, which is signed as well.
    pub comment: String,
    /// The four lines of the signature's file.
    pub text: String,
}

impl ModuleSignature {
    /// The tags for which the file was signed; none if it was signed for any.
    fn tags(&self) -> impl Iterator<Item = &str> {
        self.comment
            .split_whitespace()
            .filter_map(|field| field.strip_prefix(TAG_FIELD))
    }

    /// Checks that the signature allows this tag.
    pub(super) fn check_tag(&self, tag: &str) -> Result<(), SignatureError> {
        if self.tags().next().is_none() || self.tags().any(|signed| signed == tag) {
            return Ok(());
        }
        Err(SignatureError::OtherTag {
            tag: tag.to_owned(),
            signed: self.tags().collect::<Vec<_>>().join(", "),
        })
    }
}

/// Why a module's signature is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// There is none.
    #[error("{0} has no signature, and this host demands one (setting require_signature = true)")]
    Missing(String),
    /// It is not in minisign's format.
    #[error(
        "the signature of {0} is not understood: minisign's format is four lines, with the signature of the hashed file"
    )]
    Malformed(String),
    /// The host does not trust the key.
    #[error("{what} is signed by key {key}, which is not among the trusted keys of this host")]
    Untrusted {
        /// The module.
        what: String,
        /// The key's number.
        key: String,
    },
    /// It is the signature of other bytes, or was changed.
    #[error(
        "the signature by key {key} does not belong to {what}: the file or the signature is another one, or was changed"
    )]
    Wrong {
        /// The module.
        what: String,
        /// The key's number.
        key: String,
    },
    /// It was made for other tags.
    #[error("the module is signed for {signed}, not for {tag}")]
    OtherTag {
        /// The tag that was asked for.
        tag: String,
        /// The signed tags.
        signed: String,
    },
}

impl Advised for SignatureError {
    fn advice(&self) -> Advice {
        match self {
            Self::Missing(_) => Code::SignatureMissing.advice(),
            Self::Malformed(_) | Self::Wrong { .. } => Code::SignatureInvalid.advice(),
            Self::Untrusted { .. } => Code::SignatureUntrusted.advice(),
            Self::OtherTag { .. } => Code::SignatureInvalid
                .hint("sign the file for this tag: `millrace module sign FILE --key KEY --tag NAME@VERSION`"),
        }
    }
}

/// Why a module may not be deployed.
#[derive(Debug, thiserror::Error)]
pub enum DistrustError {
    /// Because of its signature.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// It could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl Advised for DistrustError {
    fn advice(&self) -> Advice {
        match self {
            Self::Signature(error) => error.advice(),
            Self::Read(error) => error.advice(),
        }
    }
}

impl SignaturePolicy {
    /// Verifies a signature of the bytes; `what` names them in an error.
    fn verify(
        &self,
        what: &str,
        bytes: &[u8],
        text: &str,
    ) -> Result<ModuleSignature, SignatureError> {
        let malformed = || SignatureError::Malformed(what.to_owned());
        if text.len() > SIGNATURE_BYTES_MAX {
            return Err(malformed());
        }
        let signature = Signature::decode(text).map_err(|_| malformed())?;
        let lines: Vec<&str> = text.lines().take(SIGNATURE_LINES).collect();
        let id = lines.get(1).and_then(|line| bytes_of(line));
        let id = KeyId(id.ok_or_else(malformed)?);
        let mut with_id = self.trusted.iter().filter(|key| key.id == id).peekable();
        if with_id.peek().is_none() {
            return Err(SignatureError::Untrusted {
                what: what.to_owned(),
                key: id.to_string(),
            });
        }
        // Only signatures of the hashed file: the older kind is refused.
        let is_good = |key: &TrustedKey| key.key.verify(bytes, &signature, false).is_ok();
        if !with_id.any(is_good) {
            return Err(SignatureError::Wrong {
                what: what.to_owned(),
                key: id.to_string(),
            });
        }
        Ok(ModuleSignature {
            key: id.to_string(),
            comment: signature.trusted_comment().to_owned(),
            text: lines.join("\n") + "\n",
        })
    }

    /// Whether a key of this number is trusted.
    fn trusts(&self, id: &str) -> bool {
        self.trusted.iter().any(|key| key.id.to_string() == id)
    }
}

/// Work of milliseconds for a large module, done where it does not delay messages; `None` if the host stops meanwhile.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}

/// The digest of the bytes; `None` if the host stops meanwhile.
pub(super) async fn digest_of(bytes: &Bytes) -> Option<Digest> {
    let bytes = bytes.clone();
    aside(move || Digest(Sha256::digest(&bytes).into())).await
}

impl Catalogue {
    /// Verifies the signature of an upload, before anything else is done with it: the one that comes with it, or the one that is kept of
    /// the same bytes. `None` if there is none and none is needed.
    pub(super) async fn verify_upload(
        &self,
        bytes: &Bytes,
        given: Option<String>,
    ) -> Result<Option<ModuleSignature>, SignatureError> {
        let what = || "the module".to_owned();
        let text = match given {
            Some(text) => text,
            None if !self.inner.policy.signatures.required => return Ok(None),
            None => {
                let digest = digest_of(bytes).await;
                let known = digest.and_then(|digest| self.module_of(digest));
                let kept = known.and_then(|module| module.signature);
                kept.ok_or_else(|| SignatureError::Missing(what()))?.text
            }
        };
        let found = self.verify_aside(what(), bytes.clone(), text).await?;
        Ok(Some(found))
    }

    async fn verify_aside(
        &self,
        what: String,
        bytes: Bytes,
        text: String,
    ) -> Result<ModuleSignature, SignatureError> {
        let signatures = self.inner.policy.signatures.clone();
        let missing = SignatureError::Missing(what.clone());
        let verified = aside(move || signatures.verify(&what, &bytes, &text)).await;
        // Without an answer, nothing is verified.
        verified.unwrap_or(Err(missing))
    }

    fn remember_verified(&self, digest: Digest) {
        let mut verified = self.inner.verified.lock();
        if verified.len() < VERIFIED_MODULES_MAX {
            verified.insert(digest);
        }
    }

    /// Checks that a module may be deployed: where signatures are required, it has one by a key that the host trusts now. What is
    /// deployed already is not asked: a key that is withdrawn stops no processor.
    pub(crate) async fn check_trusted(&self, digest: Digest) -> Result<(), DistrustError> {
        let signatures = &self.inner.policy.signatures;
        if !signatures.required || self.inner.verified.lock().contains(&digest) {
            return Ok(());
        }
        // That it does not exist is reported by those who use it.
        let Some(module) = self.module_of(digest) else {
            return Ok(());
        };
        let what = format!("module {}", digest.short());
        let Some(signature) = module.signature else {
            return Err(SignatureError::Missing(what).into());
        };
        let Some(bytes) = self.inner.engine.module(digest).await? else {
            return Ok(());
        };
        self.verify_aside(what, bytes, signature.text).await?;
        self.remember_verified(digest);
        Ok(())
    }

    /// Whether the host trusts the key of a module's signature; `None` if it has no signature.
    #[must_use]
    pub fn is_trusted(&self, module: &super::modules::Module) -> Option<bool> {
        let signature = module.signature.as_ref()?;
        Some(self.inner.policy.signatures.trusts(&signature.key))
    }

    /// Logs which modules could no longer be deployed, once at the start.
    pub(crate) fn log_distrusted(&self) {
        if !self.inner.policy.signatures.required {
            return;
        }
        for module in self.modules() {
            if self.is_trusted(&module) != Some(true) {
                tracing::warn!(
                    digest = %module.facts.digest,
                    tag = module.tag,
                    key = module.signature.map(|signature| signature.key),
                    "the module has no signature by a trusted key: what is deployed runs, but it cannot be deployed anew"
                );
            }
        }
    }
}
