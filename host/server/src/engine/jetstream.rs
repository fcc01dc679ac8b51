//! `[engine.jetstream]`: the settings of the engine on NATS JetStream.

use std::path::{Path, PathBuf};

use clap::Args;
use millrace_jetstream::{Credentials, JetstreamOptions};
use serde::{Deserialize, Serialize};

use super::shown;
use crate::config::error::{ConfigError, refused};
use crate::memory::MemoryPlan;

/// `[engine.jetstream]`: the servers, the stream, and how this host says who it is. Secrets are in files.
#[derive(Args, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JetstreamSettings {
    /// Addresses of NATS servers, like nats://host:4222, separated by commas; one that answers is
    /// enough
    #[arg(
        long = "jetstream-url",
        id = "engine.jetstream.urls",
        value_name = "URL",
        value_delimiter = ','
    )]
    #[serde(serialize_with = "without_passwords")]
    pub urls: Vec<String>,
    /// Stream that holds everything; created if it does not exist [default: millrace]
    #[arg(
        long = "jetstream-stream",
        id = "engine.jetstream.stream",
        value_name = "NAME"
    )]
    pub stream: String,
    /// Copies of the stream when it is created [default: 3 in a cluster, otherwise 1]
    #[arg(
        long = "jetstream-replicas",
        id = "engine.jetstream.replicas",
        value_name = "COUNT"
    )]
    pub replicas: Option<usize>,
    /// Whether the servers run with `sync_interval: always`, so that they write to the disk before
    /// they answer; without it, `durable` topics are refused
    #[arg(
        long = "jetstream-synced",
        id = "engine.jetstream.synced",
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        default_missing_value = "true",
        value_name = "BOOL"
    )]
    pub synced: bool,
    /// User, together with the file of the password
    #[arg(
        long = "jetstream-user",
        id = "engine.jetstream.user",
        value_name = "USER"
    )]
    pub user: Option<String>,
    /// File with the user's password
    #[arg(
        long = "jetstream-password-file",
        id = "engine.jetstream.password_file",
        value_name = "FILE"
    )]
    pub password_file: Option<PathBuf>,
    /// File with a token
    #[arg(
        long = "jetstream-token-file",
        id = "engine.jetstream.token_file",
        value_name = "FILE"
    )]
    pub token_file: Option<PathBuf>,
    /// File with the seed of an nkey
    #[arg(
        long = "jetstream-nkey-file",
        id = "engine.jetstream.nkey_file",
        value_name = "FILE"
    )]
    pub nkey_file: Option<PathBuf>,
    /// File of credentials (.creds)
    #[arg(
        long = "jetstream-credentials-file",
        id = "engine.jetstream.credentials_file",
        value_name = "FILE"
    )]
    pub credentials_file: Option<PathBuf>,
    /// File with the certificates of authorities (PEM); the connection is then encrypted
    #[arg(
        long = "jetstream-ca-file",
        id = "engine.jetstream.ca_file",
        value_name = "FILE"
    )]
    pub ca_file: Option<PathBuf>,
    /// File with this host's certificate (PEM), together with that of its key
    #[arg(
        long = "jetstream-certificate-file",
        id = "engine.jetstream.certificate_file",
        value_name = "FILE"
    )]
    pub certificate_file: Option<PathBuf>,
    /// File with the certificate's key (PEM)
    #[arg(
        long = "jetstream-key-file",
        id = "engine.jetstream.key_file",
        value_name = "FILE"
    )]
    pub key_file: Option<PathBuf>,
}

impl Default for JetstreamSettings {
    fn default() -> Self {
        let options = JetstreamOptions::default();
        Self {
            urls: options.servers,
            stream: options.stream,
            replicas: options.replicas,
            synced: options.synced,
            user: None,
            password_file: None,
            token_file: None,
            nkey_file: None,
            credentials_file: None,
            ca_file: None,
            certificate_file: None,
            key_file: None,
        }
    }
}

fn without_passwords<S: serde::Serializer>(
    urls: &[String],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(urls.iter().map(|url| match url.contains("://") {
        true => shown(url),
        // Without a scheme, a password could be in front of the host all the same.
        false => url.rsplit('@').next().unwrap_or_default().to_owned(),
    }))
}

