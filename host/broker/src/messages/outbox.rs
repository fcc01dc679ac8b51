//! Sends the outbox: messages that users of the store left for topics. Each is appended and taken from the outbox in one transaction, so it
//! arrives once, whichever host sends it and whatever happens in between.
//!
//! The host with the lowest id sends; the others only look now and then, in case it does not. Two that send at once do no harm: the message
//! is gone for the second one.

use std::sync::Weak;
use std::time::Duration;

use millrace_engine::{CommitError, Engine, OutboxMessage, Transaction};
use millrace_model::{Advised as _, Code, TopicName};
use tokio::sync::watch;

use crate::ground::backoff::Backoff;
use crate::messages::call::NewMessage;
use crate::messages::handle::{Inner, Messages};
use crate::messages::produce_error::ProduceError;

/// Messages of the outbox that are read at once.
const READ_AT_ONCE_MAX: usize = 500;
/// How often the host that sends looks for messages.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// How often another host does.
const OTHERS_LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Why sending waits.
struct Waits(String);

/// Sends until it is told to end.
pub(crate) async fn run(messages: Weak<Inner>, mut stop: watch::Receiver<bool>) {
    let mut rng = fastrand::Rng::new();
    let mut backoff = Backoff::default();
    loop {
        let Some(inner) = messages.upgrade() else {
            return;
        };
        let sends = is_first(&*inner.engine);
        let sent = Messages::of(inner).send_outbox().await;
        if sent.is_ok() {
            backoff.reset();
        }
        let wait = match sent {
            Ok(READ_AT_ONCE_MAX) => Duration::ZERO,
            Ok(_) if sends => LOOK_INTERVAL,
            Ok(_) => OTHERS_LOOK_INTERVAL,
            Err(Waits(reason)) => {
                tracing::debug!(%reason, "the outbox waits");
                backoff.next(&mut rng)
            }
        };
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

fn is_first(engine: &dyn Engine) -> bool {
    let hosts = engine.hosts();
    let first = hosts.borrow().iter().map(|host| host.id).min();
    first.is_none_or(|first| first == engine.host())
}

impl Messages {
    /// Sends what is due; returns how many messages were looked at.
    async fn send_outbox(&self) -> Result<usize, Waits> {
        let found = self.inner.engine.outbox(READ_AT_ONCE_MAX).await;
        let found = found.map_err(|error| Waits(error.to_string()))?;
        let count = found.len();
        let mut fit = Vec::with_capacity(count);
        for message in found {
            match message.unfit {
                Some(why) => self.refuse(message.id, why).await?,
                None => fit.push(message),
            }
        }
        let mut left = fit.into_iter().peekable();
        while let Some(first) = left.next() {
            let topic = first.topic.clone();
            let mut together = vec![first];
            while let Some(next) = left.next_if(|next| next.topic == topic) {
                together.push(next);
            }
            self.send_to(&topic, together).await?;
        }
        Ok(count)
    }

    /// Messages of one topic, together; if one of them cannot be sent, each for itself.
    async fn send_to(&self, topic: &str, messages: Vec<OutboxMessage>) -> Result<(), Waits> {
        let sent = self.send_together(topic, &messages).await;
        match sent {
            Err(error) if messages.len() > 1 && !waits(&error) => {
                for message in messages {
                    let alone = self
                        .send_together(topic, std::slice::from_ref(&message))
                        .await;
                    self.settle(message.id, alone).await?;
                }
                Ok(())
            }
            sent => {
                let id = messages.first().map_or(0, |message| message.id);
                self.settle(id, sent).await
            }
        }
    }

    async fn settle(&self, id: u64, sent: Result<(), ProduceError>) -> Result<(), Waits> {
        match sent {
            Ok(()) => Ok(()),
            // Another host took it.
            Err(ProduceError::Commit(CommitError::Conflict(_))) => Ok(()),
            Err(error) if waits(&error) => Err(Waits(error.to_string())),
            Err(error) => self.refuse(id, &error.to_string()).await,
        }
    }

    async fn refuse(&self, id: u64, why: &str) -> Result<(), Waits> {
        tracing::warn!(
            id,
            why,
            "a message of the outbox cannot be sent; it stays there, and is tried again"
        );
        let noted = self.inner.engine.refuse_outbox(id, why).await;
        noted.map_err(|error| Waits(error.to_string()))
    }

    async fn send_together(
        &self,
        topic: &str,
        messages: &[OutboxMessage],
    ) -> Result<(), ProduceError> {
        let topic =
            TopicName::parse(topic).map_err(|error| ProduceError::TopicName(error.to_string()))?;
        let new = |left: &OutboxMessage| NewMessage {
            partition: None,
            message: left.message.clone(),
            deliver_at: left.deliver_at.map(Into::into),
        };
        let base = Transaction {
            outbox: messages.iter().map(|message| message.id).collect(),
            ..Transaction::default()
        };
        let messages = messages.iter().map(new).collect();
        self.produce_as(&topic, messages, None, base).await?;
        Ok(())
    }
}

/// Whether no other message could be sent now either. Everything else is a matter of the message, or of its topic: it is refused for a
/// while, even if it would pass by itself, so that it holds up no others.
fn waits(error: &ProduceError) -> bool {
    matches!(
        error.advice().code,
        Code::StoreUnavailable | Code::DiskFull | Code::InDoubt | Code::Stopping
    )
}

#[cfg(test)]
mod tests {
    use millrace_model::PartitionId;

    use super::*;
    use crate::messages::delays::delayed::DelaysFull;

    #[test]
    fn only_what_concerns_all_messages_ends_a_round() {
        for error in [
            CommitError::Unavailable("gone".into()),
            CommitError::InDoubt("gone".into()),
            CommitError::DiskFull,
            CommitError::Closed,
        ] {
            assert!(waits(&error.into()));
        }
        let full = DelaysFull::Partition {
            topic: TopicName::parse("orders").expect("a name"),
            partition: PartitionId(0),
            messages: 1,
            bytes: 1,
        };
        assert!(!waits(&full.into()), "other topics have room");
        assert!(!waits(&ProduceError::Busy { max: 1 }));
    }
}
