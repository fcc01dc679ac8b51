//! The cells of the stream, as they arrive at a host that starts. Any server may deliver them, also one that is behind; one that was killed
//! may for a while have older messages of a cell again; and a subscription that is lost meanwhile goes on with all that is in the stream.
//! So of each cell the highest sequence counts, and it is known that they are all there only by a word of this host's own.

use std::collections::HashMap;

#[derive(Debug)]
pub(crate) struct Loading<T> {
    /// The subject of this host's word, and the sequence that it has.
    word: (String, u64),
    newest: HashMap<String, (u64, T)>,
}

impl<T> Loading<T> {
    /// `word` is a cell that this host has just written with this sequence: whoever knows it knows all that was there before.
    pub(crate) fn new(word: String, said: u64) -> Self {
        Self {
            word: (word, said),
            newest: HashMap::new(),
        }
    }

    pub(crate) fn see(&mut self, subject: &str, seq: u64, cell: T) {
        let known = self.newest.get(subject);
        if known.is_none_or(|(known, _)| *known < seq) {
            self.newest.insert(subject.to_owned(), (seq, cell));
        }
    }

    /// Whether that is all, if so many are yet to be delivered.
    pub(crate) fn is_whole(&self, pending: u64) -> bool {
        let (word, said) = &self.word;
        let heard = self.newest.get(word);
        pending == 0 && heard.is_some_and(|(seq, _)| seq >= said)
    }

    /// All cells, in the order in which they were written.
    pub(crate) fn into_cells(self) -> Vec<T> {
        let mut cells: Vec<(u64, T)> = self.newest.into_values().collect();
        cells.sort_by_key(|(seq, _)| *seq);
        cells.into_iter().map(|(_, cell)| cell).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_cell_that_arrives_twice_the_newest_counts() {
        let mut loading = Loading::new("word".to_owned(), 9);
        for (subject, seq) in [
            ("a", 3),
            ("b", 4),
            ("a", 7),
            ("a", 5),
            ("word", 9),
            ("b", 2),
        ] {
            loading.see(subject, seq, (subject, seq));
        }
        assert_eq!(loading.into_cells(), [("b", 4), ("a", 7), ("word", 9)]);
    }

    #[test]
    fn they_are_whole_with_the_last_word_and_nothing_pending() {
        let mut loading = Loading::new("word".to_owned(), 9);
        assert!(!loading.is_whole(0));
        // A server that is behind has what this host said before.
        loading.see("word", 6, ());
        assert!(!loading.is_whole(0));
        loading.see("word", 9, ());
        assert!(!loading.is_whole(2));
        assert!(loading.is_whole(0));
    }
}
