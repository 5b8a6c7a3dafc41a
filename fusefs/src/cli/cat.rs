//! `swarmfs cat`: write files to standard output.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;

use clap::Args;
use futures::StreamExt;
use swarm_proto::ByteRange;
use swarm_proto::settings::Span;
use swarm_proto::v1::{Node, NodeKind};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connect::Tool;
use super::exit::{Exit, Failure, Outcome};
use super::fetch::Fetcher;
use super::name::escape;
use super::problems::Problems;
use super::show::Out;
use super::tree::LastLink;

/// Pieces on their way at a time; the room in memory bounds them too.
const WINDOW: usize = 32;
/// A hole is written in pieces of so many zeros.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// Write files to standard output.
#[derive(Debug, Args)]
pub struct Cat {
    /// Files
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<OsString>,
    /// How long to wait for data that no peer sends
    #[arg(long, value_name = "TIME", default_value = "30s")]
    read_timeout: Span,
}

impl Cat {
    /// Run it.
    pub async fn run(self, tool: &Tool) -> Outcome {
        let connection = tool.connect()?;
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let _stop = stop.clone().drop_guard();
        let fetcher = Fetcher::new(tool, &connection, self.read_timeout.0, &tasks, &stop);
        let (mut out, problems) = (Out::new(), Problems::default());
        for path in &self.paths {
            let copied = async {
                let node = connection.need(path.as_bytes(), LastLink::Follow).await?;
                copy(&fetcher, path.as_bytes(), &node, &mut out).await
            };
            let copied = copied.await;
            problems.note(copied, &out)?;
        }
        out.finish()?;
        problems.conclude("files were not shown")
    }
}

/// Where [`copy`] writes.
pub(crate) trait Sink {
    fn write(&mut self, bytes: &[u8]) -> Outcome;
    /// Whether nobody reads any more.
    fn gone(&self) -> bool {
        false
    }
}

impl Sink for Out {
    fn write(&mut self, bytes: &[u8]) -> Outcome {
        self.bytes(bytes)
    }
    fn gone(&self) -> bool {
        Self::gone(self)
    }
}

impl Sink for std::fs::File {
    fn write(&mut self, bytes: &[u8]) -> Outcome {
        self.write_all(bytes).map_err(|error| Failure::io("write", &error))
    }
}

/// Write a file in order.
pub(crate) async fn copy(fetcher: &Fetcher, path: &[u8], node: &Node, out: &mut impl Sink) -> Outcome {
    if node.kind() != NodeKind::File {
        return Err(Failure::new(Exit::Failure, format!("{}: not a file", escape(path))));
    }
    let manifest = fetcher.manifest(path, node).await?;
    let parts = Fetcher::pieces(&manifest, ByteRange::at(0, manifest.size()));
    let mut pieces = futures::stream::iter(parts).map(|part| fetcher.fetch(path, part)).buffered(WINDOW);
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        let mut zeros = if piece.bytes.is_empty() { piece.in_file.len() } else { 0 };
        while zeros > 0 && !out.gone() {
            let now = usize::try_from(zeros).unwrap_or(usize::MAX).min(ZEROS.len());
            out.write(&ZEROS[..now])?;
            zeros -= now as u64;
        }
        piece.bytes.iter().try_for_each(|bytes| out.write(bytes))?;
        if out.gone() {
            return Ok(());
        }
    }
    Ok(())
}
