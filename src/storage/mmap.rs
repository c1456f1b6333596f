//! The memory maps of sealed files, and what size the system's pages have: the one place with `unsafe`.
//!
//! Owns which maps this process has, and giving their pages back. A page that was read stays resident, and counts as the
//! process's, until the system wants it; so once as many bytes were read as maps may keep, the pages of all maps that
//! were read are given back. They stay in the system's cache: who reads on pays a page fault, not a read of the disk.
//! Leaves out deciding what is sealed: `Disk::map` and its callers do. A crash does nothing to a map.
#![allow(unsafe_code)]

use arrow::buffer::Buffer;
use bytes::Bytes;
use memmap2::{Mmap, MmapMut};
use millstream_catalog::model::ByteSize;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;

/// Of a page. Where they are larger, parts of maps are not given back, only whole ones.
const PAGE_BYTES: usize = 4096;

/// Those of this process, which has one address space, and of that one resident size.
pub(super) static MAPS: Maps = Maps::new();

/// Memory of this process is of pages of the common size from now on, not of huge ones that the system makes when memory is
/// first touched. A system that cannot does nothing.
pub(super) fn without_huge_pages() {
    // Safety: it takes numbers only, and changes what pages are made of, not what is in them.
    let (yes, none): (libc::c_ulong, libc::c_ulong) = (1, 0);
    let _ = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, yes, none, none, none) };
}

/// Memory for much that is needed for a short time: it goes back to the system at once, not to the allocator.
///
/// # Errors
/// When there is none.
pub(super) fn scratch(bytes: usize) -> io::Result<MmapMut> {
    MmapMut::map_anon(bytes)
}

/// The maps of a process.
#[derive(Debug)]
pub(super) struct Maps(Mutex<Mapped>);

#[derive(Debug)]
struct Mapped {
    /// By their first address.
    regions: BTreeMap<usize, Region>,
    /// The first addresses of those that were read since pages were last given back.
    touched: Vec<usize>,
    /// Bytes read since then.
    read: u64,
    read_max: u64,
}

#[derive(Debug)]
struct Region {
    len: usize,
    /// Bytes read since its pages were last given back, at most all.
    read: u64,
}

/// A map, known to `maps` as long as it lives.
struct KnownMap {
    map: Mmap,
    maps: &'static Maps,
}

impl AsRef<[u8]> for KnownMap {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

impl Drop for KnownMap {
    fn drop(&mut self) {
        // Before it is unmapped, which is when the fields are dropped.
        let mapped = &mut *self.maps.0.lock();
        let start = self.map.as_ptr() as usize;
        if let Some(region) = mapped.regions.remove(&start).filter(|region| region.read > 0) {
            mapped.read -= region.read;
            mapped.touched.retain(|touched| *touched != start);
        }
    }
}

impl Maps {
    const fn new() -> Self {
        Self(Mutex::new(Mapped { regions: BTreeMap::new(), touched: Vec::new(), read: 0, read_max: u64::MAX }))
    }

    /// Bytes of pages that maps may keep. Half of them are for those who still read what was given back.
    pub(super) fn set_bytes_max(&self, bytes: ByteSize) {
        self.0.lock().read_max = bytes.value() / 2;
    }

    /// Bytes read since pages were last given back: the most that is resident, but for what is read by now.
    pub(super) fn bytes(&self) -> ByteSize {
        ByteSize::new(self.0.lock().read)
    }

    /// The bytes of `file`, read-only and without a copy; they stay valid after the file is unlinked.
    ///
    /// # Errors
    /// When the system cannot map the file.
    pub(super) fn map(&'static self, file: &File) -> io::Result<Buffer> {
        if file.metadata()?.len() == 0 {
            return Ok(Buffer::from(Bytes::new()));
        }
        // Safety: a map is unsound only if the file changes while it is mapped. Callers map sealed files, which
        // Millstream never writes to or truncates again and removes by unlink only (the inode lives as long as
        // the map); the data directory's lock keeps other Millstream processes away from them.
        let map = unsafe { Mmap::map(file)? };
        let region = Region { len: map.len(), read: 0 };
        self.0.lock().regions.insert(map.as_ptr() as usize, region);
        Ok(Buffer::from(Bytes::from_owner(KnownMap { map, maps: self })))
    }

    /// `bytes` bytes are about to be read of the map that has `address`, if it is in one; gives pages back when they are
    /// many, and says whether it did.
    pub(super) fn read(&self, address: *const u8, bytes: ByteSize) -> bool {
        let mapped = &mut *self.0.lock();
        let Some((start, region)) = mapped.region(address) else { return false };
        let before = region.read;
        region.read = before.saturating_add(bytes.value()).min(region.len as u64);
        let more = region.read - before;
        if before == 0 {
            mapped.touched.push(start);
        }
        mapped.read += more;
        let is_much = mapped.read >= mapped.read_max;
        if is_much {
            mapped.give_back();
        }
        is_much
    }

