//! Tests of encryption: bytes can be decrypted only if they are unchanged, in their place, and with
//! their key.

use super::*;
use proptest::prelude::*;
use std::os::unix::fs::PermissionsExt;

const FIRST: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
const SECOND: &str = "FF0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

fn cipher(text: &str) -> Cipher {
    Cipher::parse(text).expect("keys")
}

proptest! {
    #[test]
    fn what_is_encrypted_is_decrypted_only_unchanged_and_only_in_its_place(
        plain: Vec<u8>,
        place: proptest::sample::Index,
        bit in 0u8..8,
    ) {
        let cipher = cipher(&format!("7:{FIRST}"));
        let piece = cipher.encrypt(&plain, b"here");
        prop_assert_eq!(piece.len(), plain.len() + OVERHEAD_BYTES);
        let decrypted = cipher.decrypt(&piece, b"here");
        prop_assert_eq!(decrypted.as_ref(), Ok(&plain));
        prop_assert!(cipher.decrypt(&piece, b"there").is_err());
        let mut changed = piece.clone();
        changed[place.index(piece.len())] ^= 1 << bit;
        prop_assert!(cipher.decrypt(&changed, b"here").is_err());
        prop_assert!(cipher.decrypt(&piece[..place.index(piece.len())], b"here").is_err());
        prop_assert_ne!(cipher.encrypt(&plain, b"here"), piece);
    }

    #[test]
    fn any_bytes_are_refused_without_panic(bytes: Vec<u8>) {
        let cipher = cipher(&format!("1:{FIRST}"));
        prop_assert!(cipher.decrypt(&bytes, b"").is_err());
    }

    #[test]
    fn any_text_is_parsed_without_panic_and_no_error_shows_it(text in "[0-9a-f:\\n, ]{0,200}") {
        if let Err(error) = Cipher::parse(&text) {
            let told = error.to_string();
            for line in text.lines().filter(|line| line.len() > 8) {
                prop_assert!(!told.contains(line), "{}", told);
            }
        }
    }
}

#[test]
fn the_first_key_encrypts_and_older_ones_still_decrypt() {
    let old = cipher(&format!("1:{FIRST}"));
    let piece = old.encrypt(b"before", b"");
    let both = cipher(&format!("# rotated\n2: {SECOND}\n\n1:{FIRST}\n"));
    assert_eq!(both.active(), 2);
    assert_eq!(both.decrypt(&piece, b"").unwrap(), b"before");
    assert_eq!(key_id(&both.encrypt(b"after", b"")), Some(2));
    assert_eq!(both.check_value(1), old.check_value(1));
    assert_ne!(both.check_value(1), both.check_value(2));
    let new = cipher(&format!("2:{SECOND}"));
    assert_eq!(
        new.decrypt(&piece, b""),
        Err(DecryptError::MissingKey { id: 1 })
    );
    let other = cipher(&format!("1:{SECOND}"));
    assert_eq!(
        other.decrypt(&piece, b""),
        Err(DecryptError::Changed { id: 1 })
    );
}

#[test]
fn what_is_no_key_is_refused_with_its_place_and_without_its_text() {
    let zeros = "0".repeat(64);
    for (text, place) in [
        (format!("1:{}", &FIRST[1..]), 1),
        (format!("0:{FIRST}"), 1),
        (format!("x:{FIRST}"), 1),
        (FIRST.to_owned(), 1),
        (format!("1:{}\n2:{}g", FIRST, &FIRST[1..]), 2),
        (format!("1:{FIRST}\n1:{SECOND}"), 2),
        (format!("1:{zeros}"), 1),
    ] {
        let error = Cipher::parse(&text).expect_err(&text);
        let told = format!("{error} {error:?}");
        assert!(
            matches!(error, KeyError::Malformed { place: p, .. } if p == place),
            "{told}"
        );
        assert!(!told.contains(&FIRST[1..20]), "{told}");
    }
    assert!(matches!(Cipher::parse(" \n# none\n"), Err(KeyError::None)));
    let shown = format!("{:?}", cipher(&format!("9:{FIRST}")));
    assert_eq!(shown, "Cipher { keys: [9] }");
}

#[test]
fn a_key_file_that_others_may_read_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys");
    std::fs::write(&path, format!("1:{FIRST}\n")).unwrap();
    let allow = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode));
    for mode in [0o640, 0o604, 0o620, 0o644] {
        allow(mode).unwrap();
        let refused = Cipher::from_file(&path).unwrap_err();
        assert!(matches!(refused, KeyError::Exposed { .. }), "{refused}");
    }
    for mode in [0o600, 0o400] {
        allow(mode).unwrap();
        assert_eq!(Cipher::from_file(&path).unwrap().active(), 1);
    }
    let absent = Cipher::from_file(&directory.path().join("absent"));
    assert!(matches!(absent, Err(KeyError::Unreadable { .. })));
    assert!(matches!(
        Cipher::from_file(directory.path()),
        Err(KeyError::Unreadable { .. })
    ));
}
