//! Before an operation can be planned: its manifest is read and verified, and its segments are accounted for.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use swarm_proto::manifest::{self, INLINE_BYTES, Manifest};
use swarm_proto::{Fault, ManifestDigest, SegmentId};

use super::{Acknowledged, Content, Parts, Publish, Ready, Submitted, WriteFile};
use crate::catalog::layout::Sizes;
use crate::catalog::manifests::{Manifests, Prepared};
use crate::catalog::refusal_of;
use crate::namespace::Refusal;
use crate::namespace::plan::{Described, FileWrite, NewContent, Operation};
use crate::store::schema::BodyNumber;

/// Segments asked about at once.
const AT_ONCE: usize = 4096;

/// A manifest, and what a plan needs to know of it.
type Found = (Arc<Prepared>, Sizes);
type Brought = HashMap<ManifestDigest, Found>;

pub(super) async fn all(parts: &Parts, operations: Vec<Result<Submitted, Refusal>>) -> Vec<Result<Ready, Refusal>> {
    let mut brought = Brought::new();
    let mut ready = Vec::with_capacity(operations.len());
    for operation in operations {
        ready.push(match operation {
            Ok(Submitted::Plain(operation)) => Ok(Ready { operation, manifest: None }),
            Ok(Submitted::Publish(file)) => publish(parts, file, &mut brought).await,
            Ok(Submitted::Write(file)) => write(parts, file, &mut brought).await,
            Err(refusal) => Err(refusal),
        });
    }
    ready
}

async fn publish(parts: &Parts, file: Publish, brought: &mut Brought) -> Result<Ready, Refusal> {
    let Publish { at, ownership, size, content, if_exists, acknowledged } = file;
    let (content, manifest) = content_of(parts, size, content, acknowledged, brought).await?;
    Ok(Ready { operation: Operation::PublishFile(at, ownership, content, if_exists), manifest })
}

async fn write(parts: &Parts, file: WriteFile, brought: &mut Brought) -> Result<Ready, Refusal> {
    let WriteFile { inode, base_version, modified_ns, changed_ns, accessed_ns, set_id, .. } = file;
    let (content, manifest) = content_of(parts, file.size, file.content, file.acknowledged, brought).await?;
    let write = FileWrite { base_version, content, modified_ns, changed_ns, accessed_ns, set_id };
    Ok(Ready { operation: Operation::WriteFile(inode, write), manifest })
}

/// What a file is to consist of, and the manifest that the commit needs.
async fn content_of(
    parts: &Parts,
    size: u64,
    content: Content,
    acknowledged: Acknowledged,
    brought: &mut Brought,
) -> Result<(NewContent, Option<Arc<Prepared>>), Refusal> {
    // Entered even if the file is refused below: that a seeder holds a segment is true all the same.
    for (peer, segments) in &acknowledged {
        parts.acks.acknowledged(*peer, segments);
    }
    let acknowledged: HashSet<SegmentId> =
        acknowledged.iter().flat_map(|(_, segments)| segments.iter().copied()).collect();
    let mut unaccounted = Unaccounted { parts, acknowledged, asking: Vec::new(), missing: 0, asked: HashSet::new() };
    let found = match content {
        Content::Empty => None,
        Content::Inline(bytes) => Some(inline(parts, &bytes, brought, &mut unaccounted).await?),
        Content::Known(digest) => Some(known(parts, digest, brought, &mut unaccounted).await?),
    };
    let missing = unaccounted.finish();
    if missing > 0 {
        let message = format!("{missing} of its segments are held by nobody known: send them again");
        return Err(Refusal::new(Fault::SendAgain, message));
    }
    let described = found.as_ref().map(|(manifest, Sizes { file_bytes, data_bytes })| Described {
        digest: manifest.digest,
        file_bytes: *file_bytes,
        data_bytes: *data_bytes,
    });
    // An empty file is stored without its manifest.
    let manifest = found.filter(|(_, sizes)| sizes.file_bytes > 0).map(|(manifest, _)| manifest);
    Ok((NewContent { size, manifest: described }, manifest))
}

async fn inline(
    parts: &Parts,
    bytes: &Bytes,
    brought: &mut Brought,
    unaccounted: &mut Unaccounted<'_>,
) -> Result<Found, Refusal> {
    if bytes.len() > INLINE_BYTES {
        let message = format!("a manifest of {} bytes, the limit here is {INLINE_BYTES}: put it before", bytes.len());
        return Err(Refusal::new(Fault::Invalid, message));
    }
    let decoded = Manifest::decode(bytes).map_err(|error| Refusal::new(Fault::Invalid, error.to_string()))?;
    decoded.segments().for_each(|segment| unaccounted.add(segment.id));
    let digest = manifest::digest_of(bytes);
    if let Some(found) = brought.get(&digest) {
        return Ok(found.clone());
    }
    let body = match Manifests::needs_body(bytes) {
        true => parts.numbers.take(1).await.map_err(|error| refusal_of(&error))?.into_range().start,
        false => 0,
    };
    // A copy, so that the records do not keep the whole message they came in.
    let prepared = parts.manifests.prepare(&Bytes::copy_from_slice(bytes), decoded.size(), BodyNumber(body));
    let found = (Arc::new(prepared), Sizes::of(&decoded));
    brought.insert(digest, found.clone());
    Ok(found)
}

async fn known(
    parts: &Parts,
    digest: ManifestDigest,
    brought: &mut Brought,
    unaccounted: &mut Unaccounted<'_>,
) -> Result<Found, Refusal> {
    if let Some(found) = brought.get(&digest) {
        // Its segments were looked at when it was brought; who acknowledged them then does so now.
        return Ok(found.clone());
    }
    let unknown = || Refusal::new(Fault::NotFound, format!("manifest {digest} is unknown: put it first"));
    let prepared = parts.manifests.stored(digest).await.map_err(|error| refusal_of(&error))?.ok_or_else(unknown)?;
    parts.manifests.used_again(digest);
    let sizes = parts.manifests.segments_of(digest, &mut |segment| unaccounted.add(segment.id)).await?;
    Ok((Arc::new(prepared), sizes.ok_or_else(unknown)?))
}

/// Counts the segments that neither the publisher nor the holders vouch for.
struct Unaccounted<'a> {
    parts: &'a Parts,
    acknowledged: HashSet<SegmentId>,
    asking: Vec<SegmentId>,
    asked: HashSet<SegmentId>,
    missing: usize,
}

impl Unaccounted<'_> {
    fn add(&mut self, segment: SegmentId) {
        if self.acknowledged.contains(&segment) || !self.asked.insert(segment) {
            return;
        }
        self.asking.push(segment);
        if self.asking.len() == AT_ONCE {
            self.ask();
            // Bounds the memory of a manifest with millions of segments; some may be asked about twice.
            self.asked.clear();
        }
    }

    fn ask(&mut self) {
        let known = self.parts.acks.known(&self.asking);
        self.missing += self.asking.len() - known.iter().take(self.asking.len()).filter(|known| **known).count();
        self.asking.clear();
    }

    fn finish(mut self) -> usize {
        if !self.asking.is_empty() {
            self.ask();
        }
        self.missing
    }
}
