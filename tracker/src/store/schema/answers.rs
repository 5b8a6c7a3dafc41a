//! **PURE.** The results of a request, as its kept answer has them.
//!
//! For each operation 0:u8; 1:u8 inode:u64 and the inode as its record has it (a blob); or 2:u8 fault:u8 and
//! the message (a blob).

use bytes::{BufMut, Bytes};
use swarm_proto::{Fault, InodeNumber};

use super::codec::{Fields, SchemaError, put_blob, put_node, take_node};
use crate::namespace::{Node, Refusal};

type Done = Result<Option<(InodeNumber, Node)>, Refusal>;

/// See the module.
pub fn encode(results: &[Done]) -> Bytes {
    let mut out = Vec::new();
    for result in results {
        match result {
            Ok(None) => out.push(0),
            Ok(Some((inode, node))) => {
                out.push(1);
                out.put_u64_le(inode.0);
                let mut record = Vec::new();
                put_node(&mut record, node);
                put_blob(&mut out, &record);
            }
            Err(refusal) => {
                out.push(2);
                // Faults are a few small numbers.
                out.push(u8::try_from(i32::from(refusal.fault)).unwrap_or(0));
                put_blob(&mut out, refusal.message.as_bytes());
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
            0 => Ok(None),
            1 => {
                let inode = InodeNumber(rest.u64()?);
                let mut record = Fields(rest.blob()?);
                Ok(Some((inode, take_node(&mut record)?)))
            }
            2 => {
                let fault = Fault::try_from(i32::from(rest.u8()?)).unwrap_or(Fault::Unspecified);
                Err(Refusal { fault, message: rest.text()? })
            }
            _ => return Err(SchemaError::Malformed("a result of an unknown kind")),
        });
    }
    Ok(results)
}
