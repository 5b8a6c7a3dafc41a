//! The whole catalog, out and in.

use std::sync::Arc;

use futures::StreamExt;
use swarm_proto::manifest::PAGE_BYTES;
use swarm_proto::{convert, v1};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{Answers, next, status_of};
use crate::catalog::{CapacitySource, Catalog};
use crate::export::format::{self, FormatError};
use crate::export::{Import, Imported, Replace};

pub(super) async fn export(catalog: &Arc<Catalog>) -> Answers<v1::CatalogPart> {
    let parts = ReceiverStream::new(catalog.export().await);
    parts.map(|part| part.map(|data| v1::CatalogPart { data, replace: false }).map_err(status_of)).boxed()
}

pub(super) async fn import(
    catalog: &Arc<Catalog>,
    seeders: &dyn CapacitySource,
    mut parts: Streaming<v1::CatalogPart>,
) -> Result<v1::ImportReply, Status> {
    let absent = || Status::invalid_argument("an import without a part");
    let mut first = next(&mut parts).await?.ok_or_else(absent)?;
    // The first part may only say whether to replace.
    while first.data.is_empty()
        && let Some(part) = next(&mut parts).await?
    {
        first.data = part.data;
    }
    // Before anybody is told to replace what is there by something that is no catalog.
    if first.data.is_empty() || !format::may_begin(&first.data) {
        return Err(Status::invalid_argument(FormatError::Foreign.to_string()));
    }
    let replace = if first.replace { Replace::Anything } else { Replace::Empty };
    let mut import = catalog.import(replace).await.map_err(status_of)?;
    receive(&mut import, first, &mut parts).await?;
    let done = import.finish(replace, &seeders.joined()).await;
    let Imported { files, directories, manifests, revision, swarm, of_file } = done.map_err(status_of)?;
    Ok(v1::ImportReply {
        files,
        directories,
        manifests,
        revision: revision.0,
        swarm_id: swarm.to_wire(),
        file_swarm_id: of_file.to_wire(),
    })
}

async fn receive(
    import: &mut Import,
    first: v1::CatalogPart,
    parts: &mut Streaming<v1::CatalogPart>,
) -> Result<(), Status> {
    let mut part = Some(first);
    while let Some(v1::CatalogPart { data, .. }) = part {
        convert::within("data", data.len() as u64, 0, PAGE_BYTES as u64)?;
        import.push(&data).await.map_err(status_of)?;
        part = next(parts).await?;
    }
    Ok(())
}
