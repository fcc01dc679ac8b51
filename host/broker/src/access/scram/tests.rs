//! A client of the exchange, which follows RFC 5802 by itself; the example of RFC 7677; and whatever else may come.

use millrace_model::ScramHash;
use proptest::prelude::*;

use super::*;
use crate::access::verifying::verifier;

/// The client's last message, and what the host must answer to it.
fn answered(
    hash: ScramHash,
    password: &str,
    (header, bare): (&str, &str),
    challenge: &str,
) -> (String, String) {
    let value = |name: &str| {
        let mut all = challenge.split(',');
        all.find_map(|one| one.strip_prefix(name)).unwrap()
    };
    let salt = STANDARD.decode(value("s=")).unwrap();
    let mut salted = vec![0; hash.bytes()];
    let iterations = value("i=").parse().unwrap();
    match hash {
        ScramHash::Sha256 => {
            pbkdf2::pbkdf2_hmac::<sha2::Sha256>(
                password.as_bytes(),
                &salt,
                iterations,
                &mut salted,
            );
        }
        ScramHash::Sha512 => {
            pbkdf2::pbkdf2_hmac::<sha2::Sha512>(
                password.as_bytes(),
                &salt,
                iterations,
                &mut salted,
            );
        }
    }
    let client_key = hmac(hash, &salted, &[b"Client Key"]);
    let binding = STANDARD.encode(header);
    let signed = format!("c={binding},r={}", value("r="));
    let all = format!("{bare},{challenge},{signed}");
    let signature = hmac(hash, &digest(hash, &client_key), &[all.as_bytes()]);
    let proof: Vec<u8> = client_key
        .iter()
        .zip(&signature)
        .map(|(a, b)| a ^ b)
        .collect();
    let server_key = hmac(hash, &salted, &[b"Server Key"]);
    let expected = hmac(hash, &server_key, &[all.as_bytes()]);
    (
        format!("{signed},p={}", STANDARD.encode(proof)),
        format!("v={}", STANDARD.encode(expected)),
    )
}

#[test]
fn the_example_of_rfc_7677_is_understood() {
    let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
    let known = verifier(ScramHash::Sha256, "pencil", salt, 4_096);
    let first = ClientFirst::read(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO").unwrap();
    assert_eq!(first.name(), "user");
    let exchange = first.challenge(known, "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0");
    assert_eq!(
        exchange.message(),
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    );
    let last = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
    let answer = exchange.finish(last.as_bytes());
    let expected = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";
    assert_eq!(answer.as_deref(), Ok(expected));
}

#[test]
fn a_first_message_that_is_none_says_what_is_wrong() {
    use ScramError::{ChannelBinding, Extension, Malformed, Name, OtherIdentity};
    let refused = |message: &[u8]| ClientFirst::read(message).unwrap_err();
    for message in [
        &b""[..],
        b"n",
        b"n,,",
        b"n,,r=abc",
        b"n,,n=user",
        b"n,,n=user,r=",
        b"n,,n=user,r=\x7f",
        b"n,,n=user,x=1,r=abc",
        b"x,,n=user,r=abc",
        b"n,user,n=user,r=abc",
        b"n,,n=\xff,r=abc",
        &[b'n'; SCRAM_MESSAGE_BYTES_MAX + 1],
    ] {
        let error = refused(message);
        assert!(matches!(error, Malformed(_)), "{message:?}: {error}");
        assert_eq!(error.message(), "e=invalid-encoding");
    }
    assert_eq!(refused(b"p=tls-exporter,,n=user,r=abc"), ChannelBinding);
    assert_eq!(refused(b"n,,m=must,n=user,r=abc"), Extension);
    assert_eq!(refused(b"n,a=admin,n=user,r=abc"), OtherIdentity);
    for name in ["", "m\u{fc}ller", "a=", "a=2c", "a\tb", "=2", "a=2\u{e9}"] {
        assert_eq!(
            refused(format!("n,,n={name},r=abc").as_bytes()),
            Name,
            "{name:?}"
        );
    }
}

#[test]
fn what_a_client_may_say_besides_changes_nothing() {
    for message in [
        "y,,n=user,r=abc",
        "n,a=user,n=user,r=abc",
        "n,,n=user,r=abc,x=y",
    ] {
        let first = ClientFirst::read(message.as_bytes()).unwrap();
        assert_eq!(
            (first.name(), first.nonce.as_str()),
            ("user", "abc"),
            "{message}"
        );
    }
    let escaped = ClientFirst::read(b"n,,n=a=2Cb=3D=2C,r=abc").unwrap();
    assert_eq!(escaped.name(), "a,b=,");
}

#[test]
fn a_nonce_of_the_host_is_new_each_time_and_can_be_one() {
    let [one, other] = [(); 2].map(|()| scram_nonce().unwrap());
    assert_ne!(one, other);
    assert!(is_nonce(&one));
}

fn any_hash() -> impl Strategy<Value = ScramHash> {
    prop::sample::select(&ScramHash::ALL[..])
}

fn any_header() -> impl Strategy<Value = &'static str> {
    prop::sample::select(&["n,,", "y,,", "n,a=user,"][..])
}

