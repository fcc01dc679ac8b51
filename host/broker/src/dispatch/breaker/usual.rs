//! A revision's usual rejections, and whether another one rejects clearly more. Each class is
//! judged by a cumulative sum of log-likelihood ratios between its usual share and one halfway to
//! all (E. S. Page, "Continuous inspection schemes", Biometrika 41, 1954). It counts messages, so
//! slow and fast traffic are judged alike.

use millrace_model::{Record, Rejections};

use crate::dispatch::failed::Failed;
use crate::handler::Cause;

/// Maximum number of known classes of rejections. Further classes are not usual.
pub(crate) const KNOWN_REJECTIONS_MAX: usize = 64;
/// From this sum on, a revision rejects clearly more than usual. By chance that happens at most
/// once in e^14 (1.2 million) messages.
const LIMIT: f64 = 14.0;
/// From this sum on, a rejection may be one too many, and counts as a message given up. By chance
/// that happens to at most one message in e^5 (148).
const DOUBT: f64 = 5.0;
/// Shares are measured over about this many of the latest messages.
const MEASURED_MESSAGES: u64 = 100_000;
/// A stored share counts as if it was measured over at most this many messages.
const WRITTEN_MESSAGES: u64 = 1_000;
const MILLION: f64 = 1_000_000.0;
/// Minimum of a usual share: no class is certain never to occur.
const SHARE_MIN: f64 = 0.001;
/// Maximum of a usual share.
const SHARE_MAX: f64 = 0.98;

/// Shares of rejections: the usual ones, and those of the running revision.
#[derive(Debug, Default)]
pub(super) struct Usual {
    usual: Vec<Class>,
    own: Vec<(String, u64)>,
    /// Number of latest messages over which `own` was counted.
    all: u64,
    /// Number of all messages judged.
    total: u64,
    /// Classes that are no longer usual, because there were too many rejections.
    doubted: Vec<String>,
}

/// A class of usual rejections.
#[derive(Debug)]
struct Class {
    class: String,
    share: f64,
    sum: f64,
    /// Rejections since the sum was zero.
    seen: u32,
    /// The highest number of rejections at a moment when there were clearly too many.
    too_many: Option<u32>,
}

impl Usual {
    /// The shares from a stored record.
    pub(super) fn of(record: &Record) -> Self {
        let all = u64::from(record.measured).min(WRITTEN_MESSAGES);
        let count = |one: &Rejections| u64::from(one.per_million) * all / MILLION as u64;
        let own = record.rejections.iter().take(KNOWN_REJECTIONS_MAX);
        Self {
            usual: Vec::new(),
            own: own.map(|one| (one.class.clone(), count(one))).collect(),
            all,
            total: record.measured.into(),
            doubted: record.doubted.clone(),
        }
    }

    /// Sets the usual shares.
    pub(super) fn learn(&mut self, rejections: &[Rejections]) {
        let mut room = KNOWN_REJECTIONS_MAX.saturating_sub(self.usual.len());
        for one in rejections {
            let share = (f64::from(one.per_million) / MILLION).clamp(SHARE_MIN, SHARE_MAX);
            match self.usual.iter_mut().find(|known| known.class == one.class) {
                Some(known) => known.share = share,
                None if room > 0 => {
                    room -= 1;
                    self.usual.push(Class {
                        class: one.class.clone(),
                        share,
                        sum: 0.0,
                        seen: 0,
                        too_many: None,
                    });
                }
                None => {}
            }
        }
    }

    pub(super) fn knows(&self, class: &str) -> bool {
        let is_usual = self.usual.iter().any(|known| known.class == class);
        is_usual && !self.doubted.iter().any(|doubted| doubted == class)
    }

    /// Whether rejections of this class are usual: there are not clearly more of them.
    pub(super) fn excuses(&self, class: &str) -> bool {
        let known = self.usual.iter().find(|known| known.class == class);
        known.is_some_and(|known| known.sum < DOUBT) && self.knows(class)
    }

    /// Marks a class as no longer usual for the running revision.
    pub(super) fn doubt(&mut self, class: &str) {
        if self.knows(class) && self.doubted.len() < KNOWN_REJECTIONS_MAX {
            self.doubted.push(class.to_owned());
        }
    }