    /// `bytes` were read, if they are of a map, and whoever did will not come back: gives their pages back.
    pub(super) fn pass(&self, bytes: &[u8]) {
        let mapped = &mut *self.0.lock();
        let Some((start, region)) = mapped.region(bytes.as_ptr()) else { return };
        // Whole pages: the next bytes are about to be read.
        let from = (bytes.as_ptr() as usize).next_multiple_of(PAGE_BYTES) - start;
        let to = (bytes.as_ptr() as usize + bytes.len()) / PAGE_BYTES * PAGE_BYTES - start;
        region.give_back(start, from..to.min(region.len));
        let before = region.read;
        region.read = before.saturating_sub(bytes.len() as u64);
        let (left, less) = (region.read, before - region.read);
        mapped.read -= less;
        if left == 0 {
            mapped.touched.retain(|touched| *touched != start);
        }
    }
}

impl Mapped {
    /// The map that has `address`.
    fn region(&mut self, address: *const u8) -> Option<(usize, &mut Region)> {
        let (start, region) = self.regions.range_mut(..=address as usize).next_back()?;
        (address as usize - start < region.len).then_some((*start, region))
    }

    fn give_back(&mut self) {
        self.read = 0;
        for start in std::mem::take(&mut self.touched) {
            let Some(region) = self.regions.get_mut(&start) else { continue };
            region.read = 0;
            region.give_back(start, 0..region.len);
        }
    }
}

impl Region {
    /// Gives pages back of the map at `start`, which lives: one that ends leaves `regions` first, and waits for the lock that
    /// this is called under.
    fn give_back(&self, start: usize, bytes: Range<usize>) {
        if bytes.is_empty() {
            return;
        }
        // Safety: the bytes are of a map that lives. It is read-only and of a file, so that a page given back is read again
        // from the file, with the same bytes, by whoever looks at it next.
        let at = (start + bytes.start) as *mut libc::c_void;
        let given = unsafe { libc::madvise(at, bytes.len(), libc::MADV_DONTNEED) };
        if given != 0 {
            tracing::debug!(error = %io::Error::last_os_error(), "pages of a map could not be given back");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 4096;

    fn file(pages: usize, byte: u8) -> File {
        let file = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &vec![byte; pages * PAGE], 0).unwrap();
        file
    }

    /// Pages of a map that are resident for this process.
    fn resident(buffer: &Buffer) -> usize {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let start = format!("{:x}-", buffer.as_ptr() as usize);
        let map = smaps.lines().skip_while(|line| !line.starts_with(&start));
        let rss = map.take(5).find_map(|line| line.strip_prefix("Rss:")).unwrap();
        rss.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024 / PAGE
    }

    #[test]
    fn pages_are_given_back_once_much_was_read_and_can_be_read_again() {
        let maps: &'static Maps = Box::leak(Box::new(Maps::new()));
        maps.set_bytes_max(ByteSize::of(2 * 64 * PAGE));
        let (first, second, unread) = (file(40, 1), file(40, 2), file(40, 3));
        let [first, second, unread] = [first, second, unread].map(|file| maps.map(&file).unwrap());
        let sum = |buffer: &Buffer| buffer.iter().map(|byte| u64::from(*byte)).sum::<u64>();
        let all = ByteSize::of(40 * PAGE);
        assert_eq!((sum(&first), resident(&first)), (40 * PAGE as u64, 40));
        assert!(!maps.read(first.as_ptr(), all));
        assert_eq!(maps.bytes(), all);
        assert_eq!((sum(&second), resident(&second)), (80 * PAGE as u64, 40));
        let _ = sum(&unread);
        // By any address in it.
        assert!(maps.read(second.slice(39 * PAGE).as_ptr(), all));
        assert_eq!((resident(&first), resident(&second), resident(&unread)), (0, 0, 40));
        assert_eq!(maps.bytes(), ByteSize::ZERO);
        assert_eq!((sum(&first), sum(&second)), (40 * PAGE as u64, 80 * PAGE as u64));
        // A map counts once, however often it is read; and one can be passed alone.
        assert!(!maps.read(second.as_ptr(), all) && !maps.read(second.as_ptr(), all));
        assert_eq!(maps.bytes(), all);
        maps.pass(&second);
        assert_eq!((resident(&first), resident(&second), maps.bytes()), (40, 0, ByteSize::ZERO));
        assert_eq!(sum(&second), 80 * PAGE as u64);
        // Of a part, whole pages.
        assert!(!maps.read(second.as_ptr(), all));
        maps.pass(&second[10 * PAGE - 1..20 * PAGE + 1]);
        assert_eq!((resident(&second), maps.bytes()), (30, ByteSize::of(30 * PAGE - 2)));
        maps.pass(&second);
        maps.pass(&[0; 64]);
        // Neither memory of other kinds nor maps that are gone count.
        let elsewhere = [0_u8; 64];
        assert!(!maps.read(elsewhere.as_ptr(), all) && maps.bytes() == ByteSize::ZERO);
        let kept = second.slice(PAGE);
        let gone = first.as_ptr();
        drop((first, second, unread));
        assert!(!maps.read(gone, all) && maps.bytes() == ByteSize::ZERO);
        assert!(!maps.read(kept.as_ptr(), all) && maps.bytes() == all);
        assert_eq!(kept[0], 2);
    }
}
