//! The only unsafe file of this crate: a sealed file as [`Bytes`], without reading it into memory first, whether it is there already, and in which
//! pages the system gives memory.

#![allow(
    unsafe_code,
    reason = "what is asked of the system's memory cannot be checked by the compiler; this file is the argument"
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

/// Has the system give this process, and those that it starts, memory in pages of the usual size. In larger ones about an eighth more is taken
/// than what somebody counts who asked for it, and a host that has little is ended for that. Where the system does not know this, nothing happens.
pub fn keep_to_small_pages() {
    #[cfg(target_os = "linux")]
    {
        let (yes, unused): (libc::c_ulong, libc::c_ulong) = (1, 0);
        // SAFETY: it decides how the kernel backs memory from now on, and reads and writes none of ours.
        unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, yes, unused, unused, unused) };
    }
}

/// The most pages that [`is_resident`] looks at.
const PAGES_MAX: usize = 1024;

fn page_bytes() -> usize {
    // SAFETY: it reads a constant of the system.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).unwrap_or(4096).max(1)
}

/// Whether all of `bytes` is in memory, so that reading it waits for no disk, as far as the system tells. Of much it is not asked.
pub(crate) fn is_resident(bytes: &[u8]) -> bool {
    let page_bytes = page_bytes();
    let into_page = bytes.as_ptr() as usize % page_bytes;
    let length = into_page + bytes.len();
    let pages = length.div_ceil(page_bytes);
    if bytes.is_empty() || pages > PAGES_MAX {
        return bytes.is_empty();
    }
    let mut found = [0_u8; PAGES_MAX];
    // SAFETY: mincore reads no memory of ours, and writes a byte for each page, for which there is room. The range is that of a
    // slice that lives, from the beginning of its first page on; where it is no mapping the call only fails.
    let failed = unsafe {
        let first = bytes.as_ptr().sub(into_page).cast_mut();
        libc::mincore(first.cast(), length, found.as_mut_ptr())
    };
    failed == 0 && found[..pages].iter().all(|page| page & 1 == 1)
}
