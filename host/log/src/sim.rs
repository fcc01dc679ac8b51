//! A disk in memory that behaves as badly as real ones may, by seed: power cuts that lose or tear what was not synced, full
//! disks, failing syncs, flipped bits. For tests here and in the engine.
//!
//! What a power cut keeps: everything synced; of the writes since, each one whole, torn, or not at all, in no order; of the
//! creations, renames and removals since the directory's last sync, the first few.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use fastrand::Rng;
use parking_lot::{Condvar, Mutex};

use crate::disk::{Disk, DiskFile, FileSystem};

/// The simulated disk. Clones are the same disk.
#[derive(Clone, Default)]
pub struct SimDisk {
    world: Arc<Mutex<World>>,
    held: Arc<HeldSyncs>,
}

/// Syncs that hang: those of files whose path contains the text.
#[derive(Default)]
struct HeldSyncs {
    of: Mutex<Option<String>>,
    changed: Condvar,
}

impl HeldSyncs {
    fn pass(&self, path: &Path) {
        let is_held = |of: &mut Option<String>| {
            let of = of.as_ref();
            of.is_some_and(|of| path.to_string_lossy().contains(of))
        };
        self.changed.wait_while(&mut self.of.lock(), is_held);
    }
}

#[derive(Default)]
struct World {
    files: HashMap<u64, SimFile>,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    pending_names: Vec<NameChange>,
    next_file: u64,
    /// Handles of an earlier life do nothing.
    life: u64,
    operations_left: Option<u64>,
    operation_count: u64,
    off: bool,
    capacity_bytes: Option<u64>,
    syncs_to_fail: u32,
}

#[derive(Default)]
struct SimFile {
    now: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Change>,
    reserved: u64,
    /// Syncs that failed: each handle that was open is told once.
    failed_syncs: u32,
}

enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Length(usize),
}

#[derive(Clone)]
enum NameChange {
    Set(PathBuf, u64),
    Rename(PathBuf, PathBuf, u64),
    Remove(PathBuf),
}

impl NameChange {
    fn dir(&self) -> Option<&Path> {
        match self {
            Self::Set(path, _) | Self::Remove(path) | Self::Rename(_, path, _) => path.parent(),
        }
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, u64>) {
        match self {
            Self::Set(path, file) => {
                names.insert(path.clone(), *file);
            }
            Self::Rename(from, to, file) => {
                names.remove(from);
                names.insert(to.clone(), *file);
            }
            Self::Remove(path) => {
                names.remove(path);
            }
        }
    }
}

impl SimFile {
    fn apply(bytes: &mut Vec<u8>, change: &Change) {
        match change {
            Change::Length(length) => bytes.resize(*length, 0),
            Change::Write { at, bytes: written } => {
                let end = at + written.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*at..end].copy_from_slice(written);
            }
        }
    }

    fn change(&mut self, change: Change) {
        Self::apply(&mut self.now, &change);
        self.unsynced.push(change);
    }

    fn sync(&mut self) {
        for change in self.unsynced.drain(..) {
            Self::apply(&mut self.durable, &change);
        }
    }

    fn room(&self) -> u64 {
        self.reserved.max(self.now.len() as u64)
    }

    fn lose_power(&mut self, random: &mut Rng) {
        for change in std::mem::take(&mut self.unsynced) {
            match change {
                _ if random.u8(..3) == 0 => {}
                Change::Write { at, mut bytes } if random.bool() => {
                    bytes.truncate(random.usize(..=bytes.len()));
                    Self::apply(&mut self.durable, &Change::Write { at, bytes });
                }
                change => Self::apply(&mut self.durable, &change),
            }
        }
        self.now.clone_from(&self.durable);
    }
}

impl World {
    fn step(&mut self) -> io::Result<()> {
        self.operation_count += 1;
        if let Some(left) = &mut self.operations_left {
            if *left == 0 {
                self.off = true;
            }
            *left = left.saturating_sub(1);
        }
        if self.off {
            return Err(io::Error::other("the simulated machine is off"));
        }
        Ok(())
    }

