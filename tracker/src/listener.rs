//! Accepting connections: only those that speak HTTP/2, and only so many.
//!
//! hyper waits for a client's first bytes for ever, and its keepalive begins only after them. So a
//! connection is handed on only after it has sent HTTP/2's preface, within a deadline; and every
//! connection ends when [`Listener::cut`] says so, whatever its streams do.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;
use tonic::transport::server::{Connected, TcpConnectInfo};

/// What every HTTP/2 client sends first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a client may take for it.
const PREFACE_WITHIN: Duration = Duration::from_secs(10);

/// Connections at a time; one costs about 30 KiB when idle.
const MOST_CONNECTIONS: usize = 16_384;

/// Bound, not yet serving.
pub struct Listener {
    inner: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Errors: the address cannot be bound.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let inner = TcpListener::bind(address).await?;
        let address = inner.local_addr()?;
        Ok(Self { inner, address })
    }

    /// Where it listens; with the port that was chosen if 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accept until `stop`; cut every connection at `cut`.
    pub fn accept(
        self,
        tasks: &TaskTracker,
        stop: CancellationToken,
        cut: CancellationToken,
    ) -> ReceiverStream<io::Result<Connection>> {
        let (ready, out) = mpsc::channel(16);
        let owner = tasks.clone();
        tasks.spawn(async move {
            let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
            loop {
                let accepted = tokio::select! {
                    accepted = self.inner.accept() => accepted,
                    () = stop.cancelled() => return,
                };
                let stream = match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        // Out of descriptors, most likely: others may close some.
                        tracing::warn!(%error, "accept a connection");
                        sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                };
                let Ok(permit) = room.clone().try_acquire_owned() else {
                    tracing::warn!(most = MOST_CONNECTIONS, "refuse a connection: too many");
                    continue;
                };
                let (ready, stop, cut) = (ready.clone(), stop.clone(), cut.clone());
                owner.spawn(async move {
                    let greeted = tokio::select! {
                        greeted = timeout(PREFACE_WITHIN, greeted(&stream)) => matches!(greeted, Ok(Ok(true))),
                        () = stop.cancelled() => false,
                    };
                    if greeted && stream.set_nodelay(true).is_ok() {
                        let cut = Box::pin(cut.cancelled_owned());
                        drop(ready.send(Ok(Connection { stream, cut, _permit: permit })).await);
                    }
                });
            }
        });
        ReceiverStream::new(out)
    }
}

/// Whether the client begins with HTTP/2's preface; its bytes stay to be read.
async fn greeted(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0; PREFACE.len()];
    loop {
        let got = stream.peek(&mut first).await?;
        if got == 0 || first[..got] != PREFACE[..got] {
            return Ok(false);
        }
        if got == PREFACE.len() {
            return Ok(true);
        }
        // A part of it stays readable, so waiting for "readable" would spin.
        sleep(Duration::from_millis(20)).await;
    }
}

/// A connection that can be cut.
pub struct Connection {
    stream: TcpStream,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    _permit: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;
    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
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
