//! What every store must do: one suite, run against each.
//!
//! [`chunk_store`] needs only that a segment can be put; [`replica_sink`] is for the durable ones. Each
//! case gets an empty store of its own and panics with what it found.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use swarm_proto::{CHUNK_BYTES, ChunkRange, ChunkTree, Presence, Segment, SegmentId};

use super::{AckLevel, ChunkStore, Held, ReplicaSink, StoreError};

const HOUR: Duration = Duration::from_secs(3600);

/// A store to be tried, and how to get at it.
pub trait Subject: Send + Sync {
    /// The store.
    type Store: ChunkStore;

    /// An empty one, with room for 64 MiB.
    fn open(&self) -> BoxFuture<'_, Arc<Self::Store>>;

    /// Have it hold a whole segment.
    fn put<'a>(&'a self, store: &'a Arc<Self::Store>, bytes: Bytes) -> BoxFuture<'a, ()>;

    /// Flip a bit of a chunk at rest, behind the store's back; false where there is no way.
    fn rot(&self, store: &Arc<Self::Store>, segment: Segment, chunk: u32) -> bool;
}

/// Bytes that differ by `seed`, no two chunks alike.
pub fn sample(seed: u64, length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    let mut reader = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    reader.fill(&mut bytes);
    bytes.into()
}

/// The bytes of a run of chunks.
pub fn part(bytes: &Bytes, segment: Segment, chunks: ChunkRange) -> Bytes {
    let range = segment.bytes_of(chunks);
    let at = |byte: u64| usize::try_from(byte).expect("a segment fits in memory");
    bytes.slice(at(range.start)..at(range.end))
}

/// Lengths around all boundaries: of a chunk, of what is kept inline, of a segment.
pub const LENGTHS: [usize; 12] = [
    1,
    CHUNK_BYTES as usize - 1,
    CHUNK_BYTES as usize,
    CHUNK_BYTES as usize + 1,
    64 * 1024 - 1,
    64 * 1024,
    64 * 1024 + 1,
    300_000,
    1 << 20,
    (4 << 20) - 1,
    4 << 20,
    (4 << 20) + 1,
];

fn segment_of(bytes: &[u8]) -> Segment {
    ChunkTree::build(bytes).segment()
}

/// The part of the suite for every store.
pub async fn chunk_store(subject: &impl Subject) {
    an_empty_store_has_nothing(subject).await;
    every_length_reads_back_whole_and_chunk_by_chunk(subject).await;
    ranges_past_the_end_are_refused(subject).await;
    putting_is_told_and_counted(subject).await;
    a_rotten_chunk_is_dropped_told_and_counted_and_the_others_stay(subject).await;
    reverify_finds_what_no_reader_has(subject).await;
}

/// The part of the suite for stores that take segments.
pub async fn replica_sink(subject: &impl Subject) {
    bytes_in_any_pieces_are_taken(subject).await;
    wrong_bytes_are_refused_and_leave_nothing(subject).await;
    a_dropped_writer_leaves_nothing(subject).await;
    one_bad_segment_does_not_spoil_the_others(subject).await;
    a_segment_held_already_is_acknowledged_and_not_kept_twice(subject).await;
    a_full_store_says_so_and_goes_on(subject).await;
    touches_are_stamped_upward_and_only_of_whole_segments(subject).await;
    mending_makes_whole_and_takes_only_what_verifies(subject).await;
    many_at_once_all_land(subject).await;
}

async fn an_empty_store_has_nothing(subject: &impl Subject) {
    let store = subject.open().await;
    let id = SegmentId::new([7; 32]);
    assert_eq!(store.held(&id), None);
    assert!(store.inventory().is_empty());
    assert!(matches!(store.read(id, ChunkRange::new(0, 1)).await, Err(StoreError::Missing(_))));
    assert!(matches!(store.tree(id).await, Err(StoreError::Missing(_))));
    assert!(matches!(store.reverify(id).await, Err(StoreError::Missing(_))));
    let usage = store.usage();
    assert_eq!((usage.used_bytes, usage.segments, usage.corrupt_segments), (0, 0, 0));
}

