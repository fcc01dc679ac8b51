//! Errors about topics that could not be created, changed, trimmed or deleted.

use millrace_broker::{Loss, TopicChangeError, TopicCreateError, TopicDeleteError, TopicTrimError};
use millrace_engine::TopicError;
use millrace_model::SettingError;

use super::{ApiError, LIST_MODULES, LIST_TOPICS, SEE_ENDS, wrong_interface};

const KEYS_MOVE: &str = "if that is acceptable, repeat the request with \"accept_moved_keys\": true (millrace topic set --accept-moved-keys), preferably when the \
     processors have read everything; or create another topic with that many partitions, and let a processor copy the messages to it";

impl From<TopicError> for ApiError {
    fn from(error: TopicError) -> Self {
        let text = error.to_string();
        match error {
            TopicError::Exists(_) => {
                let hint = "use it as it is, change it (PATCH /v1/topics/{topic}, millrace topic set), delete it first, or choose another name";
                Self::conflict("topic-exists", text, hint)
            }
            TopicError::Unknown(_) => Self::unknown("unknown-topic", text, LIST_TOPICS),
            TopicError::Partitions { .. } => {
                Self::refused("bad-partitions", text, "use a number within the bound")
            }
            TopicError::FewerPartitions { .. } => {
                let hint =
                    "create another topic with fewer, and let a processor copy the messages to it";
                Self::refused("fewer-partitions", text, hint)
            }
            TopicError::HostPartitions { .. } => Self::refused(
                "partitions-full",
                text,
                "delete topics that are not needed, or start the host with a larger --partitions-max",
            ),
            TopicError::Commit(error) => error.into(),
        }
    }
}

impl From<TopicCreateError> for ApiError {
    fn from(error: TopicCreateError) -> Self {
        let text = error.to_string();
        match error {
            TopicCreateError::Topic(error) => error.into(),
            TopicCreateError::Reserved { .. } | TopicCreateError::LooksLikeFlag(_) => {
                Self::refused("reserved-name", text, "choose another name")
            }
            TopicCreateError::Setting(error) => error.into(),
            TopicCreateError::UnknownModule(_) => {
                Self::unknown("unknown-module", text, LIST_MODULES)
            }
            TopicCreateError::WrongInterface { .. } => wrong_interface(text),
            TopicCreateError::Partitioner(error) => error.into(),
        }
    }
}

impl From<SettingError> for ApiError {
    fn from(error: SettingError) -> Self {
        let hint = "choose a value within this range, or null for no bound";
        Self::refused("bad-setting", error.to_string(), hint)
    }
}

impl From<TopicChangeError> for ApiError {
    fn from(error: TopicChangeError) -> Self {
        let text = error.to_string();
        match error {
            TopicChangeError::Setting(error) => error.into(),
            TopicChangeError::Compacted { .. } => Self::refused(
                "owned-topic",
                text,
                "bound it with retention_ms or retention_bytes instead",
            ),
            TopicChangeError::Follows { .. } => {
                let hint = "add partitions to that topic; this one follows";
                Self::refused("owned-topic", text, hint)
            }
            TopicChangeError::KeysMove { .. } => Self::conflict("keys-would-move", text, KEYS_MOVE),
            TopicChangeError::Topic(error) => error.into(),
        }
    }
}

impl From<TopicTrimError> for ApiError {
    fn from(error: TopicTrimError) -> Self {
        let text = error.to_string();
        match error {
            TopicTrimError::Unknown(_) => Self::unknown("unknown-topic", text, LIST_TOPICS),
            TopicTrimError::UnknownPartition { .. } => {
                Self::unknown("unknown-partition", text, SEE_ENDS)
            }
            TopicTrimError::PastEnd { .. } => {
                let hint = "use \"end\" to remove everything";
                Self::refused("offset-past-end", text, hint)
            }
            TopicTrimError::Commit(error) => error.into(),
        }
    }
}

impl From<TopicDeleteError> for ApiError {
    fn from(error: TopicDeleteError) -> Self {
        let text = error.to_string();
        match error {
            TopicDeleteError::Unknown(_) => Self::unknown("unknown-topic", text, LIST_TOPICS),
            TopicDeleteError::InUse { .. } => {
                Self::conflict("in-use", text, "delete or change the processors first")
            }
            TopicDeleteError::Missed { losses, .. } => missed(text, &losses),
            TopicDeleteError::Read(error) => error.into(),
            TopicDeleteError::Commit(error) => error.into(),
        }
    }
}

/// A topic that is still needed: what can be done instead, and how to delete it anyway.
fn missed(text: String, losses: &[Loss]) -> ApiError {
    let is_way_back = |loss: &Loss| matches!(loss, Loss::WayBack { .. });
    let mut readers: Vec<&str> = losses
        .iter()
        .filter_map(|loss| match loss {
            Loss::WayBack { .. } => None,
            Loss::Waiting { processor, .. } => Some(processor.as_str()),
        })
        .collect();
    readers.dedup();
    let instead = match readers.is_empty() {
        true => "keep it".to_owned(),
        false => format!(
            "keep it; the messages are processed once {} reads them (deploy it with this topic as input)",
            readers.join(", ")
        ),
    };
    let code = match losses.iter().any(is_way_back) {
        true => "way-back",
        false => "messages-wait",
    };
    let hint = format!(
        "{instead}, or delete it anyway with accept_loss=true (`millrace topic delete NAME --accept-loss`): then all of that is lost"
    );
    ApiError::conflict(code, text, &hint)
}
