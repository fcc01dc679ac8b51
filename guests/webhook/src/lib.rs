//! Takes webhooks of Twilio and Meta (WhatsApp) in.
//!
//! As a route it checks a request's signature with a granted secret, sends its messages to a topic, each under the provider's message id,
//! and answers when they are stored. A webhook that the provider repeats is one message. It also answers Meta's verification of the address.
//! As a processor it keeps the last message of each sender in state.
//!
//! Settings of the route:
//!
//! | key | what | default |
//! |---|---|---|
//! | `provider` | `twilio` or `meta` | required |
//! | `topic` | where messages go | `whatsapp.incoming` |
//! | `secret` | name of the secret: Twilio's auth token, or the secret of Meta's app | `webhook-secret` |
//! | `origin` | for Twilio: the beginning of the address that it calls, such as `https://hooks.example.com` | required |
//! | `verify_secret` | for Meta: name of the secret with the token of the verification | `webhook-verify-token` |

mod messages;
mod signatures;

use millrace_guest::producer::{self, Outgoing, SendError};
use millrace_guest::secrets::{self, SecretError};
use millrace_guest::{Message, Outcome, config, log, processor, state};
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{IncomingRequest, Method, ResponseOutparam};

use messages::Taken;
use requests::{Answer, Received, encoding};

struct Webhook;

wasip2::http::proxy::export!(Webhook);

processor!(process);

/// Where messages go if the settings do not say.
const TOPIC: &str = "whatsapp.incoming";
/// The names of secrets if the settings do not say.
const SECRET: &str = "webhook-secret";
const VERIFY_SECRET: &str = "webhook-verify-token";

/// Keeps the last message of each sender.
fn process(message: &Message) -> Outcome {
    let Some(sender) = message.key() else {
        return Outcome::Ack;
    };
    let kept = state::set(message, sender, message.value().unwrap_or_default());
    match kept {
        Ok(()) => Outcome::Ack,
        Err(full) => Outcome::retry("state-full", full.to_string()),
    }
}

impl Guest for Webhook {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let answer = match (request.method(), Provider::of_settings()) {
            (_, Err(why)) => {
                log::error(&why);
                Answer::new(500, "the webhook is not set up")
            }
            (Method::Get, Ok(Provider::Meta)) => verified(&requests::query(&request)),
            (Method::Post, Ok(provider)) => match requests::read(&request) {
                Ok(received) => take(&provider, &received),
                Err(answer) => answer,
            },
            (_, Ok(_)) => Answer::new(405, "a webhook is a POST"),
        };
        answer.give(out);
    }
}

/// Whose webhooks they are.
enum Provider {
    Twilio {
        /// The beginning of the address that it calls.
        origin: String,
    },
    Meta,
}

impl Provider {
    fn of_settings() -> Result<Self, String> {
        match config::get("provider").as_deref() {
            Some("meta") => Ok(Self::Meta),
            Some("twilio") => match config::get("origin") {
                Some(origin) => Ok(Self::Twilio { origin }),
                None => Err(
                    "the setting origin is missing: Twilio signs the whole address that it calls"
                        .to_owned(),
                ),
            },
            other => Err(format!(
                "the setting provider is {other:?}; set it to twilio or meta"
            )),
        }
    }

    fn has_signed(&self, received: &Received, secret: &[u8]) -> bool {
        match self {
            Self::Twilio { origin } => {
                let address = format!("{}{}", origin.trim_end_matches('/'), received.target);
                signatures::twilio(secret, &address, received)
            }
            Self::Meta => signatures::meta(secret, received),
        }
    }

    /// The messages of a request, or why it has none that can be read.
    fn messages(&self, received: &Received) -> Result<Vec<Taken>, String> {
        match self {
            Self::Twilio { .. } => messages::of_twilio(received),
            Self::Meta => messages::of_meta(received),
        }
    }

    /// What the provider expects when all is well.
    fn thanks(&self) -> Answer {
        match self {
            Self::Twilio { .. } => Answer::of_type(200, "text/xml", "<Response></Response>"),
            Self::Meta => Answer::new(200, ""),
        }
    }
}

/// Meta asks once whether the address is ours: who knows the token gets the challenge back.
fn verified(query: &str) -> Answer {
    let fields = encoding::form(query.as_bytes());
    let field = |name: &str| fields.iter().find(|(key, _)| key == name);
    let (Some((_, mode)), Some((_, token)), Some((_, challenge))) = (
        field("hub.mode"),
        field("hub.verify_token"),
        field("hub.challenge"),
    ) else {
        return Answer::new(400, "this is not a verification");
    };
    let expected = match secret("verify_secret", VERIFY_SECRET) {
        Ok(expected) => expected,
        Err(answer) => return answer,
    };
    match mode == "subscribe" && signatures::are_equal(token.as_bytes(), &expected) {
        true => Answer::new(200, challenge),
        false => Answer::new(403, "the token is not the one of this webhook"),
    }
}

fn take(provider: &Provider, received: &Received) -> Answer {
    let secret = match secret("secret", SECRET) {
        Ok(secret) => secret,
        Err(answer) => return answer,
    };
    if !provider.has_signed(received, &secret) {
        log::warn("a request without a valid signature was refused");
        return Answer::new(403, "the signature is missing or wrong");
    }
    let messages = match provider.messages(received) {
        Ok(messages) => messages,
        Err(why) => return Answer::new(400, &why),
    };
    let topic = config::get("topic").unwrap_or_else(|| TOPIC.to_owned());
    // One by one: a repeated webhook may bundle the same messages differently.
    for message in &messages {
        if let Err(error) = send(&topic, message) {
            return failed(&error);
        }
    }
    provider.thanks()
}

fn send(topic: &str, message: &Taken) -> Result<(), SendError> {
    let outgoing = Outgoing::new(&message.value)
        .key(&message.sender)
        .header("kind", message.kind)
        .header("message-id", &message.id);
    match producer::send_once(topic, &message.id, &[outgoing]) {
        // What the provider calls the same message is here, whatever else differs.
        Ok(_) | Err(SendError::KeyReused(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// An answer that makes the provider do what helps: try again, or stop.
fn failed(error: &SendError) -> Answer {
    log::error(&format!("a message was not stored: {error}"));
    match error {
        SendError::Unavailable(_) => Answer::new(503, "try again later"),
        SendError::Refused(_) | SendError::KeyReused(_) => {
            Answer::new(422, "the message was not accepted")
        }
        SendError::NotGranted(_) => Answer::new(500, "the webhook is not set up"),
    }
}

/// The secret whose name a setting has.
fn secret(setting: &str, usual: &str) -> Result<Vec<u8>, Answer> {
    let name = config::get(setting).unwrap_or_else(|| usual.to_owned());
    secrets::get(&name).map_err(|error| {
        log::error(&format!("the secret cannot be read: {error}"));
        match error {
            SecretError::NotGranted(_) => Answer::new(500, "the webhook is not set up"),
            SecretError::Unavailable(_) => Answer::new(503, "try again later"),
        }
    })
}