    fn file(&mut self, handle: &SimHandle) -> io::Result<&mut SimFile> {
        if handle.life != self.life {
            return Err(io::Error::other("a handle of before the power cut"));
        }
        self.files
            .get_mut(&handle.file)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn check_room(&mut self, handle: &SimHandle, length: u64) -> io::Result<()> {
        let used: u64 = self.files.values().map(SimFile::room).sum();
        let capacity = self.capacity_bytes.unwrap_or(u64::MAX);
        let more = length.saturating_sub(self.file(handle)?.room());
        if more > 0 && used + more > capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn rename_now(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.pending_names.push(change);
        self.drop_unnamed();
    }

    /// A file without any name, now or after a power cut, is gone.
    fn drop_unnamed(&mut self) {
        let mut named: Vec<u64> = self.names.values().copied().collect();
        named.extend(self.durable_names.values());
        for change in &self.pending_names {
            if let NameChange::Set(_, file) | NameChange::Rename(_, _, file) = change {
                named.push(*file);
            }
        }
        self.files.retain(|file, _| named.contains(file));
    }
}

impl SimDisk {
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

    /// The power is back: of what was not synced, `seed` decides what is left. Older handles stay dead.
    pub fn restore_power(&self, seed: u64) {
        let mut random = Rng::with_seed(seed);
        let world = &mut *self.world.lock();
        let pending = std::mem::take(&mut world.pending_names);
        let kept = random.usize(..=pending.len());
        for change in &pending[..kept] {
            change.apply(&mut world.durable_names);
        }
        world.names.clone_from(&world.durable_names);
        let mut files: Vec<&mut SimFile> = world.files.values_mut().collect();
        files
            .iter_mut()
            .for_each(|file| file.lose_power(&mut random));
        world.life += 1;
        world.off = false;
        world.operations_left = None;
        world.syncs_to_fail = 0;
        world.drop_unnamed();
    }

    /// Bounds the bytes of all files together; `None` lifts the bound.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.world.lock().capacity_bytes = bytes;
    }

    /// Bytes that the files take, reservations included.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.world.lock().files.values().map(SimFile::room).sum()
    }

    /// The next `count` syncs of files fail; what they were to make durable is lost, though it can still be read, and later
    /// syncs succeed: as Linux does it.
    pub fn fail_syncs(&self, count: u32) {
        self.world.lock().syncs_to_fail = count;
    }

    /// Lets syncs of files whose path contains `of` hang from now on; lets all others, and those that hang, go on.
    pub fn hold_syncs(&self, of: Option<&str>) {
        *self.held.of.lock() = of.map(str::to_owned);
        self.held.changed.notify_all();
    }

    /// Inverts one bit of a file, durably.
    ///
    /// # Panics
    /// If there is no such file or place.
    pub fn flip_bit(&self, path: &Path, byte: usize, bit: u8) {
        let world = &mut *self.world.lock();
        let file = world.files.get_mut(&world.names[path]).expect("a file");
        file.sync();
        file.now[byte] ^= 1 << bit;
        file.durable[byte] ^= 1 << bit;
    }

    /// A file's bytes as they are now.
    #[must_use]
    pub fn contents(&self, path: &Path) -> Option<Vec<u8>> {
        let world = self.world.lock();
        Some(world.files[world.names.get(path)?].now.clone())
    }

