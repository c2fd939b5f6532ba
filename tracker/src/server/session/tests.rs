use std::time::Duration;

use futures::io::AsyncWriteExt;
use serde_bytes::ByteBuf;

use super::*;
use crate::{
    client::{self, SessionError},
    protocol::{Ask, HEAD_BYTES_MAX, KEYS_MAX, SealedKey, challenge_message},
    registry::{Limits, Registry},
    server::answer::answer,
    test_stream::{TestStream, member, pair, signer},
};

const LONG: Duration = Duration::from_secs(20);

/// A tracker without network and disk, for one peer.
struct Bench {
    tracker: PeerId,
    peer: PeerId,
    commands: mpsc::Sender<Command>,
    answered: tokio::sync::watch::Receiver<usize>,
}

impl Bench {
    fn new() -> Self {
        let (commands, mut queue) = mpsc::channel(8);
        let (count, answered) = tokio::sync::watch::channel(0);
        tokio::spawn(async move {
            let mut registry = Registry::new(Limits::default(), 90_000);
            let mut records = std::collections::BTreeMap::<Vec<u8>, Vec<u8>>::new();
            while let Some(command) = queue.recv().await {
                if let Command::Ask { asker, ask, told } = command {
                    count.send_modify(|count| *count += 1);
                    let read = |key: &[u8]| Ok(records.get(key).cloned());
                    let told_now = answer(&mut registry, &read, 0, &asker, ask, 0);
                    for delta in registry.take_deltas() {
                        if let crate::registry::Delta::Put { key, value } = delta {
                            records.insert(key, value);
                        }
                    }
                    let _ = told.send(told_now);
                }
            }
        });
        Self {
            tracker: PeerId::random(),
            peer: PeerId::random(),
            commands,
            answered,
        }
    }

    /// A session that waits for the other end of the stream.
    fn serve(
        &self,
        idle: Duration,
    ) -> (TestStream, tokio::task::JoinHandle<Result<(), SessionEnd>>) {
        let (mine, theirs) = pair();
        let session = Session {
            tracker: self.tracker,
            peer: self.peer,
            commands: self.commands.clone(),
            seen_from: || vec![IpAddr::from([192, 0, 2, 1])],
            idle,
        };
        let task = tokio::spawn(async move { session.serve(theirs).await });
        (mine, task)
    }

    async fn establish(&self, stream: TestStream) -> Result<client::Session, SessionError> {
        let topic = member(1).verifying_key().to_bytes();
        let sign = signer(member(1));
        client::Session::establish(stream, self.tracker, self.peer, topic, &sign).await
    }

    async fn session(&self) -> client::Session {
        self.establish(self.serve(LONG).0).await.unwrap()
    }

    /// A stream on which the handshake is done.
    async fn raw(
        &self,
        idle: Duration,
    ) -> (TestStream, tokio::task::JoinHandle<Result<(), SessionEnd>>) {
        let (mut stream, task) = self.serve(idle);
        let challenge: Challenge = read_frame(&mut stream, HANDSHAKE_BYTES_MAX).await.unwrap();
        let prove = self.prove(&challenge.nonce);
        write_frame(&mut stream, &prove, HANDSHAKE_BYTES_MAX)
            .await
            .unwrap();
        let verdict: Verdict = read_frame(&mut stream, HANDSHAKE_BYTES_MAX).await.unwrap();
        assert_eq!(verdict, Verdict::Welcome);
        (stream, task)
    }

    fn prove(&self, nonce: &[u8; 32]) -> Prove {
        let topic = member(1).verifying_key().to_bytes();
        let message = challenge_message(&topic, &self.peer, &self.tracker, nonce);
        Prove {
            topic: ByteArray::new(topic),
            signature: ByteArray::new(signer(member(1))(&message)),
        }
    }
}