    /// Takes over other hosts' shares for the same revision: classes that this host has not seen,
    /// at their stored share.
    pub(super) fn follow(&mut self, record: &Record) {
        let mut room = KNOWN_REJECTIONS_MAX.saturating_sub(self.own.len());
        for one in &record.rejections {
            if room > 0 && self.own.iter().all(|(class, _)| *class != one.class) {
                room -= 1;
                let count = u64::from(one.per_million) * self.all / MILLION as u64;
                self.own.push((one.class.clone(), count));
            }
        }
        for class in &record.doubted {
            let is_known = self.doubted.contains(class);
            if !is_known && self.doubted.len() < KNOWN_REJECTIONS_MAX {
                self.doubted.push(class.clone());
            }
        }
    }

    /// The classes that are no longer usual.
    pub(super) fn doubted(&self) -> &[String] {
        &self.doubted
    }

    /// The number of messages over which the rejections were measured.
    pub(super) fn measured(&self) -> u32 {
        u32::try_from(self.total).unwrap_or(u32::MAX)
    }

    /// The running revision's own rejections.
    pub(super) fn own(&self) -> Vec<Rejections> {
        // Counts one more rejection in two more messages, because a few messages say little.
        let share = |count: u64| (count + 1) as f64 / (self.all + 2) as f64;
        let own = self.own.iter().map(|(class, count)| Rejections {
            class: class.clone(),
            per_million: (share(*count) * MILLION) as u32,
        });
        own.collect()
    }

    /// The number of known classes.
    pub(super) fn own_count(&self) -> usize {
        self.own.len()
    }

    /// Adds messages that were decided; `failed` are the indexes of the failed ones, ascending.
    pub(super) fn note(
        &mut self,
        messages: usize,
        failed: &[(usize, &Failed)],
        failed_percent: u32,
    ) {
        self.all += messages as u64;
        self.total += messages as u64;
        let rejected = || failed.iter().filter(|(_, f)| f.cause == Cause::Reject);
        let mut room = KNOWN_REJECTIONS_MAX.saturating_sub(self.own.len());
        for (_, one) in rejected() {
            match self.own.iter_mut().find(|(class, _)| *class == one.class) {
                Some((_, count)) => *count += 1,
                None if room > 0 => {
                    room -= 1;
                    self.own.push((one.class.clone(), 1));
                }
                None => {}
            }
        }
        if self.all > MEASURED_MESSAGES {
            self.all /= 2;
            self.own.iter_mut().for_each(|(_, count)| *count /= 2);
            // A class seen once makes room for recurring ones.
            self.own.retain(|(_, count)| *count > 0);
        }
        for class in &mut self.usual {
            class.too_many = None;
            let mut next = 0;
            for (place, one) in rejected() {
                if one.class != class.class {
                    continue;
                }
                class.others(place - next, failed_percent);
                class.rejected(failed_percent);
                next = place + 1;
            }
            class.others(messages - next, failed_percent);
        }
    }

    /// The class with clearly more rejections than usual, with a sentence about it.
    pub(super) fn too_many(&self, failures_min: u32) -> Option<(String, String)> {
        let seen = |class: &Class| class.too_many.filter(|seen| *seen >= failures_min);
        let mut classes = self
            .usual
            .iter()
            .filter_map(|class| Some((class, seen(class)?)));
        classes.next().map(|(class, seen)| {
            let usual = class.share * 100.0;
            let text = format!("{seen} messages, where {usual:.1} % are usual,");
            (class.class.clone(), text)
        })
    }

    /// Starts to judge anew.
    pub(super) fn forget(&mut self) {
        for class in &mut self.usual {
            (class.sum, class.seen, class.too_many) = (0.0, 0, None);
        }
    }
}

impl Class {
    /// The share that would be too large.
    fn more(&self, failed_percent: u32) -> f64 {
        let percent = (f64::from(failed_percent) / 100.0).min(0.99);
        self.share + (1.0 - self.share) * percent
    }

    fn others(&mut self, count: usize, failed_percent: u32) {
        if count == 0 || self.sum <= 0.0 {
            return;
        }
        let more = self.more(failed_percent);
        self.sum += count as f64 * ((1.0 - more) / (1.0 - self.share)).ln();
        if self.sum <= 0.0 {
            (self.sum, self.seen) = (0.0, 0);
        }
    }

