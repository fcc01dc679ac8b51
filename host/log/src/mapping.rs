//! The only file of this crate with `unsafe`: mapping a sealed file as [`Bytes`], checking whether
//! mapped bytes are in memory, and setting the size of memory pages.

#![allow(
    unsafe_code,
    reason = "what is asked of the system's memory cannot be checked by the compiler; this file is the argument"
)]

use std::fs::File;
use std::io;

use bytes::Bytes;
use memmap2::Mmap;

/// Maps a file that never changes again.
pub(crate) fn map_sealed(file: &File) -> io::Result<Bytes> {
    if file.metadata()?.len() == 0 {
        return Ok(Bytes::new()); // an empty mapping is an error to the kernel
    }
    // SAFETY: the mapping is read-only, and a sealed segment is never written or cut again: the
    // partition seals it by setting its final length before the first mapping, and retention only
    // unlinks, which leaves mapped pages valid. The data directory is locked, so no second process
    // of ours writes to it either. If a foreign process truncates the file, the kernel ends this
    // process with a signal; wrong bytes are never accepted, because every batch is checked.
    let mapping = unsafe { Mmap::map(file)? };
    Ok(Bytes::from_owner(mapping))
}

/// Makes the system give this process, and its children, memory in pages of the normal size. With
/// larger pages, about an eighth more memory is used than the bounds count, and a small host would
/// be killed for that. Does nothing if the system does not support it.
pub fn keep_to_small_pages() {
    #[cfg(target_os = "linux")]
    {
        let (yes, unused): (libc::c_ulong, libc::c_ulong) = (1, 0);
        // SAFETY: this sets how the kernel backs memory from now on, and reads and writes none of
        // ours.
        unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, yes, unused, unused, unused) };
    }
}

/// Pages checked for being in memory; a larger range counts as not in memory.
const PAGES_MAX: usize = 1024;

fn page_bytes() -> usize {
    // SAFETY: this reads a constant of the system.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).unwrap_or(4096).max(1)
}

/// Whether all of `bytes` is in memory, so that reading it does not wait for the disk, as far as
/// the system knows. Long ranges are not checked.
pub(crate) fn is_resident(bytes: &[u8]) -> bool {
    let page_bytes = page_bytes();
    let into_page = bytes.as_ptr() as usize % page_bytes;
    let length = into_page + bytes.len();
    let pages = length.div_ceil(page_bytes);
    if bytes.is_empty() || pages > PAGES_MAX {
        return bytes.is_empty();
    }
    let mut found = [0_u8; PAGES_MAX];
    // SAFETY: mincore reads no memory of ours, and writes one byte per page, for which there is
    // room. The range is that of a living slice, from the beginning of its first page on; if it is
    // not a mapping, the call only fails.
    let failed = unsafe {
        let first = bytes.as_ptr().sub(into_page).cast_mut();
        libc::mincore(first.cast(), length, found.as_mut_ptr())
    };
    failed == 0 && found[..pages].iter().all(|page| page & 1 == 1)
}
