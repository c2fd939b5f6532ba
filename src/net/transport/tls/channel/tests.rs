//! Against rustls's buffered connections, as futures-rustls uses them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::Wake,
};

use futures::{AsyncReadExt, AsyncWriteExt, io::Cursor};
use futures_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use libp2p::identity::Keypair;
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use rustls::{pki_types::ServerName, server::ServerSessionMemoryCache};
use tokio::io::DuplexStream;
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};

use super::*;
use crate::net::transport::tls::Tls;

type Theirs = Compat<DuplexStream>;
type Ours = Meddled<Theirs>;

/// A socket that changes a byte of what comes while it is told to.
struct Meddled<S> {
    socket: S,
    meddles: Arc<AtomicBool>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Meddled<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let came = ready!(Pin::new(&mut self.socket).poll_read(cx, buffer))?;
        if self.meddles.load(SeqCst) && came > 0 {
            buffer[came - 1] ^= 1;
        }
        Poll::Ready(Ok(came))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Meddled<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx)
    }
}

/// Two ends of a line that holds `room` bytes; what ours reads can be meddled with.
fn line(room: usize) -> (Ours, Theirs, Arc<AtomicBool>) {
    let (ours, theirs) = tokio::io::duplex(room);
    let meddles = Arc::new(AtomicBool::new(false));
    let ours = Meddled {
        socket: ours.compat(),
        meddles: meddles.clone(),
    };
    (ours, theirs.compat(), meddles)
}

fn tls() -> Tls {
    Tls::new(&Keypair::generate_ed25519()).unwrap()
}

/// Settings that members don't use, and others may: the smallest records that there are, and tickets, so that messages of the
/// handshake come in many parts, and later ones too.
fn of_another_kind() -> Tls {
    let mut tls = tls();
    tls.client.max_fragment_size = Some(32);
    let server = Arc::get_mut(&mut tls.server).unwrap();
    server.max_fragment_size = Some(32);
    server.session_storage = ServerSessionMemoryCache::new(8);
    server.send_tls13_tickets = 4;
    tls
}

/// Our end and theirs; `calls`: ours opens the handshake.
async fn pair_with(
    stock: Tls,
    calls: bool,
    room: usize,
) -> (Channel<Ours>, TlsStream<Theirs>, Arc<AtomicBool>) {
    let (ours, theirs, meddles) = line(room);
    if calls {
        let accept = TlsAcceptor::from(stock.server).accept(theirs);
        let (ours, theirs) = tokio::join!(tls().connect(ours, None), accept);
        (ours.unwrap().1, theirs.unwrap().into(), meddles)
    } else {
        let nobody = ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into());
        let connect = TlsConnector::from(Arc::new(stock.client)).connect(nobody, theirs);
        let (ours, theirs) = tokio::join!(tls().accept(ours), connect);
        (ours.unwrap().1, theirs.unwrap().into(), meddles)
    }
}

async fn pair(calls: bool, room: usize) -> (Channel<Ours>, TlsStream<Theirs>, Arc<AtomicBool>) {
    pair_with(tls(), calls, room).await
}

/// Writes all of it in pieces of any size, and ends.
async fn say(mut to: impl AsyncWrite + Unpin, data: &[u8], seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut rest = data;
    while !rest.is_empty() {
        let most = [40, 5_000, 400_000][random.random_range(0..3)];
        let (piece, behind) = rest.split_at(random.random_range(1..=most).min(rest.len()));
        to.write_all(piece).await.unwrap();
        if random.random_bool(0.3) {
            to.flush().await.unwrap();
        }
        rest = behind;
    }
    to.close().await.unwrap();
}

/// Reads to the end in pieces of any size.
async fn hear(mut from: impl AsyncRead + Unpin, seed: u64) -> io::Result<Vec<u8>> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut heard = Vec::new();
    loop {
        let most = [40, 20_000, 300_000][random.random_range(0..3)];
        let mut buffer = vec![0; random.random_range(1..=most)];
        match from.read(&mut buffer).await? {
            0 => return Ok(heard),
            came => heard.extend_from_slice(&buffer[..came]),
        }
    }
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut data = vec![0; bytes];
    StdRng::seed_from_u64(bytes as u64).fill_bytes(&mut data);
    data
}

