//! Keys that are derived from passwords, as RFC 5802 says: what is stored of a password, and whether a password is the one.

use hmac::{Hmac, KeyInit as _, Mac as _};
use millrace_model::{ScramHash, ScramVerifier};
use pbkdf2::pbkdf2_hmac;
use sha2::{Digest as _, Sha256, Sha512};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

/// What a password is checked against.
pub(super) fn verifier(
    hash: ScramHash,
    password: &str,
    salt: Vec<u8>,
    iterations: u32,
) -> ScramVerifier {
    let salted = salted(hash, password, &salt, iterations);
    let client_key = Zeroizing::new(hmac(hash, &salted, &[b"Client Key"]));
    ScramVerifier {
        hash,
        iterations,
        salt,
        stored_key: digest(hash, &client_key),
        server_key: hmac(hash, &salted, &[b"Server Key"]),
    }
}

/// Whether it is the password of this verifier. It takes as long for any password.
pub(super) fn is_of(password: &str, known: &ScramVerifier) -> bool {
    let derived = verifier(known.hash, password, known.salt.clone(), known.iterations);
    derived.stored_key.ct_eq(&known.stored_key).into()
}

/// RFC 2104.
pub(super) fn hmac(hash: ScramHash, key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    macro_rules! hmac {
        ($hash:ty) => {{
            let mut mac =
                Hmac::<$hash>::new_from_slice(key).expect("HMAC takes keys of any length");
            parts.iter().for_each(|part| mac.update(part));
            mac.finalize().into_bytes().to_vec()
        }};
    }
    match hash {
        ScramHash::Sha256 => hmac!(Sha256),
        ScramHash::Sha512 => hmac!(Sha512),
    }
}

pub(super) fn digest(hash: ScramHash, bytes: &[u8]) -> Vec<u8> {
    match hash {
        ScramHash::Sha256 => Sha256::digest(bytes).to_vec(),
        ScramHash::Sha512 => Sha512::digest(bytes).to_vec(),
    }
}

/// RFC 8018, called Hi in RFC 5802. It takes milliseconds.
fn salted(hash: ScramHash, password: &str, salt: &[u8], iterations: u32) -> Zeroizing<Vec<u8>> {
    let mut key = Zeroizing::new(vec![0; hash.bytes()]);
    let derive = match hash {
        ScramHash::Sha256 => pbkdf2_hmac::<Sha256>,
        ScramHash::Sha512 => pbkdf2_hmac::<Sha512>,
    };
    derive(password.as_bytes(), salt, iterations, &mut key);
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The salt and the password of RFC 7677.
    const OF_RFC_7677: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

    #[test]
    fn a_password_is_that_of_its_verifier_and_no_other_is() {
        let known: ScramVerifier = OF_RFC_7677.parse().unwrap();
        assert!(is_of("pencil", &known));
        for other in ["", "Pencil", "pencil ", "pencils"] {
            assert!(!is_of(other, &known), "{other:?}");
        }
    }

    #[test]
    fn what_is_derived_is_what_rfc_5803_stores() {
        let known: ScramVerifier = OF_RFC_7677.parse().unwrap();
        let derived = verifier(known.hash, "pencil", known.salt.clone(), known.iterations);
        assert_eq!(String::from(derived), OF_RFC_7677);
    }

    #[test]
    fn hmac_is_that_of_rfc_4231() {
        let told = hmac(
            ScramHash::Sha512,
            b"Jefe",
            &[b"what do ya want ", b"for nothing?"],
        );
        let hex: String = told.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(
            hex.starts_with("164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea250554")
        );
    }
}