    /// All files, by path.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        self.world.lock().names.keys().cloned().collect()
    }

    fn handle(&self, world: &World, file: u64) -> Arc<dyn DiskFile> {
        Arc::new(SimHandle {
            world: Arc::clone(&self.world),
            held: Arc::clone(&self.held),
            file,
            life: world.life,
            failures_seen: AtomicU32::new(world.files[&file].failed_syncs),
        })
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut world = self.world.lock();
        world.step()?;
        let file = *world.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.handle(&world, file))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut world = self.world.lock();
        world.step()?;
        let file = world.next_file;
        world.next_file += 1;
        world.files.insert(file, SimFile::default());
        world.rename_now(NameChange::Set(path.to_owned(), file));
        Ok(self.handle(&world, file))
    }

    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        self.world.lock().step()
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut world = self.world.lock();
        world.step()?;
        let mut names: Vec<String> = world
            .names
            .keys()
            .filter_map(|path| path.strip_prefix(dir).ok()?.iter().next())
            .map(|name| name.to_string_lossy().into_owned())
            .collect();
        names.dedup();
        Ok(names)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut world = self.world.lock();
        world.step()?;
        let file = *world.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        world.rename_now(NameChange::Rename(from.to_owned(), to.to_owned(), file));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world.lock();
        world.step()?;
        if world.names.contains_key(path) {
            world.rename_now(NameChange::Remove(path.to_owned()));
        }
        Ok(())
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world.lock();
        world.step()?;
        let inside = |name: &&PathBuf| name.starts_with(path);
        let doomed: Vec<PathBuf> = world.names.keys().filter(inside).cloned().collect();
        for name in doomed {
            world.rename_now(NameChange::Remove(name));
        }
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let world = &mut *self.world.lock();
        world.step()?;
        let (ours, others) = std::mem::take(&mut world.pending_names)
            .into_iter()
            .partition(|change| change.dir() == Some(dir));
        world.pending_names = others;
        let ours: Vec<NameChange> = ours;
        for change in &ours {
            change.apply(&mut world.durable_names);
        }
        world.drop_unnamed();
        Ok(())
    }

    fn file_system(&self, _: &Path) -> io::Result<Arc<dyn FileSystem>> {
        self.world.lock().step()?;
        Ok(Arc::new(self.clone()))
    }
}

impl FileSystem for SimDisk {
    fn sync(&self) -> io::Result<()> {
        let world = &mut *self.world.lock();
        world.step()?;
        if world.syncs_to_fail > 0 {
            world.syncs_to_fail -= 1;
            world.files.values_mut().for_each(|f| f.unsynced.clear());
            return Err(io::Error::other("simulated failure of a sync"));
        }
        world.files.values_mut().for_each(SimFile::sync);
        for change in std::mem::take(&mut world.pending_names) {
            change.apply(&mut world.durable_names);
        }
        world.drop_unnamed();
        Ok(())
    }
}

struct SimHandle {
    world: Arc<Mutex<World>>,
    held: Arc<HeldSyncs>,
    file: u64,
    life: u64,
    failures_seen: AtomicU32,
}

impl DiskFile for SimHandle {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let mut world = self.world.lock();
        world.step()?;
        let bytes = &world.file(self)?.now;
        let rest = bytes.get(at as usize..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let mut world = self.world.lock();
        let was_off = world.off;
        let alive = world.step();
        if alive.is_ok() {
            world.check_room(self, at + bytes.len() as u64)?;
        }
        // The write that the power cut hits may have reached the disk, too.
        if alive.is_ok() || !was_off {
            let (at, bytes) = (at as usize, bytes.to_vec());
            world.file(self)?.change(Change::Write { at, bytes });
        }
        alive
    }

    fn preallocate(&self, length: u64, grow: bool) -> io::Result<()> {
        let mut world = self.world.lock();
        world.step()?;
        world.check_room(self, length)?;
        let file = world.file(self)?;
        file.reserved = file.reserved.max(length);
        if grow && (file.now.len() as u64) < length {
            file.change(Change::Length(length as usize));
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut world = self.world.lock();
        world.step()?;
        world.check_room(self, length)?;
        let file = world.file(self)?;
        file.reserved = 0;
        file.change(Change::Length(length as usize));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let path = {
            let world = self.world.lock();
            let mut names = world.names.iter();
            let named = names.find(|(_, file)| **file == self.file);
            named.map(|(path, _)| path.clone()).unwrap_or_default()
        };
        self.held.pass(&path);
        let mut world = self.world.lock();
        world.step()?;
        if world.syncs_to_fail > 0 {
            world.syncs_to_fail -= 1;
            let file = world.file(self)?;
            file.unsynced.clear();
            file.failed_syncs += 1;
        }
        let file = world.file(self)?;
        if self
            .failures_seen
            .swap(file.failed_syncs, Ordering::Relaxed)
            < file.failed_syncs
        {
            return Err(io::Error::other("simulated failure of a sync"));
        }
        file.sync();
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        let mut world = self.world.lock();
        world.step()?;
        Ok(world.file(self)?.now.len() as u64)
    }

    fn map_sealed(&self) -> io::Result<Bytes> {
        let mut world = self.world.lock();
        world.step()?;
        Ok(world.file(self)?.now.clone().into())
    }
}