/// Says and hears at both ends at the same time, to the end.
async fn talk(ours: Channel<Ours>, theirs: TlsStream<Theirs>, bytes: usize) {
    let (our_reader, our_writer) = ours.split();
    let (their_reader, their_writer) = theirs.split();
    let (from_us, from_them) = (noise(bytes + 1), noise(bytes));
    let (_, _, heard_there, heard_here) = tokio::join!(
        say(our_writer, &from_us, 1),
        say(their_writer, &from_them, 2),
        hear(their_reader, 3),
        hear(our_reader, 4),
    );
    assert!(heard_there.unwrap() == from_us);
    assert!(heard_here.unwrap() == from_them);
}

#[tokio::test]
async fn what_is_sent_arrives_in_both_directions_and_ends_where_it_ended() {
    for (calls, room) in [(true, 1 << 20), (false, 1 << 20), (true, 700), (false, 700)] {
        let (ours, theirs, _) = pair(calls, room).await;
        talk(ours, theirs, 3_000_000).await;
    }
}

#[tokio::test]
async fn messages_in_many_parts_are_understood_beside_what_is_written() {
    // Who accepts waits until its tickets are on the line, where nobody reads before that.
    for (calls, room) in [(true, 1 << 20), (true, 5000), (false, 1 << 20), (false, 50)] {
        let (ours, theirs, _) = pair_with(of_another_kind(), calls, room).await;
        talk(ours, theirs, 100_000).await;
    }
}

#[tokio::test]
async fn writing_goes_on_while_a_message_has_come_in_part() {
    // A ticket, cut wherever it can be.
    let (mut ours, mut theirs, _) = pair_with(of_another_kind(), true, 1 << 20).await;
    theirs.flush().await.unwrap();
    let mut socket = Vec::new();
    let mut buffer = vec![0; 1 << 20];
    while let Poll::Ready(came) = once(|cx| Pin::new(&mut ours.socket).poll_read(cx, &mut buffer)) {
        socket.extend_from_slice(&buffer[..came.unwrap()]);
    }
    let tickets = socket.len();
    assert!(tickets > 400, "{tickets}");
    theirs.write_all(b"data").await.unwrap();
    theirs.flush().await.unwrap();
    for byte in socket {
        ours.incoming.room()[0] = byte;
        ours.incoming.came(1);
        ours.write_all(&[byte]).await.unwrap();
        ours.flush().await.unwrap();
    }
    let mut heard = [0; 4];
    ours.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"data");
    let mut heard = vec![0; tickets];
    theirs.read_exact(&mut heard).await.unwrap();
}

fn once<T>(mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
    poll(&mut Context::from_waker(futures::task::noop_waker_ref()))
}

#[tokio::test]
async fn new_keys_are_taken_when_the_other_side_wants_them() {
    for calls in [true, false] {
        let (mut ours, mut theirs, _) = pair(calls, 1 << 20).await;
        for round in 0..20_u8 {
            match &mut theirs {
                TlsStream::Client(stream) => stream.get_mut().1.refresh_traffic_keys().unwrap(),
                TlsStream::Server(stream) => stream.get_mut().1.refresh_traffic_keys().unwrap(),
            }
            theirs.write_all(&[round; 70_000]).await.unwrap();
            theirs.flush().await.unwrap();
            let mut heard = vec![0; 70_000];
            ours.read_exact(&mut heard).await.unwrap();
            assert!(heard == [round; 70_000]);
            ours.write_all(&heard).await.unwrap();
            ours.flush().await.unwrap();
            theirs.read_exact(&mut heard).await.unwrap();
            assert!(heard == [round; 70_000]);
        }
    }
}

