//! A route: HTTP requests under a path are answered by a component.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::bounds::ROUTE_PATH_CHARS_MAX;
use crate::clock::Timestamp;
use crate::digest::Digest;
use crate::processor::{Change, Config, Grants, Limits};

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
    /// When it is withdrawn as a canary.
    #[serde(default)]
    pub breaker: RouteBreaker,
    /// Whether everyone may call it, without the right to.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub public: bool,
}

/// When a route's canary is withdrawn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct RouteBreaker {
    /// Whether failed requests withdraw the canary.
    pub enabled: bool,
    /// It is withdrawn when this many of its requests in a row fail; fewer failures never withdraw it.
    pub failures_min: u32,
    /// It is also withdrawn when this percentage of its latest requests fail.
    pub failed_percent: u32,
    /// How many requests count as the latest.
    pub window_requests: u32,
}

impl Default for RouteBreaker {
    fn default() -> Self {
        Self {
            enabled: true,
            failures_min: 5,
            failed_percent: 50,
            window_requests: 20,
        }
    }
}

/// One setting of a route. Numbers count from 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteRevision {
    /// The revision's number.
    pub number: u32,
    /// Its definition.
    pub spec: RouteSpec,
    /// When it was set.
    pub set_at: Timestamp,
    /// Who set it, as claimed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_by: Option<String>,
    /// Whether it was never current: it is or was only a canary.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub trial: bool,
    /// Whether it was rolled back or withdrawn, so that no rollback leads to it unless it is named.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub voided: bool,
}

/// A revision that answers a share of the requests beside the current one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteCanary {
    /// Its number.
    pub revision: u32,
    /// The percentage of the requests that it answers, 1 to 99.
    pub percent: u32,
    /// When it began.
    pub since: Timestamp,
}

/// A route as it is stored, with its history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "StoredRoute")]
pub struct Route {
    /// Its path.
    pub path: RoutePath,
    /// The number of the current revision.
    pub current: u32,
    /// Its revisions, oldest first; at most [`crate::bounds::REVISIONS_KEPT_MAX`], besides those that run and the newest.
    pub revisions: Vec<RouteRevision>,
    /// The revision on trial.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canary: Option<RouteCanary>,
    /// What was done to it, oldest first; at most [`crate::bounds::CHANGES_KEPT_MAX`].
    pub changes: Vec<Change>,
}

impl Route {
    /// The revision with this number, if it is kept.
    #[must_use]
    pub fn revision(&self, number: u32) -> Option<&RouteRevision> {
        self.revisions.iter().find(|r| r.number == number)
    }

    /// The current revision.
    #[must_use]
    pub fn current(&self) -> Option<&RouteRevision> {
        self.revision(self.current)
    }

    /// The number of the canary.
    #[must_use]
    pub fn on_trial(&self) -> Option<u32> {
        self.canary.map(|canary| canary.revision)
    }

    /// The revisions that answer requests: the current one, and the canary if there is one.
    pub fn running(&self) -> impl Iterator<Item = &RouteRevision> {
        let numbers = [Some(self.current), self.on_trial()];
        let numbers = numbers.into_iter().flatten();
        numbers.filter_map(|number| self.revision(number))
    }

    /// The revision that a rollback returns to: the newest before the current one that was current and was not taken back, among those
    /// that can still run.
    pub fn way_back(&self, can_run: impl Fn(&RouteRevision) -> bool) -> Option<&RouteRevision> {
        let before = self.revisions.iter().rev();
        let mut before =
            before.filter(|r| r.number < self.current && !r.trial && !r.voided && can_run(r));
        before.next()
    }
}

/// A route as it is read: today's form, or that of a host whose routes had no history.
#[derive(Deserialize)]
#[serde(untagged)]
enum StoredRoute {
    WithHistory {
        path: RoutePath,
        current: u32,
        revisions: Vec<RouteRevision>,
        #[serde(default)]
        canary: Option<RouteCanary>,
        changes: Vec<Change>,
    },
    Alone {
        path: RoutePath,
        spec: Box<RouteSpec>,
        revision: u32,
        set_at: Timestamp,
        #[serde(default)]
        set_by: Option<String>,
    },
}

impl From<StoredRoute> for Route {
    fn from(stored: StoredRoute) -> Self {
        match stored {
            StoredRoute::WithHistory {
                path,
                current,
                revisions,
                canary,
                changes,
            } => Self {
                path,
                current,
                revisions,
                canary,
                changes,
            },
            StoredRoute::Alone {
                path,
                spec,
                revision,
                set_at,
                set_by,
            } => Self {
                path,
                current: revision,
                revisions: vec![RouteRevision {
                    number: revision,
                    spec: *spec,
                    set_at,
                    set_by,
                    trial: false,
                    voided: false,
                }],
                canary: None,
                changes: Vec::new(),
            },
        }
    }
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

    #[test]
    fn a_route_that_was_stored_without_history_is_its_first_kept_revision() {
        let module = Digest([7; 32]).to_string();
        let stored = format!(
            r#"{{"path": "/a", "spec": {{"module": "{module}"}}, "revision": 3, "set_at": 5, "set_by": "ops"}}"#
        );
        let route: Route = serde_json::from_str(&stored).expect("the old form");
        assert_eq!((route.current, route.revisions.len()), (3, 1));
        let current = route.current().expect("it is kept");
        assert_eq!(
            (current.set_at, current.set_by.as_deref()),
            (Timestamp(5), Some("ops"))
        );
        let again = serde_json::to_string(&route).expect("JSON");
        assert_eq!(
            serde_json::from_str::<Route>(&again).expect("today's form"),
            route
        );
    }
}
