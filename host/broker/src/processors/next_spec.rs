//! What a deployment specifies: a whole specification, or changes to the current one. Changes apply
//! to the specification that is current when the deployment is decided, so two deployers do not
//! undo each other's changes.

use std::collections::BTreeMap;

use millrace_model::processor::Config;
use millrace_model::{Processor, ProcessorName, ProcessorSpec};
use serde_json::{Map, Value};

use crate::messages::beginning::BeginAt;
use crate::processors::error::{ProcessorError, invalid};

/// The specification of the next revision.
#[derive(Clone, Debug)]
pub struct NextSpec {
    wanted: Wanted,
    expected: Option<u32>,
    begin_at: Option<BeginAt>,
    config: ConfigChange,
}

/// A change of the settings that a processor's component reads.
#[derive(Clone, Debug, Default)]
pub struct ConfigChange {
    /// Whether keys that are not named lose their values.
    pub replaces: bool,
    /// Keys and their new values; `None` removes a key.
    pub values: BTreeMap<String, Option<String>>,
}

impl ConfigChange {
    /// The settings after the change.
    pub(crate) fn over(self, before: &Config) -> Result<Config, ProcessorError> {
        let nothing = Config::default();
        let before = if self.replaces { &nothing } else { before };
        Ok(before.with(self.values)?)
    }
}

#[derive(Clone, Debug)]
enum Wanted {
    /// This specification; nothing of the current one stays.
    Whole(Box<ProcessorSpec>),
    /// The current specification with these fields changed.
    Changes(Map<String, Value>),
}

impl From<ProcessorSpec> for NextSpec {
    fn from(spec: ProcessorSpec) -> Self {
        Self {
            wanted: Wanted::Whole(Box::new(spec)),
            expected: None,
            begin_at: None,
            config: ConfigChange::default(),
        }
    }
}

impl NextSpec {
    /// The current specification with these fields changed, as a merge patch (RFC 7396): objects
    /// are merged field by field, and null resets a field to its default. For a new processor, the
    /// changes apply to the defaults.
    #[must_use]
    pub fn changes(changes: Map<String, Value>) -> Self {
        Self {
            wanted: Wanted::Changes(changes),
            expected: None,
            begin_at: None,
            config: ConfigChange::default(),
        }
    }

    /// Deploys only if this revision is current; 0 means that the processor must not exist yet.
    #[must_use]
    pub fn expecting(self, expected: Option<u32>) -> Self {
        Self { expected, ..self }
    }

    /// Where a new processor starts. An existing one continues at its progress.
    #[must_use]
    pub fn beginning_at(self, begin_at: Option<BeginAt>) -> Self {
        Self { begin_at, ..self }
    }

    /// Also changes the settings that the component reads, of an existing or a new processor.
    #[must_use]
    pub fn configuring(self, config: ConfigChange) -> Self {
        Self { config, ..self }
    }

    /// The settings after the deployment.
    pub(crate) fn config_over(&self, before: &Config) -> Result<Config, ProcessorError> {
        self.config.clone().over(before)
    }

    pub(crate) fn begin_at(&self) -> Option<BeginAt> {
        self.begin_at
    }

    /// The next specification, based on the `current` one.
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
            "processor {name} does not exist yet; its first revision must specify topics and module"
        )),
    }
}

fn understood(fields: Map<String, Value>) -> Result<ProcessorSpec, ProcessorError> {
    serde_json::from_value(Value::Object(fields))
        .or_else(|error| invalid(format!("with these changes: {error}")))
}

/// Applies changes to fields, as a merge patch (RFC 7396).
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
