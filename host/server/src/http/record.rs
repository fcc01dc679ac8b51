//! Records of what was done to the host and by whom: a log line for every change, a count for every request.

use std::time::Duration;

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::Response;
use metrics::{counter, histogram};
use millrace_model::plain::plain;

/// Bytes of a request's target that a log line shows.
const TARGET_BYTES_MAX: usize = 512;

const TOPIC_CREATED: &str = "topic created";
const CONSUMER_MADE: &str = "consumer created";

/// The subject of an answer, if the request's path does not name it.
#[derive(Clone)]
pub(super) struct Subject(pub(super) String);

/// What is noted of a request before it is answered.
pub(super) struct Asked {
    method: Method,
    /// The documented route; none if there is no such route.
    route: Option<MatchedPath>,
    target: String,
    by: String,
}

impl Asked {
    pub(super) fn of(request: &Request, by: &str) -> Self {
        let uri = request.uri();
        let target = uri
            .path_and_query()
            .map_or_else(|| uri.path(), |both| both.as_str());
        let cut = target.floor_char_boundary(TARGET_BYTES_MAX);
        Self {
            method: request.method().clone(),
            route: request.extensions().get().cloned(),
            target: plain(&target[..cut]).into_owned(),
            by: by.to_owned(),
        }
    }

    /// Counts the request, and logs what it changed.
    pub(super) fn answered(self, response: &Response, id: &HeaderValue, took: Duration) {
        let status = response.status();
        let route = self.route.as_ref().map_or("none", MatchedPath::as_str);
        let (method, route) = (method_of(&self.method), route.to_owned());
        counter!(
            "millrace_http_requests_total", "method" => method, "route" => route.clone(), "code" => status.as_u16().to_string()
        )
        .increment(1);
        histogram!("millrace_http_request_seconds", "method" => method, "route" => route.clone())
            .record(took.as_secs_f64());
        let Some(what) = change(&self.method, &route) else {
            return;
        };
        let (by, target) = (self.by, self.target);
        let request = id.to_str().unwrap_or_default();
        if !status.is_success() {
            tracing::debug!(
                by,
                request,
                target,
                status = status.as_u16(),
                "refused: {what}"
            );
            return;
        }
        // An existing object was not created.
        let makes = matches!(what, TOPIC_CREATED | CONSUMER_MADE);
        if makes && status != StatusCode::CREATED {
            return;
        }
        let subject = response.extensions().get::<Subject>();
        let subject = subject.map(|Subject(subject)| plain(subject).into_owned());
        tracing::info!(by, request, target, subject, "{what}");
    }
}

