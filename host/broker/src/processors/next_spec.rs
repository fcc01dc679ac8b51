//! What a deployment asks for: a whole specification, or changes of the current one. Changes are laid over whatever is current when the
//! deployment has its turn, so that of two deployers neither undoes what the other one said.

use millrace_model::{Processor, ProcessorName, ProcessorSpec};
use serde_json::{Map, Value};

use crate::messages::beginning::BeginAt;
use crate::processors::error::ProcessorError;
use crate::processors::error::invalid;

/// What the next revision is to be made of.
#[derive(Clone, Debug)]
pub struct NextSpec {
    wanted: Wanted,
    expected: Option<u32>,
    begin_at: Option<BeginAt>,
}

#[derive(Clone, Debug)]
enum Wanted {
    /// This, and nothing of what was.
    Whole(Box<ProcessorSpec>),
    /// What was, with these fields changed.
    Changes(Map<String, Value>),
}

impl From<ProcessorSpec> for NextSpec {
    fn from(spec: ProcessorSpec) -> Self {
        Self {
            wanted: Wanted::Whole(Box::new(spec)),
            expected: None,
            begin_at: None,
        }
    }
}

impl NextSpec {
    /// What the current revision is made of, with these fields changed as a merge patch (RFC 7396) says: a group of fields is changed
    /// field by field, and null is the default. Of a processor that is not there yet it is everything that differs from the defaults.
    #[must_use]
    pub fn changes(changes: Map<String, Value>) -> Self {
        Self {
            wanted: Wanted::Changes(changes),
            expected: None,
            begin_at: None,
        }
    }

    /// Only if this revision is the current one; 0 is a processor that is not there yet.
    #[must_use]
    pub fn expecting(self, expected: Option<u32>) -> Self {
        Self { expected, ..self }
    }

    /// Where the processor begins, if this makes it. One that is there goes on where it is.
    #[must_use]
    pub fn beginning_at(self, begin_at: Option<BeginAt>) -> Self {
        Self { begin_at, ..self }
    }

    pub(crate) fn begin_at(&self) -> Option<BeginAt> {
        self.begin_at
    }

    /// The specification, with `current` as it is now.
    pub(crate) fn over(
        self,
        name: &ProcessorName,
        current: Option<&Processor>,
    ) -> Result<ProcessorSpec, ProcessorError> {
        let number = current.map_or(0, |processor| processor.current);
        if let Some(expected) = self.expected.filter(|&expected| expected != number) {
            return Err(ProcessorError::OtherRevision {
                name: name.clone(),
                expected,
                current: number,
            });
        }
        let changes = match self.wanted {
            Wanted::Whole(spec) => return Ok(*spec),
            Wanted::Changes(changes) => changes,
        };
        let before = current.and_then(Processor::current);
        let before = before.map(|revision| serde_json::to_value(&revision.spec));
        let Some(Ok(Value::Object(mut fields))) = before else {
            return first(name, changes);
        };
        merge(&mut fields, changes);
        understood(fields)
    }
}

fn first(
    name: &ProcessorName,
    changes: Map<String, Value>,
) -> Result<ProcessorSpec, ProcessorError> {
    let mut fields = Map::new();
    merge(&mut fields, changes);
    match ["topics", "module"]
        .iter()
        .all(|field| fields.contains_key(*field))
    {
        true => understood(fields),
        false => invalid(format!(
            "there is no processor {name} yet, and its first revision has to be told what it reads (topics) and what processes it (module)"
        )),
    }
}

fn understood(fields: Map<String, Value>) -> Result<ProcessorSpec, ProcessorError> {
    serde_json::from_value(Value::Object(fields))
        .or_else(|error| invalid(format!("with these changes: {error}")))
}

/// Lays changes over fields, as a merge patch (RFC 7396).
pub fn merge(fields: &mut Map<String, Value>, changes: Map<String, Value>) {
    for (name, change) in changes {
        match change {
            Value::Null => {
                fields.remove(&name);
            }
            Value::Object(changes) => {
                let group = fields.entry(name).or_insert(Value::Null);
                if !group.is_object() {
                    *group = Value::Object(Map::new());
                }
                if let Value::Object(group) = group {
                    merge(group, changes);
                }
            }
            value => {
                fields.insert(name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(fields) => fields,
            other => panic!("{other} is no object"),
        }
    }

    #[test]
    fn changes_reach_the_fields_of_a_group_and_null_takes_back_what_was_said() {
        let mut fields = object(json!({
            "module": "a", "retry": {"attempts_max": 10, "delay_first_ms": 1000}, "grants": ["x"], "hops_max": 3,
        }));
        let changes = json!({
            "module": "b", "retry": {"attempts_max": null, "delay_max_ms": 7}, "grants": [], "hops_max": null, "batch": {"linger_ms": 1},
        });
        merge(&mut fields, object(changes));
        let expected = json!({
            "module": "b", "retry": {"delay_first_ms": 1000, "delay_max_ms": 7}, "grants": [], "batch": {"linger_ms": 1},
        });
        assert_eq!(Value::Object(fields), expected);
    }
}
