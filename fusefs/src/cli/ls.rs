//! `swarmfs ls`: what is in a folder.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, UNIX_EPOCH};

use clap::Args;
use serde::Serialize;
use swarm_proto::InodeNumber;
use swarm_proto::v1::{Entry, Node, NodeKind};

use super::connect::{Tool, tracker_failure};
use super::exit::Outcome;
use super::name::{JsonName, escape, hex};
use super::problems::Problems;
use super::show::{Out, columns};
use super::tree::LastLink;

/// List a folder.
#[derive(Debug, Args)]
pub struct Ls {
    /// Folders or files
    #[arg(value_name = "PATH", default_value = "/")]
    paths: Vec<OsString>,
    /// Mode, owner, size and time too
    #[arg(short, long)]
    long: bool,
    /// Names that begin with a dot too (JSON always has them)
    #[arg(short, long)]
    all: bool,
    /// As one JSON object with an array of entries
    #[arg(long)]
    json: bool,
}

/// What `ls --json` shows.
#[derive(Debug, Serialize)]
struct Listing {
    entries: Vec<JsonNode>,
}

/// An entry or an inode, as `ls --json` and `stat --json` show it; documented in docs/CLI.md.
#[derive(Debug, Serialize)]
pub(crate) struct JsonNode {
    #[serde(flatten)]
    name: JsonName,
    kind: &'static str,
    inode: u64,
    mode: String,
    uid: u32,
    gid: u32,
    size: u64,
    links: u32,
    modified_ns: i64,
    changed_ns: i64,
    created_ns: i64,
    version: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    manifest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_hex: Option<String>,
}

impl JsonNode {
    /// Of an inode under this name or path.
    pub(crate) fn new(name: &[u8], node: &Node) -> Self {
        let link = (node.kind() == NodeKind::Symlink).then(|| JsonName::new(&node.link_target));
        Self {
            name: JsonName::new(name),
            kind: kind_name(node.kind()),
            inode: node.inode,
            mode: format!("{:04o}", node.mode),
            uid: node.uid,
            gid: node.gid,
            size: node.size,
            links: node.links,
            modified_ns: node.modified_ns,
            changed_ns: node.changed_ns,
            created_ns: node.created_ns,
            version: node.version,
            manifest: (!node.manifest_digest.is_empty()).then(|| hex(&node.manifest_digest)),
            target: link.as_ref().map(|link| link.text.clone()),
            target_hex: link.and_then(|link| link.hex),
        }
    }
}

/// A kind of inode in one word.
pub(crate) fn kind_name(kind: NodeKind) -> &'static str {
    match kind {
        NodeKind::File => "file",
        NodeKind::Directory => "directory",
        NodeKind::Symlink => "symlink",
        NodeKind::Fifo => "fifo",
        NodeKind::Socket => "socket",
        NodeKind::CharacterDevice => "character device",
        NodeKind::BlockDevice => "block device",
        NodeKind::Unspecified => "unknown",
    }
}

/// `drwxr-xr-x`, as `ls -l` writes it.
pub(crate) fn mode_text(node: &Node) -> String {
    let kind = match node.kind() {
        NodeKind::Directory => 'd',
        NodeKind::Symlink => 'l',
        NodeKind::Fifo => 'p',
        NodeKind::Socket => 's',
        NodeKind::CharacterDevice => 'c',
        NodeKind::BlockDevice => 'b',
        NodeKind::File | NodeKind::Unspecified => '-',
    };
    let mut text = String::from(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = node.mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, node.mode & special != 0) {
            (true, false) => 'x',
            (false, false) => '-',
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
        });
    }
    text
}

/// A time in UTC, to the second.
pub(crate) fn time_text(ns: i64) -> String {
    match u64::try_from(ns) {
        Ok(ns) => humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_nanos(ns)).to_string(),
        Err(_) => "before 1970".to_owned(),
    }
}

