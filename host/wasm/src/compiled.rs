//! Keeps compiled code on disk, so that a restart compiles nothing, and turns it back into something callable.
//!
//! Compiled code is native code: anyone who can make the host load a chosen file controls the host.
//! So each file carries a keyed hash (HMAC-SHA-256 under a secret that only this installation's
//! user can read) over the component's digest, the engine's compatibility and the code, and it is
//! checked on the very bytes that are then loaded. A file that fails the check is compiled again.
//! Nothing but this file's [`CodeCache`] ever turns bytes into code; uploads never do.

#![allow(
    unsafe_code,
    reason = "loading code that this host compiled itself; see the SAFETY comment"
)]

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::{Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use millrace_model::Digest;
use rustix::fs::OFlags;
use sha2::{Digest as _, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

use crate::compile::CODE_BYTES_MAX;

/// The beginning of a file of the cache.
const MAGIC: &[u8; 8] = b"MRCODE1\n";

/// Bytes of the secret and of a tag.
const TAG_BYTES: usize = 32;

/// Bytes of a file of the cache: code and its authentication. A larger file was not written by Millrace.
const FILE_BYTES_MAX: u64 = CODE_BYTES_MAX + (MAGIC.len() + TAG_BYTES) as u64;

const SECRET_FILE: &str = "secret";
const CODE_SUFFIX: &str = "code";

/// Code that was compiled here: by the compiler process, or read back with its tag intact.
pub(crate) struct TrustedCode {
    code: Vec<u8>,
    start: usize,
}

/// A directory of compiled code.
pub(crate) struct CodeCache {
    directory: PathBuf,
    keeps: bool,
    secret: [u8; TAG_BYTES],
    compatibility: String,
}

impl CodeCache {
    /// Opens or creates the directory, and removes what other versions of the host left there; or all code, if none should be kept.
    pub(crate) fn open(directory: PathBuf, keeps: bool, engine: &Engine) -> io::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)?;
        let secret = secret(&directory.join(SECRET_FILE))?;
        let cache = Self {
            directory,
            keeps,
            secret,
            compatibility: compatibility(engine),
        };
        cache.remove_strangers()?;
        Ok(cache)
    }

    /// The code of a component, if it is stored and intact.
    pub(crate) fn read(&self, digest: &Digest) -> Option<TrustedCode> {
        let code = read_bounded(&self.path(digest)).ok()?;
        let (header, body) = code.split_at_checked(MAGIC.len() + TAG_BYTES)?;
        let (magic, tag) = header.split_at(MAGIC.len());
        if magic != MAGIC || !same(tag, &self.tag(digest, body)) {
            tracing::warn!(module = %digest.short(), "a file of the code cache was modified; compiling again");
            return None;
        }
        Some(TrustedCode {
            start: header.len(),
            code,
        })
    }

    /// Stores what the compiler process produced. Needs no sync: a torn file fails its check and is compiled again.
    pub(crate) fn keep(&self, digest: &Digest, code: Vec<u8>) -> io::Result<TrustedCode> {
        if !self.keeps {
            return Ok(TrustedCode { code, start: 0 });
        }
        let path = self.path(digest);
        let draft = path.with_extension(format!("draft-{}", std::process::id()));
        let mut file = private_file(&draft)?;
        file.write_all(MAGIC)?;
        file.write_all(&self.tag(digest, &code))?;
        file.write_all(&code)?;
        drop(file);
        fs::rename(&draft, &path)?;
        Ok(TrustedCode { code, start: 0 })
    }

    /// Removes the code of a deleted module.
    pub(crate) fn forget(&self, digest: &Digest) {
        // A missing file is as good as a removed one.
        let _ = fs::remove_file(self.path(digest));
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.directory
            .join(format!("{digest}-{}.{CODE_SUFFIX}", self.compatibility))
    }

    fn tag(&self, digest: &Digest, code: &[u8]) -> [u8; TAG_BYTES] {
        hmac(
            &self.secret,
            &[MAGIC, &digest.0, self.compatibility.as_bytes(), code],
        )
    }

    fn remove_strangers(&self) -> io::Result<()> {
        let ours = format!("-{}.{CODE_SUFFIX}", self.compatibility);
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_kept = self.keeps && name.ends_with(&ours);
            if name != SECRET_FILE && !is_kept && entry.file_type()?.is_file() {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

/// Turns code into a component of `engine`.
pub(crate) fn load(engine: &Engine, trusted: &TrustedCode) -> wasmtime::Result<Component> {
    let code = &trusted.code[trusted.start..];
    // SAFETY: `deserialize` requires bytes that `Engine::precompile_component` made, unchanged. A `TrustedCode` is made in
    // two places only, both in this file: `CodeCache::keep`, whose caller hands in what our own compile child wrote to its
    // pipe, and `CodeCache::read`, which has checked these very bytes, in memory, against a keyed hash that only a process
    // with our secret could have written. A version or setting that differs is refused by wasmtime itself.
    unsafe { Component::deserialize(engine, code) }
}

/// The installation's secret, created if there is none.
fn secret(path: &Path) -> io::Result<[u8; TAG_BYTES]> {
    match File::open(path) {
        Ok(mut file) => {
            let mut secret = [0; TAG_BYTES];
            match file.read_exact(&mut secret) {
                Ok(()) => Ok(secret),
                // An incomplete secret: code under it is compiled again, which costs time and nothing else.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => make_secret(path),
                Err(error) => Err(error),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => make_secret(path),
        Err(error) => Err(error),
    }
}

fn make_secret(path: &Path) -> io::Result<[u8; TAG_BYTES]> {
    let mut secret = [0; TAG_BYTES];
    File::open("/dev/urandom")?.read_exact(&mut secret)?;
    // Written aside and renamed: a crash leaves no short secret that would fail every later start.
    let draft = path.with_extension("draft");
    let mut file = private_file(&draft)?;
    file.write_all(&secret)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    Ok(secret)
}

fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(no_follow())
        .open(path)
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(no_follow())
        .open(path)?;
    let length = file.metadata()?.len();
    if length > FILE_BYTES_MAX {
        return Err(io::Error::other("not a file of the code cache"));
    }
    let mut bytes = Vec::with_capacity(length as usize);
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn no_follow() -> i32 {
    OFlags::NOFOLLOW.bits() as i32
}

/// What code depends on besides the component: wasmtime's version, its settings and the processor.
fn compatibility(engine: &Engine) -> String {
    struct Sink(Sha256);
    impl Hasher for Sink {
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
        fn finish(&self) -> u64 {
            let hash: [u8; 32] = self.0.clone().finalize().into();
            hash[..8]
                .iter()
                .fold(0, |all, byte| all << 8 | u64::from(*byte))
        }
    }
    let mut sink = Sink(Sha256::new());
    engine.precompile_compatibility_hash().hash(&mut sink);
    format!("{:016x}", sink.finish())
}

/// HMAC-SHA-256 (RFC 2104) for a key no longer than the hash's block of 64 bytes.
fn hmac(key: &[u8; TAG_BYTES], message: &[&[u8]]) -> [u8; TAG_BYTES] {
    let padded =
        |pad: u8| std::array::from_fn::<u8, 64, _>(|i| key.get(i).copied().unwrap_or(0) ^ pad);
    let mut inner = Sha256::new().chain_update(padded(0x36));
    message.iter().for_each(|part| inner.update(part));
    Sha256::new()
        .chain_update(padded(0x5c))
        .chain_update(inner.finalize())
        .finalize()
        .into()
}

/// Compares in constant time.
fn same(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len() && left.iter().zip(right).fold(0, |all, (l, r)| all | (l ^ r)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_was_cut_short_is_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(SECRET_FILE);
        let first = secret(&path).unwrap();
        assert_eq!(secret(&path).unwrap(), first);
        fs::write(&path, &first[..5]).unwrap();
        let second = secret(&path).unwrap();
        assert_ne!(second, first);
        assert_eq!(secret(&path).unwrap(), second);
    }

    #[test]
    fn the_keyed_hash_is_hmac_sha_256() {
        // RFC 4231, test case 1, its 20-byte key filled up with zeros, which HMAC does anyway.
        let mut key = [0; TAG_BYTES];
        key[..20].fill(0x0b);
        let tag = hmac(&key, &[b"Hi ", b"There"]);
        let expected = "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7";
        assert_eq!(Digest(tag).to_string(), expected);
    }
}
