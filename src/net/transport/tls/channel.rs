//! What is encrypted by rustls, moved through buffers of our own.
//!
//! rustls's buffered connections read 4 KiB at a time, move the rest of it to the front after each record, and send at most 64 KiB.
//! Its unbuffered ones leave the reading and writing to their user: here as much is read as there is room for, and decrypted where it
//! lies, and many records are encrypted before they leave in one call (`docs/performance.md`). Handshake, records and keys are all
//! rustls's.
//!
//! Invariants: a connection that ends without a word (`close_notify`) is an error, since its end may be missing; after
//! something that rustls refused nothing more is read or written. Memory is bounded by three buffers, of which an idle connection
//! has none.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::{AsyncRead, AsyncWrite};
use parking_lot::Mutex;
use rustls::{
    CommonState,
    client::UnbufferedClientConnection,
    server::UnbufferedServerConnection,
    unbuffered::{ConnectionState, UnbufferedStatus},
};

/// Most bytes of data in a record.
const PLAIN_BYTES_MAX: usize = 16 * 1024;
/// Bytes of data that are encrypted before they are sent, a frame of the multiplexer: few calls of the system, and they are still in
/// the processor's cache then.
const SEALED_AT_ONCE: usize = 256 * 1024;
/// What waits to be sent, up to which more is encrypted behind it.
const HELD_BACK_MAX: usize = 8 * 1024;
/// Room for both, with what records add, and for rustls's own messages. As much is read at a time.
const BUFFER_BYTES: usize = SEALED_AT_ONCE + 2 * HELD_BACK_MAX;
/// What is read at first of a handshake; it takes about half of that.
const SMALL_BYTES: usize = 4096;
/// Most that is held of a handshake.
const HANDSHAKE_BYTES_MAX: usize = 64 * 1024;
/// Idle buffers that are kept: 2.1 MiB.
const IDLE_BUFFERS_MAX: usize = 8;

const PAGE_BYTES: usize = 4096;
/// Where in a page the data of long records are to begin. rustls copies them to five bytes behind the start of a page, as the allocator
/// has it. Frames begin where a page does, and from there a processor takes each of its loads for one of what it stored just before:
/// the copy took 25 times as long (`docs/performance.md`).
const PLACE_IN_PAGE: usize = PAGE_BYTES / 2;

static IDLE: Mutex<Vec<Box<[u8]>>> = Mutex::new(Vec::new());

/// Bytes that wait to be taken on.
#[derive(Default)]
struct Pending {
    bytes: Option<Box<[u8]>>,
    start: usize,
    end: usize,
    /// Holds as little as it can, and no more than a message of a handshake takes: anybody may open connections.
    is_small: bool,
}

