//! `[[access.providers]]`: identity providers whose JWTs count. A list of tables, so it is in the settings file only.

use std::net::IpAddr;
use std::path::PathBuf;

use axum::http::Uri;
use millrace_model::PrincipalName;
use serde::{Deserialize, Deserializer, Serialize};

use super::bounds::{LEEWAY_S_MAX, PROVIDER_LIST_MAX, PROVIDERS_MAX};
use super::keys::Algorithm;
use super::patterns::Pattern;
use crate::config::error::{ConfigError, refused};
use crate::config::names;

/// An identity provider, as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProviderSettings {
    /// What its JWTs have as `iss`, exactly.
    pub issuer: String,
    /// One of these is in `aud` of each JWT that is for this host.
    #[serde(deserialize_with = "one_or_several")]
    pub audience: Vec<String>,
    /// The file with its keys (JWKS).
    #[serde(serialize_with = "names::maybe_shown")]
    pub jwks_file: Option<PathBuf>,
    /// The address of its keys. Without it and without a file, the issuer's `.well-known/openid-configuration` names it.
    pub jwks_url: Option<String>,
    /// The certificates, in PEM, that the provider's is checked against, instead of this machine's roots.
    #[serde(serialize_with = "names::maybe_shown")]
    pub ca_file: Option<PathBuf>,
    /// The principal of this host whose rules count for all its JWTs.
    pub principal: Option<String>,
    /// The claim with the name of that principal, instead.
    pub principal_claim: Option<String>,
    /// The algorithms that its JWTs may be signed with.
    pub algorithms: Vec<String>,
    /// Seconds that its clock and this host's may differ.
    pub leeway_s: u64,
    /// The claim with rules of which one must allow something, too.
    pub rules_claim: Option<String>,
    /// The keys of messages and state that the caller may touch; all if absent.
    pub keys: Option<Vec<String>>,
    /// Whether components do not see its JWTs.
    pub strip: bool,
}

impl Default for ProviderSettings {
    fn default() -> Self {
        Self {
            issuer: String::new(),
            audience: Vec::new(),
            jwks_file: None,
            jwks_url: None,
            ca_file: None,
            principal: None,
            principal_claim: None,
            algorithms: ["RS256", "ES256", "EdDSA"].map(str::to_owned).to_vec(),
            leeway_s: 30,
            rules_claim: None,
            keys: None,
            strip: false,
        }
    }
}

fn one_or_several<'de, D: Deserializer<'de>>(reader: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a text, or a list of texts")]
    enum Several {
        One(String),
        Several(Vec<String>),
    }
    Ok(match Several::deserialize(reader)? {
        Several::One(one) => vec![one],
        Several::Several(several) => several,
    })
}

/// An identity provider, checked.
#[derive(Clone, Debug)]
pub(crate) struct Provider {
    pub(super) issuer: String,
    pub(super) audience: Vec<String>,
    pub(super) place: Place,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) principal: Whose,
    pub(super) algorithms: Vec<Algorithm>,
    pub(super) leeway_ms: u64,
    pub(super) rules_claim: Option<String>,
    pub(super) keys: Option<Vec<Pattern>>,
    pub(super) strip: bool,
}

/// Where its keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    File(PathBuf),
    Url(String),
    /// The URL of the document that names the URL.
    Discovery(String),
}

/// Whose rules count.
#[derive(Clone, Debug)]
pub(super) enum Whose {
    /// This principal's.
    One(PrincipalName),
    /// Those of the principal that a claim names.
    Claim(String),
}

impl Provider {
    /// # Errors
    /// [`ConfigError::Value`].
    pub(crate) fn all(settings: &[ProviderSettings]) -> Result<Vec<Self>, ConfigError> {
        if settings.len() > PROVIDERS_MAX {
            let why = format!("there are at most {PROVIDERS_MAX}");
            return Err(refused("access.providers", settings.len().to_string(), why));
        }
        let all = settings
            .iter()
            .map(Self::of)
            .collect::<Result<Vec<_>, _>>()?;
        for (at, one) in all.iter().enumerate() {
            let is_same = |other: &&Self| {
                other.issuer == one.issuer
                    && other
                        .audience
                        .iter()
                        .any(|text| one.audience.contains(text))
            };
            if all[..at].iter().find(is_same).is_some() {
                let why = "another provider has the same issuer and audience, so it is unclear which of them counts";
                return Err(refused("access.providers.issuer", one.issuer.clone(), why));
            }
        }
        Ok(all)
    }

