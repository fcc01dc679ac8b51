//! `module keygen` and `module sign`: keys and detached signatures in minisign's format. They read and write files, and talk to no host.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use millrace_broker::{ModuleError, TrustedKey, is_tag};
use millrace_model::{Clock, SystemClock};
use minisign::{KeyPair, PError, PublicKey, SecretKey, SecretKeyBox};
use serde_json::{Value, json};

use super::failure::Failure;
use super::output::Output;
use super::table::{cell, facts};

/// What is added to a component's path for its signature's.
const SIGNATURE_SUFFIX: &str = ".minisig";
/// What is added to a secret key's path for the public key's.
const PUBLIC_SUFFIX: &str = ".pub";
/// Maximum bytes of a key's file.
const KEY_BYTES_MAX: u64 = 4 << 10;

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  millrace module keygen release.key               writes release.key and release.key.pub\n  millrace module keygen release.key --password    asks for a password\n\nThe host trusts the keys that its settings name: trusted_keys = [\"release.key.pub\"] in [modules]."
)]
pub(super) struct KeygenArgs {
    /// The file for the secret key; it must not exist
    file: PathBuf,
    /// Protect the secret key with a password, which is asked for at the terminal
    #[arg(long)]
    password: bool,
}

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  millrace module sign uppercase.wasm --key release.key\n  millrace module sign uppercase.wasm --key release.key --tag uppercase@1.0.0\n\nThe signature is of the whole file, and is written beside it as uppercase.wasm.minisig. minisign reads it too.\nWith --tag a host accepts the module under this tag only, so that an old version cannot be passed off as a new one."
)]
pub(super) struct SignArgs {
    /// The component
    file: PathBuf,
    /// The file of the secret key
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// A tag that the module may have; repeat it for several. Without any, it may have every tag
    #[arg(long = "tag", value_name = "NAME@VERSION")]
    tags: Vec<String>,
    /// The file for the signature
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Makes a pair of keys. Neither file may exist: a lost key cannot be made again.
pub(super) fn keygen(args: &KeygenArgs, out: &mut Output) -> Result<(), Failure> {
    let public_file = beside(&args.file, PUBLIC_SUFFIX);
    let pair = match args.password {
        true => KeyPair::generate_encrypted_keypair(None),
        false => KeyPair::generate_unencrypted_keypair(),
    };
    let pair = pair.map_err(|error| Failure::failed(format!("no key was made: {error}")))?;
    let boxes = pair.pk.to_box().and_then(|public| {
        let secret = pair.sk.to_box(Some("secret key for Millrace modules"))?;
        Ok((public.into_string(), secret.into_string()))
    });
    let (public, secret) = boxes.map_err(|error| Failure::failed(error.to_string()))?;
    let id = TrustedKey::parse(&public).map(|key| key.id().to_string());
    let id = id.ok_or_else(|| Failure::failed("the key that was made cannot be read"))?;
    create(&args.file, 0o600, &secret)?;
    if let Err(failure) = create(&public_file, 0o644, &public) {
        // Half a pair is of no use, and the next call would refuse to replace it. It was made here, a moment ago.
        let _ = std::fs::remove_file(&args.file);
        return Err(failure);
    }
    let made = json!({"key": id, "secret_file": args.file, "public_file": public_file});
    out.answer(&made, |made| {
        format!(
            "key {id}\nsecret  {}\npublic  {}",
            cell(&made["secret_file"]),
            cell(&made["public_file"])
        )
    })
}

/// Signs a component.
pub(super) fn sign(args: &SignArgs, out: &mut Output) -> Result<(), Failure> {
    check_tags(&args.tags)?;
    let key = secret_key(&args.key)?;
    let unreadable = |error: io::Error| unreadable(&args.file, &error);
    let file = File::open(&args.file).map_err(unreadable)?;
    let comment = comment(&args.file, &args.tags)?;
    let public = PublicKey::from_secret_key(&key)
        .map_err(|error| Failure::usage(format!("{}: {error}", args.key.display())))?;
    let signature = minisign::sign(Some(&public), &key, file, Some(&comment), None)
        .map_err(|error| Failure::failed(format!("{}: {error}", args.file.display())))?;
    let output = args.output.clone();
    let output = output.unwrap_or_else(|| beside(&args.file, SIGNATURE_SUFFIX));
    std::fs::write(&output, signature.to_string()).map_err(|error| unwritable(&output, &error))?;
    let made = json!({"signature_file": output, "comment": comment});
    out.answer(&made, |made| {
        facts(&[
            ("signature", cell(&made["signature_file"])),
            ("comment", fields_of(&made["comment"])),
        ])
    })
}

/// A comment for people. minisign writes its fields with tabs between them: a line each.
pub(super) fn fields_of(comment: &Value) -> String {
    let fields = comment.as_str().unwrap_or_default().split('\t');
    let fields: Vec<String> = fields.map(|field| cell(&json!(field))).collect();
    fields.join("\n")
}

/// No host takes a module under anything that is no tag, so a signature for it would be useless.
fn check_tags(tags: &[String]) -> Result<(), Failure> {
    match tags.iter().find(|tag| !is_tag(tag)) {
        None => Ok(()),
        Some(tag) => Err(Failure::usage(ModuleError::Tag(tag.clone()).to_string())),
    }
}

/// The trusted comment: fields as minisign writes them, and the tags.
fn comment(file: &Path, tags: &[String]) -> Result<String, Failure> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    if name.contains(char::is_control) {
        let message = "a signature's comment can hold no file name with control characters";
        return Err(Failure::usage(message));
    }
    let seconds = SystemClock::new().wall().0 / 1_000;
    let mut comment = format!("timestamp:{seconds}\tfile:{name}\thashed");
    for tag in tags {
        comment.push_str(&format!("\ttag:{tag}"));
    }
    Ok(comment)
}

