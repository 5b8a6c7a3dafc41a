//! Where inodes lie, as far as this mount has seen it: for messages, and for what is put beside a file.

use bytes::Bytes;
use swarm_proto::InodeNumber;

use super::FileSystem;

/// No path that is shown is deeper.
const DEPTH_MOST: usize = 256;

impl FileSystem {
    /// The directory in which an inode was last seen, and its name there.
    pub fn place_of(&self, inode: InodeNumber) -> Option<(InodeNumber, Bytes)> {
        self.known.lock().place_of(inode)
    }

    /// The path of an inode in this mount as it was last seen; begins with `…/` where what is above is not known.
    pub fn path_of(&self, inode: InodeNumber) -> String {
        let mut known = self.known.lock();
        let mut names = Vec::new();
        let mut at = inode;
        while at != self.config.root && names.len() < DEPTH_MOST {
            let Some((parent, name)) = known.place_of(at) else { break };
            names.push(String::from_utf8_lossy(&name).into_owned());
            at = parent;
        }
        let above = match (at == self.config.root, names.is_empty()) {
            (true, _) => String::new(),
            (false, false) => "…".to_owned(),
            (false, true) => return format!("inode {inode}"),
        };
        names.reverse();
        format!("{above}/{}", names.join("/"))
    }
}
