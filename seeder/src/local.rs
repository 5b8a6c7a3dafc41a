//! How two processes of one machine meet, and how one hands the other an open file.
//!
//! Not what they say: a message is bytes here. Invariants: only processes of the same user talk to each other; a
//! message longer than its reader allows is an error before it is read.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use swarm_proto::PeerId;
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};

/// Bytes before each message: its length.
const PREFIX_BYTES: usize = 4;

/// What is read at once: a Loan with the tree of a segment of 4 MiB.
const READ_BYTES: usize = 12 * 1024;

/// The name of a peer that listens at `address`, in the abstract namespace: the same for all addresses if it listens on
/// all of them. Who is reached at another address, through a proxy for instance, is not found by its name.
fn name(peer: PeerId, address: SocketAddr) -> String {
    match address.ip().is_unspecified() {
        true => format!("\0swarmfs/{peer}/*:{}", address.port()),
        false => format!("\0swarmfs/{peer}/{address}"),
    }
}

/// Listen for processes of this machine that know `peer` at `address`.
pub(crate) fn listen(peer: PeerId, address: SocketAddr) -> io::Result<UnixListener> {
    UnixListener::bind(name(peer, address))
}

/// Connect to the peer that is known by host:port `address`, if it runs on this machine. It does not wait.
///
/// Errors: nobody listens there, or it is another user's process.
pub(crate) async fn connect(peer: PeerId, address: &str) -> io::Result<UnixStream> {
    let port = address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).ok_or(io::ErrorKind::InvalidInput)?;
    let everywhere = SocketAddr::from(([0, 0, 0, 0], port));
    let exactly = address.parse().unwrap_or(everywhere);
    let stream = match UnixStream::connect(name(peer, exactly)).await {
        Ok(stream) => stream,
        Err(_) => UnixStream::connect(name(peer, everywhere)).await?,
    };
    match is_ours(&stream) {
        true => Ok(stream),
        false => Err(io::ErrorKind::PermissionDenied.into()),
    }
}

/// Whether the other end is a process of this user. Root too believes nobody else: a file that somebody lends may lie in a
/// file system of his own, in which whoever reads waits for as long as he likes.
pub(crate) fn is_ours(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|them| them.uid() == rustix::process::geteuid().as_raw())
}

/// Send a message, and with it an open file.
pub(crate) async fn send(stream: &UnixStream, message: &[u8], file: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let length = u32::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?.to_le_bytes();
    let descriptors: Vec<BorrowedFd<'_>> = file.into_iter().collect();
    let mut sent = 0;
    while sent < PREFIX_BYTES + message.len() {
        let pieces = [
            IoSlice::new(&length[sent.min(PREFIX_BYTES)..]),
            IoSlice::new(&message[sent.saturating_sub(PREFIX_BYTES)..]),
        ];
        let write = || {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            // With the first byte.
            if sent == 0 && !descriptors.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(&descriptors));
            }
            Ok(sendmsg(stream, &pieces, &mut control, SendFlags::NOSIGNAL)?)
        };
        sent += stream.async_io(Interest::WRITABLE, write).await?;
    }
    Ok(())
}

/// The next message, and the open file that came with it; none if the other end closed the stream before it.
///
/// Errors: `InvalidData` if it is longer than `most_bytes` or more follows it; `UnexpectedEof` if it breaks off.
pub(crate) async fn receive(stream: &UnixStream, most_bytes: usize) -> io::Result<Option<(Vec<u8>, Option<OwnedFd>)>> {
    let mut came: Vec<u8> = Vec::new();
    let mut file = None;
    let mut want = PREFIX_BYTES;
    let mut buffer = vec![0; READ_BYTES];
    while came.len() < want {
        let read = || {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut pieces = [IoSliceMut::new(&mut buffer)];
            let received = recvmsg(stream, &mut pieces, &mut control, RecvFlags::CMSG_CLOEXEC)?;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                    file = descriptors.last().or(file.take());
                }
            }
            Ok(received.bytes)
        };
        match stream.async_io(Interest::READABLE, read).await? {
            0 if came.is_empty() => return Ok(None),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            bytes => came.extend_from_slice(&buffer[..bytes]),
        }
        if want == PREFIX_BYTES
            && let Some(length) = came.first_chunk().map(|length| u32::from_le_bytes(*length) as usize)
        {
            want += length;
            if length > most_bytes {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
    }
    if came.len() > want {
        return Err(io::ErrorKind::InvalidData.into());
    }
    came.drain(..PREFIX_BYTES);
    Ok(Some((came, file)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;
    use tokio::io::AsyncWriteExt;

    const MOST: usize = 200_000;

    async fn pair() -> (UnixStream, UnixStream) {
        UnixStream::pair().unwrap()
    }

    fn a_file(text: &str) -> std::fs::File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    #[tokio::test]
    async fn messages_come_as_they_were_sent_and_a_file_with_its_own() {
        let (one, other) = pair().await;
        for length in [0, 1, 4, READ_BYTES - PREFIX_BYTES, READ_BYTES, 131_072] {
            let message = crate::testing::noise(1, length);
            let file = (length % 2 == 1).then(|| a_file("lent"));
            let sending = send(&one, &message, file.as_ref().map(|file| file.as_fd()));
            let (sent, came) = tokio::join!(sending, receive(&other, MOST));
            sent.unwrap();
            let (got, lent) = came.unwrap().unwrap();
            assert!(got == message, "length {length}");
            let text = lent.map(|lent| crate::aligned::read_exact_at(lent, 0, 4).unwrap());
            assert_eq!(text.as_deref(), file.map(|_| b"lent".as_slice()));
        }
        drop(one);
        assert!(receive(&other, MOST).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn what_is_no_message_is_an_error() {
        for (bytes, most, kind) in [
            (vec![3, 0, 0, 0, 1, 2], MOST, io::ErrorKind::UnexpectedEof),
            (vec![3], MOST, io::ErrorKind::UnexpectedEof),
            (vec![0xFF; 4], MOST, io::ErrorKind::InvalidData),
            (vec![3, 0, 0, 0, 1, 2, 3], 2, io::ErrorKind::InvalidData),
            (vec![1, 0, 0, 0, 1, 2], MOST, io::ErrorKind::InvalidData),
        ] {
            let (mut one, other) = pair().await;
            one.write_all(&bytes).await.unwrap();
            drop(one);
            assert_eq!(receive(&other, most).await.unwrap_err().kind(), kind, "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn a_peer_is_found_by_its_id_and_the_address_it_listens_on() {
        let me = PeerId::random();
        let _exact = listen(me, "127.0.0.1:4001".parse().unwrap()).unwrap();
        let _everywhere = listen(me, "[::]:4002".parse().unwrap()).unwrap();
        for (peer, address, found) in [
            (me, "127.0.0.1:4001", true),
            (me, "127.0.0.2:4001", false),
            (me, "127.0.0.1:4003", false),
            (me, "10.1.2.3:4002", true),
            (me, "[fd00::1]:4002", true),
            (me, "some.host:4002", true),
            (me, "some.host:4001", false),
            (PeerId::random(), "127.0.0.1:4001", false),
            (me, "4001", false),
            (me, "127.0.0.1:99999", false),
        ] {
            assert_eq!(connect(peer, address).await.is_ok(), found, "{address}");
        }
        assert!(listen(me, "127.0.0.1:4001".parse().unwrap()).is_err(), "one listens there already");
    }
}
