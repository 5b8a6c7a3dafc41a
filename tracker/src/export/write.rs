//! Writing the file: the names as of one moment, then the manifests that they name.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use swarm_proto::{Fault, InodeNumber, ManifestDigest};
use tokio::sync::mpsc;

use super::format::{Header, Item, ItemWriter, PIECE_BYTES};
use crate::catalog::state::State;
use crate::catalog::{Catalog, now_ns, refusal_of, refuse_unavailable};
use crate::namespace::{Name, Refusal};

/// Parts that wait for the client.
const AHEAD: usize = 8;
/// How long a client may leave a part unread.
const PATIENCE: Duration = Duration::from_secs(30);
/// Names copied under one lock: some 100 µs.
const AT_ONCE: usize = 512;

type Part = Result<Bytes, Refusal>;

impl Catalog {
    /// The whole catalog in parts of at most 256 KiB.
    ///
    /// Cost: changes wait while the names are copied to a temporary file: about a second a million.
    pub async fn export(self: &Arc<Self>) -> mpsc::Receiver<Part> {
        let (parts, receiver) = mpsc::channel(AHEAD);
        let catalog = self.clone();
        self.tasks().spawn(async move {
            let mut sender = Sender { parts, pending: BytesMut::new() };
            let done = tokio::select! {
                done = run(&catalog, &mut sender) => done,
                () = catalog.stop().cancelled() => Err(refuse_unavailable("the catalog is being closed")),
            };
            if let Err(refusal) = done {
                drop(tokio::time::timeout(PATIENCE, sender.parts.send(Err(refusal))).await);
            }
        });
        receiver
    }
}

struct Sender {
    parts: mpsc::Sender<Part>,
    pending: BytesMut,
}

impl Sender {
    /// Send what is pending, except less than a part of it.
    async fn send(&mut self) -> Result<(), Refusal> {
        while self.pending.len() >= PIECE_BYTES {
            self.send_one(PIECE_BYTES).await?;
        }
        Ok(())
    }

    async fn send_one(&mut self, length: usize) -> Result<(), Refusal> {
        let part = self.pending.split_to(length).freeze();
        match tokio::time::timeout(PATIENCE, self.parts.send(Ok(part))).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(refuse_unavailable("nobody reads the export")),
        }
    }
}

async fn run(catalog: &Arc<Catalog>, sender: &mut Sender) -> Result<(), Refusal> {
    // No manifest goes away before it was written.
    let _kept = catalog.manifests().keep_all().await;
    let seeders = catalog.seeders().await.map_err(|error| refusal_of(&error))?;
    let copied = {
        let _still = catalog.pause().await;
        let state = catalog.state().clone();
        let copy = tokio::task::spawn_blocking(move || copy_names(&state)).await;
        copy.map_err(|error| refuse_unavailable(&format!("copy the names: {error}")))??
    };
    let mut writer = ItemWriter::begin(&copied.header, &mut sender.pending);
    for (id, seeder) in seeders {
        writer.push(&Item::Seeder(id, seeder), &mut sender.pending);
    }
    let mut names = copied.names;
    loop {
        let (read, piece) = tokio::task::spawn_blocking(move || read_items(names))
            .await
            .map_err(|error| refuse_unavailable(&format!("read the copied names: {error}")))??;
        names = read;
        let Some(items) = piece else { break };
        for item in items {
            writer.push(&item, &mut sender.pending);
        }
        sender.send().await?;
    }
    for digest in copied.manifests {
        manifest(catalog, digest, &mut writer, sender).await?;
    }
    writer.end(&mut sender.pending);
    sender.send().await?;
    sender.send_one(sender.pending.len()).await
}

async fn manifest(
    catalog: &Catalog,
    digest: ManifestDigest,
    writer: &mut ItemWriter,
    sender: &mut Sender,
) -> Result<(), Refusal> {
    let lost = || Refusal::new(Fault::Corrupt, format!("manifest {digest} is lost"));
    let mut pages = catalog.manifests().pages(digest).await.map_err(|error| refusal_of(&error))?.ok_or_else(lost)?;
    let mut hasher = blake3::Hasher::new();
    let mut page = pages.next().await.ok_or_else(lost)?.map_err(|error| refusal_of(&error))?;
    loop {
        hasher.update(&page);
        let next = pages.next().await.transpose().map_err(|error| refusal_of(&error))?;
        writer.push(&Item::Manifest { digest, last: next.is_none(), data: page }, &mut sender.pending);
        sender.send().await?;
        match next {
            Some(next) => page = next,
            None => break,
        }
    }
    match hasher.finalize().as_bytes() == digest.as_bytes() {
        true => Ok(()),
        false => Err(Refusal::new(Fault::Corrupt, format!("manifest {digest} does not verify"))),
    }
}

