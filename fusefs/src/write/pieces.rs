//! **PURE.** Where each byte of a file that is being written comes from, and which of them nobody else has yet.
//!
//! A file under way is the version that was opened (the base) with stretches over it that were written here, which
//! lie in the spool at the same offset, or that became holes. Every change has a stamp; saving the file settles all
//! changes up to one.
//!
//! Invariants: the pieces cover the file from 0 to its size without gaps; no two neighbours are alike; a piece of the
//! base lies within the base.

use std::collections::{BTreeMap, BTreeSet};

use swarm_proto::{ByteRange, Extent, Manifest, SegmentId};

/// Grows with each change of a file.
pub type Stamp = u64;

/// Where the bytes of a piece are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// In the version that was opened, at the same offset.
    Base,
    /// Nowhere: zeros.
    Hole,
    /// In the spool, at the same offset.
    Spool,
}

/// What a stretch of a file is, as its next manifest says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stretch {
    /// Zeros.
    Hole,
    /// An extent of the base, or part of one.
    Base {
        /// The segment.
        segment: SegmentId,
        /// First byte of it.
        offset_in_segment: u32,
    },
    /// In the spool, and unsaved.
    Unsaved,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    source: Source,
    /// When it was changed; none: the base has the same bytes there.
    unsaved: Option<Stamp>,
}

const BASE: Piece = Piece { source: Source::Base, unsaved: None };

/// The pieces of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pieces {
    /// Each reaches to the next one, the last to the end of the file.
    starts: BTreeMap<u64, Piece>,
    size: u64,
    /// When the size was changed last; none: it is the base's.
    resized: Option<Stamp>,
    /// The last change; none: all is saved.
    newest: Option<Stamp>,
}

impl Pieces {
    /// A file as it was opened.
    pub fn new(size: u64) -> Self {
        let starts = if size > 0 { BTreeMap::from([(0, BASE)]) } else { BTreeMap::new() };
        Self { starts, size, resized: None, newest: None }
    }

    /// Bytes of the file.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether anything is unsaved.
    pub fn is_dirty(&self) -> bool {
        self.newest.is_some()
    }

    /// Bytes of a range that are no holes, where `base` is what was opened.
    ///
    /// Cost: O(log pieces + log extents + those that the range touches).
    pub fn allocated(&self, range: ByteRange, base: &Manifest) -> u64 {
        let of = |range: ByteRange, source| match source {
            Source::Hole => 0,
            Source::Spool => range.len(),
            Source::Base => slices(base, range).filter(|extent| !is_hole(extent)).map(|extent| extent.length()).sum(),
        };
        self.over(range).map(|(range, source)| of(range, source)).sum()
    }

    /// These bytes were written to the spool; what lies between the end and them becomes a hole.
    pub fn write(&mut self, range: ByteRange, stamp: Stamp) {
        if range.is_empty() {
            return;
        }
        self.grow(range.end, stamp);
        self.put(range, Piece { source: Source::Spool, unsaved: Some(stamp) });
    }

    /// These bytes become zeros; the size stays.
    pub fn punch(&mut self, range: ByteRange, stamp: Stamp) {
        let range = range.intersect(ByteRange::at(0, self.size));
        self.put(range, Piece { source: Source::Hole, unsaved: Some(stamp) });
    }

    /// Cut the file or stretch it with a hole.
    pub fn resize(&mut self, size: u64, stamp: Stamp) {
        if size < self.size {
            self.starts.split_off(&size);
            self.size = size;
            (self.resized, self.newest) = (Some(stamp), Some(stamp));
        }
        self.grow(size, stamp);
    }

    fn grow(&mut self, size: u64, stamp: Stamp) {
        if size > self.size {
            let gap = ByteRange { start: self.size, end: size };
            self.size = size;
            (self.resized, self.newest) = (Some(stamp), Some(stamp));
            self.put(gap, Piece { source: Source::Hole, unsaved: Some(stamp) });
        }
    }