proptest! {
    #[test]
    fn who_has_the_password_is_let_in_and_nobody_else(
        hash in any_hash(), header in any_header(), salt in prop::collection::vec(any::<u8>(), 0..20), iterations in 1_u32..8,
        password in "[!-~]{1,20}", other in "[!-~]{1,20}", nonces in ("[!-+.-~]{1,20}", "[!-+.-~]{1,20}"),
    ) {
        let bare = format!("n=user,r={}", nonces.0);
        let exchange = || {
            let first = ClientFirst::read(format!("{header}{bare}").as_bytes()).unwrap();
            first.challenge(verifier(hash, &password, salt.clone(), iterations), &nonces.1)
        };
        let right = exchange();
        let (last, expected) = answered(hash, &password, (header, &bare), right.message());
        prop_assert_eq!(right.finish(last.as_bytes()), Ok(expected));
        let wrong = exchange();
        let (last, _) = answered(hash, &other, (header, &bare), wrong.message());
        prop_assert_eq!(wrong.finish(last.as_bytes()).is_ok(), other == password);
    }

    #[test]
    fn a_message_that_was_changed_on_the_way_proves_nothing(
        hash in any_hash(), header in any_header(), at in any::<prop::sample::Index>(), to in any::<u8>(), first_too in any::<bool>(),
    ) {
        let bare = "n=user,r=fyko";
        let sent = format!("{header}{bare}");
        let mut arrived = sent.clone().into_bytes();
        if first_too {
            let at = at.index(arrived.len());
            arrived[at] = to;
        }
        let known = verifier(hash, "pencil", b"salt".to_vec(), 1);
        let Ok(first) = ClientFirst::read(&arrived) else { return Ok(()) };
        let exchange = first.challenge(known, "3rfc");
        let (last, _) = answered(hash, "pencil", (header, bare), exchange.message());
        let mut last = last.into_bytes();
        if !first_too {
            let at = at.index(last.len());
            last[at] = to;
        }
        let is_as_sent = arrived == sent.as_bytes() && last == answered(hash, "pencil", (header, bare), exchange.message()).0.as_bytes();
        prop_assert_eq!(exchange.finish(&last).is_ok(), is_as_sent);
    }

    #[test]
    fn nothing_that_comes_can_break_it(first in any_message(), last in any_message()) {
        let known = verifier(ScramHash::Sha256, "pencil", b"salt".to_vec(), 1);
        let begun = ClientFirst::read(&first).or_else(|_| ClientFirst::read(b"n,,n=user,r=abc")).unwrap();
        prop_assert!(begun.challenge(known, "def").finish(&last).is_err());
    }
}

fn any_message() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..60),
        "[nyp]?(=tls)?,(a=[a-z=]{0,3})?,((n|m|r|c)=[a-zA-Z0-9=+/]{0,6},?){0,4}"
            .prop_map(String::into_bytes),
        "c=(biws|eSws)?,r=abcdef,p=[a-zA-Z0-9+/]{0,44}=?".prop_map(String::into_bytes),
    ]
}