/// The names, as of one moment.
struct Copied {
    header: Header,
    names: Names,
    manifests: Vec<ManifestDigest>,
}

/// Items in a temporary file, in the export's own layout, and where it is being read.
struct Names {
    file: File,
    reader: super::format::ItemReader,
}

fn io(error: std::io::Error) -> Refusal {
    refusal_of(&crate::store::StoreError::io("copy the names to a temporary file")(error))
}

/// The caller keeps the names as they are; locks are short, so that readers do not wait.
fn copy_names(state: &State) -> Result<Copied, Refusal> {
    let mut file = tempfile::tempfile().map_err(io)?;
    let (header, inodes, manifests, names_at) = {
        let view = state.view();
        let header = Header { swarm: view.swarm.id, settings: view.settings, revision: view.revision, at_ns: now_ns() };
        // Files without names are there for whoever has them open, and nobody opens one of another catalog.
        let named = view.image.nodes().filter(|(_, node)| !node.is_orphan());
        let mut inodes: Vec<InodeNumber> = named.map(|(inode, _)| inode).collect();
        let mut manifests: Vec<ManifestDigest> = view.image.named_manifests().copied().collect();
        inodes.sort_unstable();
        // In the order of the store's keys, which it reads fastest.
        manifests.sort_unstable();
        (header, inodes, manifests, view.names_at)
    };
    let mut out = BytesMut::new();
    let mut writer = ItemWriter::begin(&header, &mut out);
    let mut directories = Vec::new();
    for some in inodes.chunks(AT_ONCE) {
        let view = state.view();
        for inode in some {
            let Some(node) = view.image.node(*inode) else { continue };
            if node.is_directory() {
                directories.push(*inode);
            }
            writer.push(&Item::Node(*inode, node.clone()), &mut out);
        }
        drop(view);
        flush(&mut out, &mut file)?;
    }
    for directory in directories {
        let mut after: Option<Name> = None;
        loop {
            let view = state.view();
            let entries = view.image.list(directory, after.as_ref().map(Name::as_bytes)).take(AT_ONCE);
            let mut count = 0;
            let mut last = None;
            for (name, inode) in entries {
                count += 1;
                last = Some(name.clone());
                writer.push(&Item::Entry(directory, name.clone(), inode), &mut out);
            }
            drop(view);
            flush(&mut out, &mut file)?;
            after = last;
            if count < AT_ONCE {
                break;
            }
        }
    }
    writer.end(&mut out);
    file.write_all(&out).map_err(io)?;
    file.seek(SeekFrom::Start(0)).map_err(io)?;
    if state.view().names_at != names_at {
        return Err(refuse_unavailable("the names changed while they were exported: try again"));
    }
    Ok(Copied { header, names: Names { file, reader: super::format::ItemReader::default() }, manifests })
}

fn flush(out: &mut BytesMut, file: &mut File) -> Result<(), Refusal> {
    if out.len() >= PIECE_BYTES {
        file.write_all(out).map_err(io)?;
        out.clear();
    }
    Ok(())
}

/// The next nodes and entries; None at the end.
fn read_items(mut names: Names) -> Result<(Names, Option<Vec<Item>>), Refusal> {
    let damaged = |error: super::format::FormatError| refuse_unavailable(&format!("the copied names: {error}"));
    let mut buffer = vec![0; PIECE_BYTES];
    let read = names.file.read(&mut buffer).map_err(io)?;
    names.reader.push(&buffer[..read]);
    let mut items = Vec::new();
    while let Some(item) = names.reader.next_item().map_err(damaged)? {
        if matches!(item, Item::Node(..) | Item::Entry(..)) {
            items.push(item);
        }
    }
    if read == 0 {
        names.reader.finish().map_err(damaged)?;
        return Ok((names, None));
    }
    Ok((names, Some(items)))
}
