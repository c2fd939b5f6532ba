//! The records of TLS 1.3 (RFC 8446, 5), once the handshake has given the keys.
//!
//! rustls moves data through memory of its own: it reads 4 KiB at a time, and keeps each record twice on its way in and on its way
//! out. Here what comes is read in large pieces and decrypted into the reader's own buffer, and what goes is encrypted out of the
//! writer's into one buffer that leaves in one go (`docs/performance.md`). The handshake, and the keys that follow when one has
//! been used for long, are rustls's.
//!
//! Invariants: no byte is given to a reader that was not authenticated, and none after one that failed; no nonce is used twice
//! under a key; a connection that ends without a word (`close_notify`) is an error, since its end may be missing.

use std::{
    io,
    ops::Range,
    pin::Pin,
    task::{Context, Poll, ready},
};

use aws_lc_rs::{
    aead::{self, Aad, LessSafeKey, UnboundKey},
    error::Unspecified,
};
use futures::{AsyncRead, AsyncWrite};
use parking_lot::Mutex;
use rustls::{
    ConnectionTrafficSecrets, ExtractedSecrets,
    crypto::cipher::{Iv, Nonce},
    kernel::KernelConnection,
};

/// Type, version and length of a record.
const HEAD_BYTES: usize = 5;
/// What authenticates a record, with each of the ciphers.
const TAG_BYTES: usize = 16;
/// Most bytes of data in a record.
const PLAIN_BYTES_MAX: usize = 16 * 1024;
/// Most bytes of a record after its head.
const SEALED_BYTES_MAX: usize = PLAIN_BYTES_MAX + 256;
/// Bytes that the head, the type and the tag add to a record.
const OVERHEAD_BYTES: usize = HEAD_BYTES + 1 + TAG_BYTES;
/// Data that is sealed before it is sent: few calls of the system, and it is still in the processor's cache then.
const SEALED_AT_ONCE: usize = 8 * PLAIN_BYTES_MAX;
/// Room for that, and for a few short records before and behind it. As much is read at a time.
const BUFFER_BYTES: usize = SEALED_AT_ONCE + 16 * 1024;
/// Sealed bytes to which more can be added before they are sent.
const HELD_BACK_MAX: usize = BUFFER_BYTES - SEALED_AT_ONCE - 16 * OVERHEAD_BYTES;
/// Idle buffers that are kept: 1.2 MiB.
const IDLE_BUFFERS_MAX: usize = 8;
/// Records under one key. AES-GCM is good for 2^24.5 (RFC 8446, 5.5); the other ciphers for more.
const RECORDS_PER_KEY_MAX: u64 = 1 << 23;
/// Most bytes of a message between the records of data: a ticket may come, which is passed over.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;

const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

const CLOSE_NOTIFY: u8 = 0;
const UNEXPECTED_MESSAGE: u8 = 10;
const BAD_RECORD_MAC: u8 = 20;
const RECORD_OVERFLOW: u8 = 22;
const USER_CANCELED: u8 = 90;

/// Gives the keys that come after the present ones.
pub(super) trait Renewal: Send {
    fn next_to_send(&mut self) -> Result<ConnectionTrafficSecrets, rustls::Error>;
    fn next_to_receive(&mut self) -> Result<ConnectionTrafficSecrets, rustls::Error>;
}

impl<D: Send> Renewal for KernelConnection<D> {
    fn next_to_send(&mut self) -> Result<ConnectionTrafficSecrets, rustls::Error> {
        Ok(self.update_tx_secret()?.1)
    }

    fn next_to_receive(&mut self) -> Result<ConnectionTrafficSecrets, rustls::Error> {
        Ok(self.update_rx_secret()?.1)
    }
}

static IDLE: Mutex<Vec<Box<[u8]>>> = Mutex::new(Vec::new());

/// Bytes on their way from or to the socket. A connection that is idle holds no memory for them.
#[derive(Default)]
struct Pending {
    bytes: Option<Box<[u8]>>,
    start: usize,
    end: usize,
}