/// Reads a secret key; the password of a protected one is asked for at the terminal.
fn secret_key(file: &Path) -> Result<SecretKey, Failure> {
    let text = read(file, KEY_BYTES_MAX)?;
    let refused = |error: PError| {
        let failure = Failure::usage(format!("{} is no usable key: {error}", file.display()));
        failure
            .with_hint("name the secret key that `millrace module keygen` or `minisign -G` wrote")
    };
    let bytes = text.lines().nth(1).map(|line| STANDARD.decode(line.trim()));
    let bytes = bytes.and_then(Result::ok).unwrap_or_default();
    let key = SecretKey::from_bytes(&bytes).map_err(refused)?;
    // The crate refuses the keys that minisign itself writes without a password, because those have no checksum. Signing finds out
    // whether such a key is sound.
    match key.is_encrypted() {
        true => SecretKeyBox::from(text)
            .into_secret_key(None)
            .map_err(refused),
        false => Ok(key),
    }
}

/// The text of a small file.
pub(super) fn read(file: &Path, bytes_max: u64) -> Result<String, Failure> {
    let about = std::fs::metadata(file).map_err(|error| unreadable(file, &error))?;
    if about.len() > bytes_max {
        let message = format!(
            "{} has {} bytes, more than such a file has",
            file.display(),
            about.len()
        );
        return Err(Failure::usage(message));
    }
    std::fs::read_to_string(file).map_err(|error| unreadable(file, &error))
}

fn unreadable(file: &Path, error: &io::Error) -> Failure {
    Failure::usage(format!("{} cannot be read: {error}", file.display()))
}

fn unwritable(file: &Path, error: &io::Error) -> Failure {
    Failure::usage(format!("{} cannot be written: {error}", file.display()))
}

fn create(file: &Path, mode: u32, text: &str) -> Result<(), Failure> {
    let mut options = OpenOptions::new();
    let opened = options.write(true).create_new(true).mode(mode).open(file);
    let written = opened.and_then(|mut opened| {
        opened.write_all(text.as_bytes())?;
        opened.sync_all()
    });
    written.map_err(|error| unwritable(file, &error))
}

fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut path = file.as_os_str().to_owned();
    path.push(suffix);
    PathBuf::from(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_of_keys_is_made_whole_or_not_at_all() {
        let dir = tempfile::tempdir().expect("a directory");
        let (secret, public) = (dir.path().join("key"), dir.path().join("key.pub"));
        let args = KeygenArgs {
            file: secret.clone(),
            password: false,
        };
        let out = &mut Output::new(true);
        std::fs::write(&public, "mine").expect("written");
        assert!(keygen(&args, out).is_err());
        assert!(!secret.exists(), "half a pair");
        assert_eq!(std::fs::read(&public).expect("there"), b"mine");
        std::fs::remove_file(&public).expect("removed");
        keygen(&args, out).expect("both are new");
        assert!(keygen(&args, out).is_err());
        assert!(secret.exists() && public.exists());
    }

    #[test]
    fn nothing_is_signed_for_what_is_no_tag() {
        for tag in ["nonsense", "a@", "@1", "a b@1", "a@1@2", ""] {
            let failure = check_tags(&["good@1.0.0".to_owned(), tag.to_owned()]);
            let failure = failure.expect_err(tag).to_string();
            assert!(failure.contains("name@version"), "{failure}");
        }
        check_tags(&["good@1.0.0".to_owned()]).expect("a tag");
    }
}
