//! **PURE.** What a handle will read next, from what it has read.
//!
//! A handle's reads belong to *streams*: places that the reader goes forward from. The kernel reads ahead by
//! itself, with several requests in flight that come out of order, so a read belongs to a stream if it lies
//! near its end or in what was fetched ahead. Invariants: a stream that was not continued has nothing ahead,
//! so a read at a new place costs exactly itself; what lies ahead is at most twice what was read, and at
//! most the cap.

use swarm_proto::ByteRange;

/// Streams of one handle: enough for programs that merge, few enough to be forgotten soon.
const STREAMS: usize = 4;
/// Reads elsewhere after which a stream is given up.
const PATIENCE: u64 = 16;
/// From this window on, what lies ahead ends at a multiple of it: a run that one request to a peer brings
/// and one request of the kernel takes.
pub(super) const RUN_BYTES: u64 = 1 << 20;
/// Requests that may be missing or doubled between two of a stream.
const SLACK_REQUESTS: u64 = 4;

/// One stream of one handle; never used again.
pub(super) type StreamId = u64;

/// Follows one handle.
#[derive(Debug)]
pub(super) struct Readahead {
    cap: u64,
    streams: Vec<Stream>,
    reads: u64,
    next: StreamId,
}

#[derive(Debug)]
struct Stream {
    id: StreamId,
    /// One past the last byte read.
    end: u64,
    /// Bytes that may lie ahead of `end`; 0 until the stream is continued.
    window: u64,
    /// Where the window was doubled last.
    doubled_at: u64,
    /// One past the last byte that was asked for ahead.
    ahead: u64,
    /// Count of the handle's reads at its last one.
    last: u64,
}

/// What to do after a read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Advice {
    /// Of which stream.
    pub(super) stream: StreamId,
    /// Fetch this ahead; empty if nothing.
    pub(super) ahead: Option<ByteRange>,
    /// Streams that were given up: nobody waits for what they fetched.
    pub(super) abandoned: Vec<StreamId>,
}

impl Readahead {
    /// With at most `cap` bytes ahead.
    pub(super) fn new(cap: u64) -> Self {
        Self { cap, streams: Vec::new(), reads: 0, next: 0 }
    }

    /// A read of `range`, non-empty and within a file of `size` bytes.
    pub(super) fn on_read(&mut self, range: ByteRange, size: u64) -> Advice {
        self.reads += 1;
        let mut abandoned = Vec::new();
        let reads = self.reads;
        self.streams.retain(|stream| {
            let keep = reads - stream.last <= PATIENCE;
            if !keep {
                abandoned.push(stream.id);
            }
            keep
        });
        let Some(stream) = self.streams.iter_mut().find(|stream| stream.is_continued_by(range)) else {
            if self.streams.len() == STREAMS {
                let oldest = (0..STREAMS).min_by_key(|index| self.streams[*index].last).unwrap_or(0);
                abandoned.push(self.streams.swap_remove(oldest).id);
            }
            self.next += 1;
            self.streams.push(Stream {
                id: self.next,
                end: range.end,
                window: 0,
                doubled_at: range.start,
                ahead: range.end,
                last: reads,
            });
            return Advice { stream: self.next, ahead: None, abandoned };
        };
        stream.last = reads;
        let ahead = stream.advance(range, size, self.cap);
        Advice { stream: stream.id, ahead, abandoned }
    }

    /// Only the bytes before `offset` were asked for: the rest found no room.
    pub(super) fn reached(&mut self, stream: StreamId, offset: u64) {
        if let Some(stream) = self.streams.iter_mut().find(|one| one.id == stream) {
            stream.ahead = stream.ahead.min(offset).max(stream.end);
        }
    }
}

impl Stream {
    fn is_continued_by(&self, range: ByteRange) -> bool {
        let slack = range.len().saturating_mul(SLACK_REQUESTS);
        let first = self.end.saturating_sub(slack);
        let last = self.end.saturating_add(slack).max(self.ahead);
        // At least one byte further on, or a late one of the requests in flight.
        (first..=last).contains(&range.start) && range.end.saturating_add(slack) >= self.end
    }