impl Pending {
    fn len(&self) -> usize {
        self.end - self.start
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn filled(&mut self) -> &mut [u8] {
        match &mut self.bytes {
            Some(bytes) => &mut bytes[self.start..self.end],
            None => &mut [],
        }
    }

    /// Room behind what is pending, which goes to the front first.
    fn room(&mut self) -> &mut [u8] {
        let (held, here) = (
            self.len(),
            self.bytes.as_ref().map_or(0, |bytes| bytes.len()),
        );
        let wanted = match self.is_small {
            true if held < here => here,
            true => (2 * here).clamp(SMALL_BYTES, HANDSHAKE_BYTES_MAX),
            false => BUFFER_BYTES,
        };
        if here < wanted {
            let idle = (wanted == BUFFER_BYTES).then(|| IDLE.lock().pop());
            let mut bytes = idle.flatten().unwrap_or_else(|| vec![0; wanted].into());
            bytes[..held].copy_from_slice(self.filled());
            self.bytes = Some(bytes);
        } else if self.start > 0
            && let Some(bytes) = &mut self.bytes
        {
            bytes.copy_within(self.start..self.end, 0);
        }
        (self.start, self.end) = (0, held);
        let bytes = self.bytes.as_deref_mut().unwrap_or_default();
        &mut bytes[held..]
    }

    fn came(&mut self, bytes: usize) {
        self.end += bytes;
    }

    fn went(&mut self, bytes: usize) {
        self.start += bytes;
    }

    /// Gives the memory up where nothing is pending.
    fn rest(&mut self) {
        if self.is_empty()
            && let Some(bytes) = self.bytes.take()
        {
            (self.start, self.end) = (0, 0);
            let mut idle = IDLE.lock();
            if bytes.len() == BUFFER_BYTES && idle.len() < IDLE_BUFFERS_MAX {
                idle.push(bytes);
            }
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        (self.start, self.end) = (0, 0);
        self.rest();
    }
}

/// One of the two sides of a connection.
pub(super) enum Side {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

impl Side {
    fn state(&self) -> &CommonState {
        match self {
            Self::Client(side) => side,
            Self::Server(side) => side,
        }
    }
}

/// What is wanted of rustls, once it has done what it must.
#[derive(Clone, Copy)]
enum Wish<'a> {
    Nothing,
    Seal(&'a [u8]),
    Close,
}

/// What rustls did.
enum Step {
    /// Something: there may be more for it to do.
    More,
    /// The other side is to have what it said, before it goes on.
    Send,
    /// The other side has said that no more data come.
    Ended,
    /// All that it can do, and what was wished for.
    Done,
    /// It has to hear from the other side before it does what was wished for.
    Blocked,
}

/// Where data go that came.
struct Taker<'a> {
    /// Who reads, and how much of it is filled.
    buffer: &'a mut [u8],
    filled: usize,
    /// What it has no room for.
    unread: &'a mut Pending,
}

impl Taker<'_> {
    fn take(&mut self, data: &[u8]) -> io::Result<()> {
        let room = &mut self.buffer[self.filled..];
        let (now, later) = data.split_at(data.len().min(room.len()));
        room[..now.len()].copy_from_slice(now);
        self.filled += now.len();
        if !later.is_empty() {
            let room = self.unread.room().get_mut(..later.len());
            room.ok_or(io::ErrorKind::InvalidData)?
                .copy_from_slice(later);
            self.unread.came(later.len());
        }
        Ok(())
    }
}

/// Does what rustls says is next.
fn proceed<D>(
    state: Result<ConnectionState<'_, '_, D>, rustls::Error>,
    wish: Wish<'_>,
    taker: &mut Taker<'_>,
    outgoing: &mut Pending,
) -> io::Result<Step> {
    match state.map_err(refused)? {
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                taker.take(record.map_err(refused)?.payload)?;
            }
            Ok(Step::More)
        }
        ConnectionState::EncodeTlsData(mut data) => {
            let length = data.encode(outgoing.room()).map_err(io::Error::other)?;
            outgoing.came(length);
            Ok(Step::More)
        }
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Ok(Step::Send)
        }
        ConnectionState::WriteTraffic(mut traffic) => {
            let sealed = match wish {
                Wish::Nothing => Ok(0),
                Wish::Seal(data) => traffic.encrypt(data, outgoing.room()),
                Wish::Close => traffic.queue_close_notify(outgoing.room()),
            };
            outgoing.came(sealed.map_err(io::Error::other)?);
            Ok(Step::Done)
        }
        ConnectionState::PeerClosed => Ok(Step::Ended),
        ConnectionState::BlockedHandshake | ConnectionState::Closed => Ok(Step::Blocked),
        _ => Err(io::Error::other("a state that is not known")),
    }
}

/// How much of some data goes into a first record of its own, so that those behind it begin at a better place.
fn lead(data: &[u8]) -> usize {
    if data.len() <= PLAIN_BYTES_MAX {
        return 0;
    }
    let place = data.as_ptr().addr() % PAGE_BYTES;
    (PLACE_IN_PAGE + PAGE_BYTES - place) % PAGE_BYTES
}

