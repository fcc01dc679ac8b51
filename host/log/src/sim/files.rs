//! The simulated disk as the engine sees it: every method of [`Disk`] and [`DiskFile`] is one counted operation.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use super::faults::{self, Effect, Fault};
use super::image::{Change, Image, NameChange, Node, SimFile};
use super::trace::{self, Operation, OperationKind, Trace};
use super::{SimDisk, Watcher};
use crate::disk::{Disk, DiskFile, FileSystem};

#[derive(Default)]
pub(super) struct World {
    pub(super) image: Image,
    /// Handles from before a power cut do nothing.
    pub(super) life: u64,
    pub(super) operations_left: Option<u64>,
    pub(super) operation_count: u64,
    pub(super) off: bool,
    pub(super) capacity_bytes: Option<u64>,
    pub(super) faults: Vec<Fault>,
    pub(super) fault_met: bool,
    pub(super) trace: Trace,
    pub(super) watcher: Option<Watcher>,
}

impl World {
    /// Counts and records an operation; returns its fault, if any.
    fn step(
        &mut self,
        kind: OperationKind,
        path: &Path,
        at: u64,
        length: usize,
    ) -> io::Result<Option<Effect>> {
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
        let first_dir = path.parent().filter(|_| kind == OperationKind::CreateDir);
        let root = self.image.root.as_deref().or(first_dir);
        let operation = Operation {
            number: self.operation_count,
            kind,
            path: trace::below(root, path),
            at,
            length: length as u64,
        };
        if let Some(watcher) = &self.watcher {
            watcher(&operation, &self.image);
        }
        self.trace.note(&operation);
        let effect = faults::meet(&mut self.faults, &operation);
        self.fault_met |= effect.is_some();
        match effect.as_ref().and_then(Effect::error) {
            Some(error) => Err(error),
            None => Ok(effect),
        }
    }

