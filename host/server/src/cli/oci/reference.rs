//! Where a module is in a registry: `oci://host[:port]/repository[:tag][@sha256:digest]`.

use std::fmt;
use std::net::IpAddr;

use super::super::failure::Failure;

/// The tag of a reference that names none.
const TAG_DEFAULT: &str = "latest";
/// Characters of a reference.
const REFERENCE_CHARS_MAX: usize = 1_024;
/// Characters of a tag.
const TAG_CHARS_MAX: usize = 128;
const SCHEME: &str = "oci://";

/// A place in a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    /// Host and port.
    pub(super) registry: String,
    pub(super) repository: String,
    /// What is asked for, unless a digest is given.
    tag: String,
    /// `sha256:` and 64 digits: exactly this manifest.
    pub(super) digest: Option<String>,
}

impl Reference {
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        Self::parsed(text).ok_or_else(|| {
            Failure::usage(format!("{text:?} is not a place in a registry")).with_hint(
                "write oci://HOST[:PORT]/REPOSITORY[:TAG] or oci://HOST[:PORT]/REPOSITORY@sha256:DIGEST, in lower case",
            )
        })
    }

    fn parsed(text: &str) -> Option<Self> {
        if text.len() > REFERENCE_CHARS_MAX {
            return None;
        }
        let (registry, rest) = text.strip_prefix(SCHEME)?.split_once('/')?;
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (rest, None),
        };
        let (repository, tag) = rest.split_once(':').unwrap_or((rest, TAG_DEFAULT));
        let is_sound = is_registry(registry)
            && repository.split('/').all(is_part)
            && is_tag(tag)
            && digest.is_none_or(is_digest);
        is_sound.then(|| Self {
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            tag: tag.to_owned(),
            digest: digest.map(str::to_owned),
        })
    }

    /// What names the manifest in a request.
    pub(super) fn manifest(&self) -> &str {
        self.digest.as_deref().unwrap_or(&self.tag)
    }

    /// Whether the registry is on this machine.
    pub(super) fn is_loopback(&self) -> bool {
        is_loopback(&self.registry)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.registry, self.repository)?;
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => write!(f, ":{}", self.tag),
        }
    }
}

/// Whether `host[:port]` is this machine.
pub(super) fn is_loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

fn is_registry(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((host, port)) if host.parse::<std::net::Ipv6Addr>().is_ok() => ("v6", port),
            _ => return false,
        },
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let is_host = !host.is_empty()
        && host
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(&byte));
    let is_port = port.is_empty()
        || port
            .strip_prefix(':')
            .is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    is_host && is_port
}

/// One part of a repository's name: lower case, digits, and separators between them.
fn is_part(part: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = [part.bytes().next(), part.bytes().last()];
    ends.iter().all(|end| end.is_some_and(plain))
        && part
            .bytes()
            .all(|byte| plain(byte) || b"._-".contains(&byte))
}

fn is_tag(tag: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= TAG_CHARS_MAX
        && tag.bytes().next().is_some_and(plain)
        && tag.bytes().all(|byte| plain(byte) || b".-".contains(&byte))
}

/// `sha256:` and 64 lower-case digits.
pub(super) fn is_digest(text: &str) -> bool {
    let digits = text.strip_prefix("sha256:").unwrap_or_default();
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    digits.len() == 64 && digits.bytes().all(is_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_read_and_written_the_same() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        for (text, registry, repository, manifest) in [
            ("oci://reg.example/up:1.0", "reg.example", "up", "1.0"),
            (
                "oci://127.0.0.1:5000/a/b-c/d_e:v1",
                "127.0.0.1:5000",
                "a/b-c/d_e",
                "v1",
            ),
            ("oci://[::1]:5000/up:latest", "[::1]:5000", "up", "latest"),
            (&format!("oci://reg/up@{digest}"), "reg", "up", &digest),
        ] {
            let read = Reference::parse(text).expect(text);
            assert_eq!(read.registry, registry);
            assert_eq!(read.repository, repository);
            assert_eq!(read.manifest(), manifest);
            assert_eq!(read.to_string(), text);
        }
        let bare = Reference::parse("oci://reg/up").expect("a reference");
        assert_eq!(bare.manifest(), "latest");
    }

    #[test]
    fn nothing_in_a_reference_can_lead_elsewhere() {
        let long = format!("oci://reg/{}", "a".repeat(REFERENCE_CHARS_MAX));
        for text in [
            "",
            "up:1",
            "oci://",
            "oci://reg",
            "oci://reg/",
            "oci:///up",
            "https://reg/up",
            "oci://reg/UP",
            "oci://reg/../up",
            "oci://reg/a//b",
            "oci://reg/up?x=1",
            "oci://reg/up#x",
            "oci://reg/u p",
            "oci://user@reg/up",
            "oci://reg:0/up",
            "oci://reg:99999/up",
            "oci://reg:x/up",
            "oci://[::1/up",
            "oci://[x]:1/up",
            "oci://reg/up:",
            "oci://reg/up:a/b",
            "oci://reg/up:.a",
            "oci://reg/up@sha256:12",
            "oci://reg/up@md5:12",
            "oci://r%65g/up",
            "oci://reg\r\n/up",
            &long,
        ] {
            assert!(Reference::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn this_machine_is_known_by_its_names() {
        for here in [
            "localhost",
            "localhost:5000",
            "127.0.0.1",
            "127.1.2.3:80",
            "[::1]:5000",
        ] {
            assert!(is_loopback(here), "{here}");
        }
        for elsewhere in [
            "10.0.0.1",
            "localhost.example",
            "127.0.0.1.example:80",
            "[::2]:1",
            "reg",
        ] {
            assert!(!is_loopback(elsewhere), "{elsewhere}");
        }
    }
}
