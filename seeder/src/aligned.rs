//! Reading a file into memory that begins with a page.
//!
//! Where a page is copied to a few bytes behind the start of another, some processors are several times slower, and an
//! allocator's large blocks begin just there.

use std::io;
use std::os::fd::AsFd;

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::io::Errno;

/// A page of memory.
const PAGE_BYTES: usize = 4096;

/// From this length on a read is worth the room that its alignment costs.
const ALIGN_FROM: usize = 64 * 1024;

/// Exactly `length` bytes from `offset`. Errors: `UnexpectedEof` if the file is shorter.
pub(crate) fn read_exact_at(file: impl AsFd, offset: u64, length: usize) -> io::Result<Bytes> {
    let align = if length < ALIGN_FROM { 1 } else { PAGE_BYTES };
    let mut bytes: Vec<u8> = Vec::with_capacity(length + align - 1);
    let start = bytes.as_ptr().align_offset(align).min(align - 1);
    bytes.resize(start, 0);
    while bytes.len() < start + length {
        let at = offset + (bytes.len() - start) as u64;
        // Into spare capacity: the buffer is not zeroed first.
        match rustix::io::pread(&file, spare_capacity(&mut bytes), at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Bytes::from(bytes).slice(start..start + length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn reads_are_exact_and_large_ones_begin_with_a_page() {
        let file = tempfile::tempfile().unwrap();
        let large: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
        file.write_all_at(&large, 0).unwrap();
        for (offset, length) in [(0, 200_000), (1, ALIGN_FROM), (77, ALIGN_FROM - 1), (199_999, 1)] {
            let read = read_exact_at(&file, offset as u64, length).unwrap();
            assert_eq!(read, large[offset..offset + length]);
            assert!(length < ALIGN_FROM || read.as_ptr().align_offset(PAGE_BYTES) == 0);
        }
        assert_eq!(read_exact_at(&file, 1, 200_000).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
