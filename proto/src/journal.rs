//! Records of a write-ahead journal, as bytes: writes that belong together, until a database has them.
//!
//! Not a file: whoever keeps one writes and syncs it as it needs.
//!
//! ```text
//! record   bytes of the body (u32) · first 8 bytes of the body's BLAKE3 · body
//! body     stamp (u64), then for each write: bytes of the key (u32) · key ·
//!          bytes of the value (u32; 0xffff_ffff: the key is removed) · value
//! ```
//! Numbers are little-endian.

use bytes::{Buf, Bytes};

const HEAD_BYTES: usize = 12;
const REMOVED: u32 = u32::MAX;

/// Writes that are done together, or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Whatever the writer gave it, as a revision.
    pub stamp: u64,
    /// Keys with their new values; None: removed.
    pub writes: Vec<(Bytes, Option<Bytes>)>,
}

/// A part or a record of 4 GiB or more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("4 GiB or more in one record of a journal")]
pub struct TooLarge;

impl From<TooLarge> for std::io::Error {
    fn from(error: TooLarge) -> Self {
        Self::new(std::io::ErrorKind::InvalidInput, error)
    }
}

/// Append a record to `bytes`.
///
/// Errors: `bytes` is then of no use.
pub fn append<'a>(
    bytes: &mut Vec<u8>,
    stamp: u64,
    writes: impl IntoIterator<Item = (&'a [u8], Option<&'a [u8]>)>,
) -> Result<(), TooLarge> {
    let start = bytes.len();
    bytes.resize(start + HEAD_BYTES, 0);
    bytes.extend_from_slice(&stamp.to_le_bytes());
    for (key, value) in writes {
        append_part(bytes, key)?;
        match value {
            Some(value) => append_part(bytes, value)?,
            None => bytes.extend_from_slice(&REMOVED.to_le_bytes()),
        }
    }
    let (head, body) = bytes[start..].split_at_mut(HEAD_BYTES);
    head[..4].copy_from_slice(&length_of(body)?);
    head[4..].copy_from_slice(&sum_of(body));
    Ok(())
}

fn append_part(bytes: &mut Vec<u8>, part: &[u8]) -> Result<(), TooLarge> {
    bytes.extend_from_slice(&length_of(part)?);
    bytes.extend_from_slice(part);
    Ok(())
}

fn length_of(part: &[u8]) -> Result<[u8; 4], TooLarge> {
    match u32::try_from(part.len()) {
        Ok(length) if length != REMOVED => Ok(length.to_le_bytes()),
        _ => Err(TooLarge),
    }
}

fn sum_of(body: &[u8]) -> [u8; 8] {
    let mut sum = [0; 8];
    sum.copy_from_slice(&blake3::hash(body).as_bytes()[..8]);
    sum
}

/// The whole records that `bytes` begin with, and how many bytes are left after them: a crash leaves some.
pub fn read(mut bytes: Bytes) -> (Vec<Record>, usize) {
    let mut records = Vec::new();
    while let Some((record, length)) = first(&bytes) {
        records.push(record);
        bytes.advance(length);
    }
    (records, bytes.len())
}

/// The stamp of a whole record that lies somewhere in `bytes`, which begin with none, and is above `after`: then they are
/// not what a crash left of the last one, but damaged.
///
/// Cost: a look at each byte, and a hash where it may begin a record.
pub fn behind_damage(bytes: &Bytes, after: u64) -> Option<u64> {
    const STAMP_END: usize = HEAD_BYTES + 8;
    (1..bytes.len().saturating_sub(STAMP_END)).find_map(|start| {
        let stamp = u64::from_le_bytes(*bytes[start + HEAD_BYTES..].first_chunk()?);
        // No file has so many: it spares the hash.
        let may_be = stamp > after && stamp - after < bytes.len() as u64;
        may_be.then(|| first(&bytes.slice(start..))).flatten().map(|(record, _)| record.stamp)
    })
}

fn first(bytes: &Bytes) -> Option<(Record, usize)> {
    let length = u32::from_le_bytes(*bytes.first_chunk()?) as usize;
    let end = HEAD_BYTES.checked_add(length)?;
    let mut body = (bytes.len() >= end).then(|| bytes.slice(HEAD_BYTES..end))?;
    if bytes[4..HEAD_BYTES] != sum_of(&body) {
        return None;
    }
    let mut record = Record { stamp: body.try_get_u64_le().ok()?, writes: Vec::new() };
    while body.has_remaining() {
        let key = part(&mut body)??;
        record.writes.push((key, part(&mut body)?));
    }
    Some((record, end))
}

/// None: cut off. Some(None): removed.
fn part(body: &mut Bytes) -> Option<Option<Bytes>> {
    match body.try_get_u32_le().ok()? {
        REMOVED => Some(None),
        length => (body.len() >= length as usize).then(|| Some(body.split_to(length as usize))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_record() -> impl Strategy<Value = Record> {
        let part = prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from);
        let writes = prop::collection::vec((part.clone(), prop::option::of(part)), 0..5);
        (any::<u64>(), writes).prop_map(|(stamp, writes)| Record { stamp, writes })
    }

    fn bytes_of(records: &[Record]) -> (Vec<u8>, Vec<usize>) {
        let (mut bytes, mut ends) = (Vec::new(), vec![0]);
        for record in records {
            let writes = record.writes.iter().map(|(key, value)| (&key[..], value.as_deref()));
            append(&mut bytes, record.stamp, writes).unwrap();
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    proptest! {
        #[test]
        fn every_cut_leaves_the_whole_records_before_it(records in prop::collection::vec(any_record(), 0..6), cut in any::<prop::sample::Index>()) {
            let (bytes, ends) = bytes_of(&records);
            let cut = cut.index(bytes.len() + 1);
            let (read, rest) = read(Bytes::copy_from_slice(&bytes[..cut]));
            let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
            prop_assert_eq!(&read[..], &records[..whole]);
            prop_assert_eq!(rest, cut - ends[whole]);
        }

        #[test]
        fn a_flipped_bit_ends_the_journal_before_its_record(records in prop::collection::vec(any_record(), 1..6), at in any::<prop::sample::Index>(), bit in 0..8) {
            let (mut bytes, ends) = bytes_of(&records);
            let at = at.index(bytes.len());
            bytes[at] ^= 1u8 << bit;
            let (read, _) = read(bytes.into());
            let before = ends.iter().filter(|end| **end <= at).count() - 1;
            prop_assert_eq!(&read[..], &records[..before]);
        }

        #[test]
        fn what_lies_behind_damage_is_found_and_a_torn_end_is_none(count in 2u64..6, at in any::<prop::sample::Index>()) {
            let records: Vec<Record> =
                (1..=count).map(|stamp| Record { stamp, writes: vec![(Bytes::from("key"), None)] }).collect();
            let (bytes, ends) = bytes_of(&records);
            let at = at.index(ends[1]);
            let mut damaged: Vec<u8> = bytes.clone();
            damaged[at] ^= 1u8;
            prop_assert_eq!(behind_damage(&Bytes::from(damaged), 0), Some(2));
            let torn = Bytes::copy_from_slice(&bytes[ends[ends.len() - 2]..][..at]);
            prop_assert_eq!(behind_damage(&torn, count - 1), None);
        }

        #[test]
        fn noise_is_no_record(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(read(bytes.into()).0.is_empty());
        }
    }
}
