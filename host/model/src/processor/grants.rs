//! What a component may use beside its input: everything is denied unless it is granted, except the component's own state.

use std::fmt;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::bounds::{
    GRANTED_SECRETS_MAX, GRANTED_SERVERS_MAX, GRANTED_VIEWS_MAX, PROCESSOR_TOPICS_MAX,
};
use crate::name::{ProcessorName, SecretName, TopicName};

/// What the component of a processor or a route may use. It is refused if it imports more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(remote = "Self", default, deny_unknown_fields)]
pub struct Grants {
    /// Topics that it may write to, besides a processor's default output.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub topics: Vec<TopicName>,
    /// Whether it may keep state. True by default: the state is its own, bounded, and visible to
    /// operators.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub state: bool,
    /// Whether it may have metrics of its own.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub metrics: bool,
    /// Secrets of the host that it may read.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub secrets: Vec<SecretName>,
    /// Servers that it may send HTTP requests to, as `https://api.example.com` or
    /// `http://[::1]:8080`.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub http: Vec<Origin>,
    /// Whether names of these servers may resolve to private, loopback or link-local addresses. A
    /// server that is given by its address needs no such permission.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub http_private: bool,
    /// Processors whose state it may read. Only components of routes can.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub views: Vec<ProcessorName>,
}

impl Default for Grants {
    fn default() -> Self {
        Self {
            topics: Vec::new(),
            state: true,
            metrics: false,
            secrets: Vec::new(),
            http: Vec::new(),
            http_private: false,
            views: Vec::new(),
        }
    }
}

impl Grants {
    /// The right to write to these topics, and nothing else beyond the default.
    #[must_use]
    pub fn of_topics(topics: Vec<TopicName>) -> Self {
        Self {
            topics,
            ..Self::default()
        }
    }

    /// Each list that has a bound: its field in a specification, its length, and the bound.
    #[must_use]
    pub fn lengths(&self) -> [(&'static str, usize, usize); 4] {
        [
            ("grants.topics", self.topics.len(), PROCESSOR_TOPICS_MAX),
            ("grants.secrets", self.secrets.len(), GRANTED_SECRETS_MAX),
            ("grants.http", self.http.len(), GRANTED_SERVERS_MAX),
            ("grants.views", self.views.len(), GRANTED_VIEWS_MAX),
        ]
    }
}

impl Serialize for Grants {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // The derived function of the same name.
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for Grants {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Form)
    }
}

/// Reads grants in both forms: until contract 0.1.0 they were a list of topics.
struct Form;

impl<'de> Visitor<'de> for Form {
    type Value = Grants;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "an object with the fields topics, state, metrics, secrets, http, http_private and views",
        )
    }

    fn visit_seq<A: SeqAccess<'de>>(self, topics: A) -> Result<Grants, A::Error> {
        let topics = Vec::<TopicName>::deserialize(SeqAccessDeserializer::new(topics))?;
        Ok(Grants::of_topics(topics))
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Grants, A::Error> {
        // The derived function of the same name.
        Grants::deserialize(MapAccessDeserializer::new(fields))
    }
}

/// A server: scheme, host and port. Only the whole of it is compared, so a grant for `https` is none for `http`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Origin {
    is_tls: bool,
    /// In lower case; an IPv6 address without its brackets.
    host: String,
    port: u16,
}

/// Why a text is not an origin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a server: {reason}; write scheme, host and port only, such as https://api.example.com or http://[::1]:8080"
)]
pub struct OriginError {
    text: String,
    reason: &'static str,
}

const HTTP_PORT: u16 = 80;
const HTTPS_PORT: u16 = 443;

/// Characters of a server's name, as in DNS.
const HOST_CHARS_MAX: usize = 253;

impl Origin {
    /// Parses `scheme://host` or `scheme://host:port`.
    ///
    /// # Errors
    /// [`OriginError`] says which part is wrong.
    pub fn parse(text: &str) -> Result<Self, OriginError> {
        Self::parts(text).map_err(|reason| OriginError {
            text: text.chars().take(HOST_CHARS_MAX).collect(),
            reason,
        })
    }

    fn parts(text: &str) -> Result<Self, &'static str> {
        let (scheme, rest) = text.split_once("://").ok_or("it has no scheme")?;
        let is_tls = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return Err("its scheme is neither http nor https"),
        };
        // After the port as well: "9000/path" is no wrong number, but more than a server.
        if rest.contains(['/', '?', '#']) {
            return Err("something follows the server");
        }
        if rest.contains('@') {
            return Err("it has a user name, which no grant has");
        }
        let (host, port) = match rest.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or("its address has no ]")?;
                let address: std::net::Ipv6Addr =
                    host.parse().map_err(|_| "its address is not one of IPv6")?;
                let port = match port.is_empty() {
                    true => None,
                    false => Some(
                        port.strip_prefix(':')
                            .ok_or("something follows its address")?,
                    ),
                };
                (address.to_string(), port)
            }
            None => match rest.split_once(':') {
                Some((host, port)) => (host.to_ascii_lowercase(), Some(port)),
                None => (rest.to_ascii_lowercase(), None),
            },
        };
        check_host(&host)?;
        let usual = if is_tls { HTTPS_PORT } else { HTTP_PORT };
        let port = match port {
            None => usual,
            Some(port) => port
                .parse()
                .map_err(|_| "its port is not a number up to 65535")?,
        };
        match port {
            0 => Err("port 0 cannot be reached"),
            port => Ok(Self { is_tls, host, port }),
        }
    }

    /// Whether the scheme is `https`.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// A name in lower case, or an address; an IPv6 address without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

