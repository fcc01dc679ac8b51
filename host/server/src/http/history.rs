//! A processor's history over HTTP: its revisions with their changes, and what was done to it, by whom and when.

use std::collections::BTreeMap;

use axum::Json;
use millrace_model::{Change, Processor, ProcessorName, ProcessorSpec, Revision};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::called::Called;
use super::error::{ApiError, ErrorBody};
use super::query::InPath;

#[derive(Serialize, ToSchema)]
pub(super) struct HistoryBody {
    /// The number of the revision that takes the next batch.
    current: u32,
    /// The revision that a rollback would return to: the last one that worked. Absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    way_back: Option<u32>,
    /// Oldest first, as far as they are kept.
    revisions: Vec<PastRevision>,
    /// Oldest first, as far as they are kept.
    changes: Vec<Change>,
}

/// A revision and its changes.
#[derive(Serialize, ToSchema)]
pub(super) struct PastRevision {
    number: u32,
    /// The module's digest.
    module: String,
    /// The module's tags, if it has any, separated by commas.
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<String>,
    /// Milliseconds since the Unix epoch.
    deployed_at: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    deployed_by: Option<String>,
    /// Whether it was never current.
    trial: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
    /// The differences from the revision before; empty if that one is no longer kept.
    differs: Vec<Difference>,
}

/// One field of the specification.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(super) struct Difference {
    /// Its name, such as `batch.messages_max`.
    field: String,
    /// Its value in the specification: a string, a number, a list; null if it was not set.
    before: Value,
    /// Its value in this revision.
    after: Value,
}

/// A processor's revisions with their changes, and what was done to it, by whom and when.
#[utoipa::path(get, path = "/v1/processors/{name}/history", tag = "processors", params(("name" = String, Path,)), responses(
    (status = 200, body = HistoryBody),
    (status = 404, body = ErrorBody),
))]
pub(super) async fn show(
    app: Called,
    InPath(name): InPath<ProcessorName>,
) -> Result<Json<HistoryBody>, ApiError> {
    let status = app.status(&name).await?;
    let processor = status.processor;
    let past = |revision| app.past(&processor, revision);
    Ok(Json(HistoryBody {
        current: processor.current,
        way_back: status.way_back,
        revisions: processor.revisions.iter().map(past).collect(),
        changes: processor.changes.clone(),
    }))
}

impl Called {
    fn past(&self, processor: &Processor, revision: &Revision) -> PastRevision {
        let module = self
            .session
            .catalogue()
            .find_module(&revision.spec.module.to_string());
        let before = revision.predecessor.and_then(|n| processor.revision(n));
        PastRevision {
            number: revision.number,
            module: revision.spec.module.to_string(),
            tag: module.and_then(|module| {
                let tags: Vec<&str> = module.tags().collect();
                (!tags.is_empty()).then(|| tags.join(", "))
            }),
            deployed_at: revision.deployed_at.0,
            deployed_by: revision.deployed_by.clone(),
            trial: revision.trial,
            note: revision.note.clone(),
            differs: before
                .map_or_else(Vec::new, |before| differences(&before.spec, &revision.spec)),
        }
    }
}

pub(super) fn differences(before: &ProcessorSpec, after: &ProcessorSpec) -> Vec<Difference> {
    let (before, mut after) = (fields(before), fields(after));
    let mut found = Vec::new();
    for (field, before) in before {
        let after = after.remove(&field).unwrap_or_default();
        if before != after {
            found.push(Difference {
                field,
                before,
                after,
            });
        }
    }
    found.extend(after.into_iter().map(|(field, after)| Difference {
        field,
        before: Value::Null,
        after,
    }));
    found
}

/// The fields of a specification, those of its groups one by one.
fn fields(spec: &ProcessorSpec) -> BTreeMap<String, Value> {
    let mut fields = BTreeMap::new();
    let spec = serde_json::to_value(spec).unwrap_or_default();
    for (name, value) in spec.as_object().into_iter().flatten() {
        match value.as_object() {
            Some(group) => fields.extend(
                group
                    .iter()
                    .map(|(field, value)| (format!("{name}.{field}"), value.clone())),
            ),
            None => {
                fields.insert(name.clone(), value.clone());
            }
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use millrace_model::{Digest, TopicName};
    use serde_json::json;

    use super::*;

    #[test]
    fn what_differs_between_two_specs_is_named_field_by_field() {
        let before: ProcessorSpec = serde_json::from_value(json!({
            "topics": ["in"], "module": Digest([1; 32]).to_string(),
        }))
        .expect("a spec");
        let mut after = before.clone();
        after.batch.messages_max = 7;
        after.output = Some(TopicName::parse("out").expect("a name"));
        let found = differences(&before, &after);
        let found: Vec<_> = found.iter().map(|d| (&d.field[..], &d.after)).collect();
        assert_eq!(
            found,
            [("batch.messages_max", &json!(7)), ("output", &json!("out"))]
        );
        assert!(differences(&before, &before).is_empty());
    }
}
