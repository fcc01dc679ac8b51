//! A Bloom filter that tells which keys are certainly not in a run. It consists of lines of 64
//! bytes, so that a lookup touches one line of memory.
//!
//! The bits are on disk: the hash is part of the format and never changes.

const LINE_WORDS: usize = 8;
const LINE_BITS: usize = LINE_WORDS * 64;
/// Bits per key: the filter wrongly admits about one absent key in a hundred.
const KEY_BITS: usize = 10;
const PROBES: usize = 6;

const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15;

/// The hash of a key, the same for every run.
#[must_use]
pub(super) fn hash(key: &[u8]) -> u64 {
    let mut hash = (key.len() as u64).wrapping_mul(MULTIPLIER);
    let (whole, rest) = key.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    for chunk in whole.iter().chain([&last]) {
        hash = (hash ^ u64::from_le_bytes(*chunk)).wrapping_mul(MULTIPLIER);
        hash ^= hash >> 32;
    }
    hash.wrapping_mul(MULTIPLIER)
}

#[derive(Debug, Default)]
pub(super) struct Filter {
    lines: Vec<[u64; LINE_WORDS]>,
}

impl Filter {
    /// A filter for this many keys; with more, it only admits absent keys more often.
    pub(super) fn for_keys(count: u64) -> Self {
        let lines = (count as usize * KEY_BITS).div_ceil(LINE_BITS);
        Self {
            lines: vec![[0; LINE_WORDS]; lines],
        }
    }

    pub(super) fn add(&mut self, hash: u64) {
        let line = self.line(hash);
        if let Some(line) = self.lines.get_mut(line) {
            probes(hash).for_each(|(word, bit)| line[word] |= bit);
        }
    }

    pub(super) fn of_bytes(bytes: &[u8]) -> Option<Self> {
        let (words, rest) = bytes.as_chunks::<8>();
        let (lines, more) = words.as_chunks::<LINE_WORDS>();
        let line = |line: &[[u8; 8]; LINE_WORDS]| line.map(u64::from_le_bytes);
        let is_whole = rest.is_empty() && more.is_empty();
        is_whole.then(|| Self {
            lines: lines.iter().map(line).collect(),
        })
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let words = self.lines.iter().flatten();
        words.flat_map(|word| word.to_le_bytes()).collect()
    }

    /// Whether a key with this hash may exist. An empty filter admits every key.
    ///
    /// It reads all bits and decides once, so that a caller with many keys waits for the memory of
    /// several of them at a time.
    pub(super) fn may_have(&self, hash: u64) -> bool {
        let Some(line) = self.lines.get(self.line(hash)) else {
            return true;
        };
        let missing = probes(hash).fold(0, |missing, (word, bit)| missing | (!line[word] & bit));
        missing == 0
    }

    /// The indexes of the hashes whose key may exist, in order.
    pub(super) fn sift(&self, hashes: impl ExactSizeIterator<Item = u64>) -> Vec<usize> {
        let mut places = vec![0; hashes.len()];
        let mut count = 0;
        for (place, hash) in hashes.enumerate() {
            // No branch depends on the filter's result: the processor would mispredict it and wait.
            if let Some(next) = places.get_mut(count) {
                *next = place;
            }
            count += usize::from(self.may_have(hash));
        }
        places.truncate(count);
        places
    }

    fn line(&self, hash: u64) -> usize {
        (((hash >> 32) * self.lines.len() as u64) >> 32) as usize
    }

    /// Bytes in memory.
    pub(super) fn cost(&self) -> usize {
        self.lines.len() * size_of::<[u64; LINE_WORDS]>()
    }
}

/// The words of a line, and the bit in each, for a hash.
fn probes(hash: u64) -> impl Iterator<Item = (usize, u64)> {
    let mut state = hash;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(MULTIPLIER);
        let bit = (state >> 55) as usize;
        (bit / 64, 1 << (bit % 64))
    })
    .take(PROBES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_never_denied_and_little_else_is_granted() {
        let key = |number: u32| format!("key-{number:06}").into_bytes();
        let hashes: Vec<u64> = (0..10_000).map(|number| hash(&key(number))).collect();
        let mut filter = Filter::for_keys(10_000);
        hashes.iter().for_each(|&hash| filter.add(hash));
        let filter = Filter::of_bytes(&filter.bytes()).unwrap();
        assert!(hashes.iter().all(|&hash| filter.may_have(hash)));
        let others = (10_000..110_000).filter(|&number| filter.may_have(hash(&key(number))));
        let granted = others.count();
        assert!(granted < 2_500, "{granted} of 100,000");
        let mixed: Vec<u64> = (5_000..15_000).map(|number| hash(&key(number))).collect();
        let one_by_one = (0..mixed.len()).filter(|&place| filter.may_have(mixed[place]));
        let together = filter.sift(mixed.iter().copied());
        assert_eq!(together, one_by_one.collect::<Vec<_>>());
        assert_eq!(Filter::default().sift([1, 2].into_iter()), [0, 1]);
    }

    #[test]
    fn the_hash_is_what_it_was() {
        assert_eq!(hash(b""), 0);
        let known = [&b"a"[..], b"12345678", b"123456789"].map(hash);
        assert_eq!(known, KNOWN);
    }

    const KNOWN: [u64; 3] = [
        0xA943_A81C_1E5D_9741,
        0x7C5B_0E2A_EAA8_74B5,
        0x6096_9A85_C906_D6B0,
    ];
}
