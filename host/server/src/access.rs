//! `[access]`: whether callers must say who they are; and `[listen.tls]`, so that nobody hears how they do.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use millrace_broker::{Broker, Caller, TokenText};
use serde::{Deserialize, Serialize};

use crate::config::error::{ConfigError, refused};
use crate::config::names;
use crate::host::StartError;
use crate::identity::settings::{Provider, ProviderSettings};
use crate::net::{ClientFiles, Tls, TlsError, TlsFiles, Trust};

/// `[access]`: who may call.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccessSettings {
    /// Refuse requests of which neither a token nor a client's certificate says who sends them; otherwise everyone who can connect may do
    /// everything. The first start makes a
    /// principal `admin` and writes its token into the file `admin-token` of the data directory
    #[arg(
        long = "require-tokens",
        id = "access.required",
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        default_missing_value = "true",
        value_name = "BOOL"
    )]
    pub required: bool,
    /// The identity providers whose JWTs count. In the settings file only
    #[arg(skip)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub providers: Vec<ProviderSettings>,
}

impl AccessSettings {
    /// Whether a request without credentials may do only what takes no right.
    pub(crate) fn is_required(&self) -> bool {
        self.required
    }

    /// Whether each provider says what it must.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        Provider::all(&self.providers).map(drop)
    }
}

/// `[listen.tls]`: TLS of every door.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsSettings {
    /// The host's certificate, and those between it and its root, in PEM. The file is read again when it changes
    #[arg(
        long = "tls-certificate",
        id = "listen.tls.certificate_file",
        value_name = "FILE"
    )]
    #[serde(serialize_with = "names::maybe_shown")]
    pub certificate_file: Option<PathBuf>,
    /// The certificate's key, in PEM
    #[arg(long = "tls-key", id = "listen.tls.key_file", value_name = "FILE")]
    #[serde(serialize_with = "names::maybe_shown")]
    pub key_file: Option<PathBuf>,
    /// The certificates, in PEM, that those of the other hosts of a shared store are checked against
    #[arg(long = "tls-ca", id = "listen.tls.ca_file", value_name = "FILE")]
    #[serde(serialize_with = "names::maybe_shown")]
    pub ca_file: Option<PathBuf>,
    /// The certificates, in PEM, that those of clients are checked against; without them clients are asked for none. The file is read again
    /// when it changes
    #[arg(
        long = "tls-client-ca",
        id = "listen.tls.client_ca_file",
        value_name = "FILE"
    )]
    #[serde(serialize_with = "names::maybe_shown")]
    pub client_ca_file: Option<PathBuf>,
    /// Whether clients may connect without a certificate (optional) or not (required) [default: optional]
    #[arg(
        long = "tls-client-certificates",
        id = "listen.tls.client_certificates",
        value_name = "WHETHER"
    )]
    pub client_certificates: ClientCertificates,
}

/// Whether clients need a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificates {
    /// Those without one need a token.
    #[default]
    Optional,
    /// Those without one cannot connect.
    Required,
}

impl TlsSettings {
    /// Whether doors speak TLS.
    pub(crate) fn is_on(&self) -> bool {
        self.certificate_file.is_some()
    }

    /// What goes together is given together.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        match &self.client_ca_file {
            None if self.client_certificates == ClientCertificates::Required => {
                return Err(refused(
                    "listen.tls.client_certificates",
                    "required".to_owned(),
                    "certificates of clients are checked against those in --tls-client-ca FILE",
                ));
            }
            Some(file) if self.certificate_file.is_none() => {
                return Err(refused(
                    "listen.tls.client_ca_file",
                    file.display().to_string(),
                    "a host that asks for certificates has one itself: --tls-certificate FILE, --tls-key FILE",
                ));
            }
            _ => {}
        }
        let why = "a certificate and its key are given together";
        match (&self.certificate_file, &self.key_file) {
            (Some(file), None) => Err(refused(
                "listen.tls.certificate_file",
                file.display().to_string(),
                why,
            )),
            (None, Some(file)) => Err(refused(
                "listen.tls.key_file",
                file.display().to_string(),
                why,
            )),
            _ => Ok(()),
        }
    }

    /// Reads both files.
    pub(crate) fn open(&self) -> Result<Option<Arc<Tls>>, ConfigError> {
        let (Some(certificate), Some(key)) = (&self.certificate_file, &self.key_file) else {
            return Ok(None);
        };
        let files = TlsFiles {
            certificate: certificate.clone(),
            key: key.clone(),
            clients: self.client_ca_file.clone().map(|roots| ClientFiles {
                roots,
                is_required: self.client_certificates == ClientCertificates::Required,
            }),
        };
        let unusable = |error: TlsError| {
            let (setting, file) = match &self.client_ca_file {
                Some(roots) if error.is_about(roots) => ("listen.tls.client_ca_file", roots),
                _ => ("listen.tls.certificate_file", certificate),
            };
            refused(setting, file.display().to_string(), error.to_string())
        };
        Tls::open(files).map(Some).map_err(unusable)
    }

    /// Whom this host trusts to be another one, to whom it presents its own certificate.
    pub(crate) fn trust(&self, own: Option<Arc<Tls>>) -> Result<Trust, ConfigError> {
        let file = self.ca_file.as_deref();
        Trust::of(file, own).map_err(|error| {
            let file = file.map(|file| file.display().to_string());
            refused(
                "listen.tls.ca_file",
                file.unwrap_or_default(),
                error.to_string(),
            )
        })
    }
}

/// The file of the first token, in the data directory.
const FIRST_TOKEN: &str = "admin-token";

/// Makes the first principal of a store that has none, with a token that its operator finds in a file of the data directory.
pub(crate) async fn begin(broker: &Broker, data_dir: &Path) -> Result<(), StartError> {
    let session = broker.session(Caller::host());
    let Some(first) = session.access().first()? else {
        return Ok(());
    };
    // Before the principal is: a token that nobody has seen would lock everyone out.
    let path = data_dir.join(FIRST_TOKEN);
    write(&path, first.token()).map_err(|source| StartError::FirstToken {
        path: path.clone(),
        source,
    })?;
    let is_first = session.access().begin(first).await?;
    if is_first {
        tracing::warn!(
            file = %path.display(),
            "nobody could manage principals: now `admin` can, and its token is in this file; keep the token elsewhere, and delete the file"
        );
    } else {
        // Another host was quicker; the token is none.
        let _ = std::fs::remove_file(&path);
    }
    Ok(())
}

/// Writes the token for the process's user only.
fn write(path: &Path, token: &TokenText) -> std::io::Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    // Anew: an old file may have other permissions.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(token.reveal().as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()
}
