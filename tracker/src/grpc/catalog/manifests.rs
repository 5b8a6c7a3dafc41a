//! Manifests, in and out.

use bytes::Bytes;
use futures::StreamExt;
use swarm_proto::manifest::PAGE_BYTES;
use swarm_proto::{Fault, ManifestDigest, convert, fault, v1};
use tonic::{Status, Streaming};

use super::{Answers, next, status_of, store_status};
use crate::catalog::Catalog;
use crate::catalog::manifests::Upload;

/// Most digests of one call.
const MOST_DIGESTS: u64 = 1024;
/// A reply of several manifests stays below this.
pub(super) const MOST_REPLY_BYTES: usize = 1024 * 1024;

pub(super) async fn get(
    catalog: &Catalog,
    request: &v1::GetManifestRequest,
) -> Result<Answers<v1::ManifestPage>, Status> {
    let digest = convert::manifest_digest("digest", &request.digest)?;
    let pages = catalog.manifests().pages(digest).await.map_err(|error| store_status(&error))?;
    let unknown = || fault::to_status(Fault::NotFound, format!("manifest {digest} is unknown"));
    let pages = pages.ok_or_else(unknown)?;
    let page = move |(number, data): (usize, Result<Bytes, _>)| {
        let data = data.map_err(|error| store_status(&error))?;
        let digest = if number == 0 { digest.to_wire() } else { Bytes::new() };
        Ok(v1::ManifestPage { digest, data })
    };
    Ok(pages.enumerate().map(page).boxed())
}

pub(super) async fn get_many(
    catalog: &Catalog,
    request: &v1::GetManifestsRequest,
) -> Result<v1::GetManifestsReply, Status> {
    let digests = ManifestDigest::unpack(&request.digests)
        .map_err(|error| Status::invalid_argument(format!("digests: {error}")))?;
    convert::within("digests", digests.len() as u64, 0, MOST_DIGESTS)?;
    let mut manifests = Vec::with_capacity(digests.len());
    let mut room = MOST_REPLY_BYTES;
    for digest in digests {
        let found = catalog.manifests().whole(digest, room).await.map_err(status_of)?.unwrap_or_default();
        room -= found.len();
        manifests.push(found);
    }
    Ok(v1::GetManifestsReply { manifests })
}

pub(super) async fn put(
    catalog: &Catalog,
    mut pages: Streaming<v1::ManifestPage>,
) -> Result<v1::PutManifestReply, Status> {
    let mut upload = Upload::new(catalog.manifests().clone());
    let mut digest = None;
    while let Some(page) = next(&mut pages).await? {
        convert::within("data", page.data.len() as u64, 0, PAGE_BYTES as u64)?;
        match (&digest, page.digest.is_empty()) {
            (None, _) => digest = Some(convert::manifest_digest("digest", &page.digest)?),
            (Some(_), true) => {}
            (Some(_), false) => return Err(Status::invalid_argument("digest: only the first page has one")),
        }
        upload.push(&page.data).await.map_err(status_of)?;
    }
    let digest = digest.ok_or_else(|| Status::invalid_argument("a manifest without a page"))?;
    upload.finish(digest).await.map_err(status_of)?;
    Ok(v1::PutManifestReply {})
}