#[tokio::test]
async fn what_was_meddled_with_is_not_read_nor_what_comes_after_it() {
    for length in [10, 100_000] {
        let (mut ours, mut theirs, meddles) = pair(true, 1 << 20).await;
        theirs.write_all(b"sound").await.unwrap();
        theirs.flush().await.unwrap();
        let mut heard = [0; 5];
        ours.read_exact(&mut heard).await.unwrap();
        meddles.store(true, SeqCst);
        theirs.write_all(&noise(length)).await.unwrap();
        theirs.write_all(&noise(length)).await.unwrap();
        theirs.flush().await.unwrap();
        let mut rest = Vec::new();
        let outcome = ours.read_to_end(&mut rest).await.unwrap_err();
        assert_eq!(outcome.kind(), io::ErrorKind::InvalidData);
        assert!(outcome.to_string().contains("decrypt"), "{outcome}");
        let sent = [noise(length), noise(length)].concat();
        assert!(sent.starts_with(&rest) && rest.len() < sent.len());
        meddles.store(false, SeqCst);
        theirs.write_all(b"sound again").await.unwrap();
        theirs.flush().await.unwrap();
        assert!(ours.read(&mut heard).await.is_err());
        assert!(ours.write(b"an answer").await.is_err());
        // It was told why.
        let told = theirs.read(&mut heard).await.unwrap_err().to_string();
        assert!(told.contains("BadRecordMac"), "{told}");
        ours.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_line_that_ends_without_a_word_is_an_error() {
    let (mut ours, mut theirs, _) = pair(true, 1 << 20).await;
    theirs.write_all(b"the beginning").await.unwrap();
    theirs.flush().await.unwrap();
    drop(theirs);
    let mut heard = Vec::new();
    for _ in 0..2 {
        let outcome = ours.read_to_end(&mut heard).await;
        assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
    assert_eq!(heard, b"the beginning");
}

#[tokio::test]
async fn data_still_come_after_our_last_word_and_ours_go_after_theirs() {
    let (mut ours, mut theirs, _) = pair(true, 1 << 20).await;
    theirs.close().await.unwrap();
    let mut heard = [0; 4];
    assert_eq!(ours.read(&mut heard).await.unwrap(), 0);
    assert_eq!(ours.read(&mut heard).await.unwrap(), 0);

    let (mut ours, mut theirs, _) = pair(true, 1 << 20).await;
    theirs.write_all(b"data").await.unwrap();
    theirs.close().await.unwrap();
    // Looks at all that came.
    ours.write_all(b"more").await.unwrap();
    ours.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"data");
    assert_eq!(ours.read(&mut heard).await.unwrap(), 0);
    ours.close().await.unwrap();
    assert!(ours.write(b"no more").await.is_err());
}

/// What comes of a handshake with those bytes.
async fn shake_with(bytes: &[u8]) -> String {
    struct Deaf(Cursor<Vec<u8>>);
    impl AsyncRead for Deaf {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buffer: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_read(cx, buffer)
        }
    }
    impl AsyncWrite for Deaf {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            data: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(data.len()))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }
    let line = || Deaf(Cursor::new(bytes.to_vec()));
    let accepted = tls().accept(line()).await.err().unwrap().to_string();
    let connected = tls().connect(line(), None).await.err().unwrap().to_string();
    assert_eq!(accepted, connected);
    accepted
}

#[tokio::test]
async fn what_is_no_handshake_is_refused() {
    for (bytes, told) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], "InvalidContentType"),
        (&[22, 3, 3, 0xff, 0xff, 0], "MessageTooLarge"),
        (&[23, 3, 3, 0, 3, 1, 2, 3], "ApplicationData"),
        // A message of 16 MiB, its first bytes.
        (
            &[22, 3, 3, 0, 5, 1, 0xff, 0xff, 0xff, 0],
            "HandshakePayloadTooLarge",
        ),
        // One of 60,000 bytes, a byte of it in each record.
        (
            &[
                &[22, 3, 3, 0, 4, 1, 0, 0xea, 0x60][..],
                &[22, 3, 3, 0, 1, 0].repeat(11_000),
            ]
            .concat(),
            "too long",
        ),
        (&[22, 3, 3, 0, 100], "end of file"),
        (&[], "end of file"),
    ] {
        let outcome = shake_with(bytes).await;
        assert!(outcome.contains(told), "{outcome}");
    }
    let mut random = StdRng::seed_from_u64(7);
    for _ in 0..300 {
        let mut bytes = vec![0; random.random_range(1..400)];
        random.fill_bytes(&mut bytes);
        // Half of them look like the record of a handshake, some like more than that.
        if random.random_bool(0.5) {
            let length = bytes.len() as u16;
            bytes.splice(0..0, [22, 3, 3, (length >> 8) as u8, length as u8]);
            bytes[5] = random.random_range(0..3);
        }
        let _ = shake_of_any(&bytes).await;
    }
}

