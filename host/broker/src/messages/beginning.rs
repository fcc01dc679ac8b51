//! Where a new processor or consumer starts to read: at the oldest message, after the newest, or at
//! a given place.

use millrace_engine::ReadError;
use millrace_model::{Offset, Timestamp, TopicPartition};

use crate::messages::handle::Messages;

/// Where to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BeginAt {
    /// At the oldest message.
    Earliest,
    /// After the existing messages.
    Latest,
    /// At this offset in each partition, or the nearest one that exists.
    Offset(Offset),
    /// At the first message with this time or a later one; if there is none, after the existing messages.
    Time(Timestamp),
}

impl Messages {
    pub(crate) async fn first_of(
        &self,
        place: TopicPartition,
        begin_at: BeginAt,
    ) -> Result<Offset, ReadError> {
        let engine = &self.inner.engine;
        let ends = engine.ends(place)?;
        Ok(match begin_at {
            BeginAt::Earliest => ends.start,
            BeginAt::Latest => ends.end,
            BeginAt::Offset(offset) => offset.clamp(ends.start, ends.end),
            BeginAt::Time(time) => {
                let found = engine.offset_at(place, time).await?;
                found.unwrap_or(ends.end)
            }
        })
    }
}
