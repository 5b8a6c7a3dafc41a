//! gRPC's format of a message, for the two ends that must not copy: a flag, a length, and the message.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint};
use prost::{DecodeError, Message};
use tonic::Status;

/// Bytes before each message: the flag, and the length from its highest byte.
const PREFIX_BYTES: usize = 5;

/// Number of a field: `data` of FetchReply, `reply` of FetchOutcome, `outcomes` of FetchManyReply.
pub(crate) const DATA: u32 = 2;
pub(crate) const REPLY: u32 = 1;
pub(crate) const OUTCOMES: u32 = 1;

/// Longest key and length of an element.
const ELEMENT_HEAD_BYTES: usize = 11;

/// Pieces are put together up to this: what holding one takes besides then does not count.
const SMALL_PIECE_BYTES: usize = 512;

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

/// Begin a field of bytes or of a message, of which `length` bytes follow.
pub(crate) fn begin_field(number: u32, length: usize, head: &mut Vec<u8>) {
    encode_key(number, WireType::LengthDelimited, head);
    encode_varint(length as u64, head);
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
        if piece.is_empty() {
            return;
        }
        self.length += piece.len();
        match self.pieces.back_mut() {
            // A peer that sends a byte at a time shall not make us hold much for each.
            Some(last) if last.len() + piece.len() <= SMALL_PIECE_BYTES => {
                *last = [&last[..], &piece[..]].concat().into();
            }
            _ => self.pieces.push_back(piece),
        }
    }

    /// Bytes that came.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// How long the message says it is, once that came.
    pub(crate) fn declared(&self) -> Option<u64> {
        let head: [u8; PREFIX_BYTES] = self.peek(PREFIX_BYTES).try_into().ok()?;
        Some(u64::from(u32::from_be_bytes([head[1], head[2], head[3], head[4]])))
    }

    /// The one message in it. Its fields of bytes are slices of the pieces, copied only where they were cut.
    ///
    /// Errors: a status that says what is wrong with it.
    pub(crate) fn decode<M: Message + Default>(mut self) -> Result<M, Status> {
        if self.length < PREFIX_BYTES {
            return Err(Status::invalid_argument("no message came"));
        }
        if self.take_prefix()? != self.length {
            return Err(Status::invalid_argument("the message has another length than it says"));
        }
        M::decode(self).map_err(|error| unexpected(&error))
    }

    /// Take the prefix, which came; how long the message is.
    fn take_prefix(&mut self) -> Result<usize, Status> {
        if self.get_u8() != 0 {
            return Err(Status::unimplemented("the message is compressed"));
        }
        Ok(self.get_u32() as usize)
    }

    /// The first `most` bytes, or as many as came.
    fn peek(&self, most: usize) -> Vec<u8> {
        self.pieces.iter().flat_map(|piece| piece.iter().copied()).take(most).collect()
    }
}

/// A message that consists of [`OUTCOMES`] alone, whose elements are taken while it comes.
#[derive(Debug, Default)]
pub(crate) struct Elements {
    pieces: Pieces,
    /// Bytes of the message that are still to be taken, once its prefix was.
    left: Option<usize>,
}

impl Elements {
    /// More of it came.
    pub(crate) fn push(&mut self, piece: Bytes) {
        self.pieces.push(piece);
    }

    /// The next element; none until all of it came, and after the last.
    ///
    /// Errors: a status that says what is wrong with the message.
    pub(crate) fn next<M: Message + Default>(&mut self) -> Result<Option<M>, Status> {
        let left = match self.left {
            Some(left) => left,
            None if self.pieces.length < PREFIX_BYTES => return Ok(None),
            None => self.pieces.take_prefix()?,
        };
        self.left = Some(left);
        let head = self.pieces.peek(ELEMENT_HEAD_BYTES.min(left));
        let mut rest = &head[..];
        let Some(length) = element_length(&mut rest)? else { return Ok(None) };
        let head_length = head.len() - rest.len();
        if length > left - head_length {
            return Err(Status::invalid_argument("an element goes past the end of its message"));
        }
        if self.pieces.length < head_length + length {
            return Ok(None);
        }
        self.pieces.advance(head_length);
        self.left = Some(left - head_length - length);
        let mut element = Pieces::default();
        element.push(self.pieces.copy_to_bytes(length));
        M::decode(element).map(Some).map_err(|error| unexpected(&error))
    }
}

/// Length of the element whose key and length are the first bytes of `head`; none if they are cut off.
fn element_length(head: &mut &[u8]) -> Result<Option<usize>, Status> {
    let ended = |head: &[u8]| head.iter().all(|byte| byte & 0x80 != 0) && head.len() < ELEMENT_HEAD_BYTES - 1;
    if ended(head) {
        return Ok(None);
    }
    let key = decode_key(head).map_err(|error| unexpected(&error))?;
    if key != (OUTCOMES, WireType::LengthDelimited) {
        return Err(Status::invalid_argument("a field that does not belong there"));
    }
    if ended(head) {
        return Ok(None);
    }
    let length = decode_varint(head).map_err(|error| unexpected(&error))?;
    usize::try_from(length).map(Some).map_err(|_| Status::invalid_argument("an element without end"))
}

fn unexpected(error: &DecodeError) -> Status {
    Status::invalid_argument(format!("not the message that was expected: {error}"))
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
        fn elements_are_the_same_however_they_were_cut(
            all in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 1..8),
            cuts in prop::collection::vec(0usize..300, 0..12),
        ) {
            let reply = |data: &Vec<u8>| v1::FetchReply { data: data.clone().into(), ..Default::default() };
            let outcome = |data| v1::FetchOutcome { reply: Some(reply(data)), ..Default::default() };
            let sent = v1::FetchManyReply { outcomes: all.iter().map(outcome).collect() };
            let mut message = framed(&sent.encode_to_vec(), 0);
            let (mut elements, mut got) = (Elements::default(), Vec::new());
            for cut in cuts.into_iter().chain([usize::MAX]) {
                elements.push(message.split_to(cut.min(message.len())));
                while let Some(outcome) = elements.next::<v1::FetchOutcome>().unwrap() {
                    got.push(outcome);
                }
            }
            prop_assert_eq!(got, sent.outcomes);
        }

        #[test]
        fn no_elements_at_all_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), cuts in prop::collection::vec(0usize..50, 0..6)) {
            let key = [&b"\x0a"[..], &bytes].concat();
            let mut message = framed(&key, 0);
            let mut elements = Elements::default();
            for cut in cuts {
                elements.push(message.split_to(cut.min(message.len())));
                while let Ok(Some(_)) = elements.next::<v1::FetchOutcome>() {}
            }
        }

        #[test]
        fn no_bytes_at_all_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), cuts in prop::collection::vec(0usize..50, 0..6)) {
            drop(cut(framed(&bytes, 0), &cuts).decode::<v1::FetchReply>());
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
        assert_eq!(pieces.declared(), Some(whole.len() as u64));
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