async fn every_length_reads_back_whole_and_chunk_by_chunk(subject: &impl Subject) {
    let store = subject.open().await;
    for (seed, length) in LENGTHS.into_iter().enumerate() {
        let bytes = sample(seed as u64, length);
        let segment = segment_of(&bytes);
        subject.put(&store, bytes.clone()).await;
        assert_eq!(store.held(&segment.id), Some(Held { segment, presence: Presence::Whole }), "length {length}");
        let tree = store.tree(segment.id).await.expect("the tree of what was put");
        assert_eq!(tree, ChunkTree::build(&bytes), "length {length}");
        let all = store.read(segment.id, segment.all()).await.expect("what was put reads");
        assert!(all == bytes, "length {length}");
        for run in segment.all().runs(7) {
            let got = store.read(segment.id, run).await.expect("a run of what was put reads");
            assert!(got == part(&bytes, segment, run), "length {length}, chunks {run:?}");
        }
    }
    assert_eq!(store.inventory().len(), LENGTHS.len());
    assert!(store.inventory().iter().all(|(_, whole)| *whole));
}

async fn ranges_past_the_end_are_refused(subject: &impl Subject) {
    let store = subject.open().await;
    let bytes = sample(1, 100_000);
    let segment = segment_of(&bytes);
    subject.put(&store, bytes).await;
    for range in [(0, 8), (7, 8), (6, 8), (u32::MAX - 1, u32::MAX), (0, u32::MAX)] {
        let chunks = ChunkRange::new(range.0, range.1);
        assert!(matches!(store.read(segment.id, chunks).await, Err(StoreError::Partial(_))), "{range:?}");
    }
}

async fn putting_is_told_and_counted(subject: &impl Subject) {
    let store = subject.open().await;
    let mut changes = store.changes();
    let bytes = sample(2, 500_000);
    let segment = segment_of(&bytes);
    subject.put(&store, bytes).await;
    let told = tokio::time::timeout(Duration::from_secs(10), changes.recv()).await.expect("told in time");
    assert_eq!(told.expect("told"), segment.id);
    let usage = store.usage();
    assert_eq!((usage.segments, usage.corrupt_segments), (1, 0));
    assert!(usage.used_bytes >= 500_000 && usage.used_bytes < 2_000_000, "{usage:?}");
}

async fn a_rotten_chunk_is_dropped_told_and_counted_and_the_others_stay(subject: &impl Subject) {
    for length in [10_000, 60_000, 300_000] {
        let store = subject.open().await;
        let bytes = sample(3, length);
        let segment = segment_of(&bytes);
        subject.put(&store, bytes.clone()).await;
        let bad = segment.chunks() / 2;
        store.read(segment.id, segment.all()).await.expect("it is good before");
        if !subject.rot(&store, segment, bad) {
            return;
        }
        let mut changes = store.changes();
        let first = store.read(segment.id, segment.all()).await;
        assert!(matches!(first, Err(StoreError::Corrupt { chunk, .. }) if chunk == bad), "{first:?}");
        assert_eq!(changes.try_recv().expect("told before the reader"), segment.id);
        assert_eq!(store.usage().corrupt_segments, 1);
        let one = ChunkRange::new(bad, bad + 1);
        let again = store.read(segment.id, one).await;
        if segment.chunks() == 1 {
            assert!(matches!(again, Err(StoreError::Missing(_))), "{again:?}");
            assert_eq!((store.held(&segment.id), store.inventory()), (None, vec![]));
            continue;
        }
        assert!(matches!(again, Err(StoreError::Partial(_))), "{again:?}");
        let held = store.held(&segment.id).expect("the rest is held");
        for chunk in segment.all().iter() {
            assert_eq!(held.presence.has_chunk(chunk), chunk != bad);
            if chunk != bad {
                let one = ChunkRange::new(chunk, chunk + 1);
                let got = store.read(segment.id, one).await.expect("the others read");
                assert!(got == part(&bytes, segment, one));
            }
        }
        assert_eq!(store.inventory(), [(segment.id, false)]);
    }
}

