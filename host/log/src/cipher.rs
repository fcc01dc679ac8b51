//! Encryption at rest: the keys of a data directory, and the pieces encrypted with them.
//!
//! XChaCha20-Poly1305. Every encrypted piece has the id of its key and a random nonce of 24 bytes,
//! so that writing the same offsets again after a crash never reuses a nonce. The place of a piece
//! is authenticated with it. Keys are wiped from memory when they are dropped, and never shown:
//! errors name only ids and lines.
//!
//! ```text
//! 0 key id u32 (little-endian)   4 nonce   28 ciphertext, as long as the plain bytes   then the tag of 16 bytes
//! ```

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use chacha20poly1305::aead::{AeadInOut, Generate};
use chacha20poly1305::{KeyInit, Tag, XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;
/// Bytes of an encrypted piece before its ciphertext.
pub const PREFIX_BYTES: usize = 4 + NONCE_BYTES;
/// Bytes by which an encrypted piece is larger than a plain one.
pub const OVERHEAD_BYTES: usize = PREFIX_BYTES + TAG_BYTES;
/// Keys with which a data directory can be opened: the active one and earlier ones. More are
/// refused.
pub const KEYS_MAX: usize = 64;
/// Bytes of a key file. A larger one is refused.
const KEY_FILE_BYTES_MAX: u64 = 16 << 10;
const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;
/// The input of a key's check value, which only shows whether a key is the right one.
const CHECK: &[u8] = b"millrace: is this the key";

/// The keys of a data directory. The first one encrypts; all of them decrypt.
pub struct Cipher {
    keys: Vec<Key>,
}

struct Key {
    id: u32,
    check: u64,
    aead: XChaCha20Poly1305,
}

/// Why keys are refused. The texts never show a key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("the key file {} cannot be read: {source}", path.display())]
    Unreadable {
        /// The file's path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Users other than its owner can read the file.
    #[error(
        "other users can read or change the key file {} (mode {mode:03o}); run `chmod 600` on it, and create a new key if others had access",
        path.display()
    )]
    Exposed {
        /// The file's path.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A line is not a valid key.
    #[error(
        "encryption key {place}: {reason}; write `ID:KEY`, a number from 1 and 64 hexadecimal digits, one per line"
    )]
    Malformed {
        /// The line, from 1.
        place: usize,
        /// What is wrong.
        reason: &'static str,
    },
    /// There is no key.
    #[error(
        "there is no encryption key; write `ID:KEY`, a number from 1 and 64 hexadecimal digits, one per line"
    )]
    None,
}

/// Why a piece was not decrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecryptError {
    /// Its key was not given.
    #[error(
        "it is encrypted with key {id}, which is not among the keys given; add it to the key file below the first line"
    )]
    MissingKey {
        /// The id of the key.
        id: u32,
    },
    /// It was changed or moved, or the key with this id is a different one.
    #[error(
        "it was changed after it was encrypted with key {id}, or key {id} is a different key now"
    )]
    Changed {
        /// The id of its key.
        id: u32,
    },
    /// It is too short for an encrypted piece.
    #[error("it is incomplete")]
    Short,
}

