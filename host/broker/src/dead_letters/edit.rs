//! Edits a dead letter and sends it again: the dead letter stays as it is, and the audit trail has the digests of both versions.

use std::sync::Arc;

use bytes::Bytes;
use millrace_model::bounds::{MESSAGE_BYTES_MAX, MESSAGE_HEADERS_MAX};
use millrace_model::{Header, Message, ProcessorName};

use crate::dead_letters::audit::{AuditAction, Digests, EditDigests};
use crate::dead_letters::handle::DeadLetters;
use crate::dead_letters::letters::DeadLetterError;
use crate::dead_letters::redrive::{Redriven, Sending};
use crate::ground::chains::is_trail;
use crate::ground::headers;
use crate::ground::verbs::Verb;
use crate::messages::place::MessagePlace;

/// The changes to a message; fields that are `None` or empty change nothing.
#[derive(Clone, Debug, Default)]
pub struct LetterEdit {
    /// A new key, or none. The message still goes to the partition of its origin.
    pub key: Option<Option<Bytes>>,
    /// A new value, or none.
    pub value: Option<Option<Bytes>>,
    /// Headers to remove.
    pub remove_headers: Vec<Bytes>,
    /// Headers to set, replacing those of the same name.
    pub set_headers: Vec<Header>,
}

impl LetterEdit {
    fn is_empty(&self) -> bool {
        let headers = self.remove_headers.len() + self.set_headers.len();
        self.key.is_none() && self.value.is_none() && headers == 0
    }

    /// Makes the change, unless the result could not have been produced.
    fn make(self, message: &mut Message) -> Result<(), DeadLetterError> {
        let refused = |why: String| Err(DeadLetterError::Edit(why));
        if self.is_empty() {
            return refused("the edit changes nothing; to send it as it is, redrive it".to_owned());
        }
        let set = self.set_headers.iter().map(|header| &header.name);
        let gone: Vec<Bytes> = self.remove_headers.iter().chain(set).cloned().collect();
        if gone.iter().any(|name| headers::is_reserved(name)) {
            return refused(format!(
                "header names that begin with {} are reserved for the host",
                headers::PREFIX
            ));
        }
        message.key = self.key.unwrap_or_else(|| message.key.take());
        message.value = self.value.unwrap_or_else(|| message.value.take());
        message
            .headers
            .retain(|header| !gone.contains(&header.name));
        message.headers.extend(self.set_headers);
        // Headers that the host set before the message failed are kept; but an edited message starts with a new count of hops.
        let kept = |header: &Header| headers::is_kept(&header.name) && !is_trail(&header.name);
        message.headers.retain(kept);
        let own = |header: &&Header| !headers::is_reserved(&header.name);
        let count = message.headers.iter().filter(own).count();
        if count > MESSAGE_HEADERS_MAX {
            return refused(format!(
                "it would have {count} headers; a message has at most {MESSAGE_HEADERS_MAX}"
            ));
        }
        match message.byte_count() {
            bytes if bytes > MESSAGE_BYTES_MAX => refused(format!(
                "it would have {bytes} bytes; a message has at most {MESSAGE_BYTES_MAX}"
            )),
            _ => Ok(()),
        }
    }
}

impl DeadLetters {
    /// Sends one dead letter again, edited. The dead letter itself stays unchanged, marked as sent.
    ///
    /// # Errors
    /// [`DeadLetterError`]; nothing was sent.
    pub async fn edit_and_redrive(
        &self,
        name: &ProcessorName,
        place: &MessagePlace,
        edit: LetterEdit,
    ) -> Result<Redriven, DeadLetterError> {
        self.caller.may(Verb::Redrive, name.as_str())?;
        let shelf = self.shelf(name, &place.topic, place.partition, place.offset)?;
        let target = self.target_of(name, &shelf)?;
        let mut letter = self.letter(&shelf, place.offset).await?;
        let before = Digests::of(&letter.message);
        edit.make(&mut letter.message)?;
        let after = Digests::of(&letter.message);
        let sending = Sending {
            processor: name.clone(),
            shelf: Arc::new(shelf),
            target,
            letters: vec![letter],
            by: self.caller.signature().to_owned(),
            action: AuditAction::Edit,
            edit: Some(EditDigests { before, after }),
        };
        match self.send_again(sending).await? {
            Redriven { sent: 0, .. } => Err(DeadLetterError::AlreadySent(place.clone())),
            sent => Ok(Redriven {
                started_at: self.inner.clock.wall(),
                ..sent
            }),
        }
    }
}