#[tokio::test]
async fn a_session_answers_everything_that_is_asked() {
    let bench = Bench::new();
    let session = bench.session().await;
    let keys: Vec<_> = (0..KEYS_MAX as u32 * 2 + 5)
        .map(|i| SealedKey(*blake3::hash(&i.to_be_bytes()).as_bytes()))
        .collect();
    assert!(matches!(
        session.renew().await,
        Err(SessionError::Refused(Refusal::NotAnnounced))
    ));
    let lease = session.announce(&[], &[4001]).await.unwrap();
    assert_eq!(lease.lease, Duration::from_secs(90));
    session.replace_holds(&keys).await.unwrap();
    session.update_holds(&[], &keys[..10]).await.unwrap();
    assert_eq!(
        session.renew().await.unwrap().holds.count,
        keys.len() as u64 - 10
    );
    session.put_head(&[7; HEAD_BYTES_MAX]).await.unwrap();
    assert_eq!(
        session.heads().await.unwrap()[0].sealed.len(),
        HEAD_BYTES_MAX
    );
    let me = session.where_is(&bench.peer).await.unwrap().unwrap();
    assert_eq!(me.addresses[0].to_string(), "/ip4/192.0.2.1/tcp/4001");
    assert_eq!(session.peers().await.unwrap(), []);
    assert_eq!(session.holders(&keys[..3]).await.unwrap(), [[], [], []]);
    session.report(&bench.peer).await.unwrap();
    session.leave().await.unwrap();
    assert_eq!(session.where_is(&bench.peer).await.unwrap(), None);
}

#[tokio::test]
async fn many_requests_share_one_session() {
    let bench = Bench::new();
    let session = bench.session().await;
    session.announce(&[], &[]).await.unwrap();
    let renewals = (0..200).map(|_| session.renew());
    for renewed in futures::future::join_all(renewals).await {
        renewed.unwrap();
    }
}

#[tokio::test]
async fn a_proof_that_does_not_hold_gets_nothing() {
    let bench = Bench::new();
    let (mut first, _task) = bench.serve(LONG);
    let seen: Challenge = read_frame(&mut first, HANDSHAKE_BYTES_MAX).await.unwrap();
    let replayed = bench.prove(&seen.nonce);

    let (mut stream, task) = bench.serve(LONG);
    let fresh: Challenge = read_frame(&mut stream, HANDSHAKE_BYTES_MAX).await.unwrap();
    assert_ne!(fresh.nonce, seen.nonce);
    write_frame(&mut stream, &replayed, HANDSHAKE_BYTES_MAX)
        .await
        .unwrap();
    // Sent along, without waiting for the verdict.
    let eager = Request {
        id: 1,
        ask: Ask::Peers,
    };
    write_frame(&mut stream, &eager, 1000).await.unwrap();
    let verdict: Verdict = read_frame(&mut stream, HANDSHAKE_BYTES_MAX).await.unwrap();
    assert_eq!(verdict, Verdict::NoMember);
    assert!(matches!(task.await.unwrap(), Err(SessionEnd::NoMember)));
    assert!(matches!(
        read_frame::<Answer, _>(&mut stream, ANSWER_BYTES_MAX).await,
        Err(FrameError::Closed)
    ));
    assert_eq!(*bench.answered.borrow(), 0);
}

#[tokio::test]
async fn a_client_without_the_member_key_learns_that_it_is_no_member() {
    let bench = Bench::new();
    let topic = member(1).verifying_key().to_bytes();
    let stranger = signer(member(2));
    let (stream, _task) = bench.serve(LONG);
    let refused =
        client::Session::establish(stream, bench.tracker, bench.peer, topic, &stranger).await;
    assert!(matches!(refused, Err(SessionError::NoMember)));
}

#[tokio::test]
async fn a_request_of_a_newer_version_is_refused_and_the_session_goes_on() {
    #[derive(serde::Serialize)]
    struct Newer {
        id: u64,
        ask: &'static str,
    }
    let bench = Bench::new();
    let (mut stream, _task) = bench.raw(LONG).await;
    let newer = Newer {
        id: 5,
        ask: "PutNodes",
    };
    write_frame(&mut stream, &newer, 100).await.unwrap();
    let peers = Request {
        id: 6,
        ask: Ask::Peers,
    };
    write_frame(&mut stream, &peers, 100).await.unwrap();
    let first: Answer = read_frame(&mut stream, ANSWER_BYTES_MAX).await.unwrap();
    assert_eq!(first.id, 5);
    assert_eq!(first.told, Told::Refused(Refusal::NotUnderstood));
    let second: Answer = read_frame(&mut stream, ANSWER_BYTES_MAX).await.unwrap();
    assert_eq!(second.id, 6);
    assert_eq!(second.told, Told::Peers(Vec::new()));
}

#[tokio::test]
async fn what_is_no_request_ends_the_session() {
    let bench = Bench::new();
    let (mut stream, task) = bench.raw(LONG).await;
    write_frame(&mut stream, &"hello", 100).await.unwrap();
    assert!(matches!(
        task.await.unwrap(),
        Err(SessionEnd::Frame(FrameError::Malformed(_)))
    ));
    let (mut stream, task) = bench.raw(LONG).await;
    let length = u32::try_from(REQUEST_BYTES_MAX + 1).unwrap();
    stream.write_all(&length.to_be_bytes()).await.unwrap();
    assert!(matches!(
        task.await.unwrap(),
        Err(SessionEnd::Frame(FrameError::TooLong { .. }))
    ));
}

