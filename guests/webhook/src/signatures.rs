//! Whether a provider has signed a request.

use hmac::{Hmac, Mac};
use requests::Received;
use requests::encoding::{base64, form, of_hex};
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// Twilio: `X-Twilio-Signature` is a HMAC-SHA1 of the address and the form's fields, in base64. Of another body, the address has the
/// digest.
pub(crate) fn twilio(secret: &[u8], address: &str, received: &Received) -> bool {
    let Some(given) = received.header("x-twilio-signature") else {
        return false;
    };
    let mut signed = address.to_owned();
    match received.is_form() {
        true => {
            let mut fields = form(&received.body);
            fields.sort();
            // A field that is there twice counts once.
            fields.dedup();
            for (name, value) in &fields {
                signed.push_str(name);
                signed.push_str(value);
            }
        }
        false if !has_digest(address, &received.body) => return false,
        false => {}
    }
    let mut mac = <Hmac<Sha1> as Mac>::new_from_slice(secret).expect("any length is a key");
    mac.update(signed.as_bytes());
    let expected = base64(&mac.finalize().into_bytes());
    are_equal(given, expected.as_bytes())
}

/// Whether the address says that the body is this one.
fn has_digest(address: &str, body: &[u8]) -> bool {
    let query = address.split_once('?').map_or("", |(_, query)| query);
    let fields = form(query.as_bytes());
    let given = fields.iter().find(|(name, _)| name == "bodySHA256");
    let given = given.and_then(|(_, value)| of_hex(value.as_bytes()));
    given.is_some_and(|given| *given == *Sha256::digest(body))
}

/// Meta: `X-Hub-Signature-256` is a HMAC-SHA256 of the body, in hexadecimal after `sha256=`.
pub(crate) fn meta(secret: &[u8], received: &Received) -> bool {
    let given = received.header("x-hub-signature-256");
    let given = given.and_then(|given| of_hex(given.strip_prefix(b"sha256=")?));
    let Some(given) = given else {
        return false;
    };
    let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(secret).expect("any length is a key");
    mac.update(&received.body);
    mac.verify_slice(&given).is_ok()
}

/// Compares in a time that does not tell where they differ.
pub(crate) fn are_equal(left: &[u8], right: &[u8]) -> bool {
    let differing = left
        .iter()
        .zip(right)
        .fold(0, |seen, (l, r)| seen | (l ^ r));
    left.len() == right.len() && std::hint::black_box(differing) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(headers: &[(&str, &str)], body: &str) -> Received {
        let header = |(name, value): &(&str, &str)| ((*name).to_owned(), value.as_bytes().to_vec());
        Received {
            target: "/hooks".to_owned(),
            headers: headers.iter().map(header).collect(),
            body: body.as_bytes().to_vec(),
        }
    }

    const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");

    #[test]
    fn twilio_signs_the_address_and_the_fields_in_order() {
        // The example of Twilio's documentation.
        let address = "https://mycompany.com/myapp.php?foo=1&bar=2";
        let body = "CallSid=CA1234567890ABCDE&Caller=%2B14158675310&Digits=1234&From=%2B14158675310&To=%2B18005551212";
        let signed = ("x-twilio-signature", "GvWf1cFY/Q7PnoempGyD5oXAezc=");
        assert!(twilio(b"12345", address, &received(&[FORM, signed], body)));
        let changed = body.replace("1234567890", "0234567890");
        assert!(!twilio(
            b"12345",
            address,
            &received(&[FORM, signed], &changed)
        ));
        assert!(!twilio(b"12346", address, &received(&[FORM, signed], body)));
        let elsewhere = address.replace("foo=1", "foo=2");
        assert!(!twilio(
            b"12345",
            &elsewhere,
            &received(&[FORM, signed], body)
        ));
        assert!(!twilio(b"12345", address, &received(&[FORM], body)));
    }

    #[test]
    fn twilio_signs_the_digest_of_a_body_that_is_no_form() {
        let body = r#"{"a": 1}"#;
        let digest: String = Sha256::digest(body)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let address = format!("https://example.com/hooks?bodySHA256={digest}");
        let mut mac = <Hmac<Sha1> as Mac>::new_from_slice(b"token").expect("a key");
        mac.update(address.as_bytes());
        let signature = base64(&mac.finalize().into_bytes());
        let signed = ("x-twilio-signature", signature.as_str());
        assert!(twilio(b"token", &address, &received(&[signed], body)));
        assert!(!twilio(b"token", &address, &received(&[signed], "{}")));
    }

    #[test]
    fn meta_signs_the_body() {
        // Test case 2 of RFC 4231.
        let body = "what do ya want for nothing?";
        let hex = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        let signature = format!("sha256={hex}");
        let signed = received(&[("x-hub-signature-256", &signature)], body);
        assert!(meta(b"Jefe", &signed));
        assert!(!meta(b"jefe", &signed));
        for wrong in [hex, "sha256=", "sha256=00", "sha1=00"] {
            assert!(!meta(
                b"Jefe",
                &received(&[("x-hub-signature-256", wrong)], body)
            ));
        }
        assert!(!meta(b"Jefe", &received(&[], body)));
    }

    #[test]
    fn only_equal_texts_are_equal() {
        assert!(are_equal(b"", b"") && are_equal(b"abc", b"abc"));
        assert!(!are_equal(b"abc", b"abd") && !are_equal(b"abc", b"ab") && !are_equal(b"", b"a"));
    }
}
