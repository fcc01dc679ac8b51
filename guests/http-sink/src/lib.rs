//! Sends each message to a server by HTTP, and decides by the status what becomes of it.
//!
//! | setting | what | default |
//! |---|---|---|
//! | `url` | where messages go; `{key}` in its path is the message's key | required |
//! | `method` | the method | `POST` |
//! | `content_type` | the type of the values | `application/json` |
//! | `header.NAME` | a further header | none |
//! | `authorization_secret` | name of the granted secret whose value is the header `authorization` | none |
//!
//! The header `idempotency-key` has topic, partition and offset: the same for every attempt. A message without a value is done at once.
//! An outage (no connection, 502, 503 without `retry-after`, 504) spends no attempts: the batch waits. Other 5xx, 408, 425 and 429 are tried again as the
//! processor's policy says, or when the server says; everything else but 2xx becomes a dead letter.

mod sending;
mod verdict;

use millrace_guest::{Message, Outcome, Unavailable, config, processor, secrets};

use sending::{Request, Target};

processor!(process);

fn process(message: &Message) -> Result<Outcome, Unavailable> {
    let Some(body) = message.value() else {
        return Ok(Outcome::Ack);
    };
    let url = config::get("url").ok_or_else(|| Unavailable::new("the setting url is missing"))?;
    let target = Target::of(&url, message.key());
    let target = target.map_err(|why| Unavailable::new(format!("the setting url: {why}")))?;
    let request = Request {
        target,
        method: config::get("method").unwrap_or_else(|| "POST".to_owned()),
        headers: headers(message)?,
        body,
    };
    match sending::send(&request) {
        Ok(answered) => verdict::of_answer(&answered),
        Err(code) => verdict::of_error(&code),
    }
}

fn headers(message: &Message) -> Result<Vec<(String, Vec<u8>)>, Unavailable> {
    let content_type = config::get("content_type");
    let content_type = content_type.unwrap_or_else(|| "application/json".to_owned());
    let (topic, partition, offset) = (message.topic(), message.partition(), message.offset());
    let key = format!("{topic}-{partition}-{offset}");
    let mut headers = vec![
        ("content-type".to_owned(), content_type.into_bytes()),
        ("idempotency-key".to_owned(), key.into_bytes()),
    ];
    for (name, value) in config::all() {
        if let Some(name) = name.strip_prefix("header.") {
            headers.push((name.to_owned(), value.into_bytes()));
        }
    }
    if let Some(name) = config::get("authorization_secret") {
        headers.push(("authorization".to_owned(), secrets::get(&name)?));
    }
    Ok(headers)
}
