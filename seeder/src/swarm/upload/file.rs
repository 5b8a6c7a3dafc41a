//! Whole files and streams: read, hash and place their segments, several at a time.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{FuturesOrdered, StreamExt, TryStreamExt};
use swarm_proto::{ByteRange, Extent, Manifest, SegmentId};

use super::UploadError;
use super::cut::{Stretch, cut, data_of};
use super::uploader::{Lease, Piece, Placed, Uploader};

/// Segments of one file on their way at a time; the room in memory bounds them too.
const WINDOW: usize = 32;
/// How often a file that changed under our eyes is read again.
const ATTEMPTS: u32 = 3;

/// A file whose segments seeders hold, to be committed.
#[derive(Debug, Default)]
pub struct Uploaded {
    /// Its version.
    pub manifest: Manifest,
    /// Has its segments kept until dropped: hold it until the commit was answered.
    pub leases: Vec<Lease>,
    /// Bytes of it that were sent.
    pub sent_bytes: u64,
}

impl Uploaded {
    /// Its segments, each once.
    pub fn segment_ids(&self) -> Vec<SegmentId> {
        let mut seen = std::collections::HashSet::new();
        self.manifest.segments().map(|segment| segment.id).filter(|id| seen.insert(*id)).collect()
    }
}

/// What must not change while a file is read.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
struct Fingerprint {
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Fingerprint {
    fn of(file: &File) -> io::Result<Self> {
        let meta = file.metadata()?;
        Ok(Self {
            size: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

/// Upload a file; holes stay holes.
///
/// Errors: [`UploadError::Changing`] if it changed each time it was read; [`UploadError::Read`].
/// Cost:   reads and hashes on blocking threads, within the uploader's room.
pub async fn upload_file(uploader: &Uploader, file: Arc<File>) -> Result<Uploaded, UploadError> {
    for _ in 0..ATTEMPTS {
        let before = blocking(uploader, &file, Fingerprint::of).await?;
        if before.size == 0 {
            // Some files (of /proc) say 0 and yield bytes all the same; an empty one ends at once.
            let whole = file.try_clone().map_err(read_error)?;
            return upload_stream(uploader, whole).await;
        }
        let range = ByteRange::at(0, before.size);
        match upload_range(uploader, &file, range).await {
            Ok((extents, leases, sent_bytes)) => {
                if blocking(uploader, &file, Fingerprint::of).await? == before {
                    let manifest = Manifest::new(extents).map_err(UploadError::TooLarge)?;
                    return Ok(Uploaded { manifest, leases, sent_bytes });
                }
            }
            Err(UploadError::Read(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(error),
        }
    }
    Err(UploadError::Changing)
}

/// Upload a range of a file; returns its extents, their leases, and the bytes that were sent.
///
/// Errors: [`UploadError::Read`] with `UnexpectedEof` if the file is shorter.
pub async fn upload_range(
    uploader: &Uploader,
    file: &Arc<File>,
    range: ByteRange,
) -> Result<(Vec<Extent>, Vec<Lease>, u64), UploadError> {
    let segment_bytes = uploader.config().segment_bytes;
    // A thread of its own would take longer to wake than this takes: it was written just now.
    let here = range.len() <= uploader.config().unasked_bytes;
    let stretches = reading(here, uploader, file, move |file| {
        // Past the end everything looks like a hole.
        match file.metadata()?.len() < range.end {
            true => Err(io::ErrorKind::UnexpectedEof.into()),
            false => Ok(cut(range, &data_of(file, range)?, segment_bytes)),
        }
    })
    .await?;
    let steps = stretches.into_iter().map(|stretch| {
        let (uploader, file) = (uploader.clone(), file.clone());
        async move {
            match stretch {
                Stretch::Hole(length) => Ok((Extent::Hole { length }, None)),
                Stretch::Data(range) => {
                    let room = uploader.room(range.len()).await?;
                    let piece = reading(here, &uploader, &file, move |file| read_piece(file, range)).await?;
                    let placed = uploader.place(piece, room).await?;
                    Ok::<_, UploadError>((Extent::whole(placed.segment), Some(placed)))
                }
            }
        }
    });
    let steps: Vec<(Extent, Option<Placed>)> = futures::stream::iter(steps).buffered(WINDOW).try_collect().await?;
    let (mut extents, mut leases, mut sent) = (Vec::with_capacity(steps.len()), Vec::new(), 0);
    for (extent, placed) in steps {
        extents.push(extent);
        if let Some(placed) = placed {
            sent += if placed.sent { u64::from(placed.segment.length) } else { 0 };
            leases.push(placed.lease);
        }
    }
    Ok((extents, leases, sent))
}

/// Upload what a reader yields until it ends; its length need not be known.
pub async fn upload_stream(uploader: &Uploader, reader: impl Read + Send + 'static) -> Result<Uploaded, UploadError> {
    let segment_bytes = uploader.config().segment_bytes;
    let mut on_their_way = FuturesOrdered::new();
    let mut placed: Vec<Placed> = Vec::new();
    let mut reader = Some(reader);
    while let Some(mut source) = reader.take() {
        // Waiting for room must not keep what frees it from being polled.
        let room = loop {
            tokio::select! {
                room = uploader.room(u64::from(segment_bytes)) => break room?,
                Some(done) = on_their_way.next(), if !on_their_way.is_empty() => placed.push(done?),
            }
        };
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes = Vec::new();
            source.by_ref().take(u64::from(segment_bytes)).read_to_end(&mut bytes)?;
            let piece = (!bytes.is_empty()).then(|| Piece::new(Bytes::from(bytes)));
            Ok::<_, io::Error>((source, piece))
        });
        let (source, piece) = read.await.map_err(|_| UploadError::Stopping)?.map_err(read_error)?;
        if let Some(piece) = piece {
            if piece.segment.length == segment_bytes {
                reader = Some(source);
            }
            let uploader = uploader.clone();
            on_their_way.push_back(async move { uploader.place(piece, room).await });
        }
    }
    while let Some(done) = on_their_way.next().await {
        placed.push(done?);
    }
    let manifest = Manifest::new(placed.iter().map(|placed| Extent::whole(placed.segment)).collect());
    let sent = placed.iter().filter(|placed| placed.sent).map(|placed| u64::from(placed.segment.length));
    Ok(Uploaded {
        manifest: manifest.map_err(UploadError::TooLarge)?,
        sent_bytes: sent.sum(),
        leases: placed.into_iter().map(|placed| placed.lease).collect(),
    })
}

fn read_piece(file: &File, range: ByteRange) -> io::Result<Piece> {
    let length = usize::try_from(range.len()).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, range.start)?;
    Ok(Piece::new(Bytes::from(bytes)))
}

fn read_error(error: io::Error) -> UploadError {
    UploadError::Read(Arc::new(error))
}

/// On this thread if that is short, else where blocking is allowed.
async fn reading<T: Send + 'static>(
    here: bool,
    uploader: &Uploader,
    file: &Arc<File>,
    work: impl FnOnce(&File) -> io::Result<T> + Send + 'static,
) -> Result<T, UploadError> {
    match here {
        true => work(file).map_err(read_error),
        false => blocking(uploader, file, work).await,
    }
}

async fn blocking<T: Send + 'static>(
    uploader: &Uploader,
    file: &Arc<File>,
    work: impl FnOnce(&File) -> io::Result<T> + Send + 'static,
) -> Result<T, UploadError> {
    // Hundreds of files at a time would otherwise mean hundreds of threads.
    let _turn = uploader.inner.readers.acquire().await.map_err(|_| UploadError::Stopping)?;
    let file = file.clone();
    let done = tokio::task::spawn_blocking(move || work(&file)).await.map_err(|_| UploadError::Stopping)?;
    done.map_err(read_error)
}
