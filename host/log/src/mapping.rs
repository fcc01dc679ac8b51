//! The only unsafe file of this crate: a sealed file as [`Bytes`], without reading it into memory first.

#![allow(
    unsafe_code,
    reason = "mapping a file cannot be checked by the compiler; this file is the argument"
)]

use std::fs::File;
use std::io;

use bytes::Bytes;
use memmap2::Mmap;

/// Maps a file that nobody changes any more.
pub(crate) fn map_sealed(file: &File) -> io::Result<Bytes> {
    if file.metadata()?.len() == 0 {
        return Ok(Bytes::new()); // an empty mapping is an error to the kernel
    }
    // SAFETY: the mapping is read-only, and a sealed segment is never written or cut again: the partition seals it by
    // setting its final length before the first mapping, and retention only unlinks, which leaves mapped pages valid.
    // The data directory is locked, so no second process of ours writes it either. Should somebody else cut the file, the
    // kernel ends the process by a signal; it does not give wrong bytes as sound ones, because every batch is checked.
    let mapping = unsafe { Mmap::map(file)? };
    Ok(Bytes::from_owner(mapping))
}
