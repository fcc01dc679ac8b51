//! A disk in memory that behaves as badly as real ones may: power cuts that lose or tear what was not synced ([`Loss`]), full
//! disks, failing and lying syncs, short, lost and misdirected writes, stale reads ([`Fault`]), flipped bits, slow operations
//! and such that wait until they are let go ([`Gate`]). For tests here and in the engine.
//!
//! It does nothing by itself: what happens follows from the operations asked for, the faults injected and the seeds given, and
//! [`SimDisk::trace_hash`] shows it.

mod faults;
mod files;
mod image;
mod loss;
#[cfg(test)]
mod tests;
mod trace;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

pub use self::faults::{Effect, Fault, Gate};
use self::files::World;
pub use self::image::Image;
use self::image::{Node, SimFile};
pub use self::loss::{Keep, Loss};
pub use self::trace::{Operation, OperationKind};

/// Sees every operation just before it happens, and the disk as it is then. Called under the disk's lock: it must not call
/// back.
pub type Watcher = Arc<dyn Fn(&Operation, &Image) + Send + Sync>;

/// The simulated disk. Clones are the same disk.
#[derive(Clone, Default)]
pub struct SimDisk {
    world: Arc<Mutex<World>>,
}

impl SimDisk {
    /// A disk that begins with what another one held.
    #[must_use]
    pub fn with_image(image: Image) -> Self {
        let disk = Self::default();
        disk.world.lock().image = image;
        disk
    }

    /// All that is on the disk now.
    #[must_use]
    pub fn image(&self) -> Image {
        self.world.lock().image.clone()
    }

    /// Shows every operation from now on.
    pub fn watch(&self, watcher: Option<Watcher>) {
        self.world.lock().watcher = watcher;
    }

    /// The power fails at the `operations`-th operation from now; it and all later ones fail.
    pub fn cut_power_after(&self, operations: u64) {
        self.world.lock().operations_left = Some(operations);
    }

    /// The power fails now.
    pub fn cut_power(&self) {
        self.world.lock().off = true;
    }

    /// Whether the power has failed.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.world.lock().off
    }

    /// Operations so far.
    #[must_use]
    pub fn operation_count(&self) -> u64 {
        self.world.lock().operation_count
    }

    /// A hash of all operations so far: what, where, how much.
    #[must_use]
    pub fn trace_hash(&self) -> u64 {
        self.world.lock().trace.hash()
    }

    /// Keeps every operation from now on, for [`SimDisk::trace`].
    pub fn keep_trace(&self) {
        self.world.lock().trace.kept = Some(Vec::new());
    }

    /// The operations since [`SimDisk::keep_trace`].
    #[must_use]
    pub fn trace(&self) -> Vec<Operation> {
        self.world.lock().trace.kept.clone().unwrap_or_default()
    }

    /// How long all operations so far would have taken. Nothing waits for it.
    #[must_use]
    pub fn virtual_time(&self) -> Duration {
        self.world.lock().trace.cost
    }

    /// Makes every operation from now on take so many times as long, in [`SimDisk::virtual_time`].
    pub fn set_slowness(&self, factor: u32) {
        self.world.lock().trace.cost_factor = factor;
    }

    /// The power is back: of what was not synced, `seed` decides what is left. Older handles stay dead.
    pub fn restore_power(&self, seed: u64) {
        self.restore_power_after(Loss::random(seed));
    }

    /// The power is back, after that loss. Older handles stay dead, faults are gone.
    pub fn restore_power_after(&self, loss: Loss) {
        let world = &mut *self.world.lock();
        world.image.lose_power(loss);
        world.life += 1;
        world.off = false;
        world.operations_left = None;
        world.faults.clear();
    }

    /// Lets operations go wrong; with several faults the first that meets an operation counts. A power cut ends them.
    pub fn inject(&self, fault: Fault) {
        self.world.lock().faults.push(fault);
    }

    /// Whether a fault has met an operation, since the disk was made.
    #[must_use]
    pub fn is_fault_met(&self) -> bool {
        self.world.lock().fault_met
    }

    /// Nothing goes wrong any more.
    pub fn heal(&self) {
        self.world.lock().faults.clear();
    }

    /// Bounds the bytes of all files together; `None` lifts the bound.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.world.lock().capacity_bytes = bytes;
    }

    /// Bytes that the files take, reservations included.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.world.lock().image.used_bytes()
    }

    /// The next `count` syncs of files fail; what they were to make durable is lost, though it can still be read, and later
    /// syncs succeed: as Linux does it.
    pub fn fail_syncs(&self, count: u32) {
        self.inject(Fault::new(Effect::DropPages).times(count.into()));
    }

    /// Inverts one bit of a file, durably.
    ///
    /// # Panics
    /// If there is no such file or place.
    pub fn flip_bit(&self, path: &Path, byte: usize, bit: u8) {
        self.corrupt(path, |bytes| bytes[byte] ^= 1 << bit);
    }

    /// Changes a file's bytes behind everybody's back, durably.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn corrupt(&self, path: &Path, change: impl Fn(&mut Vec<u8>)) {
        let image = &mut self.world.lock().image;
        let id = image.file_id(path).expect("a file");
        let file = image.files.get_mut(&id).expect("a named file");
        file.sync();
        change(Arc::make_mut(&mut file.now));
        change(Arc::make_mut(&mut file.durable));
    }

    /// Puts a file there behind everybody's back, durably; its directory must be there.
    pub fn plant(&self, path: &Path, bytes: &[u8]) {
        let image = &mut self.world.lock().image;
        let id = image.next_file;
        image.next_file += 1;
        let bytes = Arc::new(bytes.to_vec());
        let file = SimFile {
            now: Arc::clone(&bytes),
            durable: bytes,
            ..SimFile::default()
        };
        image.files.insert(id, file);
        for names in [&mut image.names, &mut image.durable_names] {
            names.insert(path.to_owned(), Node::File(id));
        }
    }

    /// A file's bytes as they are now.
    #[must_use]
    pub fn contents(&self, path: &Path) -> Option<Vec<u8>> {
        let image = &self.world.lock().image;
        Some(image.files[&image.file_id(path)?].now.to_vec())
    }

    /// All files, by path.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        let image = &self.world.lock().image;
        let files = image.names.iter();
        let files = files.filter(|(_, node)| matches!(node, Node::File(_)));
        files.map(|(path, _)| path.clone()).collect()
    }

    /// All directories, by path.
    #[must_use]
    pub fn dirs(&self) -> Vec<PathBuf> {
        let image = &self.world.lock().image;
        let dirs = image.names.iter();
        let dirs = dirs.filter(|(_, node)| matches!(node, Node::Dir));
        dirs.map(|(path, _)| path.clone()).collect()
    }
}