    /// All that was changed up to `stamp` is saved: the base is now what was saved.
    pub fn settle(&mut self, stamp: Stamp) {
        let is_saved = |unsaved: &Option<Stamp>| unsaved.is_some_and(|at| at <= stamp);
        for piece in self.starts.values_mut().filter(|piece| is_saved(&piece.unsaved)) {
            piece.unsaved = None;
        }
        self.resized = self.resized.filter(|at| *at > stamp);
        self.newest = self.newest.filter(|at| *at > stamp);
        self.join_all();
    }

    /// Whether all that is unsaved lies behind the end of a base of this size, without a gap.
    pub fn is_append_to(&self, base_size: u64) -> bool {
        let clean_below = self.over_pieces(ByteRange::at(0, base_size.min(self.size)));
        self.size >= base_size && clean_below.into_iter().all(|(_, piece)| piece.unsaved.is_none())
    }

    /// The bytes of a range, in order.
    pub fn over(&self, range: ByteRange) -> impl Iterator<Item = (ByteRange, Source)> + use<> {
        self.over_pieces(range).into_iter().map(|(range, piece)| (range, piece.source))
    }

    /// What of the spool is unsaved, in order.
    pub fn unsaved_in_spool(&self) -> Vec<ByteRange> {
        let mut all: Vec<ByteRange> = Vec::new();
        for (range, piece) in self.over_pieces(ByteRange::at(0, self.size)) {
            if piece.source != Source::Spool || piece.unsaved.is_none() {
                continue;
            }
            match all.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => all.push(range),
            }
        }
        all
    }

    /// What differs from the base, in order: a range, and whether its bytes are in the spool; they are zeros otherwise.
    pub fn changed(&self) -> Vec<(ByteRange, Source)> {
        let all = self.over_pieces(ByteRange::at(0, self.size)).into_iter();
        all.filter(|(_, piece)| piece.unsaved.is_some()).map(|(range, piece)| (range, piece.source)).collect()
    }

    /// The unsaved bytes behind `old`, which is where the base ended, behind a base of `new` bytes.
    ///
    /// Shape: whoever calls this moves the bytes of the spool alike.
    pub fn moved(&self, old: u64, new: u64, stamp: Stamp) -> Self {
        let mut moved = Self::new(new);
        for (range, source) in self.over(ByteRange { start: old.min(self.size), end: self.size }) {
            let range = ByteRange::at(range.start - old + new, range.len());
            match source {
                Source::Spool => moved.write(range, stamp),
                Source::Base | Source::Hole => moved.resize(range.end, stamp),
            }
        }
        moved
    }

    /// The same changes over another base, of `size` bytes: what was not changed is the base's.
    pub fn over_base(&self, size: u64) -> Self {
        let mut over = Self::new(size);
        let changed = self.over_pieces(ByteRange::at(0, self.size)).into_iter();
        for (range, piece) in changed {
            if let Some(stamp) = piece.unsaved {
                over.grow(range.end, stamp);
                over.put(range, piece);
            }
        }
        if let Some(stamp) = self.resized {
            over.resize(self.size, stamp);
        }
        over
    }

    /// Whether a range lies wholly in the spool, unsaved.
    pub fn is_unsaved(&self, range: ByteRange) -> bool {
        range.end <= self.size
            && self.over_pieces(range).iter().all(|(_, piece)| piece.source == Source::Spool && piece.unsaved.is_some())
    }

    /// The extents of the file, where `base` is what was opened and `sent` gives extents for what of the spool is
    /// unsaved. None: `sent` lacks some.
    pub fn extents(&self, base: &Manifest, sent: &Sent) -> Option<Vec<Extent>> {
        let mut extents = Extents::default();
        for (range, piece) in self.over_pieces(ByteRange::at(0, self.size)) {
            match (piece.source, piece.unsaved) {
                (Source::Hole, _) => extents.push(Extent::Hole { length: range.len() }),
                (Source::Base, _) | (Source::Spool, None) => {
                    slices(base, range).for_each(|extent| extents.push(extent))
                }
                (Source::Spool, Some(_)) => sent.slices(range)?.into_iter().for_each(|extent| extents.push(extent)),
            }
        }
        Some(extents.0)
    }

    /// What a range is made of, in order, where `base` is what was opened.
    pub fn stretches(&self, range: ByteRange, base: &Manifest) -> Vec<(ByteRange, Stretch)> {
        let mut all = Vec::new();
        for (range, piece) in self.over_pieces(range) {
            match (piece.source, piece.unsaved) {
                (Source::Hole, _) => all.push((range, Stretch::Hole)),
                (Source::Spool, Some(_)) => all.push((range, Stretch::Unsaved)),
                (Source::Base, _) | (Source::Spool, None) => {
                    let mut at = range.start;
                    all.extend(slices(base, range).map(|extent| {
                        let range = ByteRange::at(at, extent.length());
                        at = range.end;
                        (range, stretch(&extent))
                    }));
                }
            }
        }
        all
    }

    /// What of a range lies in blocks of the data file that have bytes of the base beside it, or are `known` to have had.
    pub fn beside_base(&self, range: ByteRange, block: u64, known: &BTreeSet<u64>) -> Vec<ByteRange> {
        let (first, behind) = (range.start / block, range.end.div_ceil(block));
        let before = ByteRange { start: first * block, end: range.start };
        let after = ByteRange { start: range.end, end: behind * block };
        let has_base = |beside: ByteRange| self.over(beside).any(|(_, source)| source == Source::Base);
        let mut blocks: BTreeSet<u64> = known.range(first..behind).copied().collect();
        if has_base(before) {
            blocks.insert(first);
        }
        if has_base(after) {
            blocks.insert(behind - 1);
        }
        blocks.into_iter().map(|number| ByteRange::at(number * block, block).intersect(range)).collect()
    }

    /// What of the spool lies in blocks of the data file that have bytes of the base, in order.
    pub fn all_beside_base(&self, block: u64) -> Vec<ByteRange> {
        let spool = self.over(ByteRange::at(0, self.size)).filter(|(_, source)| *source == Source::Spool);
        spool.flat_map(|(range, _)| self.beside_base(range, block, &BTreeSet::new())).collect()
    }

    /// Whether a range lies in the file and nothing of it was changed after `stamp`.
    pub fn is_as_at(&self, range: ByteRange, stamp: Stamp) -> bool {
        let pieces = self.over_pieces(range);
        range.end <= self.size && pieces.iter().all(|(_, piece)| piece.unsaved.is_none_or(|at| at <= stamp))
    }

    /// What of the spool is saved within a range is the base's from now on; returns what that is.
    pub fn leave_to_base(&mut self, range: ByteRange) -> Vec<ByteRange> {
        let saved = self.over_pieces(range).into_iter();
        let saved = saved.filter(|(_, piece)| *piece == Piece { source: Source::Spool, unsaved: None });
        let saved: Vec<ByteRange> = saved.map(|(range, _)| range).collect();
        saved.iter().for_each(|range| self.put(*range, BASE));
        saved
    }

    fn over_pieces(&self, range: ByteRange) -> Vec<(ByteRange, Piece)> {
        let range = range.intersect(ByteRange::at(0, self.size));
        if range.is_empty() {
            return Vec::new();
        }
        let first = self.starts.range(..=range.start).next_back().map_or(0, |(start, _)| *start);
        let starts: Vec<(u64, Piece)> =
            self.starts.range(first..range.end).map(|(start, piece)| (*start, *piece)).collect();
        let ends = starts.iter().skip(1).map(|(start, _)| *start).chain([range.end]);
        let ranges = starts.iter().zip(ends).map(|((start, piece), end)| (ByteRange { start: *start, end }, *piece));
        ranges
            .map(|(piece_range, piece)| (piece_range.intersect(range), piece))
            .filter(|(r, _)| !r.is_empty())
            .collect()
    }

    /// Put a piece over whatever is there; it lies within the file.
    fn put(&mut self, range: ByteRange, piece: Piece) {
        if range.is_empty() {
            return;
        }
        let after = self.starts.range(..=range.end).next_back().map(|(_, piece)| *piece);
        let covered: Vec<u64> = self.starts.range(range.start..range.end).map(|(start, _)| *start).collect();
        for start in covered {
            self.starts.remove(&start);
        }
        if range.end < self.size
            && let Some(after) = after
        {
            self.starts.entry(range.end).or_insert(after);
        }
        self.starts.insert(range.start, piece);
        self.newest = self.newest.max(piece.unsaved);
        self.join(range.start);
        self.join(range.end);
    }

    /// Make one of the piece that starts there and the one before it, if they are alike.
    fn join(&mut self, start: u64) {
        let Some(piece) = self.starts.get(&start).copied() else { return };
        if self.starts.range(..start).next_back().is_some_and(|(_, before)| *before == piece) {
            self.starts.remove(&start);
        }
    }

    fn join_all(&mut self) {
        let mut before = None;
        self.starts.retain(|_, piece| before.replace(*piece) != Some(*piece));
    }
}

