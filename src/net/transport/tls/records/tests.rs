//! Against rustls's own records, in both directions.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use futures::{AsyncReadExt, AsyncWriteExt, io::Cursor};
use futures_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use libp2p::identity::Keypair;
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use rustls::pki_types::ServerName;
use tokio::io::DuplexStream;
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};

use super::*;
use crate::net::transport::tls::Tls;

type Socket = Meddled<Compat<DuplexStream>>;

/// A socket that changes a byte of what comes while it is told to, or sends something else.
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

/// Two ends of a line that holds `room` bytes; what the first one reads can be meddled with.
fn line(room: usize) -> (Socket, Compat<DuplexStream>, Arc<AtomicBool>) {
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

/// Our end and rustls's; `calls`: ours opens the handshake.
async fn pair(
    calls: bool,
    room: usize,
) -> (
    Channel<Socket>,
    TlsStream<Compat<DuplexStream>>,
    Arc<AtomicBool>,
) {
    let (ours, theirs, meddles) = line(room);
    let stock = tls();
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

/// Writes all of it in pieces of any size, and ends.
async fn say(mut to: impl AsyncWrite + Unpin, data: Vec<u8>, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut rest = &data[..];
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

#[tokio::test]
async fn what_is_sent_arrives_in_both_directions_and_ends_where_it_ended() {
    for (calls, room) in [(true, 1 << 20), (false, 1 << 20), (true, 700), (false, 700)] {
        let (ours, theirs, _) = pair(calls, room).await;
        let (our_reader, our_writer) = ours.split();
        let (their_reader, their_writer) = theirs.split();
        let (from_us, from_them) = (noise(3_000_001), noise(2_000_001));
        let (_, _, heard_there, heard_here) = tokio::join!(
            say(our_writer, from_us.clone(), 1),
            say(their_writer, from_them.clone(), 2),
            hear(their_reader, 3),
            hear(our_reader, 4),
        );
        assert!(heard_there.unwrap() == from_us, "{calls} {room}");
        assert!(heard_here.unwrap() == from_them, "{calls} {room}");
    }
}

#[tokio::test]
async fn new_keys_are_taken_when_the_other_side_wants_them_and_when_old_ones_are_used_up() {
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
            if round % 2 == 0 {
                ours.records_per_key = ours.sending.number;
            } else {
                // As if rustls had asked for it.
                ours.owes_update = true;
            }
            ours.write_all(&heard).await.unwrap();
            ours.flush().await.unwrap();
            assert!((5..10).contains(&ours.sending.number));
            ours.records_per_key = RECORDS_PER_KEY_MAX;
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
        let outcome = ours.read_to_end(&mut rest).await;
        assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::InvalidData);
        let sent = [noise(length), noise(length)].concat();
        assert!(sent.starts_with(&rest) && rest.len() < sent.len());
        meddles.store(false, SeqCst);
        theirs.write_all(b"sound again").await.unwrap();
        theirs.flush().await.unwrap();
        assert!(ours.read(&mut heard).await.is_err());
        // It was told why.
        let told = theirs.read(&mut heard).await.unwrap_err().to_string();
        assert!(told.contains("BadRecordMac"), "{told}");
    }
}

#[tokio::test]
async fn a_line_that_ends_without_a_word_is_an_error() {
    let (mut ours, mut theirs, _) = pair(true, 1 << 20).await;
    theirs.write_all(b"the beginning").await.unwrap();
    theirs.flush().await.unwrap();
    drop(theirs);
    let mut heard = Vec::new();
    let outcome = ours.read_to_end(&mut heard).await;
    assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(heard, b"the beginning");
}

/// What comes of bytes on the line that are no records of the other side.
async fn read_of(bytes: &[u8]) -> String {
    let (ours, _theirs, _) = pair(true, 1 << 20).await;
    let mut ours = Channel {
        socket: Cursor::new(bytes.to_vec()),
        renewal: ours.renewal,
        receiving: ours.receiving,
        incoming: ours.incoming,
        opened: ours.opened,
        early: ours.early,
        messages: ours.messages,
        reading: ours.reading,
        sending: ours.sending,
        records_per_key: ours.records_per_key,
        outgoing: ours.outgoing,
        owes_update: false,
        is_closed: true,
    };
    let mut buffer = [0; 100];
    ours.read(&mut buffer).await.unwrap_err().to_string()
}

#[tokio::test]
async fn what_is_no_record_is_refused() {
    let clear = read_of(&[ALERT, 3, 3, 0, 2, 1, 0]).await;
    assert_eq!(clear, "a record in the clear");
    let long = read_of(&[DATA, 3, 3, 0xff, 0xff, 0]).await;
    assert_eq!(long, "a record that is too long");
    let short = read_of(&[DATA, 3, 3, 0, 16]).await;
    assert_eq!(short, "a record that is too short");
    let forged = read_of(&[&[DATA, 3, 3, 0, 40][..], &[9; 40]].concat()).await;
    assert_eq!(forged, "a record that is not the other side's");
}

#[tokio::test]
async fn messages_between_the_data_are_read_to_their_end() {
    let (mut ours, _theirs, _) = pair(true, 1 << 20).await;
    let refused = |wrong: Result<(), Wrong>| wrong.is_err();
    // A ticket in two parts, and another one.
    assert!(!refused(
        ours.heed(HANDSHAKE, &[NEW_SESSION_TICKET, 0, 0, 3, 1])
    ));
    let rest = [2, 3, NEW_SESSION_TICKET, 0, 0, 0];
    assert!(!refused(ours.heed(HANDSHAKE, &rest)));
    assert!(ours.messages.is_empty());
    assert!(refused(ours.heed(HANDSHAKE, &[])));
    assert!(refused(ours.heed(ALERT, &[1])));
    assert!(refused(ours.heed(ALERT, &[2, 40])));
    assert!(refused(ours.heed(20, &[1])));
    for wrong in [
        &[KEY_UPDATE, 0, 0, 1, 2][..],
        &[KEY_UPDATE, 0, 0, 2, 0, 0],
        // Something under the old key behind the change to a new one.
        &[KEY_UPDATE, 0, 0, 1, 0, NEW_SESSION_TICKET],
        &[NEW_SESSION_TICKET, 1, 0, 1],
        &[1, 0, 0, 0],
    ] {
        ours.messages.clear();
        assert!(refused(ours.heed(HANDSHAKE, wrong)), "{wrong:?}");
    }
}

#[test]
fn no_record_without_a_type_is_taken() {
    assert!(typed(&[0; 20]).is_err());
    assert!(typed(&[]).is_err());
    assert!(matches!(typed(&[1, 2, DATA, 0, 0]), Ok((DATA, 2))));
    assert!(matches!(typed(&[DATA]), Ok((DATA, 0))));
    let long = [vec![1; PLAIN_BYTES_MAX + 1], vec![DATA]].concat();
    assert!(typed(&long).is_err());
}

#[test]
fn idle_buffers_of_records_are_bounded() {
    let mut many: Vec<Pending> = (0..IDLE_BUFFERS_MAX * 2)
        .map(|_| Pending::default())
        .collect();
    for pending in &mut many {
        assert_eq!(pending.room().len(), BUFFER_BYTES);
    }
    drop(many);
    assert!(IDLE.lock().len() <= IDLE_BUFFERS_MAX);
}