    fn advance(&mut self, range: ByteRange, size: u64, cap: u64) -> Option<ByteRange> {
        if range.end <= self.end {
            return None;
        }
        self.end = range.end;
        if self.window == 0 {
            self.window = range.len().saturating_mul(2).min(cap);
            self.doubled_at = self.end;
        } else if self.end.saturating_sub(self.doubled_at) >= self.window / 2 {
            self.window = self.window.saturating_mul(2).min(cap);
            self.doubled_at = self.end;
        }
        let mut until = self.end.saturating_add(self.window).min(size);
        if self.window >= RUN_BYTES && until < size {
            until = until / RUN_BYTES * RUN_BYTES;
        }
        let from = self.ahead.max(self.end);
        // In large steps: a request for each few bytes would cost more than it saves.
        let step = (self.window / 4).min(RUN_BYTES);
        if until <= from || (until - from < step && until < size) {
            return None;
        }
        self.ahead = until;
        Some(ByteRange { start: from, end: until })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;
    const CAP: u64 = 64 * MIB;
    const SIZE: u64 = 4 << 30;

    fn read(readahead: &mut Readahead, start: u64, length: u64) -> Option<ByteRange> {
        readahead.on_read(ByteRange::at(start, length), SIZE).ahead
    }

    #[test]
    fn a_first_read_asks_for_nothing_more() {
        for start in [0, 4096, 1 << 31] {
            assert_eq!(read(&mut Readahead::new(CAP), start, 4096), None);
        }
    }

    #[test]
    fn random_reads_never_ask_for_more() {
        let mut readahead = Readahead::new(CAP);
        let mut at = 12_345u64;
        for _ in 0..2_000 {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let start = (at >> 16) % (SIZE - 4096) / 4096 * 4096;
            assert_eq!(read(&mut readahead, start, 4096), None);
        }
    }

    #[test]
    fn sequential_reads_double_the_window_up_to_the_cap() {
        let mut readahead = Readahead::new(CAP);
        let (mut reached, mut widest) = (0, 0);
        for start in (0..512 * MIB).step_by(1 << 20) {
            if let Some(ahead) = read(&mut readahead, start, MIB) {
                assert!(ahead.start >= reached, "asked twice for the same bytes");
                reached = ahead.end;
            }
            let window = reached.saturating_sub(start + MIB);
            assert!(window <= CAP && window <= 2 * (start + MIB), "window {window} at {start}");
            widest = widest.max(window);
        }
        assert_eq!(widest, CAP);
    }

    #[test]
    fn a_sequential_reader_finds_everything_fetched_ahead() {
        for length in [4096, 128 * 1024, MIB] {
            let mut readahead = Readahead::new(CAP);
            let (mut reached, mut found) = (0, 0);
            for start in (0..64 * MIB).step_by(usize::try_from(length).unwrap()) {
                found += u64::from(start + length <= reached);
                if let Some(ahead) = read(&mut readahead, start, length) {
                    reached = ahead.end;
                }
            }
            assert!(found * length >= 64 * MIB - 2 * MIB, "requests of {length}: only {found} were ahead");
        }
    }

    #[test]
    fn a_seek_shrinks_the_window_at_once_and_gives_up_what_was_ahead() {
        let mut readahead = Readahead::new(CAP);
        for start in (0..128 * MIB).step_by(1 << 20) {
            read(&mut readahead, start, MIB);
        }
        let old = readahead.streams[0].id;
        assert_eq!(read(&mut readahead, 3 << 30, MIB), None);
        let next = read(&mut readahead, (3 << 30) + MIB, MIB).unwrap();
        assert!(next.len() <= 2 * MIB);
        let mut abandoned = Vec::new();
        for step in 2..60 {
            abandoned.extend(readahead.on_read(ByteRange::at((3 << 30) + step * MIB, MIB), SIZE).abandoned);
        }
        assert_eq!(abandoned, vec![old]);
    }

    #[test]
    fn parallel_requests_out_of_order_are_one_stream() {
        let mut readahead = Readahead::new(CAP);
        let mut reached = 0;
        for pair in (0..256 * MIB).step_by(4 << 20) {
            for start in [1, 0, 3, 2].map(|index| pair + index * MIB) {
                if let Some(ahead) = read(&mut readahead, start, MIB) {
                    reached = ahead.end;
                }
            }
        }
        assert_eq!(readahead.streams.len(), 1);
        assert!(reached >= 256 * MIB + CAP - 4 * MIB);
    }

    #[test]
    fn two_interleaved_streams_both_go_ahead() {
        let mut readahead = Readahead::new(CAP);
        let mut reached = [0, 0];
        for step in 0..200 {
            for (which, base) in [0, 2 << 30].into_iter().enumerate() {
                if let Some(ahead) = read(&mut readahead, base + step * MIB, MIB) {
                    reached[which] = ahead.end - base;
                }
            }
        }
        assert!(reached.iter().all(|reached| *reached > 250 * MIB), "{reached:?}");
    }

    #[test]
    fn what_found_no_room_is_asked_for_again() {
        let mut readahead = Readahead::new(CAP);
        read(&mut readahead, 0, MIB);
        let first = readahead.on_read(ByteRange::at(MIB, MIB), SIZE);
        let ahead = first.ahead.unwrap();
        readahead.reached(first.stream, ahead.start + MIB);
        assert_eq!(read(&mut readahead, 2 * MIB, MIB).unwrap().start, ahead.start + MIB);
    }

    #[test]
    fn the_end_of_the_file_ends_it() {
        let mut readahead = Readahead::new(CAP);
        let size = 3 * MIB + 17;
        readahead.on_read(ByteRange::at(0, MIB), size);
        assert_eq!(
            readahead.on_read(ByteRange::at(MIB, MIB), size).ahead,
            Some(ByteRange { start: 2 * MIB, end: size })
        );
        assert_eq!(readahead.on_read(ByteRange { start: 2 * MIB, end: size }, size).ahead, None);
    }

    proptest! {
        #[test]
        fn advice_lies_in_the_file_beyond_the_read_and_within_the_cap(reads in prop::collection::vec((0u64..300, 1u64..40), 1..200), cap in 0u64..100, size in 1u64..20_000) {
            let (cap, size) = (cap * 4096, size * 1000);
            let mut readahead = Readahead::new(cap);
            for (start, length) in reads {
                let range = ByteRange::at(start * 65_536, length * 4096).intersect(ByteRange::at(0, size));
                if range.is_empty() {
                    continue;
                }
                let advice = readahead.on_read(range, size);
                if let Some(ahead) = advice.ahead {
                    prop_assert!(!ahead.is_empty() && ahead.start >= range.end);
                    prop_assert!(ahead.end <= size && ahead.end - range.end <= cap);
                }
                prop_assert!(readahead.streams.len() <= STREAMS);
            }
        }
    }
}