#[tokio::test]
async fn malformed_requests_are_refused() {
    let bench = Bench::new();
    let (mut stream, _task) = bench.raw(LONG).await;
    let asks = [
        Ask::Announce {
            addresses: vec![ByteBuf::from(b"nowhere".to_vec())],
            ports: Vec::new(),
        },
        Ask::Report {
            peer: ByteBuf::from(b"nobody".to_vec()),
        },
        Ask::WhereIs {
            peer: ByteBuf::new(),
        },
        Ask::Holders {
            keys: vec![SealedKey([0; 32]); 257],
        },
        Ask::PutHead {
            sealed: ByteBuf::from(vec![0; HEAD_BYTES_MAX + 1]),
        },
    ];
    for (id, ask) in asks.into_iter().enumerate() {
        let request = Request { id: id as u64, ask };
        write_frame(&mut stream, &request, REQUEST_BYTES_MAX)
            .await
            .unwrap();
        let answer: Answer = read_frame(&mut stream, ANSWER_BYTES_MAX).await.unwrap();
        assert_eq!(answer.told, Told::Refused(Refusal::Malformed));
    }
}

#[tokio::test]
async fn a_silent_session_is_closed() {
    let bench = Bench::new();
    let (_stream, task) = bench.raw(Duration::from_millis(50)).await;
    assert!(matches!(task.await.unwrap(), Err(SessionEnd::TimedOut)));
}

#[tokio::test]
async fn requests_that_wait_fail_when_the_stream_breaks() {
    let (commands, mut queue) = mpsc::channel(8);
    let bench = Bench {
        commands,
        ..Bench::new()
    };
    let (stream, task) = bench.serve(LONG);
    let session = bench.establish(stream).await.unwrap();
    let asking = async { tokio::join!(session.peers(), session.heads(), session.renew()) };
    let breaking = async {
        // Taken, and never answered.
        let _waits = queue.recv().await;
        task.abort();
        let _ = task.await;
    };
    let ((peers, heads, renewed), ()) = tokio::join!(asking, breaking);
    assert!(matches!(peers, Err(SessionError::Lost(_))));
    assert!(matches!(heads, Err(SessionError::Lost(_))));
    assert!(matches!(renewed, Err(SessionError::Lost(_))));
    assert!(matches!(session.ended().await, SessionError::Lost(_)));
    assert!(matches!(session.leave().await, Err(SessionError::Lost(_))));
}

#[tokio::test]
async fn a_stream_that_nobody_takes_is_replaced_by_another() {
    let bench = Bench::new();
    let mut opened = 0;
    let mut kept = Vec::new();
    let open = || {
        opened += 1;
        let stream = if opened == 1 {
            // Lost on the tracker's side.
            let (mine, theirs) = pair();
            drop(theirs);
            mine
        } else if opened == 2 {
            // Waits in a queue for ever.
            let (mine, theirs) = pair();
            kept.push(theirs);
            mine
        } else {
            bench.serve(LONG).0
        };
        futures::future::ready(Ok::<_, std::io::Error>(stream))
    };
    let topic = member(1).verifying_key().to_bytes();
    let sign = signer(member(1));
    let session = client::Session::open(open, bench.tracker, bench.peer, topic, &sign).await;
    session.unwrap().peers().await.unwrap();
    assert_eq!(opened, 3);
}

#[test]
fn a_burst_passes_and_then_requests_are_spaced_out() {
    let start = Instant::now();
    let mut pace = Pace::new(start);
    for _ in 0..BURST {
        assert_eq!(pace.next(start), start);
    }
    assert_eq!(pace.next(start), start + REFILL);
    assert_eq!(pace.next(start), start + REFILL * 2);
    let later = start + Duration::from_secs(60);
    assert_eq!(pace.next(later), later, "rest makes the burst whole again");
}

#[test]
fn nodes_count_as_requests_by_their_bytes() {
    let now = Instant::now();
    let mut pace = Pace::new(now);
    for _ in 0..BURST / 5 {
        assert_eq!(pace.next(now), now);
        pace.spend(4 * BYTES_OF_A_REQUEST);
    }
    assert_eq!(pace.next(now), now + REFILL);
    pace.spend(BYTES_OF_A_REQUEST - 1);
    assert_eq!(pace.next(now), now + REFILL * 2);
}
