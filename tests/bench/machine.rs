//! What the bare machine achieves, as the basis for comparison.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::fs::{FallocateFlags, fallocate};

use crate::table::{Table, median, percentile};

const ROUNDS: usize = 3;
const BYTES: usize = 256 << 20;
const PIECE_BYTES: usize = 100_000;
const SYNCS: usize = 300;

/// Adds rows for memory, the page cache, and syncs of groups.
pub(crate) fn measure(table: &mut Table) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let piece = vec![7; PIECE_BYTES];
    let pieces = BYTES / PIECE_BYTES;
    let (mut copies, mut writes) = (Vec::new(), Vec::new());
    let mut target = vec![1_u8; BYTES];
    for round in 0..ROUNDS {
        let began = Instant::now();
        for place in target.chunks_exact_mut(PIECE_BYTES) {
            place.copy_from_slice(std::hint::black_box(&piece));
        }
        copies.push(mib_per_second(BYTES, began.elapsed()));
        let path = directory.path().join(format!("plain-{round}"));
        writes.push(plain_write(&path, std::iter::repeat_n(&piece[..], pieces))?);
        std::fs::remove_file(path)?;
    }
    table.row(
        "machine: memcpy",
        format!("{:.0} MiB/s", median(copies)),
        "machine: sequential write of 100 kB pieces",
        format!("{:.0} MiB/s", median(writes)),
        String::new(),
    );
    for messages in [1, 64] {
        let times = synced_writes(&directory.path().join("synced"), messages * 200, SYNCS)?;
        let p50 = percentile(times.clone(), 0.5);
        table.row(
            &format!("machine: write + fdatasync of {messages} × 200 B, preallocated"),
            format!("p50 {p50:.0} µs, p99 {:.0} µs", percentile(times, 0.99)),
            "",
            String::new(),
            String::new(),
        );
    }
    Ok(())
}

/// MiB per second when writing a new file.
pub(crate) fn plain_write<'a>(path: &Path, pieces: impl Iterator<Item = &'a [u8]>) -> Result<f64> {
    let file = new_file(path)?;
    let mut at = 0;
    let began = Instant::now();
    for piece in pieces {
        file.write_all_at(piece, at)?;
        at += piece.len() as u64;
    }
    Ok(mib_per_second(at as usize, began.elapsed()))
}

/// Microseconds of each write and sync into a preallocated file.
pub(crate) fn synced_writes(path: &Path, bytes: usize, count: usize) -> Result<Vec<f64>> {
    let file = preallocated(path, bytes * count)?;
    let piece = vec![7; bytes];
    let mut times = Vec::with_capacity(count);
    for number in 0..count {
        let began = Instant::now();
        file.write_all_at(&piece, (number * bytes) as u64)?;
        file.sync_data()?;
        times.push(micros(began.elapsed()));
    }
    std::fs::remove_file(path)?;
    Ok(times)
}

pub(crate) fn preallocated(path: &Path, bytes: usize) -> Result<File> {
    let file = new_file(path)?;
    fallocate(&file, FallocateFlags::empty(), 0, bytes as u64)?;
    Ok(file)
}

pub(crate) fn new_file(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    Ok(options.read(true).write(true).create_new(true).open(path)?)
}

pub(crate) fn mib_per_second(bytes: usize, took: Duration) -> f64 {
    bytes as f64 / f64::from(1 << 20) / took.as_secs_f64()
}

pub(crate) fn micros(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1_000.0
}