impl Pending {
    fn len(&self) -> usize {
        self.end - self.start
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is pending.
    fn filled(&mut self) -> &mut [u8] {
        match &mut self.bytes {
            Some(bytes) => &mut bytes[self.start..self.end],
            None => &mut [],
        }
    }

    /// Room behind it: what is pending goes to the front first.
    fn room(&mut self) -> &mut [u8] {
        let bytes = self.bytes.get_or_insert_with(|| {
            let idle = IDLE.lock().pop();
            idle.unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice())
        });
        if self.start > 0 {
            bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut bytes[self.end..]
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
            if idle.len() < IDLE_BUFFERS_MAX {
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

/// A key, and how often it was used.
struct Key {
    key: LessSafeKey,
    iv: Iv,
    number: u64,
}

impl Key {
    fn new(number: u64, secrets: ConnectionTrafficSecrets) -> io::Result<Self> {
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&aead::AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&aead::AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
                (&aead::CHACHA20_POLY1305, key, iv)
            }
            _ => return Err(io::Error::other("an unknown cipher")),
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(io::Error::other)?;
        Ok(Self {
            key: LessSafeKey::new(key),
            iv,
            number,
        })
    }

    /// The nonce of the next record.
    fn next(&mut self) -> io::Result<aead::Nonce> {
        let nonce = Nonce::new(&self.iv, self.number);
        let next = self.number.checked_add(1);
        self.number = next.ok_or_else(|| io::Error::other("a key is used up"))?;
        Ok(aead::Nonce::assume_unique_for_key(nonce.0))
    }
}

/// What went wrong, and what the other side is told of it.
struct Wrong {
    alert: Option<u8>,
    error: io::Error,
}

impl Wrong {
    fn new(alert: u8, reason: &'static str) -> Self {
        Self {
            alert: Some(alert),
            error: io::Error::new(io::ErrorKind::InvalidData, reason),
        }
    }
}

impl From<io::Error> for Wrong {
    fn from(error: io::Error) -> Self {
        Self { alert: None, error }
    }
}

/// What a record turned out to hold.
enum Held {
    Data,
    Other,
}

/// How much more can be read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    Open,
    /// The other side said that this is all.
    Ended,
    /// Nothing that comes now can be trusted.
    Broken,
}

/// An encrypted byte stream over `S`.
pub(in crate::net::transport) struct Channel<S> {
    socket: S,
    renewal: Box<dyn Renewal>,

    receiving: Key,
    incoming: Pending,
    /// Where in `incoming` data are that were decrypted in place, for whom their reader's buffer was too small. What is
    /// pending begins behind them.
    opened: Range<usize>,
    /// Data that came with the handshake, and how much of them was read.
    early: (Vec<u8>, usize),
    /// Messages that have not come whole.
    messages: Vec<u8>,
    reading: Reading,

    sending: Key,
    /// [`RECORDS_PER_KEY_MAX`].
    records_per_key: u64,
    outgoing: Pending,
    /// The other side asked for a new key.
    owes_update: bool,
    is_closed: bool,
}

impl<S> Channel<S> {
    /// `early`: data that came with the handshake. `unread`: what came behind it.
    pub(super) fn new(
        socket: S,
        secrets: ExtractedSecrets,
        renewal: Box<dyn Renewal>,
        early: Vec<u8>,
        unread: &[u8],
    ) -> io::Result<Self> {
        let mut incoming = Pending::default();
        if !unread.is_empty() {
            let room = incoming.room().get_mut(..unread.len());
            let room = room.ok_or(io::ErrorKind::InvalidData)?;
            room.copy_from_slice(unread);
            incoming.came(unread.len());
        }
        Ok(Self {
            socket,
            renewal,
            receiving: Key::new(secrets.rx.0, secrets.rx.1)?,
            incoming,
            opened: 0..0,
            early: (early, 0),
            messages: Vec::new(),
            reading: Reading::Open,
            sending: Key::new(secrets.tx.0, secrets.tx.1)?,
            records_per_key: RECORDS_PER_KEY_MAX,
            outgoing: Pending::default(),
            owes_update: false,
            is_closed: false,
        })
    }

    /// Gives out what was decrypted before.
    fn give(&mut self, buffer: &mut [u8]) -> usize {
        let (early, read) = &mut self.early;
        let (from, is_early) = match early.get(*read..) {
            Some(rest) if !rest.is_empty() => (rest, true),
            _ => match &self.incoming.bytes {
                Some(bytes) => (&bytes[self.opened.clone()], false),
                None => return 0,
            },
        };
        let count = from.len().min(buffer.len());
        buffer[..count].copy_from_slice(&from[..count]);
        if !is_early {
            self.opened.start += count;
            return count;
        }
        *read += count;
        if *read == early.len() {
            self.early = (Vec::new(), 0);
        }
        count
    }

    /// The length of the next record after its head, if all of it is here.
    fn next_record(&mut self) -> Result<Option<usize>, Wrong> {
        let filled = self.incoming.filled();
        let Some(&[kind, _, _, high, low]) = filled.first_chunk::<HEAD_BYTES>() else {
            return Ok(None);
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if kind != DATA {
            return Err(Wrong::new(UNEXPECTED_MESSAGE, "a record in the clear"));
        }
        if length > SEALED_BYTES_MAX {
            return Err(Wrong::new(RECORD_OVERFLOW, "a record that is too long"));
        }
        if length < TAG_BYTES + 1 {
            return Err(Wrong::new(BAD_RECORD_MAC, "a record that is too short"));
        }
        Ok((filled.len() >= HEAD_BYTES + length).then_some(length))
    }

    /// Decrypts the next record, into `buffer` if it fits there; tells how many bytes of it are data.
    fn open(&mut self, length: usize, buffer: &mut [u8]) -> Result<(Held, usize), Wrong> {
        let nonce = self.receiving.next()?;
        let start = self.incoming.start + HEAD_BYTES;
        let record = &mut self.incoming.filled()[..HEAD_BYTES + length];
        let (head, sealed) = record.split_at_mut(HEAD_BYTES);
        let aad = Aad::from(&*head);
        let count = length - TAG_BYTES;
        let forged =
            |_: Unspecified| Wrong::new(BAD_RECORD_MAC, "a record that is not the other side's");
        let key = &self.receiving.key;
        if let Some(target) = buffer.get_mut(..count) {
            let (sealed, tag) = sealed.split_at(count);
            let opened = key.open_separate_gather(nonce, aad, sealed, tag, target);
            if let Err(error) = opened {
                // Nobody is to find there what somebody else wrote.
                target.fill(0);
                return Err(forged(error));
            }
            let (kind, count) = typed(target)?;
            self.incoming.went(HEAD_BYTES + length);
            if kind == DATA {
                return Ok((Held::Data, count));
            }
            let message = target[..count].to_vec();
            // It is not for who reads.
            target.fill(0);
            self.heed(kind, &message)?;
            return Ok((Held::Other, 0));
        }
        let opened = key.open_in_place(nonce, aad, sealed).map_err(forged)?;
        let (kind, count) = typed(opened)?;
        let message = (kind != DATA).then(|| opened[..count].to_vec());
        self.incoming.went(HEAD_BYTES + length);
        match message {
            None => {
                self.opened = start..start + count;
                Ok((Held::Data, 0))
            }
            Some(message) => {
                self.heed(kind, &message)?;
                Ok((Held::Other, 0))
            }
        }
    }

    /// Does what the other side's TLS says between the data.
    fn heed(&mut self, kind: u8, message: &[u8]) -> Result<(), Wrong> {
        match (kind, message) {
            (ALERT, [_, CLOSE_NOTIFY]) => {
                self.reading = Reading::Ended;
                Ok(())
            }
            (ALERT, [_, USER_CANCELED]) => Ok(()),
            (ALERT, [_, alert]) => {
                let reason = format!("the other side's TLS ended with alert {alert}");
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, reason).into())
            }
            (HANDSHAKE, [_, ..]) => self.heed_messages(message),
            _ => Err(Wrong::new(UNEXPECTED_MESSAGE, "a record of another kind")),
        }
    }

    fn heed_messages(&mut self, part: &[u8]) -> Result<(), Wrong> {
        self.messages.extend_from_slice(part);
        while let Some(&[kind, high, middle, low]) = self.messages.first_chunk() {
            let length = u32::from_be_bytes([0, high, middle, low]) as usize;
            if length > MESSAGE_BYTES_MAX {
                return Err(Wrong::new(UNEXPECTED_MESSAGE, "a message that is too long"));
            }
            let Some(body) = self.messages.get(4..4 + length) else {
                return Ok(());
            };
            match (kind, body) {
                // Sessions are not taken up again.
                (NEW_SESSION_TICKET, _) => drop(self.messages.drain(..4 + length)),
                // Nothing may follow it under the old key.
                (KEY_UPDATE, &[asks @ (0 | 1)]) if self.messages.len() == 5 => {
                    self.messages.clear();
                    let next = self.renewal.next_to_receive().map_err(io::Error::other)?;
                    self.receiving = Key::new(0, next)?;
                    self.owes_update |= asks == 1;
                }
                _ => return Err(Wrong::new(UNEXPECTED_MESSAGE, "an unexpected message")),
            }
        }
        Ok(())
    }

    /// Appends a record to what is to be sent; the caller has seen to it that there is room.
    fn seal(&mut self, kind: u8, data: &[u8]) -> io::Result<()> {
        let nonce = self.sending.next()?;
        let length = data.len() + 1 + TAG_BYTES;
        let [high, low] = u16::try_from(length)
            .map_err(io::Error::other)?
            .to_be_bytes();
        let head = [DATA, 3, 3, high, low];
        let room = self.outgoing.room().get_mut(..HEAD_BYTES + length);
        let room = room.ok_or(io::ErrorKind::OutOfMemory)?;
        let (place, room) = room.split_at_mut(HEAD_BYTES);
        place.copy_from_slice(&head);
        let (sealed, rest) = room.split_at_mut(data.len());
        self.sending
            .key
            .seal_out_of_place_scatter(nonce, Aad::from(head), data, sealed, &[kind], rest)
            .map_err(io::Error::other)?;
        self.outgoing.came(HEAD_BYTES + length);
        Ok(())
    }

    /// Takes a new key where the other side wants that, or the old one was used for long.
    fn renew(&mut self) -> io::Result<()> {
        if self.owes_update || self.sending.number >= self.records_per_key {
            self.seal(HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0])?;
            let next = self.renewal.next_to_send().map_err(io::Error::other)?;
            self.sending = Key::new(0, next)?;
            self.owes_update = false;
        }
        Ok(())
    }
}