impl Ls {
    /// Run it.
    pub async fn run(self, tool: &Tool) -> Outcome {
        let connection = tool.connect()?;
        let (mut out, problems) = (Out::new(), Problems::default());
        let mut json: Vec<JsonNode> = Vec::new();
        let several = self.paths.len() > 1;
        for (index, path) in self.paths.iter().enumerate() {
            let path = path.as_bytes();
            let last = if self.long { LastLink::Itself } else { LastLink::Follow };
            let found = async {
                let node = connection.need(path, last).await?;
                if node.kind() != NodeKind::Directory {
                    return Ok((false, vec![Entry { name: path.to_vec().into(), node: Some(node) }]));
                }
                let entries = connection.tracker.read_dir(InodeNumber(node.inode)).await;
                Ok((true, entries.map_err(|error| tracker_failure(escape(path), &error))?))
            };
            let Some((folder, entries)) = problems.note(found.await, &out)? else { continue };
            let nodes = entries.iter().filter_map(|entry| Some((&entry.name[..], entry.node.as_ref()?)));
            if self.json {
                json.extend(nodes.map(|(name, node)| JsonNode::new(name, node)));
                continue;
            }
            if several && folder {
                let blank: &[u8] = if index > 0 { b"\n" } else { b"" };
                out.line([blank, &out.name(path), b":"].concat())?;
            }
            let shown: Vec<_> = nodes.filter(|(name, _)| self.all || !folder || !name.starts_with(b".")).collect();
            self.text(&shown, &mut out)?;
        }
        if self.json {
            out.json(&Listing { entries: json })?;
        }
        out.finish()?;
        problems.conclude("names were not shown")
    }

    fn text(&self, nodes: &[(&[u8], &Node)], out: &mut Out) -> Outcome {
        if !self.long {
            return nodes.iter().try_for_each(|(name, _)| out.line(out.name(name)));
        }
        let rows: Vec<Vec<String>> = nodes
            .iter()
            .map(|(_, node)| {
                let numbers =
                    [node.links.to_string(), node.uid.to_string(), node.gid.to_string(), node.size.to_string()];
                let mut row = vec![mode_text(node)];
                row.extend(numbers);
                row.push(time_text(node.modified_ns));
                row
            })
            .collect();
        for ((name, node), row) in nodes.iter().zip(columns(&rows, &[1, 2, 3, 4])) {
            let mut line = row.into_bytes();
            line.extend_from_slice(b"  ");
            line.extend(out.name(name));
            if node.kind() == NodeKind::Symlink {
                line.extend_from_slice(b" -> ");
                line.extend(out.name(&node.link_target));
            }
            out.line(line)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_look_as_in_ls() {
        let text = |kind: NodeKind, mode| mode_text(&Node { kind: kind.into(), mode, ..Node::default() });
        assert_eq!(text(NodeKind::Directory, 0o1777), "drwxrwxrwt");
        assert_eq!(text(NodeKind::File, 0o4755), "-rwsr-xr-x");
        assert_eq!(text(NodeKind::File, 0o2640), "-rw-r-S---");
        assert_eq!(text(NodeKind::Symlink, 0o777), "lrwxrwxrwx");
    }

    #[test]
    fn json_has_the_documented_fields() {
        let node = Node {
            inode: 7,
            kind: NodeKind::Symlink.into(),
            mode: 0o777,
            link_target: b"a\xff"[..].into(),
            manifest_digest: vec![2; 32].into(),
            ..Node::default()
        };
        let json = serde_json::to_value(JsonNode::new(b"n\xfe", &node)).unwrap();
        assert_eq!((json["kind"].as_str(), json["mode"].as_str()), (Some("symlink"), Some("0777")));
        assert_eq!((json["name_hex"].as_str(), json["target_hex"].as_str()), (Some("6efe"), Some("61ff")));
        let documented = include_str!("../../../docs/CLI.md");
        for key in json.as_object().unwrap().keys() {
            assert!(documented.contains(&format!("`{key}`")), "docs/CLI.md lacks {key}");
        }
    }
}
