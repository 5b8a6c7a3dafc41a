//! Accepts connections: how many there may be, and how a stuck one ends.
//!
//! Not HTTP: what flows over a connection is the server's business. Invariant: a connection that is open
//! counts against the limits until it is dropped.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::Stream;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

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

/// The connections that are open, by address.
#[derive(Debug, Default)]
struct Census {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

impl Census {
    fn enter(&mut self, address: IpAddr) -> bool {
        let here = self.by_address.get(&address).copied().unwrap_or(0);
        if self.total >= MOST_CONNECTIONS || here >= MOST_OF_ONE_ADDRESS {
            return false;
        }
        self.total += 1;
        self.by_address.insert(address, here + 1);
        true
    }

    fn leave(&mut self, address: IpAddr) {
        self.total = self.total.saturating_sub(1);
        match self.by_address.get_mut(&address) {
            Some(here) if *here > 1 => *here -= 1,
            _ => drop(self.by_address.remove(&address)),
        }
    }
}

/// Acts on drop: one connection fewer.
struct CensusGuard {
    census: Arc<Mutex<Census>>,
    address: IpAddr,
}

impl Drop for CensusGuard {
    fn drop(&mut self) {
        self.census.lock().leave(self.address);
    }
}

/// The accepted connections, as a stream for the server; ends at `stop`.
pub(crate) fn connections(
    listener: TcpListener,
    stop: CancellationToken,
) -> impl Stream<Item = io::Result<Connection>> + Send + 'static {
    let census = Arc::new(Mutex::new(Census::default()));
    futures::stream::unfold((listener, census, stop), |(listener, census, stop)| async move {
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
            // A 4-in-6 address is the same machine as the plain one.
            let ip = address.ip().to_canonical();
            if !census.lock().enter(ip) {
                tracing::debug!(%address, "refuse a connection: too many");
                continue;
            }
            let guard = CensusGuard { census: Arc::clone(&census), address: ip };
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "set nodelay");
            }
            let connection = Connection::new(stream, address, guard);
            return Some((Ok(connection), (listener, census, stop)));
        }
    })
}

/// One accepted connection.
pub(crate) struct Connection {
    stream: TcpStream,
    remote: Remote,
    killed: Pin<Box<WaitForCancellationFutureOwned>>,
    silence: Option<Pin<Box<Sleep>>>,
    _guard: CensusGuard,
}

impl Connection {
    fn new(stream: TcpStream, address: SocketAddr, guard: CensusGuard) -> Self {
        let link = Arc::new(Link::default());
        Self {
            stream,
            killed: Box::pin(link.kill.clone().cancelled_owned()),
            remote: Remote { address, link },
            silence: Some(Box::pin(tokio::time::sleep(FIRST_BYTES_WAIT))),
            _guard: guard,
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

    #[test]
    fn one_address_cannot_take_every_connection() {
        let mut census = Census::default();
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let entered = (0..MOST_CONNECTIONS).filter(|_| census.enter(one)).count();
        assert_eq!(entered, MOST_OF_ONE_ADDRESS);
        assert!(census.enter(other));
        census.leave(one);
        assert!(census.enter(one));
        (0..MOST_OF_ONE_ADDRESS).for_each(|_| census.leave(one));
        census.leave(other);
        assert!(census.total == 0 && census.by_address.is_empty());
    }
}
