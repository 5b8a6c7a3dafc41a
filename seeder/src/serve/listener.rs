//! Accepts connections: how many there may be, and how a stuck one ends.
//!
//! Not HTTP: what flows over a connection is the server's business. Invariant: a connection that is open
//! counts against the limits until it is dropped.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use swarm_proto::seats::{Seat, Seats};

/// Connections in all: 28 KiB each when idle, so 112 MiB.
const MOST_CONNECTIONS: usize = 4096;

/// Connections of one address: a machine with many mounts, or a site behind one address, but not all.
const MOST_OF_ONE_ADDRESS: usize = 512;

/// How long a connection may say nothing at first; HTTP/2 pings watch it only after its preface.
const FIRST_BYTES_WAIT: Duration = Duration::from_secs(10);

/// Pause after `accept` failed (out of file descriptors), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What others may know of, and do to, an open connection.
#[derive(Debug, Default)]
pub(crate) struct Link {
    written: AtomicU64,
    kill: CancellationToken,
}

impl Link {
    /// Bytes written to it so far.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// End it: all its streams fail, and what they hold is freed.
    pub(crate) fn kill(&self) {
        self.kill.cancel();
    }

    /// Whether it was ended.
    #[cfg(test)]
    pub(crate) fn killed(&self) -> bool {
        self.kill.is_cancelled()
    }
}

/// Who is at the other end; an extension of every request.
#[derive(Debug, Clone)]
pub(crate) struct Remote {
    pub(crate) address: SocketAddr,
    pub(crate) link: Arc<Link>,
}

/// The accepted connections, as a stream for the server; ends at `stop`.
pub(crate) fn connections(
    listener: TcpListener,
    stop: CancellationToken,
) -> impl Stream<Item = io::Result<Connection>> + Send + 'static {
    let seats = Seats::new(MOST_CONNECTIONS, MOST_OF_ONE_ADDRESS);
    futures::stream::unfold((listener, seats, stop), |(listener, seats, stop)| async move {
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return None,
                accepted = listener.accept() => accepted,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!(%error, "accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some(seat) = seats.take(address.ip()) else {
                tracing::debug!(%address, "refuse a connection: too many");
                continue;
            };
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "set nodelay");
            }
            let connection = Connection::new(stream, address, seat);
            return Some((Ok(connection), (listener, seats, stop)));
        }
    })
}

/// One accepted connection.
pub(crate) struct Connection {
    stream: TcpStream,
    remote: Remote,
    killed: Pin<Box<WaitForCancellationFutureOwned>>,
    silence: Option<Pin<Box<Sleep>>>,
    _seat: Seat,
}

impl Connection {
    fn new(stream: TcpStream, address: SocketAddr, seat: Seat) -> Self {
        let link = Arc::new(Link::default());
        Self {
            stream,
            killed: Box::pin(link.kill.clone().cancelled_owned()),
            remote: Remote { address, link },
            silence: Some(Box::pin(tokio::time::sleep(FIRST_BYTES_WAIT))),
            _seat: seat,
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Remote;
    fn connect_info(&self) -> Remote {
        self.remote.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.killed.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if let Some(silence) = self.silence.as_mut()
            && silence.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.silence = None;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        self.remote.link.written.fetch_add(written as u64, Ordering::Relaxed);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs))?;
        self.remote.link.written.fetch_add(written as u64, Ordering::Relaxed);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn a_killed_connection_ends_for_who_waits_on_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepted = Box::pin(connections(listener, CancellationToken::new())).into_future();
        let (client, (connection, _rest)) = tokio::join!(TcpStream::connect(address), accepted);
        let mut connection = connection.unwrap().unwrap();
        let link = connection.connect_info().link;
        let mut bytes = [0; 8];
        let (read, ()) = tokio::join!(connection.read(&mut bytes), async { link.kill() });
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        drop(client);
    }
}
