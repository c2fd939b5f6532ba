//! Sockets and dials that can be ended from outside, at once.
//!
//! A connection whose local address is gone, or whose other side no longer knows it, carries nothing any more, and TCP would say so
//! after minutes. libp2p closes connections politely: it counts them as there until a last word is sent, for which a
//! dead line has no room. A socket that is severed fails its next read and write, and so ends its connection without a word.
//!
//! A dial sends from the address that the system chose when it began. Should that address go, TCP goes on from it, and nobody can
//! answer. The system tells of an address that goes before it stops to choose it, so a dial that begins then may be one of these too.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Instant,
};

use futures::{
    AsyncRead, AsyncWrite, FutureExt,
    future::{BoxFuture, Either, select},
    task::AtomicWaker,
};
use libp2p::{
    Multiaddr, Transport,
    core::transport::{Boxed, DialOpts, ListenerId, TransportError, TransportEvent},
};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// All open sockets of the transport, bounded by the limits on connections, and its dials.
#[derive(Debug, Default)]
pub(in crate::net) struct Sockets {
    lines: Mutex<Vec<Weak<Line>>>,
    /// Ends the dials that are under way.
    interrupt: Arc<Notify>,
}

/// One socket, as those see it who may sever it.
#[derive(Debug)]
pub(in crate::net) struct Line {
    /// This end.
    pub(in crate::net) local: SocketAddr,
    /// The other end.
    pub(in crate::net) remote: SocketAddr,
    /// When it was opened.
    pub(in crate::net) since: Instant,
    severed: AtomicBool,
    reader: AtomicWaker,
    writer: AtomicWaker,
}

impl Sockets {
    /// Makes a socket severable.
    pub(super) fn hold<S>(&self, socket: S, local: SocketAddr, remote: SocketAddr) -> Severable<S> {
        let line = Arc::new(Line {
            local: canonical(local),
            remote: canonical(remote),
            since: Instant::now(),
            severed: AtomicBool::new(false),
            reader: AtomicWaker::new(),
            writer: AtomicWaker::new(),
        });
        let mut lines = self.lines.lock();
        lines.retain(|line| line.strong_count() > 0);
        lines.push(Arc::downgrade(&line));
        Severable { socket, line }
    }

    /// Severs those sockets.
    pub(in crate::net) fn sever(&self, doomed: impl Fn(&Line) -> bool) {
        for line in self.lines.lock().iter().filter_map(Weak::upgrade) {
            if doomed(&line) {
                line.severed.store(true, SeqCst);
                line.reader.wake();
                line.writer.wake();
            }
        }
    }

    /// Ends all dials for which no line is there yet, with an error.
    pub(in crate::net) fn interrupt_dials(&self) {
        self.interrupt.notify_waiters();
    }
}

/// IPv4 addresses may come in the form of IPv6.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// A socket that fails once it is severed.
pub(super) struct Severable<S> {
    socket: S,
    line: Arc<Line>,
}

impl<S> Severable<S> {
    fn check(&self) -> io::Result<()> {
        match self.line.severed.load(SeqCst) {
            true => Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the line is known to be dead",
            )),
            false => Ok(()),
        }
    }

    /// The waker is registered first: whoever severs after the look wakes it.
    fn reads(&self, cx: &Context<'_>) -> io::Result<()> {
        self.line.reader.register(cx.waker());
        self.check()
    }

    fn writes(&self, cx: &Context<'_>) -> io::Result<()> {
        self.line.writer.register(cx.waker());
        self.check()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Severable<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.reads(cx)?;
        Pin::new(&mut self.socket).poll_read(cx, buffer)
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &mut [io::IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        self.reads(cx)?;
        Pin::new(&mut self.socket).poll_read_vectored(cx, buffers)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Severable<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.writes(cx)?;
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.writes(cx)?;
        Pin::new(&mut self.socket).poll_write_vectored(cx, buffers)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writes(cx)?;
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writes(cx)?;
        Pin::new(&mut self.socket).poll_close(cx)
    }
}

/// Makes lines; [`Sockets::interrupt_dials`] ends its dials.
pub(super) struct Interruptible<S> {
    pub(super) inner: Boxed<S>,
    pub(super) sockets: Arc<Sockets>,
}

impl<S: Send + 'static> Transport for Interruptible<S> {
    type Output = S;
    type Error = io::Error;
    type ListenerUpgrade = <Boxed<S> as Transport>::ListenerUpgrade;
    type Dial = BoxFuture<'static, io::Result<S>>;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<io::Error>> {
        self.inner.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        options: DialOpts,
    ) -> Result<Self::Dial, TransportError<io::Error>> {
        // Made before the dial begins: from now on it hears of every interruption.
        let interrupted = self.sockets.interrupt.clone().notified_owned().boxed();
        let dial = self.inner.dial(address, options)?;
        Ok(select(dial, interrupted)
            .map(|first| match first {
                Either::Left((line, _)) => line,
                Either::Right(_) => Err(io::Error::new(
                    io::ErrorKind::Interrupted,
                    "the addresses of this machine changed meanwhile",
                )),
            })
            .boxed())
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        Pin::new(&mut self.inner).poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures::{AsyncReadExt, AsyncWriteExt};
    use tokio_util::compat::TokioAsyncReadCompatExt;

    use super::*;

    fn at(address: &str) -> SocketAddr {
        address.parse().unwrap()
    }

    #[tokio::test]
    async fn a_severed_socket_ends_whoever_waits_for_it_and_no_other() {
        let sockets = Sockets::default();
        let hold = |local: &str| {
            let (ours, theirs) = tokio::io::duplex(4);
            let ours = sockets.hold(ours.compat(), at(local), at("10.0.0.9:1"));
            (ours, theirs)
        };
        let (mut doomed, _theirs) = hold("10.0.0.1:1");
        let (mut full, _theirs_too) = hold("[::ffff:10.0.0.1]:2");
        let (mut other, _others) = hold("10.0.0.2:1");
        full.write_all(&[0; 4]).await.unwrap();
        let waits = tokio::spawn(async move { doomed.read(&mut [0]).await });
        let stuck = tokio::spawn(async move { full.write_all(&[0]).await });
        tokio::task::yield_now().await;
        sockets.sever(|line| line.local.ip() == at("10.0.0.1:0").ip());
        assert!(waits.await.unwrap().is_err());
        assert!(stuck.await.unwrap().is_err());
        other.write_all(&[0; 4]).await.unwrap();
        assert_eq!(sockets.lines.lock().len(), 3);
        let _new = hold("10.0.0.3:1");
        assert_eq!(sockets.lines.lock().len(), 2, "closed ones are forgotten");
    }
}