    fn rejected(&mut self, failed_percent: u32) {
        self.sum += (self.more(failed_percent) / self.share).ln();
        self.seen = self.seen.saturating_add(1);
        if self.sum >= LIMIT {
            self.too_many = self.too_many.max(Some(self.seen));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usual(per_hundred: u32) -> Usual {
        let mut usual = Usual::default();
        usual.learn(&[Rejections {
            class: "bad".to_owned(),
            per_million: per_hundred * 10_000,
        }]);
        usual
    }

    fn rejected(message: usize) -> Failed {
        Failed {
            message,
            cause: Cause::Reject,
            class: "bad".to_owned(),
            reason: String::new(),
            after_ms: None,
            backtrace: None,
        }
    }

    fn in_a_row(per_hundred: u32) -> u32 {
        let mut usual = usual(per_hundred);
        (1..1_000)
            .find(|_| {
                usual.note(1, &[(0, &rejected(0))], 50);
                usual.too_many(5).is_some()
            })
            .expect("it is seen")
    }

    #[test]
    fn the_more_was_usual_the_more_in_a_row_it_takes() {
        assert_eq!([4, 30, 50, 80].map(in_a_row), [6, 19, 35, 119]);
    }

    #[test]
    fn a_batch_that_is_rejected_as_a_whole_is_seen_at_once() {
        let mut usual = usual(4);
        let failed: Vec<Failed> = (0..25).map(rejected).collect();
        let failed: Vec<(usize, &Failed)> = failed.iter().map(|f| (f.message, f)).collect();
        assert!(usual.excuses("bad") && !usual.excuses("worse"));
        usual.note(25, &failed, 50);
        assert!(!usual.excuses("bad"));
        assert_eq!(usual.too_many(5).expect("too many").0, "bad");
        usual.forget();
        assert_eq!(usual.too_many(5), None);
    }

    #[test]
    fn what_was_measured_is_what_is_usual_for_the_next() {
        let mut first = Usual::default();
        for _ in 0..50 {
            first.note(25, &[(3, &rejected(3))], 50);
        }
        let own = first.own();
        assert_eq!(
            (own[0].class.as_str(), own[0].per_million / 1_000),
            ("bad", 40)
        );
        let record = Record {
            rejections: own.clone(),
            measured: first.measured(),
            ..Record::default()
        };
        let again = Usual::of(&record).own();
        assert!(again[0].per_million.abs_diff(own[0].per_million) < 2_000);
    }

    #[test]
    fn about_the_usual_share_is_no_reason_and_all_is_one() {
        for per_hundred in 1..80 {
            let mut usual = usual(per_hundred);
            let mut rng = fastrand::Rng::with_seed(u64::from(per_hundred));
            for _ in 0..1_000 {
                let is = rng.u32(..100) < per_hundred;
                usual.note(1, &[(0, &rejected(0))][..usize::from(is)], 50);
                assert_eq!(usual.too_many(5), None, "{per_hundred}");
            }
            for _ in 0..150 {
                usual.note(1, &[(0, &rejected(0))], 50);
            }
            assert!(usual.too_many(5).is_some(), "{per_hundred}");
        }
    }

    #[test]
    fn the_usual_share_of_a_large_batch_is_no_reason() {
        for (messages, every) in [(1_000, 25), (150, 25), (1_000, 3)] {
            let mut usual = usual(100 / every as u32);
            for _ in 0..200 {
                let places = (0..messages).step_by(every);
                let failed: Vec<Failed> = places.map(rejected).collect();
                let failed: Vec<(usize, &Failed)> = failed.iter().map(|f| (f.message, f)).collect();
                usual.note(messages, &failed, 50);
                assert_eq!(usual.too_many(5), None, "{messages}, one of {every}");
            }
        }
    }

    #[test]
    fn what_was_too_much_in_the_middle_of_a_batch_is_seen_at_its_end() {
        let mut usual = usual(4);
        let failed: Vec<Failed> = (100..130).map(rejected).collect();
        let failed: Vec<(usize, &Failed)> = failed.iter().map(|f| (f.message, f)).collect();
        usual.note(1_000, &failed, 50);
        assert_eq!(usual.too_many(5).expect("too many").0, "bad");
        usual.doubt("bad");
        usual.forget();
        assert!(!usual.knows("bad") && !usual.excuses("bad"));
    }
}