/// A name of DNS, or an address. A number in another notation, such as `0x7f.1`, is an address for some resolvers and a name for
/// others, so it is neither here.
fn check_host(host: &str) -> Result<(), &'static str> {
    if host.parse::<std::net::IpAddr>().is_ok() {
        return Ok(());
    }
    if host.is_empty() || host.len() > HOST_CHARS_MAX {
        return Err("its host is empty or too long");
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let labels_are_names = host
        .split('.')
        .all(|label| !label.is_empty() && label.chars().all(allowed));
    if !labels_are_names {
        return Err("its host is neither a name nor an address");
    }
    let last = host.rsplit('.').next().unwrap_or(host);
    match last.starts_with(|c: char| c.is_ascii_digit()) {
        true => Err("its host is a number, not a name or an address"),
        false => Ok(()),
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, usual) = match self.is_tls {
            true => ("https", HTTPS_PORT),
            false => ("http", HTTP_PORT),
        };
        match self.host.contains(':') {
            true => write!(f, "{scheme}://[{}]", self.host)?,
            false => write!(f, "{scheme}://{}", self.host)?,
        }
        match self.port == usual {
            true => Ok(()),
            false => write!(f, ":{}", self.port),
        }
    }
}

impl std::str::FromStr for Origin {
    type Err = OriginError;
    fn from_str(text: &str) -> Result<Self, OriginError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Origin {
    type Error = OriginError;
    fn try_from(text: String) -> Result<Self, OriginError> {
        Self::parse(&text)
    }
}

impl From<Origin> for String {
    fn from(origin: Origin) -> Self {
        origin.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_has_one_spelling() {
        let spelled = [
            ("https://API.example.com", "https://api.example.com"),
            ("https://api.example.com:443", "https://api.example.com"),
            ("http://127.0.0.1:80", "http://127.0.0.1"),
            ("http://[0:0::1]:8080", "http://[::1]:8080"),
            ("HTTP://localhost:7400", "http://localhost:7400"),
        ];
        for (written, shown) in spelled {
            let origin = Origin::parse(written).expect(written);
            assert_eq!(origin.to_string(), shown);
            assert_eq!(Origin::parse(shown), Ok(origin));
        }
    }

    #[test]
    fn what_is_more_or_less_than_an_origin_is_refused() {
        let refused = [
            "",
            "example.com",
            "ftp://example.com",
            "https://",
            "https://example.com/",
            "https://example.com/path",
            "https://user@example.com",
            "https://example.com:0",
            "https://example.com:70000",
            "https://example..com",
            "https://*.example.com",
            "http://0x7f.1",
            "http://2130706433",
            "http://127.1",
            "http://[::1",
            "http://[::1]x",
            "http://[example.com]",
        ];
        for text in refused {
            let error = Origin::parse(text).expect_err(text);
            assert!(
                error.to_string().contains("https://api.example.com"),
                "{error}"
            );
        }
    }

    #[test]
    fn the_reason_names_what_is_wrong() {
        for (text, reason) in [
            ("https://x/path", "something follows the server"),
            ("https://example.com/", "something follows the server"),
            (
                "https://example.com:8080/path",
                "something follows the server",
            ),
            ("https://example.com?x=1", "something follows the server"),
            ("http://[::1]/path", "something follows the server"),
            ("https://ada@example.com", "it has a user name"),
            ("https://example.com:x", "its port is not a number"),
            ("https://ex ample.com", "neither a name nor an address"),
        ] {
            let error = Origin::parse(text).expect_err(text).to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn a_list_of_topics_is_read_as_grants_and_an_unknown_field_is_refused() {
        let topic = TopicName::parse("out").expect("a name");
        let listed: Grants = serde_json::from_str(r#"["out"]"#).expect("the old form");
        assert_eq!(listed, Grants::of_topics(vec![topic]));
        let stored = serde_json::to_string(&listed).expect("JSON");
        assert_eq!(
            serde_json::from_str::<Grants>(&stored).expect("JSON"),
            listed
        );
        let fields: Grants = serde_json::from_str(r#"{"state": false}"#).expect("the new form");
        assert!(!fields.state && fields.topics.is_empty());
        let error = serde_json::from_str::<Grants>(r#"{"sate": true}"#).expect_err("a typo");
        assert!(error.to_string().contains("`sate`"), "{error}");
    }
}
