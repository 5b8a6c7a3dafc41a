//! Where chunks come from when they are not here: what this mount sent lately, the swarm, or a fake.

use std::future::ready;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use swarm_proto::{ChunkTree, SegmentId};
use swarm_seeder::swarm::{FetchError, Fetched, Swarm, Want};

/// Yields verified chunks.
pub trait ChunkSource: Send + Sync + 'static {
    /// Fetch chunks; dropping the future withdraws the want. Two wants for one chunk cost one transfer.
    fn fetch(self: Arc<Self>, want: Want) -> BoxFuture<'static, Result<Fetched, FetchError>>;

    /// These will be wanted soon: find out who holds them. Never waits.
    fn expect(&self, ids: &[SegmentId]);

    /// Whether the tree of a segment is known, so that it need not be fetched.
    fn knows_tree(&self, id: &SegmentId) -> bool;

    /// A verified tree that the caller has.
    fn remember_tree(&self, tree: ChunkTree);
}

impl ChunkSource for Swarm {
    fn fetch(self: Arc<Self>, want: Want) -> BoxFuture<'static, Result<Fetched, FetchError>> {
        Box::pin(async move { Swarm::fetch(&self, want).await })
    }

    fn expect(&self, ids: &[SegmentId]) {
        Swarm::expect(self, ids);
    }

    fn knows_tree(&self, id: &SegmentId) -> bool {
        self.known_tree(id).is_some()
    }

    fn remember_tree(&self, tree: ChunkTree) {
        Swarm::remember_tree(self, tree);
    }
}

/// What this mount sent lately, and another source for all else.
pub struct SentOrElse<F, S> {
    sent: F,
    other: Arc<S>,
}

impl<F, S> SentOrElse<F, S> {
    /// `sent` yields the bytes of a segment, if it has them; else `other` is asked.
    pub fn new(sent: F, other: Arc<S>) -> Self {
        Self { sent, other }
    }
}

impl<F, S> ChunkSource for SentOrElse<F, S>
where
    F: Fn(&SegmentId) -> Option<Bytes> + Send + Sync + 'static,
    S: ChunkSource,
{
    fn fetch(self: Arc<Self>, want: Want) -> BoxFuture<'static, Result<Fetched, FetchError>> {
        match (self.sent)(&want.segment.id).and_then(|bytes| cut(want, &bytes)) {
            Some(fetched) => Box::pin(ready(Ok(fetched))),
            None => self.other.clone().fetch(want),
        }
    }

    fn expect(&self, ids: &[SegmentId]) {
        self.other.expect(ids);
    }

    fn knows_tree(&self, id: &SegmentId) -> bool {
        self.other.knows_tree(id)
    }

    fn remember_tree(&self, tree: ChunkTree) {
        self.other.remember_tree(tree);
    }
}

/// The chunks of a want; none if these are not the bytes of its segment.
fn cut(want: Want, bytes: &Bytes) -> Option<Fetched> {
    let tree = ChunkTree::build(bytes);
    let range = want.segment.bytes_of(want.chunks);
    let (start, end) = (usize::try_from(range.start).ok()?, usize::try_from(range.end).ok()?);
    let is_of_it = tree.segment() == want.segment && end <= bytes.len();
    is_of_it.then(|| Fetched { tree, pieces: vec![(want.chunks, bytes.slice(start..end))] })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use swarm_proto::ChunkRange;
    use swarm_seeder::swarm::Urgency;

    /// Nobody holds anything.
    struct Nobody;

    impl ChunkSource for Nobody {
        fn fetch(self: Arc<Self>, want: Want) -> BoxFuture<'static, Result<Fetched, FetchError>> {
            Box::pin(ready(Err(FetchError::NoHolder { segment: want.segment, chunks: want.chunks })))
        }

        fn expect(&self, _: &[SegmentId]) {}

        fn knows_tree(&self, _: &SegmentId) -> bool {
            false
        }

        fn remember_tree(&self, _: ChunkTree) {}
    }

    #[tokio::test]
    async fn what_was_sent_lately_is_asked_of_nobody_and_other_bytes_are_not_taken_for_it() {
        let bytes = Bytes::from((0..40_000_u32).map(|at| (at % 251) as u8).collect::<Vec<u8>>());
        let segment = ChunkTree::build(&bytes).segment();
        let want = |chunks| Want { segment, chunks, urgency: Urgency::Reader, deadline: Instant::now() };
        let all = segment.all();
        for chunks in [all, ChunkRange::new(1, 2)] {
            let sent = bytes.clone();
            let source = Arc::new(SentOrElse::new(move |_: &SegmentId| Some(sent.clone()), Arc::new(Nobody)));
            let fetched = source.fetch(want(chunks)).await.unwrap();
            let range = segment.bytes_of(chunks);
            let at = |byte: u64| usize::try_from(byte).unwrap();
            let expected = bytes.slice(at(range.start)..at(range.end));
            assert_eq!((fetched.tree.segment(), fetched.pieces), (segment, vec![(chunks, expected)]));
        }
        for sent in [None, Some(bytes.slice(1..)), Some(Bytes::new())] {
            let source = Arc::new(SentOrElse::new(move |_: &SegmentId| sent.clone(), Arc::new(Nobody)));
            source.fetch(want(all)).await.unwrap_err();
        }
    }
}