    fn file(&mut self, handle: &SimHandle) -> io::Result<&mut SimFile> {
        if handle.life != self.life {
            return Err(io::Error::other("a handle of before the power cut"));
        }
        let file = self.image.files.get_mut(&handle.file);
        file.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn check_room(&mut self, handle: &SimHandle, length: u64) -> io::Result<()> {
        let used = self.image.used_bytes();
        let capacity = self.capacity_bytes.unwrap_or(u64::MAX);
        let more = length.saturating_sub(self.file(handle)?.room());
        if more > 0 && used + more > capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn change_name(&mut self, change: NameChange) {
        self.image.change_name(self.operation_count, change);
    }

    fn change(&mut self, handle: &SimHandle, change: Change) -> io::Result<()> {
        let number = self.operation_count;
        self.file(handle)?.change(number, change);
        Ok(())
    }

    /// Makes a write with this effect.
    fn write(
        &mut self,
        handle: &SimHandle,
        at: usize,
        bytes: Bytes,
        effect: Option<Effect>,
    ) -> io::Result<()> {
        let number = self.operation_count;
        match effect {
            Some(Effect::Short) => {
                let bytes = bytes.slice(..bytes.len() / 2);
                self.change(handle, Change::Write { at, bytes })?;
                Err(faults::failed())
            }
            Some(Effect::LoseWrite) => {
                SimFile::apply(&mut self.file(handle)?.now, &Change::Write { at, bytes });
                Ok(())
            }
            Some(Effect::Misdirect { path, at: there }) => {
                let seen = Change::Write {
                    at,
                    bytes: bytes.clone(),
                };
                SimFile::apply(&mut self.file(handle)?.now, &seen);
                let own = Some(handle.file);
                let hit = path.map_or(own, |path| self.image.file_id(&path));
                if let Some(file) = hit.and_then(|id| self.image.files.get_mut(&id)) {
                    let at = there as usize;
                    file.unsynced.push((number, Change::Write { at, bytes }));
                    if hit != own {
                        // Nothing was written there, so no cache hides it.
                        let (_, hidden) = &file.unsynced[file.unsynced.len() - 1];
                        SimFile::apply(&mut file.now, hidden);
                    }
                }
                Ok(())
            }
            _ => self.change(handle, Change::Write { at, bytes }),
        }
    }
}

/// Waits outside the lock, so that other operations continue.
fn wait(effect: Option<Effect>) -> Option<Effect> {
    match effect {
        Some(Effect::Wait(gate)) => {
            gate.pass();
            None
        }
        effect => effect,
    }
}

impl SimDisk {
    fn step(&self, kind: OperationKind, path: &Path) -> io::Result<Option<Effect>> {
        let effect = self.world.lock().step(kind, path, 0, 0);
        effect.map(wait)
    }

    fn handle(&self, world: &mut World, file: u64, path: &Path) -> Arc<dyn DiskFile> {
        let mut failures_seen = 0;
        if let Some(file) = world.image.files.get_mut(&file) {
            file.open += 1;
            failures_seen = file.failed_syncs;
        }
        Arc::new(SimHandle {
            world: Arc::clone(&self.world),
            file,
            life: world.life,
            path: path.to_owned(),
            failures_seen: AtomicU32::new(failures_seen),
        })
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.step(OperationKind::Open, path)?;
        let world = &mut *self.world.lock();
        match world.image.names.get(path) {
            Some(Node::File(file)) => Ok(self.handle(world, *file, path)),
            Some(Node::Dir) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.step(OperationKind::Create, path)?;
        let world = &mut *self.world.lock();
        let names = &world.image.names;
        // Tests need not create directories.
        let parent = path.parent().unwrap_or(path);
        if world.image.root.is_some() && names.get(parent) != Some(&Node::Dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        if names.get(path) == Some(&Node::Dir) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let file = world.image.next_file;
        world.image.next_file += 1;
        world.image.files.insert(file, SimFile::default());
        world.change_name(NameChange::Set(path.to_owned(), Node::File(file)));
        Ok(self.handle(world, file, path))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.step(OperationKind::CreateDir, path)?;
        let world = &mut *self.world.lock();
        world.image.create_dirs(world.operation_count, path);
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.step(OperationKind::List, dir)?;
        let world = self.world.lock();
        let mut names: Vec<String> = world
            .image
            .names
            .keys()
            .filter_map(|path| path.strip_prefix(dir).ok()?.iter().next())
            .map(|name| name.to_string_lossy().into_owned())
            .collect();
        names.dedup();
        Ok(names)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(OperationKind::Rename, to)?;
        let world = &mut *self.world.lock();
        let node = *world.image.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        world.change_name(NameChange::Rename(from.to_owned(), to.to_owned(), node));
        Ok(())
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(OperationKind::Link, to)?;
        let world = &mut *self.world.lock();
        let node = *world.image.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        if world.image.names.contains_key(to) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        world.change_name(NameChange::Set(to.to_owned(), node));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.step(OperationKind::Remove, path)?;
        let world = &mut *self.world.lock();
        match world.image.names.get(path) {
            Some(Node::File(_)) => world.change_name(NameChange::Remove(path.to_owned())),
            Some(Node::Dir) => return Err(io::ErrorKind::IsADirectory.into()),
            None => {}
        }
        Ok(())
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.step(OperationKind::RemoveDir, path)?;
        let world = &mut *self.world.lock();
        let inside = |name: &&PathBuf| name.starts_with(path);
        let doomed = world.image.names.keys().filter(inside).cloned();
        // Deeper ones first.
        let doomed: Vec<PathBuf> = doomed.rev().collect();
        for name in doomed {
            world.change_name(NameChange::Remove(name));
        }
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let effect = self.step(OperationKind::SyncDir, dir)?;
        if !matches!(effect, Some(Effect::Lie)) {
            self.world.lock().image.sync_dir(dir);
        }
        Ok(())
    }

    fn file_system(&self, dir: &Path) -> io::Result<Arc<dyn FileSystem>> {
        self.step(OperationKind::FileSystem, dir)?;
        Ok(Arc::new(self.clone()))
    }

    fn moment(&self, what: &str) -> io::Result<()> {
        self.step(OperationKind::Moment, Path::new(what)).map(drop)
    }
}

impl FileSystem for SimDisk {
    fn sync(&self) -> io::Result<()> {
        let effect = self.step(OperationKind::SyncAll, Path::new(""))?;
        let image = &mut self.world.lock().image;
        match effect {
            Some(Effect::DropPages) => {
                let dirty = image.files.values_mut();
                let dirty = dirty.filter(|file| !file.unsynced.is_empty());
                dirty.for_each(SimFile::drop_pages);
                return Err(io::Error::other("simulated failure of a sync"));
            }
            Some(Effect::Lie) => {}
            _ => image.sync_all(),
        }
        Ok(())
    }
}

struct SimHandle {
    world: Arc<Mutex<World>>,
    file: u64,
    life: u64,
    path: PathBuf,
    failures_seen: AtomicU32,
}

impl SimHandle {
    fn step(&self, kind: OperationKind, at: u64, length: usize) -> io::Result<Option<Effect>> {
        let effect = self.world.lock().step(kind, &self.path, at, length);
        effect.map(wait)
    }
}

impl Drop for SimHandle {
    fn drop(&mut self) {
        let world = &mut *self.world.lock();
        if let Ok(file) = world.file(self) {
            file.open = file.open.saturating_sub(1);
            if file.open == 0 {
                world.image.drop_unnamed();
            }
        }
    }
}

impl DiskFile for SimHandle {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let effect = self.step(OperationKind::Read, at, buffer.len())?;
        let mut world = self.world.lock();
        let file = world.file(self)?;
        let bytes = match effect {
            Some(Effect::Stale) => &file.durable,
            _ => &file.now,
        };
        let rest = bytes.get(at as usize..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let was_off = self.world.lock().off;
        let effect = self.step(OperationKind::Write, at, bytes.len());
        let world = &mut *self.world.lock();
        let bytes_kept = Bytes::copy_from_slice(bytes);
        match effect {
            Ok(effect) => {
                world.check_room(self, at + bytes.len() as u64)?;
                world.write(self, at as usize, bytes_kept, effect)
            }
            Err(error) => {
                // The write during the power cut may also have reached the disk.
                if world.off && !was_off {
                    world.write(self, at as usize, bytes_kept, None)?;
                }
                Err(error)
            }
        }
    }

    fn preallocate(&self, length: u64, grow: bool) -> io::Result<()> {
        self.step(OperationKind::Preallocate, 0, length as usize)?;
        let world = &mut *self.world.lock();
        world.check_room(self, length)?;
        let file = world.file(self)?;
        file.reserved = file.reserved.max(length);
        if grow && (file.now.len() as u64) < length {
            world.change(self, Change::Length(length as usize))?;
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.step(OperationKind::SetLength, 0, length as usize)?;
        let world = &mut *self.world.lock();
        world.check_room(self, length)?;
        world.file(self)?.reserved = 0;
        world.change(self, Change::Length(length as usize))
    }

    fn sync_data(&self) -> io::Result<()> {
        let effect = self.step(OperationKind::Sync, 0, 0)?;
        let world = &mut *self.world.lock();
        let file = world.file(self)?;
        if matches!(effect, Some(Effect::DropPages)) {
            file.drop_pages();
        }
        let failures = file.failed_syncs;
        if self.failures_seen.swap(failures, Ordering::Relaxed) < failures {
            return Err(io::Error::other("simulated failure of a sync"));
        }
        if !matches!(effect, Some(Effect::Lie)) {
            file.sync();
        }
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        self.step(OperationKind::Length, 0, 0)?;
        Ok(self.world.lock().file(self)?.now.len() as u64)
    }

    fn map_sealed(&self) -> io::Result<Bytes> {
        self.step(OperationKind::Map, 0, 0)?;
        let now = Arc::clone(&self.world.lock().file(self)?.now);
        Ok(Bytes::from_owner(Shared(now)))
    }
}

/// A file's bytes, shared with its readers.
struct Shared(Arc<Vec<u8>>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
