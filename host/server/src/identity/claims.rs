//! The JSON of a JWT, read strictly: an object in which no name is there twice (RFC 8725 section 2.4 and RFC 7519 section 4 leave open
//! which of two counts, so neither does), and which is not nested deeply.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::bounds::CLAIMS_DEPTH_MAX;
use super::refusal::{Refusal, shown};

/// What a JWT says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Claims(Map<String, Value>);

impl Claims {
    /// Reads one part of a JWT; `what` is its name.
    pub(super) fn read(bytes: &[u8], what: &'static str) -> Result<Self, Refusal> {
        let problem = Cell::new(Refusal::NotJson as fn(_) -> _);
        let strict = Strict {
            depth: 0,
            problem: &problem,
        };
        let mut reader = serde_json::Deserializer::from_slice(bytes);
        let read = strict
            .deserialize(&mut reader)
            .and_then(|value| reader.end().map(|()| value));
        match read {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            Ok(_) => Err(Refusal::NotJson(what)),
            Err(_) => Err(problem.get()(what)),
        }
    }

    /// The claim of this name, or the nested one at this path (`realm.team`).
    pub(super) fn at(&self, path: &str) -> Option<&Value> {
        // Names of claims may contain dots themselves: `https://example.com/team`.
        if let Some(value) = self.0.get(path) {
            return Some(value);
        }
        let (first, rest) = path.split_once('.')?;
        let mut value = self.0.get(first)?;
        for name in rest.split('.') {
            value = value.as_object()?.get(name)?;
        }
        Some(value)
    }

    pub(super) fn needed(&self, path: &str) -> Result<&Value, Refusal> {
        self.at(path).ok_or_else(|| Refusal::Missing(shown(path)))
    }

    /// A text that must be there.
    pub(super) fn text(&self, path: &str) -> Result<&str, Refusal> {
        let value = self.needed(path)?;
        value.as_str().ok_or_else(|| Refusal::Kind(shown(path)))
    }

    /// A text, if it is there.
    pub(super) fn maybe_text(&self, path: &str) -> Result<Option<&str>, Refusal> {
        match self.at(path) {
            Some(_) => self.text(path).map(Some),
            None => Ok(None),
        }
    }

    /// A NumericDate (RFC 7519 section 2) in milliseconds since the Unix epoch, if it is there.
    pub(super) fn time_ms(&self, path: &str) -> Result<Option<u64>, Refusal> {
        let Some(value) = self.at(path) else {
            return Ok(None);
        };
        let seconds = value.as_f64().ok_or_else(|| Refusal::Kind(shown(path)))?;
        // The cast keeps within the range: before 1970 it is 0, and far in the future the last moment.
        Ok(Some((seconds * 1_000.0) as u64))
    }
}

/// Reads a value of any kind, within the depth and without names that are there twice.
#[derive(Clone, Copy)]
struct Strict<'a> {
    depth: usize,
    problem: &'a Cell<fn(&'static str) -> Refusal>,
}

impl Strict<'_> {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth >= CLAIMS_DEPTH_MAX {
            self.problem.set(Refusal::TooDeep);
            return Err(E::custom("nested too deeply"));
        }
        Ok(Self {
            depth: self.depth + 1,
            ..self
        })
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let within = self.deeper()?;
        let mut all = Vec::new();
        while let Some(item) = items.next_element_seed(within)? {
            all.push(item);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let within = self.deeper()?;
        let mut all = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            let value = fields.next_value_seed(within)?;
            if all.insert(name, value).is_some() {
                self.problem.set(Refusal::Twice);
                return Err(A::Error::custom("a name is there twice"));
            }
        }
        Ok(Value::Object(all))
    }
}
