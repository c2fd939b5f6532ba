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
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    pin::Pin,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
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
    Multiaddr, PeerId, Transport,
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
    /// Where the other end is, as whoever dialed or was dialed knows it.
    pub(in crate::net) remote: Multiaddr,
    /// When it was opened.
    pub(in crate::net) since: Instant,
    severed: AtomicBool,
    reader: AtomicWaker,
    writer: AtomicWaker,
    /// Who proved to be at the other end.
    peer: OnceLock<PeerId>,
    /// Bytes that came in, and that were given to the system to be sent.
    received: AtomicU64,
    given: AtomicU64,
    /// To ask the system for what it has not sent; nothing once the socket is about to be closed.
    socket: Mutex<Option<RawFd>>,
}

impl Line {
    /// Notes who has proven to be at the other end.
    pub(super) fn is_to(&self, peer: PeerId) {
        // The first to prove it is the only one.
        let _ = self.peer.set(peer);
    }

    /// Bytes that came in, and those that the other side's system has confirmed. As long as it grows the line is alive, however
    /// slow it is and however much is queued before an answer.
    pub(in crate::net) fn moved(&self) -> u64 {
        let given = self.given.load(Relaxed);
        let queued = match *self.socket.lock() {
            // SAFETY: it is open: whoever closes it takes it out first, for which it waits for this lock.
            Some(socket) => unsent(unsafe { BorrowedFd::borrow_raw(socket) }).unwrap_or(given),
            None => given,
        };
        self.received
            .load(Relaxed)
            .saturating_add(given.saturating_sub(queued))
    }
}

/// Bytes that the system has for a socket and that the other side has not confirmed (`SIOCOUTQ`, tcp(7)).
fn unsent(socket: BorrowedFd<'_>) -> Option<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the call writes one number, there.
    let outcome = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &mut bytes) };
    (outcome == 0).then(|| u64::try_from(bytes).unwrap_or(0))
}

impl Sockets {
    /// Makes a socket severable. `system` is what it is to the system, if it is one of its.
    pub(super) fn hold<S>(
        &self,
        socket: S,
        system: Option<RawFd>,
        local: SocketAddr,
        remote: Multiaddr,
    ) -> Severable<S> {
        let line = Arc::new(Line {
            local: canonical(local),
            remote,
            since: Instant::now(),
            severed: AtomicBool::new(false),
            reader: AtomicWaker::new(),
            writer: AtomicWaker::new(),
            peer: OnceLock::new(),
            received: AtomicU64::new(0),
            given: AtomicU64::new(0),
            socket: Mutex::new(system),
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

    /// How much has moved over the last of these lines: see [`Line::moved`].
    pub(in crate::net) fn moved(&self, which: impl Fn(&Line) -> bool) -> Option<u64> {
        let lines = self.lines.lock();
        let mut lines = lines.iter().rev().filter_map(Weak::upgrade);
        lines.find(|line| which(line)).map(|line| line.moved())
    }

    /// Bytes that have come from a peer over the lines to it that are open.
    pub(in crate::net) fn received_from(&self, peer: &PeerId) -> u64 {
        let lines = self.lines.lock();
        let lines = lines.iter().filter_map(Weak::upgrade);
        let theirs = lines.filter(|line| line.peer.get() == Some(peer));
        theirs.map(|line| line.received.load(Relaxed)).sum()
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

impl<S> Drop for Severable<S> {
    fn drop(&mut self) {
        *self.line.socket.lock() = None;
    }
}

impl<S> Severable<S> {
    /// To note who is at the other end, once that is proven.
    pub(super) fn line(&self) -> Arc<Line> {
        self.line.clone()
    }

    fn received(&self, read: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        count(&self.line.received, read)
    }

    fn given(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        count(&self.line.given, written)
    }

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

fn count(counter: &AtomicU64, moved: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
    if let Poll::Ready(Ok(bytes)) = &moved {
        counter.fetch_add(*bytes as u64, Relaxed);
    }
    moved
}

impl<S: AsyncRead + Unpin> AsyncRead for Severable<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.reads(cx)?;
        let read = Pin::new(&mut self.socket).poll_read(cx, buffer);
        self.received(read)
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &mut [io::IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        self.reads(cx)?;
        let read = Pin::new(&mut self.socket).poll_read_vectored(cx, buffers);
        self.received(read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Severable<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.writes(cx)?;
        let written = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.given(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.writes(cx)?;
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, buffers);
        self.given(written)
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
    async fn what_the_other_side_has_not_confirmed_has_not_moved() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (theirs, _) = listener.accept().unwrap();
        for socket in [&ours, &theirs] {
            socket.set_nonblocking(true).unwrap();
        }
        let ours = tokio::net::TcpStream::from_std(ours).unwrap();
        let mut theirs = tokio::net::TcpStream::from_std(theirs).unwrap();
        let sockets = Sockets::default();
        let system = ours.as_raw_fd();
        let remote = "/ip4/127.0.0.1/tcp/1".parse().unwrap();
        let mut ours = sockets.hold(ours.compat(), Some(system), at("127.0.0.1:2"), remote);
        let moved = || sockets.moved(|_| true);
        assert_eq!(moved(), Some(0));
        // Until nothing more fits between the two; the other side reads nothing.
        let mut given = 0;
        let chunk = [7; 65_536];
        let write_all = async {
            loop {
                given += ours.write(&chunk).await.unwrap() as u64;
            }
        };
        let _ = tokio::time::timeout(std::time::Duration::from_millis(300), write_all).await;
        let before = moved().unwrap();
        assert!(before < given, "{before} of {given}");
        let mut read = vec![0; 1 << 20];
        theirs.read_exact(&mut read).await.unwrap();
        theirs.write_all(&[1; 10]).await.unwrap();
        let mut answer = [0; 10];
        ours.read_exact(&mut answer).await.unwrap();
        let deadline = Instant::now() + std::time::Duration::from_secs(5);
        while moved().unwrap() < before + 10 + 65_536 {
            assert!(
                Instant::now() < deadline,
                "it does not see that more was taken"
            );
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        drop(ours);
        assert_eq!(moved(), None);
    }

    #[tokio::test]
    async fn a_severed_socket_ends_whoever_waits_for_it_and_no_other() {
        let sockets = Sockets::default();
        let hold = |local: &str| {
            let (ours, theirs) = tokio::io::duplex(4);
            let ours = sockets.hold(
                ours.compat(),
                None,
                at(local),
                "/ip4/10.0.0.9/tcp/1".parse().unwrap(),
            );
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
