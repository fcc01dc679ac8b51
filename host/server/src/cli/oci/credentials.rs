//! The name and password for a registry: from the flags, or from the file in which `docker login` leaves them.

use std::io::{self, BufRead};
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::super::failure::Failure;
use super::super::keys;

/// Bytes of the file with credentials.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Bytes of a password.
const PASSWORD_BYTES_MAX: u64 = 16 << 10;

/// A registry whose credentials docker keeps under another name than its own: the names under which it is asked for here, and the
/// historical address that `docker login` writes. This is the only place with names of registries.
const HISTORICAL: ([&str; 3], &str) = (
    ["docker.io", "index.docker.io", "registry-1.docker.io"],
    "https://index.docker.io/v1/",
);

/// A name and a password. It is never printed.
#[derive(Clone)]
pub(super) struct Credentials {
    name: String,
    password: String,
}

impl Credentials {
    /// Those of `--username` with the password from standard input, or those that are stored for the registry, if any.
    pub(super) fn find(username: Option<String>, registry: &str) -> Result<Option<Self>, Failure> {
        let Some(name) = username else {
            return Self::stored(registry);
        };
        let mut password = String::new();
        let stdin = io::Read::take(io::stdin().lock(), PASSWORD_BYTES_MAX);
        io::BufReader::new(stdin).read_line(&mut password)?;
        let password = password.trim_end_matches(['\r', '\n']).to_owned();
        if name.contains(':') || password.is_empty() {
            let failure = Failure::usage(
                "--username needs a name without ':', and the password on standard input",
            );
            return Err(failure.with_hint(
                "for example: echo \"$PASSWORD\" | millrace module pull … --username NAME",
            ));
        }
        Ok(Some(Self { name, password }))
    }

    fn stored(registry: &str) -> Result<Option<Self>, Failure> {
        let Some(file) = config_file().filter(|file| file.exists()) else {
            return Ok(None);
        };
        let text = keys::read(&file, CONFIG_BYTES_MAX)?;
        let config: Value = serde_json::from_str(&text)
            .map_err(|_| Failure::usage(format!("{} is not JSON", file.display())))?;
        Ok(Self::of(&config, registry))
    }

    /// The credentials that a configuration of docker has for a registry. Those that a helper program keeps are not asked for.
    fn of(config: &Value, registry: &str) -> Option<Self> {
        let auths = &config["auths"];
        let (known, address) = HISTORICAL;
        let is_historical = known.contains(&registry);
        let names = [
            registry.to_owned(),
            format!("https://{registry}"),
            format!("http://{registry}"),
            address.to_owned(),
        ];
        let names = &names[..if is_historical { 4 } else { 3 }];
        let entry = names.iter().find_map(|name| auths.get(name))?;
        let both = STANDARD.decode(entry["auth"].as_str()?).ok()?;
        let both = String::from_utf8(both).ok()?;
        let (name, password) = both.split_once(':')?;
        let is_plain = !password.contains(char::is_control) && !name.contains(char::is_control);
        is_plain.then(|| Self {
            name: name.to_owned(),
            password: password.to_owned(),
        })
    }

    /// The value of the header Authorization.
    pub(super) fn basic(&self) -> String {
        let both = format!("{}:{}", self.name, self.password);
        format!("Basic {}", STANDARD.encode(both))
    }
}

/// Where `docker login` stores credentials.
fn config_file() -> Option<PathBuf> {
    let folder = match std::env::var_os("DOCKER_CONFIG") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(std::env::var_os("HOME")?).join(".docker"),
    };
    Some(folder.join("config.json"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_docker_stored_is_found_by_the_registry_s_name_only() {
        let config = json!({"auths": {
            "reg.example": {"auth": STANDARD.encode("ada:pass:word")},
            "https://other.example": {"auth": STANDARD.encode("bob:x")},
            "helped.example": {},
            "broken.example": {"auth": "?"},
            "control.example": {"auth": STANDARD.encode("a:b\r\nX: y")},
        }});
        let of = |name| Credentials::of(&config, name).map(|found| (found.name, found.password));
        assert_eq!(of("reg.example"), Some(("ada".into(), "pass:word".into())));
        assert_eq!(of("other.example"), Some(("bob".into(), "x".into())));
        for none in [
            "reg.example:5000",
            "helped.example",
            "broken.example",
            "control.example",
            "example",
        ] {
            assert_eq!(of(none), None, "{none}");
        }
    }

    #[test]
    fn a_login_under_a_historical_address_is_for_that_registry_under_each_of_its_names_only() {
        let (names, address) = HISTORICAL;
        let stored = |name: &str| json!({"auth": STANDARD.encode(format!("{name}:secret"))});
        let config = json!({"auths": { address: stored("ada") }});
        let of = |config: &Value, name| Credentials::of(config, name).map(|found| found.name);
        for name in names {
            assert_eq!(of(&config, name).as_deref(), Some("ada"), "{name}");
        }
        assert_eq!(of(&config, "reg.example"), None);
        let exact = json!({"auths": { address: stored("ada"), names[0]: stored("bob") }});
        assert_eq!(of(&exact, names[0]).as_deref(), Some("bob"));
    }
}
