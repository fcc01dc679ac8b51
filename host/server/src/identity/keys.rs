//! The keys of a provider: a JWKS (RFC 7517), of which those are kept that check signatures, and the algorithms (RFC 7518, RFC 8037)
//! that they check. There is no secret among them: a key for HMAC is never taken.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{self, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::bounds::JWKS_KEYS_MAX;
use super::refusal::{Refusal, shown};

macro_rules! algorithms {
    ($($name:ident $text:literal)*) => {
        /// How a JWT is signed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Algorithm {
            $($name,)*
        }

        impl Algorithm {
            pub(super) const ALL: &[Self] = &[$(Self::$name,)*];

            pub(crate) const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

algorithms! {
    Rs256 "RS256"
    Rs384 "RS384"
    Rs512 "RS512"
    Ps256 "PS256"
    Ps384 "PS384"
    Ps512 "PS512"
    Es256 "ES256"
    Es384 "ES384"
    EdDsa "EdDSA"
}

impl Algorithm {
    pub(crate) fn of(text: &str) -> Option<Self> {
        match text {
            // RFC 9864: the same with its curve named.
            "Ed25519" => Some(Self::EdDsa),
            text => Self::ALL.iter().copied().find(|one| one.as_str() == text),
        }
    }

    fn rsa(self) -> Option<&'static RsaParameters> {
        // All of them refuse keys of fewer than 2048 bits (RFC 7518 section 3.3).
        Some(match self {
            Self::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
            Self::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
            Self::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
            Self::Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
            Self::Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
            Self::Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
            Self::Es256 | Self::Es384 | Self::EdDsa => return None,
        })
    }
}

/// A key, by its family.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

/// A key that checks signatures.
#[derive(Clone, Debug)]
pub(super) struct Key {
    kid: Option<String>,
    alg: Option<String>,
    material: Material,
    /// By which it is found again in a later JWKS.
    pub(super) print: [u8; 32],
}

impl Key {
    /// Whether it is for this algorithm: by its family, and by what it says of itself (RFC 8725 section 3.1).
    fn is_for(&self, algorithm: Algorithm) -> bool {
        let is_of_family = match &self.material {
            Material::Rsa { .. } => algorithm.rsa().is_some(),
            Material::P256(_) => algorithm == Algorithm::Es256,
            Material::P384(_) => algorithm == Algorithm::Es384,
            Material::Ed25519(_) => algorithm == Algorithm::EdDsa,
        };
        let said = self.alg.as_deref();
        is_of_family && said.is_none_or(|said| Algorithm::of(said) == Some(algorithm))
    }

    /// Whether this is its signature.
    pub(super) fn signed(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        if !self.is_for(algorithm) {
            return false;
        }
        let checked = match &self.material {
            Material::Rsa { n, e } => match algorithm.rsa() {
                Some(how) => RsaPublicKeyComponents { n, e }.verify(how, message, signature),
                None => return false,
            },
            Material::P256(key) => UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, key)
                .verify(message, signature),
            Material::P384(key) => UnparsedPublicKey::new(&signature::ECDSA_P384_SHA384_FIXED, key)
                .verify(message, signature),
            Material::Ed25519(key) => {
                UnparsedPublicKey::new(&signature::ED25519, key).verify(message, signature)
            }
        };
        checked.is_ok()
    }
}

/// The keys of a provider.
#[derive(Clone, Debug, Default)]
pub(super) struct Keys(Vec<Key>);

/// Why a JWKS is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeysError {
    #[error("it is not a JWKS: {0}")]
    NotOne(#[from] serde_json::Error),
    #[error("it has {0} keys; the maximum is {JWKS_KEYS_MAX}")]
    TooMany(usize),
    #[error(
        "it has no key that this host can check signatures with (RSA of at least 2048 bits, P-256, P-384, Ed25519)"
    )]
    None,
}

impl Keys {
    /// Reads a JWKS. Keys of other kinds, and for other purposes, are passed over (RFC 7517 section 5).
    pub(super) fn read(bytes: &[u8]) -> Result<Self, KeysError> {
        let Jwks { keys } = serde_json::from_slice(bytes)?;
        if keys.len() > JWKS_KEYS_MAX {
            return Err(KeysError::TooMany(keys.len()));
        }
        let usable = |one| serde_json::from_value::<Jwk>(one).ok()?.key();
        let all: Vec<Key> = keys.into_iter().filter_map(usable).collect();
        match all.is_empty() {
            true => Err(KeysError::None),
            false => Ok(Self(all)),
        }
    }

    /// The key that a JWT names, or the only one for its algorithm if it names none.
    pub(super) fn find(&self, kid: Option<&str>, algorithm: Algorithm) -> Result<&Key, Refusal> {
        let mut fitting = self.0.iter().filter(|key| {
            key.is_for(algorithm) && kid.is_none_or(|kid| key.kid.as_deref() == Some(kid))
        });
        match (fitting.next(), fitting.next()) {
            (Some(key), None) => Ok(key),
            _ => Err(Refusal::UnknownKey),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether this key is one of them.
    pub(super) fn has(&self, print: &[u8; 32]) -> bool {
        self.0.iter().any(|key| key.print == *print)
    }
}

/// The algorithm that a JWT names, if the provider's settings have it.
pub(super) fn algorithm_of(name: &str, allowed: &[Algorithm]) -> Result<Algorithm, Refusal> {
    Algorithm::of(name)
        .filter(|algorithm| allowed.contains(algorithm))
        .ok_or_else(|| Refusal::Algorithm(shown(name)))
}

#[derive(Deserialize)]
struct Jwks {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

/// Bytes of the modulus of an RSA key of 2048 bits.
const RSA_BYTES_MIN: usize = 256;

impl Jwk {
    /// The key, if it checks signatures.
    fn key(self) -> Option<Key> {
        let is_for_signatures = self
            .purpose
            .as_deref()
            .is_none_or(|purpose| purpose == "sig");
        let verifies = |ops: &Vec<String>| ops.iter().any(|op| op == "verify");
        if !is_for_signatures || !self.key_ops.as_ref().is_none_or(verifies) {
            return None;
        }
        let part = |text: &Option<String>| {
            let text = text.as_deref()?;
            URL_SAFE_NO_PAD.decode(text).ok()
        };
        let coordinate = |text, bytes| part(text).filter(|found| found.len() == bytes);
        // Uncompressed, as SEC 1 section 2.3.3 has it.
        let point = |bytes| {
            let (x, y) = (coordinate(&self.x, bytes)?, coordinate(&self.y, bytes)?);
            Some([&[4], &*x, &*y].concat())
        };
        let material = match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => {
                let (n, e) = (part(&self.n)?, part(&self.e)?);
                let zeroes = n.iter().take_while(|byte| **byte == 0).count();
                let n = n[zeroes..].to_vec();
                (n.len() >= RSA_BYTES_MIN).then_some(Material::Rsa { n, e })?
            }
            ("EC", Some("P-256")) => Material::P256(point(32)?),
            ("EC", Some("P-384")) => Material::P384(point(48)?),
            ("OKP", Some("Ed25519")) => Material::Ed25519(coordinate(&self.x, 32)?),
            _ => return None,
        };
        let print = print_of(&self.kid, &material);
        Some(Key {
            kid: self.kid,
            alg: self.alg,
            material,
            print,
        })
    }
}

fn print_of(kid: &Option<String>, material: &Material) -> [u8; 32] {
    Sha256::digest(format!("{kid:?} {material:?}")).into()
}
