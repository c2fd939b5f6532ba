//! Peers that speak the protocols by hand, with libp2p's own parts, and keep to no rule.

use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::{Stream, SwarmBuilder, noise, swarm::NetworkBehaviour, tcp, tls, yamux};

use super::*;
use crate::net::{
    framing,
    hello::Party,
    proto::{BlockCall, Challenge, DialerProof, SyncCall, SyncReply},
};

#[derive(NetworkBehaviour)]
struct Streams {
    streams: libp2p_stream::Behaviour,
}

/// A node that is not p2pfs, and opens whatever streams it likes.
struct Raw {
    local: PeerId,
    control: libp2p_stream::Control,
    victim: PeerId,
}

impl Raw {
    /// Connects to a victim.
    async fn connect(victim: &Net) -> Self {
        let mut swarm = SwarmBuilder::with_new_identity()
            .with_tokio()
            .with_tcp(
                tcp::Config::default(),
                (tls::Config::new, noise::Config::new),
                yamux::Config::default,
            )
            .unwrap()
            .with_behaviour(|_| Streams {
                streams: libp2p_stream::Behaviour::new(),
            })
            .unwrap()
            .with_swarm_config(|config| config.with_idle_connection_timeout(SOON))
            .build();
        let local = *swarm.local_peer_id();
        let control = swarm.behaviour().streams.new_control();
        swarm.dial(address(victim)).unwrap();
        tokio::spawn(async move { while swarm.next().await.is_some() {} });
        let raw = Self {
            local,
            control,
            victim: victim.local_peer(),
        };
        until("connected", || {
            victim.shared.connected.read().contains(&local)
        })
        .await;
        raw
    }

    async fn open(&self, protocol: StreamProtocol) -> Stream {
        let mut control = self.control.clone();
        control.open_stream(self.victim, protocol).await.unwrap()
    }

    /// Opens a stream and waits until it is taken.
    async fn open_taken(&self, protocol: StreamProtocol) -> Stream {
        loop {
            let mut stream = self.open(protocol.clone()).await;
            let mut byte = [0];
            if stream.read_exact(&mut byte).await.is_ok() {
                assert_eq!(byte, [1]);
                return stream;
            }
        }
    }

    /// What comes on a stream until it ends.
    async fn everything(&self, protocol: StreamProtocol, say: &[u8]) -> Vec<u8> {
        let mut stream = self.open(protocol).await;
        let mut heard = Vec::new();
        let _ = stream.write_all(say).await;
        let _ = stream.flush().await;
        let _ = timeout(SOON, stream.read_to_end(&mut heard)).await.unwrap();
        heard
    }

    /// Proves membership as a member would.
    async fn prove(&self, keys: &ClusterKeys, victim: &Net) {
        let hello = hello("member");
        let party = Party {
            keys,
            local: self.local,
            remote: self.victim,
            hello: &hello,
            nonce: rand::rng().random(),
        };
        let mut stream = self.open_taken(HELLO).await;
        party.dial(&mut stream).await.unwrap();
        until("proven", || victim.shared.peer(&self.local).is_some()).await;
    }

    async fn is_thrown_out_by(&self, victim: &Net) {
        until("thrown out", || {
            let blocked = victim.shared.book.lock();
            blocked.is_blocked(Instant::now(), &self.local)
        })
        .await;
        until("disconnected", || {
            !victim.shared.connected.read().contains(&self.local)
        })
        .await;
        assert!(victim.peers().is_empty());
    }
}

