//! `swarmfs stat`: all that is known of files: attributes, segments, and who holds them.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use clap::Args;
use serde::Serialize;
use swarm_proto::settings::ByteCount;
use swarm_proto::v1::{Node, NodeKind};
use swarm_proto::{Extent, Manifest, ManifestDigest, PeerId, SegmentId};
use swarm_seeder::swarm::Holder;

use super::connect::{Connection, Tool, tracker_failure};
use super::exit::Outcome;
use super::ls::{JsonNode, kind_name, mode_text, time_text};
use super::name::{escape, hex};
use super::peers::{kind_name as peer_kind_name, state_name};
use super::problems::Problems;
use super::show::Out;
use super::status::counted;
use super::tree::LastLink;

/// Segments that the text shows unless all are asked for.
const SHOWN: usize = 10;

/// Show all that is known of files: attributes, segments, and who holds them.
#[derive(Debug, Args)]
pub struct Stat {
    /// Files or folders
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<OsString>,
    /// All segments, not only the first ones
    #[arg(short, long)]
    all: bool,
    /// As one JSON object with an array of entries (always with all segments)
    #[arg(long)]
    json: bool,
}

/// What `stat --json` shows; documented in docs/CLI.md.
#[derive(Debug, Serialize)]
struct Listing {
    entries: Vec<Entry>,
}

#[derive(Debug, Serialize)]
struct Entry {
    #[serde(flatten)]
    node: JsonNode,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<Content>,
}

/// A file's content.
#[derive(Debug, Serialize)]
struct Content {
    /// BLAKE3 of all of it, where that is known without reading it: a file of one segment.
    #[serde(skip_serializing_if = "Option::is_none")]
    hash: Option<String>,
    extents: usize,
    bytes_holes: u64,
    segments: Vec<JsonSegment>,
    peers: BTreeMap<String, JsonPeer>,
}

#[derive(Debug, Serialize)]
struct JsonSegment {
    id: String,
    size: u32,
    /// Seeders that hold it whole.
    replicas: usize,
    holders: Vec<JsonHolder>,
}

#[derive(Debug, Serialize)]
struct JsonHolder {
    id: String,
    whole: bool,
}

#[derive(Debug, Clone, Serialize)]
struct JsonPeer {
    kind: &'static str,
    state: &'static str,
    address: String,
    host: String,
}

impl Stat {
    /// Run it.
    pub async fn run(self, tool: &Tool) -> Outcome {
        let connection = tool.connect()?;
        let (mut out, problems) = (Out::new(), Problems::default());
        let mut entries = Vec::new();
        for path in &self.paths {
            let path = path.as_bytes();
            let found = async {
                let node = connection.need(path, LastLink::Itself).await?;
                let content = match node.kind() {
                    NodeKind::File => Some(content(&connection, path, &node).await?),
                    _ => None,
                };
                Ok((node, content))
            };
            let Some((node, content)) = problems.note(found.await, &out)? else { continue };
            if !self.json {
                self.text(path, &node, content.as_ref(), &mut out)?;
            }
            entries.push(Entry { node: JsonNode::new(path, &node), content });
        }
        if self.json {
            out.json(&Listing { entries })?;
        }
        out.finish()?;
        problems.conclude("names were not shown")
    }

    fn text(&self, path: &[u8], node: &Node, content: Option<&Content>, out: &mut Out) -> Outcome {
        out.line(out.name(path))?;
        out.line(format!(
            "  kind      {}, inode {}, {}",
            kind_name(node.kind()),
            node.inode,
            counted(u64::from(node.links), "link")
        ))?;
        out.line(format!("  mode      {} ({:04o}), owner {}:{}", mode_text(node), node.mode, node.uid, node.gid))?;
        out.line(format!("  modified  {}", time_text(node.modified_ns)))?;
        if node.kind() == NodeKind::Symlink {
            out.line([b"  target    ", &out.name(&node.link_target)[..]].concat())?;
        }
        let Some(content) = content else { return Ok(()) };
        out.line(format!("  size      {} ({} bytes), version {}", ByteCount(node.size), node.size, node.version))?;
        if !node.manifest_digest.is_empty() {
            out.line(format!("  manifest  {}", hex(&node.manifest_digest)))?;
        }
        if let Some(hash) = &content.hash {
            out.line(format!("  hash      {hash} (BLAKE3, as b3sum prints it)"))?;
        }
        let fewest = content.segments.iter().map(|segment| segment.replicas).min();
        let replicas = fewest.map(|fewest| format!(", each with at least {}", counted(fewest as u64, "replica")));
        out.line(format!(
            "  content   {} in {}, {} of holes{}",
            counted(content.segments.len() as u64, "segment"),
            counted(content.extents as u64, "extent"),
            ByteCount(content.bytes_holes),
            replicas.unwrap_or_default()
        ))?;
        let shown = if self.all { content.segments.len() } else { SHOWN };
        for segment in content.segments.iter().take(shown) {
            let holders: Vec<String> = segment
                .holders
                .iter()
                .map(|holder| {
                    let peer = content.peers.get(&holder.id);
                    let address = peer.map_or(&holder.id[..8], |peer| peer.address.as_str());
                    let kind = peer.map(|peer| peer.kind).filter(|kind| *kind != "seeder");
                    let partly = if holder.whole { "" } else { " in part" };
                    match kind {
                        Some(kind) => format!("{} ({kind}{partly})", escape(address.as_bytes())),
                        None => format!("{}{partly}", escape(address.as_bytes())),
                    }
                })
                .collect();
            let holders = if holders.is_empty() { "nobody that is up".to_owned() } else { holders.join(", ") };
            out.line(format!("  segment   {}  {:>8}  {holders}", segment.id, ByteCount(u64::from(segment.size))))?;
        }
        match content.segments.len().saturating_sub(shown) {
            0 => Ok(()),
            more => out.line(format!("  …         {more} more; -a shows all")),
        }
    }
}

