//! Counts a processor's dead letters by class. Components choose the classes, so the number of
//! classes is limited.

use std::collections::BTreeMap;

use metrics::{Counter, counter};
use millrace_model::bounds::DEAD_LETTER_CLASSES_MAX;
use parking_lot::Mutex;

/// The class that counts all further classes.
const OTHER: &str = "other";

/// The counters of one processor.
pub(crate) struct Classes {
    processor: String,
    counters: Mutex<BTreeMap<String, Counter>>,
}

impl Classes {
    /// Counters without any class.
    pub(crate) fn of(processor: String) -> Self {
        Self {
            processor,
            counters: Mutex::default(),
        }
    }

    /// Counts one more dead letter of this class.
    pub(crate) fn count(&self, class: &str) {
        let mut counters = self.counters.lock();
        let is_known = counters.contains_key(class);
        let class = match is_known || counters.len() < DEAD_LETTER_CLASSES_MAX {
            true => class,
            false => OTHER,
        };
        let counter = counters.entry(class.to_owned()).or_insert_with(|| {
            let (processor, class) = (self.processor.clone(), class.to_owned());
            counter!("millrace_dead_letters_by_class_total", "processor" => processor, "class" => class)
        });
        counter.increment(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_classes_are_told_apart() {
        let classes = Classes::of("p".to_owned());
        for number in 0..10 * DEAD_LETTER_CLASSES_MAX {
            classes.count(&format!("class {number}"));
        }
        let counters = classes.counters.lock();
        assert_eq!(counters.len(), DEAD_LETTER_CLASSES_MAX + 1);
        assert!(counters.contains_key(OTHER) && counters.contains_key("class 0"));
    }
}
