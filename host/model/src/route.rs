//! A route: HTTP requests under a path are answered by a component.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::bounds::ROUTE_PATH_CHARS_MAX;
use crate::clock::Timestamp;
use crate::digest::Digest;
use crate::processor::{Config, Grants, Limits};

/// First segments of paths that the host answers itself, now or in time to come.
const RESERVED: [&str; 6] = ["v1", "v2", "health", "metrics", "openapi.json", "console"];

/// The path of a route, which is also its name: it answers this path and everything under it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RoutePath(Arc<str>);

/// Why a text is not the path of a route.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{path:?} is not the path of a route: {reason}; write it like /hooks/orders, with letters, digits, '.', '_', '~' and '-' between the slashes"
)]
pub struct RoutePathError {
    path: String,
    reason: &'static str,
}

impl RoutePath {
    /// Parses the path.
    ///
    /// # Errors
    /// [`RoutePathError`] says which rule it breaks.
    pub fn parse(path: &str) -> Result<Self, RoutePathError> {
        match check(path) {
            Ok(()) => Ok(Self(path.into())),
            Err(reason) => Err(RoutePathError {
                path: path.chars().take(ROUTE_PATH_CHARS_MAX).collect(),
                reason,
            }),
        }
    }

    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a request's path is this one or under it.
    #[must_use]
    pub fn covers(&self, path: &str) -> bool {
        let rest = path.strip_prefix(&*self.0);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

fn check(path: &str) -> Result<(), &'static str> {
    let Some(inner) = path.strip_prefix('/') else {
        return Err("it does not begin with a slash");
    };
    if path.len() > ROUTE_PATH_CHARS_MAX {
        return Err("it is too long");
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '~' | '-');
    for segment in inner.split('/') {
        match segment {
            "" => return Err("it has an empty segment"),
            "." | ".." => return Err("it goes elsewhere"),
            segment if !segment.chars().all(allowed) => return Err("it has other characters"),
            _ => {}
        }
    }
    let first = inner.split('/').next().unwrap_or(inner);
    match RESERVED.contains(&first) {
        true => Err("the host answers this path itself"),
        false => Ok(()),
    }
}

impl fmt::Display for RoutePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for RoutePath {
    type Err = RoutePathError;
    fn from_str(path: &str) -> Result<Self, RoutePathError> {
        Self::parse(path)
    }
}

impl TryFrom<String> for RoutePath {
    type Error = RoutePathError;
    fn try_from(path: String) -> Result<Self, RoutePathError> {
        Self::parse(&path)
    }
}

impl From<RoutePath> for String {
    fn from(path: RoutePath) -> Self {
        path.as_str().to_owned()
    }
}

/// A route's definition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteSpec {
    /// The component that answers.
    pub module: Digest,
    /// What it may use.
    #[serde(default)]
    pub grants: Grants,
    /// Its settings.
    #[serde(default)]
    pub config: Config,
    /// The limits of one request.
    #[serde(default)]
    pub limits: Limits,
}

/// A route as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Its path.
    pub path: RoutePath,
    /// Its definition.
    pub spec: RouteSpec,
    /// How often it was set.
    pub revision: u32,
    /// When it was last set.
    pub set_at: Timestamp,
    /// Who set it, as claimed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_by: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_covers_itself_and_what_is_under_it() {
        let path = RoutePath::parse("/hooks/orders").expect("a path");
        for covered in ["/hooks/orders", "/hooks/orders/", "/hooks/orders/1/x"] {
            assert!(path.covers(covered), "{covered}");
        }
        for other in [
            "/hooks",
            "/hooks/orders2",
            "/hooks/order",
            "/",
            "/x/hooks/orders",
        ] {
            assert!(!path.covers(other), "{other}");
        }
    }

    #[test]
    fn what_could_hide_the_hosts_own_paths_is_refused() {
        let refused = [
            "",
            "/",
            "hooks",
            "/hooks/",
            "//hooks",
            "/a//b",
            "/a/../b",
            "/a/.",
            "/a b",
            "/a%2f",
            "/v1",
            "/v1/topics",
            "/metrics",
            "/health/live",
            "/openapi.json",
            "/ä",
        ];
        for path in refused {
            let error = RoutePath::parse(path).expect_err(path);
            assert!(error.to_string().contains("/hooks/orders"), "{error}");
        }
        let long = format!("/{}", "x".repeat(ROUTE_PATH_CHARS_MAX));
        assert!(RoutePath::parse(&long).is_err());
    }
}