impl Cipher {
    /// Keys from text: one `ID:KEY` per line, the active one first. Empty lines and lines that
    /// begin with `#` are ignored.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let lines = text.split(['\n', ',']).map(str::trim);
        let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let mut keys: Vec<Key> = Vec::new();
        for (index, line) in lines.enumerate() {
            let malformed = |reason| KeyError::Malformed {
                place: index + 1,
                reason,
            };
            let key = parse_key(line).map_err(malformed)?;
            if keys.iter().any(|known| known.id == key.id) {
                return Err(malformed("its number is used before"));
            }
            if keys.len() >= KEYS_MAX {
                return Err(malformed("there are more than 64 keys"));
            }
            keys.push(key);
        }
        match keys.is_empty() {
            true => Err(KeyError::None),
            false => Ok(Self { keys }),
        }
    }

    /// Keys from a file that only its owner can read.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_file(path: &Path) -> Result<Self, KeyError> {
        let unreadable = |source| KeyError::Unreadable {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(unreadable)?;
        let found = file.metadata().map_err(unreadable)?;
        if !found.is_file() || found.len() > KEY_FILE_BYTES_MAX {
            let why = io::Error::other("it is no small file of lines");
            return Err(unreadable(why));
        }
        let mode = found.mode() & 0o777;
        if mode & 0o077 != 0 {
            let path = path.to_owned();
            return Err(KeyError::Exposed { path, mode });
        }
        // Allocated for the whole file at once, because a growing buffer would leave copies of keys
        // behind.
        let room = KEY_FILE_BYTES_MAX as usize + 1;
        let mut text = Zeroizing::new(String::with_capacity(room));
        let mut bounded = file.take(KEY_FILE_BYTES_MAX);
        bounded.read_to_string(&mut text).map_err(unreadable)?;
        Self::parse(&text)
    }

    /// The id of the key that encrypts.
    #[must_use]
    pub fn active(&self) -> u32 {
        self.keys[0].id
    }

    /// The check value of the key with this id, by which a wrong key is detected; `None` if the key
    /// was not given. It reveals nothing about the key.
    #[must_use]
    pub fn check_value(&self, id: u32) -> Option<u64> {
        self.key(id).map(|key| key.check)
    }

    fn key(&self, id: u32) -> Option<&Key> {
        self.keys.iter().find(|key| key.id == id)
    }

    /// Begins a piece at the end of `out`. Append plain bytes then; [`Cipher::finish`] encrypts
    /// them in place.
    ///
    /// # Panics
    /// If the system provides no random numbers.
    pub fn begin(&self, out: &mut Vec<u8>) {
        out.extend(self.active().to_le_bytes());
        out.extend(XNonce::generate());
    }

    /// Ends the piece that began at `start`.
    ///
    /// # Panics
    /// If no piece began there, or it has more than 256 GiB.
    pub fn finish(&self, out: &mut Vec<u8>, start: usize, belongs_to: &[u8]) {
        let (prefix, plain) = out[start..].split_at_mut(PREFIX_BYTES);
        let nonce = nonce(prefix);
        let key = &self.keys[0];
        let tag = key
            .aead
            .encrypt_inout_detached(&nonce, belongs_to, plain.into());
        let tag = tag.unwrap_or_else(|_| unreachable!("bounded pieces"));
        out.extend(tag);
    }

    /// Encrypts a whole piece.
    #[must_use]
    pub fn encrypt(&self, plain: &[u8], belongs_to: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(plain.len() + OVERHEAD_BYTES);
        self.begin(&mut out);
        out.extend_from_slice(plain);
        self.finish(&mut out, 0, belongs_to);
        out
    }

    /// Appends the plain bytes of a piece to `out`; the piece must be in the place for which it was
    /// encrypted.
    ///
    /// # Errors
    /// [`DecryptError`]; `out` is unchanged then.
    pub fn decrypt_into(
        &self,
        piece: &[u8],
        belongs_to: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), DecryptError> {
        let id = key_id(piece).ok_or(DecryptError::Short)?;
        let (rest, tag) = piece
            .split_last_chunk::<TAG_BYTES>()
            .ok_or(DecryptError::Short)?;
        let (prefix, encrypted) = rest
            .split_at_checked(PREFIX_BYTES)
            .ok_or(DecryptError::Short)?;
        let key = self.key(id).ok_or(DecryptError::MissingKey { id })?;
        let start = out.len();
        out.extend_from_slice(encrypted);
        let (nonce, tag) = (nonce(prefix), Tag::from(*tag));
        let plain = (&mut out[start..]).into();
        let opened = key
            .aead
            .decrypt_inout_detached(&nonce, belongs_to, plain, &tag);
        opened.map_err(|_| {
            out.truncate(start);
            DecryptError::Changed { id }
        })
    }

    /// The plain bytes of a piece.
    ///
    /// # Errors
    /// [`DecryptError`].
    pub fn decrypt(&self, piece: &[u8], belongs_to: &[u8]) -> Result<Vec<u8>, DecryptError> {
        let mut out = Vec::with_capacity(piece.len().saturating_sub(OVERHEAD_BYTES));
        self.decrypt_into(piece, belongs_to, &mut out)?;
        Ok(out)
    }
}

/// The id of a piece's key.
#[must_use]
pub fn key_id(piece: &[u8]) -> Option<u32> {
    piece.first_chunk::<4>().map(|id| u32::from_le_bytes(*id))
}

fn nonce(prefix: &[u8]) -> XNonce {
    let mut nonce = XNonce::default();
    nonce.copy_from_slice(&prefix[4..PREFIX_BYTES]);
    nonce
}

fn parse_key(line: &str) -> Result<Key, &'static str> {
    let (id, digits) = line.split_once(':').ok_or("there is no colon in it")?;
    let id: u32 = id.trim().parse().map_err(|_| "its number is none")?;
    if id == 0 {
        return Err("its number is 0");
    }
    let digits = digits.trim().as_bytes();
    if digits.len() != 2 * KEY_BYTES {
        return Err("it has not 64 digits");
    }
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = (digit(pair[0])? << 4) | digit(pair[1])?;
    }
    if bytes.iter().all(|byte| *byte == bytes[0]) {
        return Err("all of its bytes are the same");
    }
    let aead = XChaCha20Poly1305::new((&*bytes).into());
    let check = check_value(&aead);
    Ok(Key { id, check, aead })
}

fn digit(digit: u8) -> Result<u8, &'static str> {
    let value = (digit as char).to_digit(16);
    value
        .map(|value| value as u8)
        .ok_or("it holds something else than hexadecimal digits")
}

/// A tag over an empty text, under a nonce that no random one will equal.
fn check_value(aead: &XChaCha20Poly1305) -> u64 {
    let nothing = (&mut [][..]).into();
    let tag = aead.encrypt_inout_detached(&XNonce::default(), CHECK, nothing);
    let tag = tag.unwrap_or_else(|_| unreachable!("nothing is not too much"));
    // SQLite's integers are signed.
    u64::from_le_bytes(std::array::from_fn(|at| tag[at])) >> 1
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<u32> = self.keys.iter().map(|key| key.id).collect();
        f.debug_struct("Cipher").field("keys", &ids).finish()
    }
}

#[cfg(test)]
mod tests;
