//! **PURE.** Letting go of files that have lost their last name, once nobody has them open.

use swarm_proto::InodeNumber;

use crate::namespace::draft::Drafted;
use crate::namespace::{Image, NameWrite, Node, Relied};

/// What to write so that these orphans are gone. What is no orphan of the image is left as it is.
pub fn reclaim(image: &Image, inodes: &[InodeNumber]) -> Drafted {
    let mut orphans: Vec<InodeNumber> =
        inodes.iter().copied().filter(|inode| image.node(*inode).is_some_and(Node::is_orphan)).collect();
    // In the order of their keys, each once.
    orphans.sort_unstable();
    orphans.dedup();
    Drafted {
        relied: orphans.iter().map(|inode| Relied::Node(*inode)).collect(),
        writes: orphans.into_iter().map(|inode| NameWrite::Node(inode, None)).collect(),
    }
}