async fn reverify_finds_what_no_reader_has(subject: &impl Subject) {
    let store = subject.open().await;
    let bytes = sample(4, 2_000_000);
    let segment = segment_of(&bytes);
    subject.put(&store, bytes).await;
    assert_eq!(store.reverify(segment.id).await.expect("good"), [0; 0]);
    if subject.rot(&store, segment, 3) && subject.rot(&store, segment, 100) {
        assert_eq!(store.reverify(segment.id).await.expect("done"), [3, 100]);
        assert_eq!(store.reverify(segment.id).await.expect("done"), [0; 0], "they are dropped by now");
        assert_eq!(store.usage().corrupt_segments, 1);
    }
}

fn sink(store: &Arc<impl ChunkStore>) -> Arc<dyn ReplicaSink> {
    store.sink().expect("a durable store takes segments")
}

/// Give a store one segment in pieces, and commit it.
pub async fn store_one(
    sink: &dyn ReplicaSink,
    segment: Segment,
    pieces: impl IntoIterator<Item = Bytes>,
    level: AckLevel,
) -> Result<(), StoreError> {
    let mut writer = sink.begin(segment).await?;
    for piece in pieces {
        writer.write(piece).await?;
    }
    sink.commit(vec![writer], level, HOUR).await.pop().expect("one outcome for one writer")
}

async fn bytes_in_any_pieces_are_taken(subject: &impl Subject) {
    let store = subject.open().await;
    let sink = sink(&store);
    for (seed, length) in LENGTHS.into_iter().enumerate() {
        for (more, piece) in [1 << 20, 4 << 20, 100_000].into_iter().enumerate() {
            let bytes = sample((100 * more + seed) as u64, length);
            let pieces = (0..length).step_by(piece).map(|at| bytes.slice(at..length.min(at + piece)));
            let level = if more == 0 { AckLevel::Fsync } else { AckLevel::Close };
            store_one(sink.as_ref(), segment_of(&bytes), pieces, level).await.expect("taken");
            let segment = segment_of(&bytes);
            assert!(store.read(segment.id, segment.all()).await.expect("reads back") == bytes);
        }
    }
    sink.sync().await.expect("synced");
}

async fn wrong_bytes_are_refused_and_leave_nothing(subject: &impl Subject) {
    for length in [10, 60_000, 700_000] {
        let store = subject.open().await;
        let sink = sink(&store);
        let bytes = sample(5, length);
        let segment = segment_of(&bytes);
        let mut wrong = bytes.to_vec();
        wrong[length / 2] ^= 1;
        for given in [wrong.into(), bytes.slice(1..), [&bytes[..], b"x"].concat().into(), Bytes::new()] {
            let outcome = store_one(sink.as_ref(), segment, [given], AckLevel::Close).await;
            assert!(matches!(outcome, Err(StoreError::Mismatch(id)) if id == segment.id), "{outcome:?}");
        }
        let nothing = Segment { id: segment.id, length: 0 };
        assert!(matches!(sink.begin(nothing).await.err(), Some(StoreError::Mismatch(_))));
        let other = Segment { id: segment.id, length: segment.length + 1 };
        let outcome = store_one(sink.as_ref(), other, [bytes.clone(), Bytes::from_static(b"x")], AckLevel::Close).await;
        assert!(matches!(outcome, Err(StoreError::Mismatch(_))), "{outcome:?}");
        assert_eq!((store.held(&segment.id), store.usage().used_bytes), (None, 0));
        store_one(sink.as_ref(), segment, [bytes], AckLevel::Close).await.expect("the right ones are taken");
    }
}