fn frame(call: &SyncCall) -> Vec<u8> {
    framing::encode(call, 1 << 30).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_hello_sync_and_blocks_say_not_a_byte() {
    let (victim, service) = start(&cluster(), "victim").await;
    let raw = Raw::connect(&victim).await;
    let ask = frame(&SyncCall::Request(1, SyncRequest::Heads));
    let (sync, blocks) = futures::join!(raw.everything(SYNC, &ask), raw.everything(BLOCKS, &ask));
    assert!(sync.is_empty() && blocks.is_empty());
    assert_eq!(service.asked.load(SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_prove_nothing_take_up_a_share_of_the_room() {
    let keys = cluster();
    let (victim, _) = start(&keys, "victim").await;
    let (other, _) = start(&keys, "other").await;
    other.add_peer(address(&victim), false);
    until("they know each other", || knows(&victim, &other)).await;
    let at = victim.addresses()[0].to_string();
    let port = at.rsplit('/').next().unwrap().parse().unwrap();
    let ended = || async {
        let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", port))
            .await
            .unwrap();
        let mut heard = Vec::new();
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut socket, &mut heard).await;
    };
    let mut sockets: futures::stream::FuturesUnordered<_> = (0..40).map(|_| ended()).collect();
    // Long before the others are given up, those beyond the limit are closed.
    let before = Instant::now();
    for _ in 0..8 {
        timeout(SOON, sockets.next()).await.unwrap();
    }
    assert!(before.elapsed() < Duration::from_secs(8));
    drop(sockets);
    let (third, _) = start(&keys, "third").await;
    third.add_peer(address(&victim), true);
    until("a member finds room again", || knows(&victim, &third)).await;
    assert!(knows(&victim, &other));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replayed_proof_ends_in_a_block() {
    let keys = cluster();
    let (victim, service) = start(&keys, "victim").await;
    let raw = Raw::connect(&victim).await;
    // A proof that was good once: by a member, from this very peer to the victim, for another nonce.
    let old = crate::cluster::MembershipProof::sign(
        &keys,
        crate::cluster::ProofRole::Dialer,
        &raw.local,
        &raw.victim,
        &[1; 32],
        &[2; 32],
    );
    let mut stream = raw.open_taken(HELLO).await;
    let _: Challenge = framing::read(&mut stream, 4096).await.unwrap();
    let replayed = DialerProof {
        nonce: [1; 32],
        proof: old,
    };
    framing::write(&mut stream, &replayed, 4096).await.unwrap();
    let mut heard = Vec::new();
    let _ = timeout(SOON, stream.read_to_end(&mut heard)).await.unwrap();
    assert!(heard.is_empty());
    raw.is_thrown_out_by(&victim).await;
    assert_eq!(service.asked.load(SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_too_large_is_answered_with_an_error_and_a_block() {
    let keys = cluster();
    let (victim, _) = start(&keys, "victim").await;
    let raw = Raw::connect(&victim).await;
    raw.prove(&keys, &victim).await;
    let mut stream = raw.open_taken(SYNC).await;
    stream.write_all(&[0, 255, 255, 255]).await.unwrap();
    stream.flush().await.unwrap();
    let SyncReply(number, answer) = framing::read(&mut stream, 4096).await.unwrap();
    assert!(number == 0 && matches!(answer, SyncAnswer::Error(_)));
    raw.is_thrown_out_by(&victim).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_take_no_answers_hold_only_their_share_of_memory() {
    let keys = cluster();
    let (victim, service) = start(&keys, "victim").await;
    let (other, _) = start(&keys, "other").await;
    other.add_peer(address(&victim), false);
    let raw = Raw::connect(&victim).await;
    raw.prove(&keys, &victim).await;
    until("the other one is up", || knows(&other, &victim)).await;
    // Answers of 4 MB that it never reads, on as many streams as it can get.
    let ask = SyncRequest::Nodes(vec![crate::manifest::NodeHash([0; 32]); 20]);
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = raw.open_taken(SYNC).await;
        for number in 1..=12 {
            let call = frame(&SyncCall::Request(number, ask.clone()));
            stream.write_all(&call).await.unwrap();
        }
        stream.flush().await.unwrap();
        held.push(stream);
    }
    let most = crate::net::sync::ANSWERING_MAX;
    until("as many as it may", || {
        service.asked.load(SeqCst) >= most - 1
    })
    .await;
    let mut third = raw.open(SYNC).await;
    let refused = timeout(SOON, third.read_exact(&mut [0])).await.unwrap();
    assert!(refused.is_err(), "a third stream");
    assert!(service.asked.load(SeqCst) <= most);
    let to = victim.local_peer();
    let answer = other.request(to, SyncRequest::Heads, SOON).await;
    assert!(matches!(answer, Ok(SyncAnswer::Heads(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_beyond_their_bounds_end_in_a_block() {
    let keys = cluster();
    let too_many = vec![crate::manifest::NodeHash([0; 32]); proto::NAMED_MAX + 1];
    let request = |start, end| BlockRequest {
        object: object(1 << 30),
        start,
        end,
    };
    let changes = vec![(ByteBuf::new(), ByteBuf::new()); proto::CHANGES_MAX + 1];
    let push = Push::Manifest {
        head: ByteBuf::new(),
        base: crate::manifest::NodeHash([0; 32]),
        changes: Some(changes),
    };
    let blocks = |request| {
        let call = BlockCall::Request(1, request);
        (BLOCKS, framing::encode(&call, 1024).unwrap())
    };
    let batch = |request| {
        let call = BlockCall::Batch(1, request);
        (BLOCKS, framing::encode(&call, 16 * 1024).unwrap())
    };
    let offences = [
        (
            SYNC,
            frame(&SyncCall::Request(1, SyncRequest::Nodes(too_many))),
        ),
        (SYNC, frame(&SyncCall::Push(push))),
        (SYNC, vec![0, 8, 0, 1]),
        (SYNC, vec![0, 0, 0, 3, 255, 255, 255]),
        blocks(request(0, 17)),
        blocks(request(5, 5)),
        blocks(request(5, 4)),
        batch(super::batch([0])),
        batch(super::batch([70_000])),
        batch(super::batch([60_000; 20])),
        batch(BatchRequest(vec![object(1), object(1)])),
        (BLOCKS, vec![0, 1, 0, 0]),
    ];
    for (protocol, bytes) in offences {
        let (victim, service) = start(&keys, "victim").await;
        let raw = Raw::connect(&victim).await;
        raw.prove(&keys, &victim).await;
        let mut stream = raw.open_taken(protocol).await;
        stream.write_all(&bytes).await.unwrap();
        stream.flush().await.unwrap();
        raw.is_thrown_out_by(&victim).await;
        assert_eq!(service.asked.load(SeqCst), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_takes_no_pushes_delays_nobody_else() {
    let keys = cluster();
    let (victim, _) = start(&keys, "victim").await;
    let (other, asked) = start(&keys, "other").await;
    other.add_peer(address(&victim), false);
    let raw = Raw::connect(&victim).await;
    // It never takes the stream that the victim would push on.
    raw.prove(&keys, &victim).await;
    until("both are up", || victim.peers().len() == 2).await;
    until("the other one too", || knows(&other, &victim)).await;
    let push = Push::Have(object(1), BlockSet::of(0..1));
    for _ in 0..200 {
        victim.push(push.clone(), None);
        tokio::task::yield_now().await;
    }
    until("pushes arrive", || !asked.pushed.lock().is_empty()).await;
    let refused = victim
        .request(raw.local, SyncRequest::Heads, Duration::from_millis(200))
        .await;
    assert!(matches!(refused, Err(NetError::TimedOut { .. })));
    victim
        .request(other.local_peer(), SyncRequest::Heads, SOON)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tracker_is_connected_to_and_spoken_to_without_hello() {
    const ECHO: StreamProtocol = StreamProtocol::new("/test/echo/1");
    let mut swarm = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(
            tcp::Config::default(),
            (tls::Config::new, noise::Config::new),
            yamux::Config::default,
        )
        .unwrap()
        .with_behaviour(|_| Streams {
            streams: libp2p_stream::Behaviour::new(),
        })
        .unwrap()
        .with_swarm_config(|config| config.with_idle_connection_timeout(SOON))
        .build();
    let local = *swarm.local_peer_id();
    let mut incoming = swarm
        .behaviour()
        .streams
        .new_control()
        .accept(ECHO)
        .unwrap();
    swarm
        .listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap())
        .unwrap();
    let at = loop {
        let event = swarm.select_next_some().await;
        if let libp2p::swarm::SwarmEvent::NewListenAddr { address, .. } = event {
            break address;
        }
    };
    tokio::spawn(async move { while swarm.next().await.is_some() {} });
    tokio::spawn(async move {
        while let Some((_, stream)) = incoming.next().await {
            let (mut reader, mut writer) = stream.split();
            let _ = futures::io::copy(&mut reader, &mut writer).await;
            let _ = writer.close().await;
        }
    });

    let (net, _) = start(&cluster(), "anna").await;
    assert_eq!(net.connect(at.clone(), SOON).await.unwrap(), local);
    assert_eq!(net.connect(at, SOON).await.unwrap(), local);
    let mut stream = net.open(local, ECHO, SOON).await.unwrap();
    stream.write_all(b"announce").await.unwrap();
    stream.close().await.unwrap();
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"announce");
    assert!(net.peers().is_empty());
    let refused = net.open(local, HELLO, SOON).await;
    assert!(matches!(refused, Err(NetError::Protocol { .. })));
}
