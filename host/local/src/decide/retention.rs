//! Decides how much of a partition is removed under its topic's settings. Plain code: the segments
//! and the time go in, the new start comes out.
//!
//! Only whole sealed segments are removed, oldest first, and never the active one, which ends when
//! it reaches the retention age. A segment's time is its largest timestamp, or the time at which it
//! ended, whichever is earlier. So a timestamp from the future does not keep messages longer than a
//! correct one would, and does not make a host whose clock is right remove anything early. Messages
//! without a timestamp use the end of their segment.

use millrace_log::SegmentFacts;
use millrace_model::{Offset, Timestamp, TopicSettings};

/// The partition's new start; `None` if nothing is removed.
pub(crate) fn new_start(
    segments: &[SegmentFacts],
    active_bytes: u64,
    settings: &TopicSettings,
    now: Timestamp,
) -> Option<Offset> {
    let held: u64 = segments.iter().map(|segment| segment.bytes).sum();
    let mut held = held.saturating_add(active_bytes);
    let goes = |segment: &&SegmentFacts| {
        let too_many = settings.retention_bytes.is_some_and(|max| held > max);
        let age_ms = now.0.saturating_sub(time(segment).0);
        let too_old = settings.retention_ms.is_some_and(|max| age_ms > max);
        held = held.saturating_sub(segment.bytes);
        too_many || too_old
    };
    let gone = segments.iter().take_while(goes);
    gone.last().map(|segment| segment.end)
}

/// Whether segments of a topic with these settings may end before they are full.
pub(crate) fn ends_segments(settings: &TopicSettings) -> bool {
    settings.segment_ms.is_some() || settings.retention_ms.is_some() || settings.compact
}

/// The time from which a segment's age counts.
fn time(segment: &SegmentFacts) -> Timestamp {
    let none = Timestamp::default();
    match (segment.max_timestamp, segment.sealed_at) {
        (latest, sealed) if latest == none => sealed,
        (latest, sealed) if sealed == none => latest,
        (latest, sealed) => latest.min(sealed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000);

    /// Segments of ten offsets and 100 bytes each.
    fn segments(times: &[(u64, u64)]) -> Vec<SegmentFacts> {
        let segment = |(number, &(latest, sealed)): (usize, &(u64, u64))| SegmentFacts {
            base: Offset(number as u64 * 10),
            end: Offset(number as u64 * 10 + 10),
            bytes: 100,
            max_timestamp: Timestamp(latest),
            sealed_at: Timestamp(sealed),
            ..SegmentFacts::default()
        };
        times.iter().enumerate().map(segment).collect()
    }

    fn by_time(times: &[(u64, u64)]) -> Option<u64> {
        let settings = TopicSettings {
            retention_ms: Some(1_000),
            ..TopicSettings::default()
        };
        new_start(&segments(times), 100, &settings, NOW).map(|start| start.0)
    }

    #[test]
    fn segments_go_when_they_are_old_and_all_before_them_are_gone() {
        assert_eq!(by_time(&[]), None);
        assert_eq!(by_time(&[(999_500, 999_600), (5, 5)]), None);
        assert_eq!(
            by_time(&[(5, 5), (6, 6), (999_500, 999_600), (5, 5)]),
            Some(20)
        );
        assert_eq!(
            by_time(&[(999_000, 999_000)]),
            None,
            "just as old as allowed"
        );
        assert_eq!(by_time(&[(998_999, 999_000)]), Some(10));
    }

    #[test]
    fn a_timestamp_from_the_future_neither_keeps_data_for_ever_nor_removes_it() {
        assert_eq!(by_time(&[(u64::MAX, 998_000)]), Some(10));
        assert_eq!(by_time(&[(u64::MAX, 999_900)]), None);
        assert_eq!(
            by_time(&[(2_000_000, 2_000_000)]),
            None,
            "our own clock was wrong"
        );
    }

    #[test]
    fn messages_without_a_timestamp_go_by_the_segment_s_own_time() {
        assert_eq!(by_time(&[(0, 999_900)]), None);
        assert_eq!(by_time(&[(0, 900_000)]), Some(10));
    }

    #[test]
    fn the_oldest_segments_go_while_a_partition_holds_too_much_and_the_active_one_counts() {
        let three = segments(&[(1, 1), (2, 2), (3, 3)]);
        for (max, active, start) in [
            (400, 100, None),
            (399, 100, Some(10)),
            (300, 100, Some(10)),
            (299, 100, Some(20)),
            (300, 0, None),
            (1, 1_000, Some(30)),
        ] {
            let settings = TopicSettings {
                retention_bytes: Some(max),
                ..TopicSettings::default()
            };
            let found = new_start(&three, active, &settings, NOW).map(|start| start.0);
            assert_eq!(found, start, "{max} with {active} in the active segment");
        }
    }
}