/// Known methods are few; all others count as one.
fn method_of(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

/// The change that the request makes to the host; `None` for reads, and for messages and positions, which are the host's normal work.
fn change(method: &Method, route: &str) -> Option<&'static str> {
    if matches!(method.as_str(), "GET" | "HEAD" | "OPTIONS") {
        return None;
    }
    Some(match (method.as_str(), route) {
        ("POST", "/v1/topics/{topic}/messages") | (_, "none") => return None,
        ("POST", "/v1/topics/{topic}/consumers/{name}/commit") => return None,
        ("POST", path) if path.ends_with("/dry-run") => return None,
        ("POST", "/v1/topics") => TOPIC_CREATED,
        ("PUT", "/v1/topics/{topic}/consumers/{name}") => CONSUMER_MADE,
        ("DELETE", "/v1/topics/{topic}/consumers/{name}") => "consumer deleted",
        ("POST", "/v1/topics/{topic}/consumers/{name}/reset") => "consumer reset",
        ("PATCH", "/v1/topics/{topic}") => "topic changed",
        ("DELETE", "/v1/topics/{topic}") => "topic deleted",
        ("POST", "/v1/topics/{topic}/trim") => "topic trimmed",
        ("DELETE", "/v1/topics/{topic}/delayed/{id}") => "delayed message cancelled",
        ("POST", "/v1/topics/{topic}/partitions/{partition}/damage/accept") => "damage accepted",
        ("POST", "/v1/modules") => "module uploaded",
        ("DELETE", "/v1/modules/{reference}") => "module deleted",
        ("PUT", "/v1/modules/{reference}/tags/{tag}") => "module tagged",
        ("DELETE", "/v1/modules/{reference}/tags/{tag}") => "tag taken back",
        ("PUT" | "PATCH", "/v1/processors/{name}") => "processor deployed",
        ("PUT" | "PATCH", "/v1/processors/{name}/config") => "processor configured",
        ("DELETE", "/v1/processors/{name}") => "processor deleted",
        ("POST", "/v1/processors/{name}/rollback") => "processor rolled back",
        ("POST", "/v1/processors/{name}/pause") => "processor paused",
        ("POST", "/v1/processors/{name}/resume") => "processor resumed",
        ("POST", "/v1/processors/{name}/canary") => "canary changed",
        ("POST", "/v1/processors/{name}/promote") => "revision promoted",
        ("POST", "/v1/processors/{name}/replay") => "replay created",
        ("DELETE", "/v1/processors/{name}/shadow") => "shadow ended",
        ("POST", "/v1/processors/{name}/state") => "state written",
        ("PUT", "/v1/routes/{*path}") => "route set",
        ("DELETE", "/v1/routes/{*path}") => "route deleted",
        // Its target says which.
        ("POST", "/v1/routes/{*path}") => "revision of a route changed",
        ("PUT", "/v1/schedules/{name}") => "schedule set",
        ("DELETE", "/v1/schedules/{name}") => "schedule deleted",
        ("POST", "/v1/schedules/{name}/pause") => "schedule paused",
        ("POST", "/v1/schedules/{name}/resume") => "schedule resumed",
        ("POST", "/v1/schedules/{name}/run") => "schedule run",
        ("POST", "/v1/processors/{name}/parked/try-now") => "parked messages tried now",
        ("POST", "/v1/processors/{name}/parked/give-up") => "parked messages given up",
        ("POST", "/v1/backup") => "backup made",
        ("PUT", "/v1/access/principals/{name}") => "rules of a principal replaced",
        ("DELETE", "/v1/access/principals/{name}") => "principal deleted",
        ("PUT", "/v1/access/principals/{name}/identities/{identity}") => "identity added",
        ("DELETE", "/v1/access/principals/{name}/identities/{identity}") => "identity removed",
        ("PATCH", "/v1/access/principals/{name}/quotas") => "quotas of a principal changed",
        ("POST", "/v1/access/principals/{name}/grant") => "rule granted",
        ("POST", "/v1/access/principals/{name}/withdraw") => "rule withdrawn",
        ("POST", "/v1/access/principals/{name}/tokens") => "token made",
        ("POST", "/v1/access/principals/{name}/tokens/{token}/rotate") => "token rotated",
        ("DELETE", "/v1/access/principals/{name}/tokens/{token}") => "token revoked",
        ("PUT", "/v1/access/principals/{name}/password") => "password set",
        ("DELETE", "/v1/access/principals/{name}/password") => "password removed",
        ("POST", "/v1/processors/{name}/dead-letters/redrive") => "dead letters redriven",
        ("POST", path) if path.ends_with("/edit") => "dead letter edited and sent again",
        _ => "changed",
    })
}

#[cfg(test)]
mod tests {
    use super::super::every_route;
    use super::*;

    #[test]
    fn every_route_that_changes_something_has_words_of_its_own() {
        for route in every_route() {
            let what = change(&route.method, route.path);
            assert_ne!(what, Some("changed"), "{} {}", route.method, route.path);
            // Messages are what the host is for, and a dry run changes nothing.
            let reads = route.method == Method::GET
                || route.path.ends_with("/messages")
                || route.path.ends_with("/commit")
                || route.path.ends_with("/dry-run");
            assert_eq!(reads, what.is_none(), "{} {}", route.method, route.path);
        }
    }
}