/// The type of a record's content, and its length: behind them are zeros, if the sender wanted to hide the length.
fn typed(plain: &[u8]) -> Result<(u8, usize), Wrong> {
    let last = plain.iter().rposition(|byte| *byte != 0);
    match last.and_then(|at| Some((*plain.get(at)?, at))) {
        Some((_, at)) if at > PLAIN_BYTES_MAX => {
            Err(Wrong::new(RECORD_OVERFLOW, "a record that is too long"))
        }
        Some((kind, at)) => Ok((kind, at)),
        None => Err(Wrong::new(UNEXPECTED_MESSAGE, "a record without a type")),
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Channel<S> {
    /// Sends what is sealed.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            let sealed = self.outgoing.filled();
            let sent = ready!(Pin::new(&mut self.socket).poll_write(cx, sealed))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.outgoing.went(sent);
        }
        self.outgoing.rest();
        Poll::Ready(Ok(()))
    }

    /// Ends it: the other side is told why, as far as that can leave at once.
    fn fail(&mut self, cx: &mut Context<'_>, wrong: Wrong) -> io::Error {
        self.reading = Reading::Broken;
        if let Some(alert) = wrong.alert
            && !self.is_closed
            && self.outgoing.room().len() >= OVERHEAD_BYTES + 2
        {
            self.is_closed = true;
            if self.seal(ALERT, &[2, alert]).is_ok() {
                let _ = self.poll_send(cx);
            }
        }
        wrong.error
    }

    /// Decrypts what is here into `buffer`; tells how much of that it filled.
    fn open_all(&mut self, buffer: &mut [u8]) -> (usize, Result<(), Wrong>) {
        let mut filled = self.give(buffer);
        while filled < buffer.len() && self.opened.is_empty() && self.reading == Reading::Open {
            let length = match self.next_record() {
                Ok(Some(length)) => length,
                Ok(None) => break,
                Err(wrong) => return (filled, Err(wrong)),
            };
            match self.open(length, &mut buffer[filled..]) {
                Ok((Held::Data, count)) => filled += count,
                Ok((Held::Other, _)) => {}
                Err(wrong) => return (filled, Err(wrong)),
            }
            filled += self.give(&mut buffer[filled..]);
        }
        (filled, Ok(()))
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
            let (filled, outcome) = this.open_all(buffer);
            if let Err(wrong) = outcome {
                let error = this.fail(cx, wrong);
                // What came before it is sound; the next read fails.
                if filled == 0 {
                    return Poll::Ready(Err(error));
                }
            }
            if filled > 0 {
                return Poll::Ready(Ok(filled));
            }
            match this.reading {
                Reading::Open => {}
                Reading::Ended => return Poll::Ready(Ok(0)),
                Reading::Broken => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
            }
            let room = this.incoming.room();
            let came = match Pin::new(&mut this.socket).poll_read(cx, room) {
                Poll::Ready(came) => came?,
                Poll::Pending => {
                    this.incoming.rest();
                    return Poll::Pending;
                }
            };
            if came == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            this.incoming.came(came);
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
        this.renew()?;
        let taken = data.len().min(SEALED_AT_ONCE);
        for piece in data[..taken].chunks(PLAIN_BYTES_MAX) {
            this.seal(DATA, piece)?;
        }
        if taken >= PLAIN_BYTES_MAX
            && let Poll::Ready(sent) = this.poll_send(cx)
        {
            sent?;
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.owes_update && !self.is_closed && self.outgoing.is_empty() {
            self.renew()?;
        }
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_closed {
            ready!(self.poll_send(cx))?;
            self.is_closed = true;
            self.seal(ALERT, &[1, CLOSE_NOTIFY])?;
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
