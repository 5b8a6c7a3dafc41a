//! gRPC's format of a message, for the two ends that must not copy: a flag, a length, and the message.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use tonic::Status;

/// Bytes before each message: the flag, and the length from its highest byte.
const PREFIX_BYTES: usize = 5;

/// What both sides name their bodies.
pub(crate) const CONTENT_TYPE: &str = "application/grpc";

/// The prefix of a message, and the message's first bytes; `more` bytes will follow.
pub(crate) fn framed(head: &[u8], more: usize) -> Bytes {
    let length = u32::try_from(head.len() + more).expect("a run, a tree and their framing are far below 4 GiB");
    let mut framed = BytesMut::with_capacity(PREFIX_BYTES + head.len());
    framed.put_u8(0);
    framed.put_u32(length);
    framed.put_slice(head);
    framed.freeze()
}

/// The body of a unary call as it came, piece by piece.
///
/// Invariant: no piece is empty.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    pieces: VecDeque<Bytes>,
    length: usize,
}

impl Pieces {
    /// More of it came.
    pub(crate) fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.length += piece.len();
            self.pieces.push_back(piece);
        }
    }

    /// Bytes that came.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// The one message in it. Its fields of bytes are slices of the pieces, copied only where they were cut.
    ///
    /// Errors: a status that says what is wrong with it.
    pub(crate) fn decode<M: Message + Default>(mut self) -> Result<M, Status> {
        if self.length < PREFIX_BYTES {
            return Err(Status::invalid_argument("no message came"));
        }
        if self.get_u8() != 0 {
            return Err(Status::unimplemented("the message is compressed"));
        }
        if self.get_u32() as usize != self.length {
            return Err(Status::invalid_argument("the message has another length than it says"));
        }
        M::decode(self).map_err(|error| Status::invalid_argument(format!("not the message that was expected: {error}")))
    }
}

impl Buf for Pieces {
    fn remaining(&self) -> usize {
        self.length
    }

    fn chunk(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |piece| piece)
    }

    fn advance(&mut self, count: usize) {
        assert!(count <= self.length, "advance past the end");
        self.length -= count;
        let mut left = count;
        while let Some(first) = self.pieces.front_mut() {
            if left < first.len() {
                first.advance(left);
                return;
            }
            left -= first.len();
            self.pieces.pop_front();
        }
    }

    fn copy_to_bytes(&mut self, length: usize) -> Bytes {
        assert!(length <= self.length, "copy past the end");
        if let Some(first) = self.pieces.front_mut()
            && length <= first.len()
        {
            let taken = first.slice(..length);
            self.advance(length);
            return taken;
        }
        let mut copied = BytesMut::with_capacity(length);
        while copied.len() < length {
            let chunk = self.chunk();
            let count = chunk.len().min(length - copied.len());
            copied.put_slice(&chunk[..count]);
            self.advance(count);
        }
        copied.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use swarm_proto::v1;

    fn cut(mut message: Bytes, cuts: &[usize]) -> Pieces {
        let mut pieces = Pieces::default();
        for cut in cuts {
            pieces.push(message.split_to((*cut).min(message.len())));
        }
        pieces.push(message);
        pieces
    }

    proptest! {
        #[test]
        fn a_message_is_the_same_however_it_was_cut(
            tree in prop::collection::vec(any::<u8>(), 0..100),
            data in prop::collection::vec(any::<u8>(), 0..5_000),
            cuts in prop::collection::vec(0usize..700, 0..12),
        ) {
            let reply = v1::FetchReply { tree: tree.into(), data: data.into(), held: None };
            let pieces = cut(framed(&reply.encode_to_vec(), 0), &cuts);
            prop_assert_eq!(pieces.decode::<v1::FetchReply>().unwrap(), reply);
        }

        #[test]
        fn no_bytes_at_all_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), cuts in prop::collection::vec(0usize..50, 0..6)) {
            drop(cut(bytes.into(), &cuts).decode::<v1::FetchReply>());
        }
    }

    #[test]
    fn bytes_that_came_in_one_piece_are_not_copied() {
        let data = Bytes::from(vec![7; 1 << 20]);
        let whole = v1::FetchReply { data: data.clone(), ..Default::default() }.encode_to_vec();
        let mut pieces = Pieces::default();
        pieces.push(framed(&whole[..whole.len() - data.len()], data.len()));
        pieces.push(data.clone());
        assert_eq!(pieces.decode::<v1::FetchReply>().unwrap().data.as_ptr(), data.as_ptr());
    }

    #[test]
    fn a_message_that_is_cut_short_or_goes_on_is_refused() {
        let reply = v1::FetchReply { data: Bytes::from_static(b"data"), ..Default::default() };
        let message = framed(&reply.encode_to_vec(), 0);
        for wrong in [message.slice(..message.len() - 1), [&message[..], b"x"].concat().into(), Bytes::new()] {
            assert_eq!(cut(wrong, &[]).decode::<v1::FetchReply>().unwrap_err().code(), tonic::Code::InvalidArgument);
        }
    }
}