/// What was sent of a file's unsaved bytes: extents by offset in the file.
#[derive(Debug, Clone, Default)]
pub struct Sent(BTreeMap<u64, Extent>);

impl Sent {
    /// The bytes from `start` on are these extents.
    pub fn add(&mut self, start: u64, extents: impl IntoIterator<Item = Extent>) {
        let mut at = start;
        for extent in extents {
            self.0.insert(at, extent);
            at += extent.length();
        }
    }

    fn slices(&self, range: ByteRange) -> Option<Vec<Extent>> {
        let mut slices = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let (start, extent) = self.0.range(..=at).next_back()?;
            let whole = ByteRange::at(*start, extent.length());
            let wanted = whole.intersect(ByteRange { start: at, end: range.end });
            if wanted.is_empty() {
                return None;
            }
            slices.push(slice(extent, wanted.start - start, wanted.len())?);
            at = wanted.end;
        }
        Some(slices)
    }
}

/// Extents in order, neighbours joined that follow each other.
#[derive(Debug, Default)]
struct Extents(Vec<Extent>);

impl Extents {
    fn push(&mut self, extent: Extent) {
        match (self.0.last_mut(), extent) {
            (Some(Extent::Hole { length }), Extent::Hole { length: more }) => *length += more,
            (
                Some(Extent::Data { segment, offset_in_segment, length }),
                Extent::Data { segment: next, offset_in_segment: at, length: more },
            ) if *segment == next && *offset_in_segment + *length == at => *length += more,
            _ => self.0.push(extent),
        }
    }
}