async fn content(connection: &Connection, path: &[u8], node: &Node) -> Outcome<Content> {
    let failed = |error| tracker_failure(escape(path), &error);
    let manifest = match ManifestDigest::try_from(&node.manifest_digest[..]) {
        Ok(digest) => connection.tracker.manifest(digest).await.map_err(failed)?,
        Err(_) => std::sync::Arc::new(Manifest::default()),
    };
    let mut lengths: HashMap<SegmentId, u32> = HashMap::new();
    let mut ids: Vec<SegmentId> = Vec::new();
    for segment in manifest.segments() {
        if lengths.insert(segment.id, segment.length).is_none() {
            ids.push(segment.id);
        }
    }
    let holders = connection.tracker.locate(&ids).await.map_err(failed)?;
    let peers = known_peers(connection, &holders).await?;
    let is_seeder = |holder: &Holder| peers.get(&holder.peer.id).is_none_or(|peer| peer.kind == "seeder");
    let segments = ids.iter().zip(&holders).map(|(id, holders)| JsonSegment {
        id: id.to_string(),
        size: lengths.get(id).copied().unwrap_or_default(),
        replicas: holders.iter().filter(|holder| !holder.partial && is_seeder(holder)).count(),
        holders: holders
            .iter()
            .map(|holder| JsonHolder { id: holder.peer.id.to_string(), whole: !holder.partial })
            .collect(),
    });
    let hash = match manifest.extents() {
        [] => Some(blake3::hash(b"").to_string()),
        [Extent::Data { segment, offset_in_segment: 0, length }] if *length == segment.length => {
            Some(segment.id.to_string())
        }
        _ => None,
    };
    let holes = manifest.extents().iter().filter(|extent| matches!(extent, Extent::Hole { .. }));
    Ok(Content {
        hash,
        extents: manifest.extents().len(),
        bytes_holes: holes.map(Extent::length).sum(),
        segments: segments.collect(),
        peers: peers.into_iter().map(|(id, peer)| (id.to_string(), peer)).collect(),
    })
}

/// The peers that hold anything, with what the tracker knows of them.
async fn known_peers(connection: &Connection, holders: &[Vec<Holder>]) -> Outcome<HashMap<PeerId, JsonPeer>> {
    let named: HashMap<PeerId, &Holder> = holders.iter().flatten().map(|holder| (holder.peer.id, holder)).collect();
    let all = connection.tracker.peers().await.map_err(|error| tracker_failure("list peers", &error))?;
    let mut peers = HashMap::new();
    for info in all.iter().filter_map(|peer| peer.info.as_ref()) {
        let Ok(id) = PeerId::try_from(&info.peer_id[..]) else { continue };
        if named.contains_key(&id) {
            let (kind, state) = (peer_kind_name(info.kind()), state_name(info.state()));
            peers.insert(id, JsonPeer { kind, state, address: info.address.clone(), host: info.host.clone() });
        }
    }
    Ok(peers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_the_documented_fields() {
        let peer = JsonPeer { kind: "seeder", state: "live", address: "a:1".to_owned(), host: "a".to_owned() };
        let content = Content {
            hash: Some("ab".to_owned()),
            extents: 1,
            bytes_holes: 0,
            segments: vec![JsonSegment {
                id: "ab".to_owned(),
                size: 7,
                replicas: 1,
                holders: vec![JsonHolder { id: "cd".to_owned(), whole: true }],
            }],
            peers: BTreeMap::from([("cd".to_owned(), peer)]),
        };
        let node = JsonNode::new(b"/x", &Node::default());
        let json = serde_json::to_value(Entry { node, content: Some(content) }).unwrap();
        assert_eq!(
            json["content"],
            serde_json::json!({
                "hash": "ab", "extents": 1, "bytes_holes": 0,
                "segments": [{ "id": "ab", "size": 7, "replicas": 1, "holders": [{ "id": "cd", "whole": true }] }],
                "peers": { "cd": { "kind": "seeder", "state": "live", "address": "a:1", "host": "a" } },
            })
        );
        let documented = include_str!("../../../docs/CLI.md");
        for key in ["content", "hash", "extents", "bytes_holes", "segments", "replicas", "holders", "whole", "peers"] {
            assert!(documented.contains(&format!("`{key}`")), "docs/CLI.md lacks {key}");
        }
    }
}