    fn of(settings: &ProviderSettings) -> Result<Self, ConfigError> {
        let wrong = |key: &str, value: &str, why: &str| {
            refused(format!("access.providers.{key}"), value.to_owned(), why)
        };
        let issuer = settings.issuer.clone();
        if issuer.is_empty() {
            return Err(wrong(
                "issuer",
                "",
                "write what the provider's JWTs have as `iss`",
            ));
        }
        let audience = settings.audience.clone();
        if !is_short(&audience) || audience.iter().any(String::is_empty) {
            let why =
                "write what the provider's JWTs for this host have as `aud`: one, or up to 16";
            return Err(wrong("audience", &audience.join(", "), why));
        }
        let principal = match (&settings.principal, &settings.principal_claim) {
            (Some(name), None) => {
                let parsed = PrincipalName::parse(name);
                Whose::One(parsed.map_err(|error| wrong("principal", name, &error.to_string()))?)
            }
            (None, Some(claim)) => Whose::Claim(claim.clone()),
            _ => {
                let why =
                    "give either `principal`, or `principal_claim` with the claim that names it";
                let given = settings.principal.as_deref().unwrap_or_default();
                return Err(wrong("principal", given, why));
            }
        };
        if !is_short(&settings.algorithms) {
            return Err(wrong("algorithms", "", "name at least one, and at most 16"));
        }
        let algorithm = |text: &String| {
            Algorithm::of(text).ok_or_else(|| {
                let known: Vec<&str> = Algorithm::ALL.iter().map(|one| one.as_str()).collect();
                let why = format!("the host takes {}", known.join(", "));
                wrong("algorithms", text, &why)
            })
        };
        let pattern = |text: &String| {
            text.parse::<Pattern>()
                .map_err(|why| wrong("keys", text, why))
        };
        if settings.keys.as_ref().is_some_and(|keys| !is_short(keys)) {
            return Err(wrong(
                "keys",
                "",
                "name at least one pattern, and at most 16",
            ));
        }
        if settings.leeway_s > LEEWAY_S_MAX {
            let why = format!("the maximum is {LEEWAY_S_MAX}");
            return Err(wrong("leeway_s", &settings.leeway_s.to_string(), &why));
        }
        Ok(Self {
            place: Place::of(settings)?,
            issuer,
            audience,
            ca_file: settings.ca_file.clone(),
            principal,
            algorithms: settings
                .algorithms
                .iter()
                .map(algorithm)
                .collect::<Result<_, _>>()?,
            leeway_ms: settings.leeway_s * 1_000,
            rules_claim: settings.rules_claim.clone(),
            keys: match &settings.keys {
                Some(keys) => Some(keys.iter().map(pattern).collect::<Result<_, _>>()?),
                None => None,
            },
            strip: settings.strip,
        })
    }
}

fn is_short(list: &[String]) -> bool {
    (1..=PROVIDER_LIST_MAX).contains(&list.len())
}

impl Place {
    fn of(settings: &ProviderSettings) -> Result<Self, ConfigError> {
        let why = "write an https address; http is for this machine only";
        match (&settings.jwks_file, &settings.jwks_url) {
            (Some(file), None) => Ok(Self::File(file.clone())),
            (None, Some(url)) if is_protected(url) => Ok(Self::Url(url.clone())),
            (None, Some(url)) => Err(refused("access.providers.jwks_url", url.clone(), why)),
            (None, None) => {
                let issuer = settings.issuer.trim_end_matches('/');
                let url = format!("{issuer}/.well-known/openid-configuration");
                match is_protected(&url) {
                    true => Ok(Self::Discovery(url)),
                    false => {
                        let why =
                            "an issuer that is no https address needs `jwks_file` or `jwks_url`";
                        Err(refused("access.providers.issuer", issuer.to_owned(), why))
                    }
                }
            }
            (Some(_), Some(url)) => {
                let why = "`jwks_file` is given, too; keep one of them";
                Err(refused("access.providers.jwks_url", url.clone(), why))
            }
        }
    }
}

/// Whether nobody between can change what an address answers: it has TLS, or is on this machine.
pub(super) fn is_protected(url: &str) -> bool {
    let Ok(url) = url.parse::<Uri>() else {
        return false;
    };
    let Some(authority) = url.authority() else {
        return false;
    };
    if authority.as_str().contains('@') {
        return false;
    }
    let host = authority
        .host()
        .trim_start_matches('[')
        .trim_end_matches(']');
    let is_here = host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback());
    match url.scheme_str() {
        Some("https") => !host.is_empty(),
        Some("http") => is_here,
        _ => false,
    }
}
