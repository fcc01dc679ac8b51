//! The settings of a topic that can be changed while it is in use: retention and storage.

use serde::{Deserialize, Deserializer, Serialize};

use crate::advice::{Advice, Advised};
use crate::bounds::{SEGMENT_BYTES_SETTING_MAX, SEGMENT_BYTES_SETTING_MIN, SETTING_MS_MAX};
use crate::codes::Code;
use crate::compression::Compression;

/// Default time for which a compacted topic keeps a tombstone, in milliseconds: one day.
pub const TOMBSTONE_KEPT_MS: u64 = 24 * 60 * 60 * 1000;

/// A topic's settings. Null means no bound, or the host's default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct TopicSettings {
    /// Removes messages older than this many milliseconds, a segment at a time: this long after the segment's largest timestamp, or
    /// after its end if that was earlier. The active segment ends at this age.
    pub retention_ms: Option<u64>,
    /// Removes the oldest segments of a partition while it holds more than this many bytes.
    pub retention_bytes: Option<u64>,
    /// Keeps only the latest value of each key; a message without a value (a tombstone) deletes its key.
    pub compact: bool,
    /// The minimum time for which a compacted topic keeps a tombstone, in milliseconds, so that slow readers see it. Counted from the
    /// end of its segment, by the host's clock.
    pub tombstone_ms: u64,
    /// Bytes of a segment before the next one begins.
    pub segment_bytes: Option<u64>,
    /// The age in milliseconds at which a segment ends even if it is not full.
    pub segment_ms: Option<u64>,
    /// How the host compresses the batches that it builds itself: `none`, `gzip`, `snappy`, `lz4` or `zstd`. Produced batches are kept as
    /// they are.
    pub compression: Compression,
}

impl Default for TopicSettings {
    fn default() -> Self {
        Self {
            retention_ms: None,
            retention_bytes: None,
            compact: false,
            tombstone_ms: TOMBSTONE_KEPT_MS,
            segment_bytes: None,
            segment_ms: None,
            compression: Compression::None,
        }
    }
}

/// Changes of settings: only given ones change, and `Some(None)` removes a bound.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SettingsPatch {
    /// See [`TopicSettings::retention_ms`].
    #[serde(deserialize_with = "named")]
    pub retention_ms: Option<Option<u64>>,
    /// See [`TopicSettings::retention_bytes`].
    #[serde(deserialize_with = "named")]
    pub retention_bytes: Option<Option<u64>>,
    /// See [`TopicSettings::compact`].
    #[serde(deserialize_with = "named")]
    pub compact: Option<bool>,
    /// See [`TopicSettings::tombstone_ms`].
    #[serde(deserialize_with = "named")]
    pub tombstone_ms: Option<u64>,
    /// See [`TopicSettings::segment_bytes`].
    #[serde(deserialize_with = "named")]
    pub segment_bytes: Option<Option<u64>>,
    /// See [`TopicSettings::segment_ms`].
    #[serde(deserialize_with = "named")]
    pub segment_ms: Option<Option<u64>>,
    /// See [`TopicSettings::compression`].
    #[serde(deserialize_with = "named")]
    pub compression: Option<Compression>,
}

/// A field that is present, even if it is null.
fn named<'de, D: Deserializer<'de>, T: Deserialize<'de>>(field: D) -> Result<Option<T>, D::Error> {
    T::deserialize(field).map(Some)
}

impl SettingsPatch {
    /// The settings with these changes.
    #[must_use]
    pub fn over(&self, settings: &TopicSettings) -> TopicSettings {
        TopicSettings {
            retention_ms: self.retention_ms.unwrap_or(settings.retention_ms),
            retention_bytes: self.retention_bytes.unwrap_or(settings.retention_bytes),
            compact: self.compact.unwrap_or(settings.compact),
            tombstone_ms: self.tombstone_ms.unwrap_or(settings.tombstone_ms),
            segment_bytes: self.segment_bytes.unwrap_or(settings.segment_bytes),
            segment_ms: self.segment_ms.unwrap_or(settings.segment_ms),
            compression: self.compression.unwrap_or(settings.compression),
        }
    }
}

/// A setting out of its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting} is {found} but must be {min} to {max}; omit it for no bound")]
pub struct SettingError {
    /// The setting's name.
    pub setting: &'static str,
    /// The requested value.
    pub found: u64,
    /// The minimum.
    pub min: u64,
    /// The maximum.
    pub max: u64,
}

impl Advised for SettingError {
    fn advice(&self) -> Advice {
        Code::BadSetting.advice()
    }
}

impl TopicSettings {
    /// Whether every setting is within its bounds.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self) -> Result<(), SettingError> {
        let bytes = SEGMENT_BYTES_SETTING_MIN..=SEGMENT_BYTES_SETTING_MAX;
        let ms = 1..=SETTING_MS_MAX;
        let settings = [
            ("retention_ms", self.retention_ms, ms.clone()),
            ("retention_bytes", self.retention_bytes, 1..=u64::MAX),
            ("tombstone_ms", Some(self.tombstone_ms), 0..=SETTING_MS_MAX),
            ("segment_bytes", self.segment_bytes, bytes),
            ("segment_ms", self.segment_ms, ms),
        ];
        for (setting, found, allowed) in settings {
            if let Some(found) = found.filter(|found| !allowed.contains(found)) {
                let (min, max) = (*allowed.start(), *allowed.end());
                return Err(SettingError {
                    setting,
                    found,
                    min,
                    max,
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_changes_what_it_names_and_null_takes_a_bound_away() {
        let settings = TopicSettings {
            retention_ms: Some(5),
            retention_bytes: Some(6),
            ..TopicSettings::default()
        };
        let patch = r#"{"retention_ms": null, "segment_bytes": 70000, "compact": true}"#;
        let patch: SettingsPatch = serde_json::from_str(patch).expect("a patch");
        let expected = TopicSettings {
            retention_ms: None,
            segment_bytes: Some(70_000),
            compact: true,
            ..settings
        };
        assert_eq!(patch.over(&settings), expected);
        assert_eq!(SettingsPatch::default().over(&settings), settings);
        assert!(serde_json::from_str::<SettingsPatch>(r#"{"compact": null}"#).is_err());
        assert!(serde_json::from_str::<SettingsPatch>(r#"{"retention": 1}"#).is_err());
    }

    #[test]
    fn settings_outside_their_bounds_are_named() {
        let mut settings = TopicSettings::default();
        assert_eq!(settings.check(), Ok(()));
        settings.segment_bytes = Some(1);
        let error = settings.check().expect_err("too small");
        assert!(
            error
                .to_string()
                .starts_with("segment_bytes is 1 but must be 65536 to")
        );
        settings.segment_bytes = Some(SEGMENT_BYTES_SETTING_MAX);
        settings.retention_ms = Some(0);
        assert_eq!(
            settings.check().map_err(|error| error.setting),
            Err("retention_ms")
        );
    }
}
