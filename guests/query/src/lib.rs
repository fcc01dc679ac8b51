//! Answers questions about the state of processors that its route is granted, in JSON:
//!
//! - `?processor=counts&key=ada&key=bob`: the values of keys, `null` for one that has none
//! - `?processor=counts&prefix=order/&max=10`: entries whose keys begin so, partition by partition; `next` has the parameters for more
//!
//! `topic` names the input topic of a processor that reads several, and `partition` the partition; without it, a key is looked for where
//! messages with this key go, and entries begin with partition 0. A value is `value` if it is text and `value_base64` otherwise; one of eight
//! bytes is also a `number`, as text, which no JSON reader rounds.

use millrace_guest::views::{Entries, View, ViewError};
use requests::Answer;
use requests::encoding::{base64, form};
use serde_json::{Map, Value, json};
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{IncomingRequest, Method, ResponseOutparam};

struct Query;

wasip2::http::proxy::export!(Query);

/// Entries of one answer if the question does not say.
const ENTRIES: u32 = 100;

impl Guest for Query {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let answer = match request.method() {
            Method::Get => answer(&requests::query(&request)),
            _ => error(405, "a question is a GET"),
        };
        answer.give(out);
    }
}

fn answer(query: &str) -> Answer {
    let answered = Question::of(query).and_then(|question| match question.keys.is_empty() {
        true => question.entries(),
        false => question.values(),
    });
    match answered {
        Ok(body) => of_json(200, &body),
        Err(answer) => answer,
    }
}

/// What is asked.
#[derive(Debug, Default, PartialEq, Eq)]
struct Question {
    processor: String,
    topic: Option<String>,
    partition: Option<u32>,
    keys: Vec<String>,
    prefix: String,
    after: Option<String>,
    max: Option<u32>,
}

impl Question {
    fn of(query: &str) -> Result<Self, Answer> {
        let mut question = Self::default();
        for (name, value) in form(query.as_bytes()) {
            let number = || {
                value
                    .parse()
                    .map_err(|_| error(400, &format!("{name} is not a number")))
            };
            match name.as_str() {
                "processor" => question.processor = value,
                "topic" => question.topic = Some(value),
                "partition" => question.partition = Some(number()?),
                "key" => question.keys.push(value),
                "prefix" => question.prefix = value,
                "after" => question.after = Some(value),
                "max" => question.max = Some(number()?),
                other => return Err(error(400, &format!("there is no parameter {other:?}"))),
            }
        }
        match question.processor.is_empty() {
            true => Err(error(
                400,
                "name a processor, as in ?processor=counts&key=ada",
            )),
            false => Ok(question),
        }
    }

    fn view(&self) -> View<'_> {
        let view = View::of(&self.processor);
        match &self.topic {
            Some(topic) => view.topic(topic),
            None => view,
        }
    }

    fn values(&self) -> Result<Value, Answer> {
        let keys: Vec<&[u8]> = self.keys.iter().map(String::as_bytes).collect();
        let values = self.view().get_all(self.partition, &keys);
        let values = values.map_err(|error| unseen(&error))?;
        let shown = |(key, value): (&String, Option<Vec<u8>>)| {
            let value = value.map_or(Value::Null, |value| Value::Object(shown(&value)));
            (key.clone(), value)
        };
        let values: Map<String, Value> = self.keys.iter().zip(values).map(shown).collect();
        Ok(json!({"processor": self.processor, "values": values}))
    }

    fn entries(&self) -> Result<Value, Answer> {
        let view = self.view();
        let partition = self.partition.unwrap_or_default();
        let max = self.max.unwrap_or(ENTRIES);
        let after = self.after.as_deref().map(str::as_bytes);
        let page = view.scan(partition, self.prefix.as_bytes(), after, max);
        let page = page.map_err(|error| unseen(&error))?;
        let partitions = view.partitions().map_err(|error| unseen(&error))?;
        Ok(json!({
            "processor": self.processor,
            "partition": partition,
            "entries": page.entries.iter().map(entry).collect::<Vec<_>>(),
            "next": next(&page, partition, partitions),
        }))
    }
}

/// Where the rest begins; null if there is none.
fn next(page: &Entries, partition: u32, partitions: u32) -> Value {
    match (page.entries.last(), page.has_more) {
        // A key that is not text cannot be asked for, so the rest of its partition is left out.
        (Some(last), true) if str::from_utf8(&last.key).is_ok() => {
            json!({"partition": partition, "after": String::from_utf8_lossy(&last.key)})
        }
        _ if partition + 1 < partitions => json!({"partition": partition + 1}),
        _ => Value::Null,
    }
}

fn entry(entry: &millrace_guest::views::Entry) -> Value {
    let mut shown = shown(&entry.value);
    match str::from_utf8(&entry.key) {
        Ok(key) => shown.insert("key".to_owned(), key.into()),
        Err(_) => shown.insert("key_base64".to_owned(), base64(&entry.key).into()),
    };
    Value::Object(shown)
}

fn shown(value: &[u8]) -> Map<String, Value> {
    let mut shown = Map::new();
    match str::from_utf8(value) {
        Ok(text) => shown.insert("value".to_owned(), text.into()),
        Err(_) => shown.insert("value_base64".to_owned(), base64(value).into()),
    };
    if let Ok(number) = value.try_into().map(i64::from_le_bytes) {
        shown.insert("number".to_owned(), number.to_string().into());
    }
    shown
}

fn unseen(why: &ViewError) -> Answer {
    let status = match why {
        ViewError::NotGranted(_) => 403,
        ViewError::Refused(_) => 404,
        ViewError::Unavailable(_) => 503,
    };
    error(status, &why.to_string())
}

fn error(status: u16, message: &str) -> Answer {
    of_json(status, &json!({"error": message}))
}

fn of_json(status: u16, body: &Value) -> Answer {
    Answer::of_type(status, "application/json", &body.to_string())
}

#[cfg(test)]
mod tests {
    use millrace_guest::views::Entry;

    use super::*;

    #[test]
    fn a_question_names_its_processor_and_nothing_unknown() {
        let question = Question::of("processor=counts&key=a%20b&key=c&partition=3").expect("one");
        let expected = Question {
            processor: "counts".to_owned(),
            partition: Some(3),
            keys: vec!["a b".to_owned(), "c".to_owned()],
            ..Question::default()
        };
        assert_eq!(question, expected);
        for wrong in ["", "key=a", "processor=p&partition=x", "processor=p&kye=a"] {
            assert!(Question::of(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn values_are_text_or_base64_and_numbers_besides() {
        let text = json!({"value": "ab"});
        assert_eq!(Value::Object(shown(b"ab")), text);
        let number = json!({"value_base64": "//////////8=", "number": "-1"});
        assert_eq!(Value::Object(shown(&(-1i64).to_le_bytes())), number);
    }

    #[test]
    fn the_rest_is_in_this_partition_or_in_the_next_one() {
        let page = |key: &[u8], has_more| Entries {
            entries: vec![Entry {
                key: key.to_vec(),
                value: Vec::new(),
            }],
            has_more,
        };
        let here = json!({"partition": 0, "after": "k"});
        assert_eq!(next(&page(b"k", true), 0, 2), here);
        assert_eq!(next(&page(b"k", false), 0, 2), json!({"partition": 1}));
        assert_eq!(next(&page(b"k", false), 1, 2), Value::Null);
    }
}
