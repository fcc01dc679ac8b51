//! The outbox: messages that users of the store leave in it by transactions of their own, for a host to send.

use millrace_model::{Message, Timestamp};

/// A message of the outbox. Whether its topic exists, and takes it, is not known yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxMessage {
    /// Its id, which no other message has.
    pub id: u64,
    /// The name of its topic, as it was given.
    pub topic: String,
    /// The message.
    pub message: Message,
    /// When it is to be delivered; `None` is at once.
    pub deliver_at: Option<Timestamp>,
    /// Why it cannot be sent as it stands there, if that is known; it is given without its content then, to be
    /// [refused](super::Engine::refuse_outbox).
    pub unfit: Option<&'static str>,
}
