//! What a client's certificate says of its holder. TLS has checked it before: its signatures, its time, and that its holder has the key.

use millrace_model::{Identity, IdentityKind, Timestamp};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

use super::bounds::CERTIFICATE_NAMES_MAX;

/// A client's certificate.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ClientCertificate {
    /// Who it says that its holder is: its alternative names in their order, then its common name.
    pub(crate) identities: Vec<Identity>,
    /// From this time on it proves nothing.
    pub(crate) expires_at: Timestamp,
}

impl ClientCertificate {
    /// Reads a certificate (RFC 5280) in DER; `None` if it cannot be read.
    pub(super) fn read(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let last_second = certificate.validity().not_after.timestamp();
        let expires_at = u64::try_from(last_second.saturating_add(1)).unwrap_or(0);
        Some(Self {
            identities: identities_of(&certificate),
            expires_at: Timestamp(expires_at.saturating_mul(1_000)),
        })
    }
}

/// Names that cannot be an identity are none.
fn identities_of(certificate: &X509Certificate<'_>) -> Vec<Identity> {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|names| &names.value.general_names);
    let named = names.filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((IdentityKind::Dns, *name)),
        GeneralName::URI(name) => Some((IdentityKind::Uri, *name)),
        GeneralName::RFC822Name(name) => Some((IdentityKind::Email, *name)),
        _ => None,
    });
    let mut common = certificate.subject().iter_common_name();
    // Several would leave it open which of them counts.
    let common = match (common.next(), common.next()) {
        (Some(only), None) => only.as_str().ok(),
        _ => None,
    };
    let common = common.map(|name| (IdentityKind::CommonName, name));
    named
        .take(CERTIFICATE_NAMES_MAX)
        .chain(common)
        .filter_map(|(kind, name)| Identity::new(kind, name).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A certificate with a common name and an alternative name of each kind, among them one with a zero and an address.
    const CERTIFICATE: &str = include_str!("certificate/names.crt");

    fn der() -> Vec<u8> {
        let (_, pem) = x509_parser::pem::parse_x509_pem(CERTIFICATE.as_bytes()).expect("PEM");
        pem.contents
    }

    #[test]
    fn a_certificate_has_the_identities_that_are_in_it() {
        let certificate = ClientCertificate::read(&der()).expect("a certificate");
        let identities: Vec<String> = certificate
            .identities
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            identities,
            [
                "dns:billing.internal",
                "uri:spiffe://prod/billing",
                "email:ops@example.com",
                "cn:Billing"
            ]
        );
        assert_eq!(certificate.expires_at.0 % 1_000, 0);
        assert!(certificate.expires_at.0 > 1_700_000_000_000);
    }

    #[test]
    fn what_is_no_certificate_is_none() {
        let whole = der();
        for cut in 0..whole.len() {
            assert_eq!(ClientCertificate::read(&whole[..cut]), None);
        }
    }

    proptest! {
        #[test]
        fn no_certificate_breaks_the_reader(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut bytes = der();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Some(certificate) = ClientCertificate::read(&bytes) {
                prop_assert!(certificate.identities.len() <= CERTIFICATE_NAMES_MAX + 1);
            }
        }

        #[test]
        fn no_bytes_break_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = ClientCertificate::read(&bytes);
        }
    }
}
