//! A disk in memory that behaves as badly as real disks may: power cuts that lose or tear unsynced
//! data ([`Loss`]), full disks, failing and lying syncs, short, lost and misdirected writes, stale
//! reads ([`Fault`]), flipped bits, slow operations, and operations that wait until they are
//! released ([`Gate`]). For tests here and in the engine.
//!
//! It is deterministic: its behaviour follows from the operations, the injected faults and the
//! seeds. [`SimDisk::trace_hash`] proves it.

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

/// Sees every operation just before it happens, with the disk's content at that moment. Called
/// under the disk's lock, so it must not call back.
pub type Watcher = Arc<dyn Fn(&Operation, &Image) + Send + Sync>;

/// The simulated disk. Clones are the same disk.
#[derive(Clone, Default)]
pub struct SimDisk {
    world: Arc<Mutex<World>>,
}

impl SimDisk {
    /// A disk with the content of another one.
    #[must_use]
    pub fn with_image(image: Image) -> Self {
        let disk = Self::default();
        disk.world.lock().image = image;
        disk
    }

    /// The current content of the disk.
    #[must_use]
    pub fn image(&self) -> Image {
        self.world.lock().image.clone()
    }

    /// Shows every operation from now on to the watcher.
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

    /// How long all operations so far would have taken; nothing actually waits.
    #[must_use]
    pub fn virtual_time(&self) -> Duration {
        self.world.lock().trace.cost
    }

    /// Makes every operation from now on take this many times as long, in
    /// [`SimDisk::virtual_time`].
    pub fn set_slowness(&self, factor: u32) {
        self.world.lock().trace.cost_factor = factor;
    }

    /// The power is back; `seed` decides which unsynced changes remain. Older handles stay dead.
    pub fn restore_power(&self, seed: u64) {
        self.restore_power_after(Loss::random(seed));
    }

    /// The power is back, after this loss. Older handles stay dead; faults are removed.
    pub fn restore_power_after(&self, loss: Loss) {
        let world = &mut *self.world.lock();
        world.image.lose_power(loss);
        world.life += 1;
        world.off = false;
        world.operations_left = None;
        world.faults.clear();
    }

    /// Injects a fault. If several apply to an operation, the first one counts. A power cut removes
    /// them.
    pub fn inject(&self, fault: Fault) {
        self.world.lock().faults.push(fault);
    }

    /// Whether any fault has applied to an operation since the disk was created.
    #[must_use]
    pub fn is_fault_met(&self) -> bool {
        self.world.lock().fault_met
    }

    /// Removes all faults.
    pub fn heal(&self) {
        self.world.lock().faults.clear();
    }

    /// Bounds the bytes of all files together; `None` removes the bound.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.world.lock().capacity_bytes = bytes;
    }

    /// Bytes that the files take, including reservations.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.world.lock().image.used_bytes()
    }

    /// Makes the next `count` syncs of files fail: their data is lost, although it can still be
    /// read and later syncs succeed, as on Linux.
    pub fn fail_syncs(&self, count: u32) {
        self.inject(Fault::new(Effect::DropPages).times(count.into()));
    }

    /// Inverts one bit of a file, durably.
    ///
    /// # Panics
    /// If there is no such file or position.
    pub fn flip_bit(&self, path: &Path, byte: usize, bit: u8) {
        self.corrupt(path, |bytes| bytes[byte] ^= 1 << bit);
    }

    /// Changes a file's bytes durably, bypassing all handles.
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

    /// Creates a file durably, bypassing all handles; its directory must exist.
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

    /// A file's current bytes.
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