impl JetstreamSettings {
    pub(super) fn check(&self, is_chosen: bool) -> Result<(), ConfigError> {
        if is_chosen && self.urls.is_empty() {
            let why = "the addresses of NATS servers, such as nats://host:4222";
            return Err(refused("engine.jetstream.urls", "", why));
        }
        if let Some(count) = self.replicas
            && ![1, 3, 5].contains(&count)
        {
            let why = "1, 3 or 5";
            return Err(refused("engine.jetstream.replicas", count.to_string(), why));
        }
        let ways = [
            self.user.is_some(),
            self.token_file.is_some(),
            self.nkey_file.is_some(),
            self.credentials_file.is_some(),
        ];
        if ways.iter().filter(|is_given| **is_given).count() > 1 {
            let why = "only one of user, token_file, nkey_file and credentials_file";
            return Err(refused("engine.jetstream", "several credentials", why));
        }
        if self.user.is_some() != self.password_file.is_some() {
            let why = "together: user and password_file";
            return Err(refused("engine.jetstream.user", "", why));
        }
        if self.certificate_file.is_some() != self.key_file.is_some() {
            let why = "together: certificate_file and key_file";
            return Err(refused("engine.jetstream.certificate_file", "", why));
        }
        Ok(())
    }

    /// `address` is that for other hosts.
    ///
    /// # Errors
    /// Names the file that cannot be read.
    pub(super) fn options(
        &self,
        memory: &MemoryPlan,
        address: String,
    ) -> Result<JetstreamOptions, String> {
        let identity = self.certificate_file.clone().zip(self.key_file.clone());
        Ok(JetstreamOptions {
            servers: self.urls.clone(),
            credentials: self.credentials()?,
            tls_ca: self.ca_file.clone(),
            tls_identity: identity,
            stream: self.stream.clone(),
            replicas: self.replicas,
            synced: self.synced,
            address,
            fresh_bytes_max: memory.tail_bytes,
            bounds: memory.bounds,
            ..JetstreamOptions::default()
        })
    }

    fn credentials(&self) -> Result<Credentials, String> {
        if let (Some(user), Some(file)) = (&self.user, &self.password_file) {
            return Ok(Credentials::Password {
                user: user.clone(),
                password: secret(file)?,
            });
        }
        if let Some(file) = &self.token_file {
            return Ok(Credentials::Token(secret(file)?));
        }
        if let Some(file) = &self.nkey_file {
            return Ok(Credentials::Nkey(secret(file)?));
        }
        match &self.credentials_file {
            Some(file) => Ok(Credentials::File(secret(file)?)),
            None => Ok(Credentials::None),
        }
    }
}

/// The content of a file, without the end of its last line.
fn secret(file: &Path) -> Result<String, String> {
    let read = std::fs::read_to_string(file);
    let read = read.map_err(|error| format!("{} cannot be read: {error}", file.display()))?;
    Ok(read.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> MemoryPlan {
        crate::memory::MemorySettings::default().plan()
    }

    #[test]
    fn no_list_of_settings_has_a_password() {
        let settings = JetstreamSettings {
            urls: ["nats://ada:s3cret@one:4222", "ada:s3cret@two:4222", "three"]
                .map(str::to_owned)
                .to_vec(),
            ..JetstreamSettings::default()
        };
        let listed = serde_json::to_value(&settings).expect("plain data");
        let expected = serde_json::json!(["nats://ada@one:4222", "two:4222", "three"]);
        assert_eq!(listed["urls"], expected);
    }

    #[test]
    fn one_way_to_say_who_it_is_is_enough() {
        let file = || Some(PathBuf::from("file"));
        let given = || JetstreamSettings {
            urls: vec!["nats://one".to_owned()],
            ..JetstreamSettings::default()
        };
        assert!(given().check(true).is_ok());
        for wrong in [
            JetstreamSettings::default(),
            JetstreamSettings {
                token_file: file(),
                nkey_file: file(),
                ..given()
            },
            JetstreamSettings {
                user: Some("ada".to_owned()),
                ..given()
            },
            JetstreamSettings {
                key_file: file(),
                ..given()
            },
            JetstreamSettings {
                replicas: Some(2),
                ..given()
            },
        ] {
            assert!(wrong.check(true).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_password_is_read_from_its_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("password");
        let settings = JetstreamSettings {
            user: Some("ada".to_owned()),
            password_file: Some(file.clone()),
            ..JetstreamSettings::default()
        };
        let missing = settings
            .options(&plan(), String::new())
            .expect_err("there is none");
        assert!(missing.contains("password"), "{missing}");
        std::fs::write(&file, "s3cret\n").expect("written");
        let options = settings.options(&plan(), String::new()).expect("readable");
        assert!(matches!(
            options.credentials,
            Credentials::Password { password, .. } if password == "s3cret"
        ));
    }
}