async fn shake_of_any(bytes: &[u8]) -> [bool; 2] {
    let (accepts, mut to_it, _) = line(1 << 20);
    let (connects, mut to_that, _) = line(1 << 20);
    // Theirs are bare sockets here.
    to_it.write_all(bytes).await.unwrap();
    to_that.write_all(bytes).await.unwrap();
    to_it.close().await.unwrap();
    to_that.close().await.unwrap();
    [
        tls().accept(accepts).await.is_ok(),
        tls().connect(connects, None).await.is_ok(),
    ]
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[tokio::test]
async fn an_idle_connection_holds_no_buffers_and_wakes_nobody() {
    let (mut ours, mut theirs, _) = pair(true, 1 << 20).await;
    theirs.write_all(&noise(100_000)).await.unwrap();
    theirs.flush().await.unwrap();
    let mut heard = vec![0; 100_000];
    ours.read_exact(&mut heard).await.unwrap();
    ours.write_all(&heard).await.unwrap();
    ours.flush().await.unwrap();
    let woken = Arc::new(Woken::default());
    let waker = woken.clone().into();
    let cx = &mut Context::from_waker(&waker);
    assert!(Pin::new(&mut ours).poll_read(cx, &mut heard).is_pending());
    assert_eq!(woken.0.load(SeqCst), 0);
    for pending in [&ours.incoming, &ours.unread, &ours.outgoing] {
        assert!(pending.bytes.is_none());
    }
}

#[tokio::test]
async fn who_does_not_read_is_not_sent_more_than_buffers_hold() {
    let (mut ours, mut theirs, _) = pair(true, 10_000).await;
    let data = noise(50_000);
    let mut taken = 0;
    while let Poll::Ready(count) = once(|cx| Pin::new(&mut ours).poll_write(cx, &data)) {
        taken += count.unwrap();
        assert!(taken < 10_000 + BUFFER_BYTES, "{taken}");
    }
    assert!(once(|cx| Pin::new(&mut ours).poll_flush(cx)).is_pending());
    let mut heard = vec![0; taken];
    let (flushed, read) = tokio::join!(ours.flush(), theirs.read_exact(&mut heard));
    flushed.unwrap();
    read.unwrap();
}

#[test]
fn a_handshake_holds_little_until_it_must_hold_more() {
    let mut pending = Pending::default();
    pending.is_small = true;
    let mut held = 0;
    loop {
        let room = pending.room();
        if room.is_empty() {
            break;
        }
        assert!(room.len() <= held.max(SMALL_BYTES));
        room.fill(held as u8);
        let came = room.len();
        pending.came(came);
        held += came;
        assert_eq!(pending.filled()[held - 1], (held - came) as u8);
    }
    assert_eq!(held, HANDSHAKE_BYTES_MAX);
    pending.went(held - 3);
    pending.is_small = false;
    assert_eq!(pending.room().len(), BUFFER_BYTES - 3);
    assert_eq!(pending.len(), 3);
}

#[test]
fn long_data_are_cut_where_the_rest_is_copied_fast() {
    let data = vec![0; 8 * PLAIN_BYTES_MAX];
    for start in [0, 1, PLACE_IN_PAGE, 3000, 4095] {
        let data = &data[start..];
        let cut = lead(data);
        assert!(cut < PAGE_BYTES);
        assert_eq!(data[cut..].as_ptr().addr() % PAGE_BYTES, PLACE_IN_PAGE);
        assert_eq!(lead(&data[..PLAIN_BYTES_MAX]), 0);
    }
}

#[test]
fn idle_buffers_are_bounded() {
    let mut many: Vec<Pending> = (0..IDLE_BUFFERS_MAX * 2)
        .map(|_| Pending::default())
        .collect();
    for pending in &mut many {
        assert_eq!(pending.room().len(), BUFFER_BYTES);
    }
    drop(many);
    assert!(IDLE.lock().len() <= IDLE_BUFFERS_MAX);
}