async fn a_dropped_writer_leaves_nothing(subject: &impl Subject) {
    let store = subject.open().await;
    let sink = sink(&store);
    let free = store.usage().free_bytes;
    for length in [60_000, 3_000_000] {
        let bytes = sample(6, length);
        let mut writer = sink.begin(segment_of(&bytes)).await.expect("begun");
        writer.write(bytes.slice(..length / 2)).await.expect("taken");
        drop(writer);
        assert_eq!(store.held(&segment_of(&bytes).id), None);
    }
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while store.usage().free_bytes.abs_diff(free) > 1 << 20 || store.usage().used_bytes > 0 {
        assert!(tokio::time::Instant::now() < deadline, "the room of dropped writers never came back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn one_bad_segment_does_not_spoil_the_others(subject: &impl Subject) {
    let store = subject.open().await;
    let sink = sink(&store);
    let samples: Vec<Bytes> = (0..6).map(|seed| sample(seed, 30_000 << seed)).collect();
    let mut writers = Vec::new();
    for (at, bytes) in samples.iter().enumerate() {
        let mut writer = sink.begin(segment_of(bytes)).await.expect("begun");
        let cut = if at % 3 == 1 { bytes.len() - 1 } else { bytes.len() };
        writer.write(bytes.slice(..cut)).await.expect("taken");
        writers.push(writer);
    }
    let outcomes = sink.commit(writers, AckLevel::Close, HOUR).await;
    assert_eq!(outcomes.len(), samples.len());
    for (at, (outcome, bytes)) in outcomes.iter().zip(&samples).enumerate() {
        assert_eq!(outcome.is_ok(), at % 3 != 1, "{outcome:?}");
        assert_eq!(store.held(&segment_of(bytes).id).is_some(), at % 3 != 1);
    }
}

async fn a_segment_held_already_is_acknowledged_and_not_kept_twice(subject: &impl Subject) {
    for (length, level) in [(50_000, AckLevel::Close), (2_000_000, AckLevel::Fsync)] {
        let store = subject.open().await;
        let sink = sink(&store);
        let bytes = sample(8, length);
        let segment = segment_of(&bytes);
        store_one(sink.as_ref(), segment, [bytes.clone()], AckLevel::Close).await.expect("taken");
        let used = store.usage().used_bytes;
        store_one(sink.as_ref(), segment, [bytes.clone()], level).await.expect("acknowledged again");
        let mut both = Vec::new();
        for _ in 0..2 {
            let mut writer = sink.begin(segment).await.expect("begun");
            writer.write(bytes.clone()).await.expect("taken");
            both.push(writer);
        }
        let outcomes = sink.commit(both, level, HOUR).await;
        assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
        assert_eq!(store.usage().used_bytes, used);
        let mut wrong = bytes.to_vec();
        wrong[0] ^= 1;
        let outcome = store_one(sink.as_ref(), segment, [wrong.into()], level).await;
        assert!(matches!(outcome, Err(StoreError::Mismatch(_))), "bytes are verified all the same: {outcome:?}");
        assert!(store.read(segment.id, segment.all()).await.expect("still there") == bytes);
    }
}

async fn a_full_store_says_so_and_goes_on(subject: &impl Subject) {
    let store = subject.open().await;
    let sink = sink(&store);
    let mut held = Vec::new();
    let full = loop {
        let bytes = sample(1000 + held.len() as u64, 4 << 20);
        match store_one(sink.as_ref(), segment_of(&bytes), [bytes.clone()], AckLevel::Close).await {
            Ok(()) => held.push(bytes),
            Err(error) => break error,
        }
        assert!(held.len() <= 16, "64 MiB never fill up");
    };
    assert!(matches!(full, StoreError::Full), "{full:?}");
    assert!(held.len() >= 14, "only {} of 16 segments fit", held.len());
    for bytes in held {
        let segment = segment_of(&bytes);
        assert!(store.read(segment.id, segment.all()).await.expect("a full store reads") == bytes);
        store_one(sink.as_ref(), segment, [bytes], AckLevel::Close).await.expect("what it holds needs no room");
    }
}

async fn touches_are_stamped_upward_and_only_of_whole_segments(subject: &impl Subject) {
    let store = subject.open().await;
    let sink = sink(&store);
    let (one, two) = (sample(9, 40_000), sample(10, 400_000));
    let ids = vec![segment_of(&one).id, SegmentId::new([1; 32]), segment_of(&two).id];
    subject.put(&store, one).await;
    subject.put(&store, two.clone()).await;
    let first = sink.touch(ids.clone(), HOUR).await.expect("touched");
    let second = sink.touch(ids.clone(), HOUR).await.expect("touched");
    assert!(first[0] > 0 && second[0] > first[0] && first[2] > 0 && second[2] > first[2], "{first:?} {second:?}");
    assert_eq!((first[1], second[1]), (0, 0));
    if subject.rot(&store, segment_of(&two), 0) {
        store.reverify(ids[2]).await.expect("done");
        assert_eq!(sink.touch(ids, HOUR).await.expect("touched")[2], 0, "it is not whole");
    }
}

async fn mending_makes_whole_and_takes_only_what_verifies(subject: &impl Subject) {
    for length in [9_000, 60_000, 1_000_000] {
        let store = subject.open().await;
        let sink = sink(&store);
        let bytes = sample(11, length);
        let (segment, tree) = (segment_of(&bytes), ChunkTree::build(&bytes));
        let last = segment.chunks() - 1;
        let one = ChunkRange::new(last, last + 1);
        let good = part(&bytes, segment, one);
        let outcome = sink.mend(tree.clone(), one, good.clone()).await;
        assert!(matches!(outcome, Err(StoreError::Missing(_))), "nothing of it is here: {outcome:?}");
        subject.put(&store, bytes.clone()).await;
        if !subject.rot(&store, segment, last) {
            return;
        }
        assert_eq!(store.reverify(segment.id).await.expect("done"), [last]);
        let damaged = sink.damaged();
        assert_eq!(damaged.len(), 1);
        assert_eq!((damaged[0].segment, &damaged[0].lost[..]), (segment, &[one][..]));
        let mut wrong = good.to_vec();
        wrong[0] ^= 1;
        for given in [wrong.into(), good.slice(1..), Bytes::new()] {
            let outcome = sink.mend(tree.clone(), one, given).await;
            assert!(matches!(outcome, Err(StoreError::Mismatch(_))), "{outcome:?}");
        }
        assert_eq!(store.usage().corrupt_segments, 1);
        let mut changes = store.changes();
        sink.mend(tree, one, good).await.expect("mended");
        assert_eq!(changes.try_recv().expect("told"), segment.id);
        assert!(store.read(segment.id, segment.all()).await.expect("whole again") == bytes);
        assert_eq!((store.usage().corrupt_segments, sink.damaged().len()), (0, 0));
        assert_eq!(store.held(&segment.id).expect("held").presence, Presence::Whole);
    }
}

async fn many_at_once_all_land(subject: &impl Subject) {
    let store = subject.open().await;
    let sink = sink(&store);
    let jobs = (0..40usize).map(|seed| {
        let sink = sink.clone();
        async move {
            let bytes = sample(seed as u64 % 30, 20_000 * (1 + seed % 30));
            let level = if seed.is_multiple_of(4) { AckLevel::Fsync } else { AckLevel::Close };
            let middle = bytes.len() / 3;
            let pieces = [bytes.slice(..middle), bytes.slice(middle..)];
            store_one(sink.as_ref(), segment_of(&bytes), pieces, level).await.expect("taken");
            bytes
        }
    });
    for bytes in futures::future::join_all(jobs).await {
        let segment = segment_of(&bytes);
        assert!(store.read(segment.id, segment.all()).await.expect("reads back") == bytes);
    }
    assert_eq!(store.inventory().len(), 30);
}