fn refused(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// What may still come from the other side.
enum Reading {
    Open,
    Ended,
    /// Why, for the next read.
    Broken(Option<io::Error>),
}

/// An encrypted byte stream over `S`.
pub(crate) struct Channel<S> {
    socket: S,
    side: Side,
    reading: Reading,
    /// Records from the socket that rustls has not taken yet.
    incoming: Pending,
    /// Data of records that nobody has read yet. Nothing is read from the socket until it is empty, so it is never longer than
    /// what `incoming` held.
    unread: Pending,
    /// Records for the socket.
    outgoing: Pending,
    is_closed: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Channel<S> {
    /// Makes the handshake.
    pub(super) async fn open(side: Side, socket: S) -> io::Result<Self> {
        let mut channel = Self {
            socket,
            side,
            reading: Reading::Open,
            incoming: Pending::default(),
            unread: Pending::default(),
            outgoing: Pending::default(),
            is_closed: false,
        };
        channel.incoming.is_small = true;
        let shaken = channel.shake().await;
        channel.incoming.is_small = false;
        if shaken.is_err() {
            // Why it was refused, as far as the other side still listens.
            poll_fn(|cx| Poll::Ready(channel.poll_send(cx).is_ready())).await;
        }
        shaken.map(|()| channel)
    }

    async fn shake(&mut self) -> io::Result<()> {
        loop {
            match self.step(Wish::Nothing, &mut [])?.0 {
                Step::More => {}
                Step::Send => poll_fn(|cx| Pin::new(&mut *self).poll_flush(cx)).await?,
                Step::Ended => return Err(io::ErrorKind::UnexpectedEof.into()),
                Step::Done | Step::Blocked if self.state().is_handshaking() => {
                    poll_fn(|cx| self.poll_receive(cx)).await?;
                }
                Step::Done | Step::Blocked => return Ok(()),
            }
        }
    }

    /// What rustls knows of the connection.
    pub(super) fn state(&self) -> &CommonState {
        self.side.state()
    }

    /// Has rustls do what is next, and tells how much of the reader's buffer is filled by it.
    fn step(&mut self, wish: Wish<'_>, buffer: &mut [u8]) -> io::Result<(Step, usize)> {
        if let Reading::Broken(_) = self.reading {
            return Err(io::ErrorKind::InvalidData.into());
        }
        // All of it, always: rustls keeps places in it of messages that are not whole yet.
        let incoming = self.incoming.filled();
        let mut taker = Taker {
            buffer,
            filled: 0,
            unread: &mut self.unread,
        };
        let (discard, step) = match &mut self.side {
            Side::Client(side) => {
                let UnbufferedStatus { discard, state } = side.process_tls_records(incoming);
                let step = proceed(state, wish, &mut taker, &mut self.outgoing);
                (discard, step)
            }
            Side::Server(side) => {
                let UnbufferedStatus { discard, state } = side.process_tls_records(incoming);
                let step = proceed(state, wish, &mut taker, &mut self.outgoing);
                (discard, step)
            }
        };
        let filled = taker.filled;
        self.incoming.went(discard);
        match step {
            Ok(step) => {
                if let Step::Ended = step {
                    self.reading = Reading::Ended;
                }
                Ok((step, filled))
            }
            Err(error) => {
                self.reading = Reading::Broken(None);
                self.say_why();
                Err(error)
            }
        }
    }

    /// Leaves what rustls says of an error among what is to be sent. It says that before it looks at what came, so nothing that came
    /// is shown to it any more.
    fn say_why(&mut self) {
        let Self {
            side,
            unread,
            outgoing,
            ..
        } = self;
        let mut taker = Taker {
            buffer: &mut [],
            filled: 0,
            unread,
        };
        let mut step = Ok(Step::More);
        while side.state().wants_write() && step.is_ok() {
            step = match side {
                Side::Client(side) => {
                    let state = side.process_tls_records(&mut []).state;
                    proceed(state, Wish::Nothing, &mut taker, outgoing)
                }
                Side::Server(side) => {
                    let state = side.process_tls_records(&mut []).state;
                    proceed(state, Wish::Nothing, &mut taker, outgoing)
                }
            };
        }
    }

    /// Has a wish done. Data that came meanwhile are kept for who reads.
    fn fulfil(&mut self, wish: Wish<'_>) -> io::Result<()> {
        loop {
            match self.step(wish, &mut [])?.0 {
                Step::More | Step::Send | Step::Ended => {}
                Step::Done => return Ok(()),
                Step::Blocked => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
    }

    /// Has what is here decrypted into a reader's buffer, as far as there is room; tells how much of it is filled.
    fn open_records(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() && matches!(self.reading, Reading::Open) {
            match self.step(Wish::Nothing, &mut buffer[filled..]) {
                Ok((Step::Done | Step::Blocked, _)) => break,
                Ok((Step::More | Step::Send | Step::Ended, count)) => filled += count,
                Err(error) => {
                    // It is told once more if there is no room for it now.
                    let _ = self.poll_send(cx);
                    if filled == 0 {
                        return Err(error);
                    }
                    // What came before it is sound.
                    self.reading = Reading::Broken(Some(error));
                }
            }
        }
        Ok(filled)
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let room = self.incoming.room();
        if room.is_empty() {
            // Never one of data.
            let error = "a message that is too long";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
        }
        match Pin::new(&mut self.socket).poll_read(cx, room) {
            Poll::Pending => {
                self.incoming.rest();
                Poll::Pending
            }
            Poll::Ready(Ok(0)) => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            Poll::Ready(Ok(count)) => {
                self.incoming.came(count);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        }
    }

    /// Sends all that is encrypted.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            let bytes = self.outgoing.filled();
            let sent = ready!(Pin::new(&mut self.socket).poll_write(cx, bytes))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.outgoing.went(sent);
        }
        self.outgoing.rest();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Channel<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if buffer.is_empty() {
            return Poll::Ready(Ok(0));
        }
        loop {
            if !this.unread.is_empty() {
                let count = buffer.len().min(this.unread.len());
                buffer[..count].copy_from_slice(&this.unread.filled()[..count]);
                this.unread.went(count);
                this.unread.rest();
                return Poll::Ready(Ok(count));
            }
            match &mut this.reading {
                Reading::Open => {}
                Reading::Ended => return Poll::Ready(Ok(0)),
                Reading::Broken(error) => {
                    let error = error.take();
                    let error = error.unwrap_or_else(|| io::ErrorKind::InvalidData.into());
                    return Poll::Ready(Err(error));
                }
            }
            let filled = this.open_records(cx, buffer)?;
            if filled > 0 {
                return Poll::Ready(Ok(filled));
            }
            if let Reading::Open = this.reading {
                ready!(this.poll_receive(cx))?;
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Channel<S> {
    /// What it takes is sent at once where it is much, else when it is flushed, or more comes.
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.is_closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if this.outgoing.len() > HELD_BACK_MAX {
            ready!(this.poll_send(cx))?;
        }
        let taken = data.len().min(SEALED_AT_ONCE);
        let (first, rest) = data[..taken].split_at(lead(&data[..taken]));
        for piece in [first, rest] {
            if !piece.is_empty() {
                this.fulfil(Wish::Seal(piece))?;
            }
        }
        if this.outgoing.len() > HELD_BACK_MAX
            && let Poll::Ready(sent) = this.poll_send(cx)
        {
            sent?;
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_closed {
            ready!(self.poll_send(cx))?;
            self.is_closed = true;
            if !matches!(self.reading, Reading::Broken(_)) {
                self.fulfil(Wish::Close)?;
            }
        }
        ready!(self.poll_send(cx))?;
        match ready!(Pin::new(&mut self.socket).poll_close(cx)) {
            // Then it is closed.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            closed => Poll::Ready(closed),
        }
    }
}

#[cfg(test)]
mod tests;
