//! **PURE.** The results of a request, as its kept answer has them.
//!
//! For each operation 0:u8; 3:u8 inode:u64 and the inode as its record has it (a blob); 2:u8 fault:u8 and the message
//! (a blob); or 4:u8, the same as 2, and then what follows 3. An earlier program wrote 1 for 3, with the inode in its
//! first layout. What else an operation changed is not kept.

use bytes::{BufMut, Bytes};
use swarm_proto::{Fault, InodeNumber};

use super::codec::{Fields, SchemaError, put_blob};
use super::node::{NODE_LAYOUT, OLD_NODE_LAYOUT, put_node, take_node};
use crate::namespace::{Node, Refusal};

type Done = Result<Option<(InodeNumber, Node)>, Refusal>;

const NOTHING: u8 = 0;
const OLD_NODE: u8 = 1;
const REFUSED: u8 = 2;
const NODE: u8 = 3;
const REFUSED_WITH_NODE: u8 = 4;

/// See the module.
pub fn encode(results: &[Done]) -> Bytes {
    let mut out = Vec::new();
    for result in results {
        match result {
            Ok(None) => out.push(NOTHING),
            Ok(Some((inode, node))) => {
                out.push(NODE);
                put(&mut out, *inode, node);
            }
            Err(refusal) => {
                out.push(if refusal.node.is_some() { REFUSED_WITH_NODE } else { REFUSED });
                // Faults are a few small numbers.
                out.push(u8::try_from(i32::from(refusal.fault)).unwrap_or(0));
                put_blob(&mut out, refusal.message.as_bytes());
                if let Some(as_it_is) = &refusal.node {
                    put(&mut out, as_it_is.0, &as_it_is.1);
                }
            }
        }
    }
    out.into()
}

/// The reverse of [`encode`].
pub fn decode(bytes: &[u8]) -> Result<Vec<Done>, SchemaError> {
    let mut rest = Fields(bytes);
    let mut results = Vec::new();
    while !rest.is_empty() {
        results.push(match rest.u8()? {
            NOTHING => Ok(None),
            OLD_NODE => Ok(Some(take(&mut rest, OLD_NODE_LAYOUT)?)),
            NODE => Ok(Some(take(&mut rest, NODE_LAYOUT)?)),
            kind @ (REFUSED | REFUSED_WITH_NODE) => {
                let fault = Fault::try_from(i32::from(rest.u8()?)).unwrap_or(Fault::Unspecified);
                let refusal = Refusal::new(fault, rest.text()?);
                Err(match kind {
                    REFUSED => refusal,
                    _ => {
                        let (inode, node) = take(&mut rest, NODE_LAYOUT)?;
                        refusal.with_node(inode, node)
                    }
                })
            }
            _ => return Err(SchemaError::Malformed("a result of an unknown kind")),
        });
    }
    Ok(results)
}

fn put(out: &mut Vec<u8>, inode: InodeNumber, node: &Node) {
    out.put_u64_le(inode.0);
    let mut record = Vec::new();
    put_node(&mut record, node);
    put_blob(out, &record);
}

fn take(rest: &mut Fields<'_>, layout: u8) -> Result<(InodeNumber, Node), SchemaError> {
    let inode = InodeNumber(rest.u64()?);
    let mut record = Fields(rest.blob()?);
    Ok((inode, take_node(&mut record, layout)?))
}
