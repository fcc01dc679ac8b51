//! Secrets that a command is given: in a file, at standard input, or typed at a prompt that does not show them.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read};
use std::path::Path;

use zeroize::Zeroizing;

use super::failure::Failure;

/// Bytes of a file with a secret. A larger one is refused.
const SECRET_BYTES_MAX: usize = 16 << 10;

/// The secret in a file, or at standard input for `-`, without space around it.
pub(super) fn read(file: &Path) -> Result<Zeroizing<String>, Failure> {
    let (read, place) = match file.as_os_str() == "-" {
        true => (whole(io::stdin().lock()), "standard input".to_owned()),
        false => (
            File::open(file).and_then(whole),
            format!("the file {}", file.display()),
        ),
    };
    let secret =
        read.map_err(|error| Failure::usage(format!("{place} cannot be read: {error}")))?;
    match secret.is_empty() {
        true => Err(Failure::usage(format!("there is nothing in {place}"))
            .with_hint("put one line there: the secret, as it was shown when it was made")),
        false => Ok(secret),
    }
}

/// What is typed at the prompt, if standard input is a terminal, and otherwise what comes from there. May be empty.
pub(super) fn asked(prompt: &str) -> Result<Zeroizing<String>, Failure> {
    let stdin = io::stdin();
    let given = match stdin.is_terminal() {
        true => rpassword::prompt_password(prompt).map(Zeroizing::new),
        false => whole(stdin.lock()),
    };
    let given = given.map_err(|error| {
        Failure::usage(format!("the secret cannot be read: {error}"))
            .with_hint("give it in a file, or at standard input")
    })?;
    Ok(Zeroizing::new(given.trim().to_owned()))
}

fn whole(reader: impl Read) -> io::Result<Zeroizing<String>> {
    // In one piece, so that no other copy stays in memory.
    let mut text = Zeroizing::new(String::with_capacity(SECRET_BYTES_MAX + 1));
    reader
        .take(SECRET_BYTES_MAX as u64 + 1)
        .read_to_string(&mut text)?;
    if text.len() > SECRET_BYTES_MAX {
        let message = format!("it has more than {SECRET_BYTES_MAX} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(Zeroizing::new(text.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_has_no_space_around_it_and_a_bound() {
        assert_eq!(&**whole(&b"  mr_secret\n\n"[..]).unwrap(), "mr_secret");
        let large = vec![b'x'; SECRET_BYTES_MAX];
        assert_eq!(whole(&large[..]).unwrap().len(), SECRET_BYTES_MAX);
        assert!(whole(&[&large[..], b"x"].concat()[..]).is_err());
        assert!(whole(&b"\xff"[..]).is_err());
    }
}