/// The extents of a range of a version; what lies behind its end is a hole.
pub fn slices(manifest: &Manifest, range: ByteRange) -> impl Iterator<Item = Extent> + '_ {
    let inside = range.intersect(ByteRange::at(0, manifest.size()));
    let behind = range.len() - inside.len();
    let parts = manifest.parts(inside).ok().into_iter().flatten();
    let extents = parts.filter_map(|part| {
        let skipped = part.in_file.start - manifest.start_of(part.extent);
        slice(manifest.extents().get(part.extent)?, skipped, part.in_file.len())
    });
    extents.chain((behind > 0).then_some(Extent::Hole { length: behind }))
}

fn slice(extent: &Extent, skip: u64, length: u64) -> Option<Extent> {
    Some(match extent {
        Extent::Hole { .. } => Extent::Hole { length },
        Extent::Data { segment, offset_in_segment, .. } => Extent::Data {
            segment: *segment,
            offset_in_segment: offset_in_segment + u32::try_from(skip).ok()?,
            length: u32::try_from(length).ok()?,
        },
    })
}

fn stretch(extent: &Extent) -> Stretch {
    match *extent {
        Extent::Hole { .. } => Stretch::Hole,
        Extent::Data { segment, offset_in_segment, .. } => Stretch::Base { segment: segment.id, offset_in_segment },
    }
}

fn is_hole(extent: &Extent) -> bool {
    matches!(extent, Extent::Hole { .. })
}

#[cfg(test)]
mod tests;
