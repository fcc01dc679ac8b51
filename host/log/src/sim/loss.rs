//! What remains after a power cut.
//!
//! Everything synced stays. Of unsynced changes, the kernel may already have written any part, in
//! any order. So each write since the file's last sync may remain completely, torn, as zeros, or
//! not at all; the same holds for each change of a length. Names (creations, renames, removals, new
//! directories) follow the harsher of real file systems: ext4 and XFS keep a prefix of all such
//! changes in order ([`Keep::Prefix`]); btrfs may keep any of them without earlier ones
//! ([`Keep::Random`]). A rename is atomic in both. If a directory's own name is lost, everything in
//! it is lost too.

use fastrand::Rng;

use super::image::{Change, Image, NameChange, Node, SimFile};

/// Which unsynced changes a power cut keeps, in the order of their operations, names and bytes
/// together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// All, as if only the process were killed.
    All,
    /// None.
    Nothing,
    /// All but the last.
    AllButLast,
    /// All but the first.
    AllButFirst,
    /// Only the last.
    OnlyLast,
    /// Only the first.
    OnlyFirst,
    /// The first few; the one at the cut may be torn.
    Prefix,
    /// Any, some of them torn.
    Random,
    /// All writes, but no names.
    OnlyBytes,
    /// All names, but no writes.
    OnlyNames,
}

/// A power cut; `seed` decides everything random.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// What is kept.
    pub keep: Keep,
    /// Decides everything random.
    pub seed: u64,
}

impl Loss {
    /// The losses without randomness.
    pub const NAMED: [Self; 8] = [
        Self::of(Keep::All),
        Self::of(Keep::Nothing),
        Self::of(Keep::AllButLast),
        Self::of(Keep::AllButFirst),
        Self::of(Keep::OnlyLast),
        Self::of(Keep::OnlyFirst),
        Self::of(Keep::OnlyBytes),
        Self::of(Keep::OnlyNames),
    ];

    const fn of(keep: Keep) -> Self {
        Self { keep, seed: 0 }
    }

    /// Any subset: two thirds of the seeds lose names as btrfs may, a third as ext4 does.
    #[must_use]
    pub fn random(seed: u64) -> Self {
        let keep = if seed.is_multiple_of(3) {
            Keep::Prefix
        } else {
            Keep::Random
        };
        Self { keep, seed }
    }
}

/// The fate of one change.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Kept,
    Torn,
    Lost,
}

struct Judge {
    keep: Keep,
    random: Rng,
    /// Operations with pending changes, in order.
    numbers: Vec<u64>,
    cut: usize,
}

impl Judge {
    fn new(loss: Loss, image: &Image) -> Self {
        let files = image.files.values();
        let writes = files.flat_map(|file| file.unsynced.iter().map(|(number, _)| *number));
        let names = image.pending_names.iter().map(|(number, _)| *number);
        let mut numbers: Vec<u64> = writes.chain(names).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let mut random = Rng::with_seed(loss.seed);
        let cut = random.usize(..=numbers.len());
        Self {
            keep: loss.keep,
            random,
            numbers,
            cut,
        }
    }

    fn fate(&mut self, number: u64, is_name: bool) -> Fate {
        let place = self.numbers.partition_point(|&n| n < number);
        let last = self.numbers.len().saturating_sub(1);
        let kept = match self.keep {
            Keep::All => true,
            Keep::Nothing => false,
            Keep::AllButLast => place != last,
            Keep::AllButFirst => place != 0,
            Keep::OnlyLast => place == last,
            Keep::OnlyFirst => place == 0,
            Keep::OnlyBytes => !is_name,
            Keep::OnlyNames => is_name,
            Keep::Prefix if place == self.cut && self.random.bool() => return Fate::Torn,
            Keep::Prefix => place < self.cut,
            Keep::Random => {
                return match self.random.u8(..3) {
                    0 => Fate::Lost,
                    1 => Fate::Torn,
                    _ => Fate::Kept,
                };
            }
        };
        if kept { Fate::Kept } else { Fate::Lost }
    }
}

impl Image {
    /// The power fails: the remaining content is durable, and no file is open.
    pub fn lose_power(&mut self, loss: Loss) {
        let mut judge = Judge::new(loss, self);
        self.lose_names(&mut judge);
        for file in self.files.values_mut() {
            file.lose_power(&mut judge);
        }
        self.drop_unnamed();
    }

    fn lose_names(&mut self, judge: &mut Judge) {
        let mut lost_dirs = Vec::new();
        for (number, change) in std::mem::take(&mut self.pending_names) {
            // A name cannot be torn: it is kept or lost.
            match judge.fate(number, true) {
                Fate::Kept => change.apply(&mut self.durable_names),
                Fate::Torn if judge.random.bool() => change.apply(&mut self.durable_names),
                _ => {
                    if let NameChange::Set(path, Node::Dir) = change {
                        lost_dirs.push(path);
                    }
                }
            }
        }
        lost_dirs.retain(|dir| !self.durable_names.contains_key(dir));
        self.durable_names
            .retain(|path, _| !lost_dirs.iter().any(|dir| path.starts_with(dir)));
        self.names.clone_from(&self.durable_names);
    }
}

impl SimFile {
    fn lose_power(&mut self, judge: &mut Judge) {
        for (number, change) in std::mem::take(&mut self.unsynced) {
            match judge.fate(number, false) {
                Fate::Lost => {}
                Fate::Kept => Self::apply(&mut self.durable, &change),
                Fate::Torn => self.tear(&change, &mut judge.random),
            }
        }
        self.now = std::sync::Arc::clone(&self.durable);
        self.open = 0;
    }

    /// Keeps some blocks of a write, or turns it into zeros, like a length that became durable
    /// before its bytes.
    fn tear(&mut self, change: &Change, random: &mut Rng) {
        let Change::Write { at, bytes } = change else {
            if random.bool() {
                Self::apply(&mut self.durable, change);
            }
            return;
        };
        let end = at + bytes.len();
        if random.bool() && self.durable.len() < end {
            Self::apply(&mut self.durable, &Change::Length(end));
        }
        let block_bytes = match random.u8(..3) {
            0 => 4096,
            1 => 512,
            // Harsher than real disks: any prefix.
            _ => {
                let bytes = bytes.slice(..random.usize(..=bytes.len()));
                return Self::apply(&mut self.durable, &Change::Write { at: *at, bytes });
            }
        };
        let mut from = *at;
        while from < end {
            let to = (from + 1).next_multiple_of(block_bytes).min(end);
            if random.bool() {
                let bytes = bytes.slice(from - at..to - at);
                Self::apply(&mut self.durable, &Change::Write { at: from, bytes });
            }
            from = to;
        }
    }
}
