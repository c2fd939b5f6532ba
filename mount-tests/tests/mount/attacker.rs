//! A node that speaks the members' protocols by itself and keeps to no rule. It shares the types of the messages with the
//! product, and nothing of its conduct.

use std::{sync::mpsc::Sender, time::Duration};

use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol, Swarm, SwarmBuilder, identity::Keypair,
    multiaddr::Protocol, noise, swarm::SwarmEvent, tcp, yamux,
};
use libp2p_stream::Control;
use p2pfs::{
    cluster::{ClusterKeys, MembershipProof, Nonce, ProofRole},
    net::proto::{
        BLOCKS, BlockRequest, HELLO, PROTOCOL, PeerHello, Push, SYNC, SyncAnswer, SyncRequest,
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::time::timeout;

/// How long the other side is given for one step; longer than its own patience with strangers.
const STEP_WITHIN: Duration = Duration::from_secs(5);
const MESSAGE_BYTES_MAX: usize = 8 << 20;

#[derive(Serialize, Deserialize)]
pub(super) struct Challenge {
    #[serde(with = "serde_bytes")]
    nonce: Nonce,
}

/// What a dialer proves itself with.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Hello {
    #[serde(with = "serde_bytes")]
    nonce: Nonce,
    proof: MembershipProof,
}

#[derive(Serialize, Deserialize)]
struct ListenerProof {
    proof: MembershipProof,
    hello: PeerHello,
}

#[derive(Serialize, Deserialize)]
pub(super) enum SyncCall {
    Request(u64, SyncRequest),
    Push(Push),
}

#[derive(Serialize, Deserialize)]
pub(super) struct SyncReply(pub(super) u64, pub(super) SyncAnswer);

#[derive(Serialize, Deserialize)]
enum BlockCall {
    Request(u64, BlockRequest),
}

/// Runs on the calling thread alone: that one is on the right network.
pub(super) fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        timeout(Duration::from_secs(120), work)
            .await
            .expect("the attack ends in time")
    })
}

pub(super) fn now_ns() -> u64 {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    u64::try_from(now.as_nanos()).unwrap()
}

pub(super) fn unhex(text: &str) -> [u8; 32] {
    std::array::from_fn(|index| u8::from_str_radix(&text[2 * index..][..2], 16).unwrap())
}

fn swarm(identity: Keypair) -> Swarm<libp2p_stream::Behaviour> {
    SwarmBuilder::with_existing_identity(identity)
        .with_tokio()
        .with_tcp(
            tcp::Config::default(),
            noise::Config::new,
            yamux::Config::default,
        )
        .unwrap()
        .with_behaviour(|_| libp2p_stream::Behaviour::new())
        .unwrap()
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(300)))
        .build()
}

/// A connection to one victim.
pub(super) struct Attacker {
    identity: Keypair,
    victim: PeerId,
    control: Control,
    hello: Option<Stream>,
    sync: Option<Stream>,
    asked: u64,
    swarm: tokio::task::JoinHandle<()>,
}

impl Drop for Attacker {
    fn drop(&mut self) {
        self.swarm.abort();
    }
}

impl Attacker {
    /// Connects to `…/p2p/<victim>` as somebody new.
    pub(super) async fn connect(address: &str) -> Self {
        Self::connect_as(Keypair::generate_ed25519(), address).await
    }

    /// Connects under an identity.
    pub(super) async fn connect_as(identity: Keypair, address: &str) -> Self {
        let address: Multiaddr = address.parse().unwrap();
        let Some(Protocol::P2p(victim)) = address.iter().last() else {
            panic!("{address} names no peer")
        };
        let mut swarm = swarm(identity.clone());
        let control = swarm.behaviour().new_control();
        swarm.dial(address).unwrap();
        loop {
            match timeout(STEP_WITHIN, swarm.select_next_some())
                .await
                .expect("it can be connected to")
            {
                SwarmEvent::ConnectionEstablished { .. } => break,
                SwarmEvent::OutgoingConnectionError { error, .. } => panic!("{error}"),
                _ => {}
            }
        }
        let swarm = tokio::spawn(async move {
            loop {
                swarm.select_next_some().await;
            }
        });
        Self {
            identity,
            victim,
            control,
            hello: None,
            sync: None,
            asked: 0,
            swarm,
        }
    }

    /// What else it speaks.
    pub(super) fn control(&self) -> Control {
        self.control.clone()
    }

    pub(super) fn identity(&self) -> Keypair {
        self.identity.clone()
    }

    /// Opens a stream that the victim says it takes; none when it refuses.
    async fn open(&mut self, protocol: StreamProtocol) -> Option<Stream> {
        // A stream may be dropped once when the other side's queue is busy; it is never dropped again and again.
        for _ in 0..3 {
            let opened = timeout(
                STEP_WITHIN,
                self.control.open_stream(self.victim, protocol.clone()),
            )
            .await;
            let Ok(Ok(mut stream)) = opened else { continue };
            let mut accepted = [0];
            if matches!(
                timeout(STEP_WITHIN, stream.read_exact(&mut accepted)).await,
                Ok(Ok(()))
            ) {
                return Some(stream);
            }
        }
        None
    }

    /// Opens the handshake and takes the victim's challenge.
    pub(super) async fn challenge(&mut self) -> Challenge {
        let mut stream = self
            .open(HELLO)
            .await
            .expect("the handshake is open to anybody");
        let challenge = read(&mut stream)
            .await
            .expect("the listener begins with a challenge");
        self.hello = Some(stream);
        challenge
    }

    /// Signs what a member with this node's identity would.
    pub(super) fn proof(
        &self,
        keys: &ClusterKeys,
        role: ProofRole,
        challenge: &Challenge,
    ) -> Hello {
        let nonce: Nonce = rand::random();
        let local = self.identity.public().to_peer_id();
        let proof =
            MembershipProof::sign(keys, role, &local, &self.victim, &nonce, &challenge.nonce);
        Hello { nonce, proof }
    }

    /// Answers the challenge; what the victim then says of itself, if it lets this node in.
    pub(super) async fn answer(&mut self, hello: &Hello) -> Option<String> {
        let mut stream = self.hello.take().expect("a challenge came first");
        write(&mut stream, hello).await?;
        let theirs: ListenerProof = read(&mut stream).await?;
        let own = PeerHello {
            protocol: PROTOCOL,
            node: "attacker".into(),
            version: "0".into(),
            epoch: 0,
            keeps_all: false,
            promises: false,
            trees: false,
            sole: false,
        };
        write(&mut stream, &own).await?;
        self.hello = Some(stream);
        Some(theirs.hello.node)
    }

    /// The whole handshake, as an honest node does it; none when it is refused.
    pub(super) async fn prove(&mut self, keys: &ClusterKeys) -> Option<String> {
        let challenge = self.challenge().await;
        let hello = self.proof(keys, ProofRole::Dialer, &challenge);
        self.answer(&hello).await
    }

    /// Asks on a sync stream; none when no answer comes.
    pub(super) async fn ask(&mut self, request: SyncRequest) -> Option<SyncAnswer> {
        let mut stream = match self.sync.take() {
            Some(stream) => stream,
            None => self.open(SYNC).await?,
        };
        self.asked += 1;
        write(&mut stream, &SyncCall::Request(self.asked, request)).await?;
        let SyncReply(number, answer) = read(&mut stream).await?;
        assert_eq!(number, self.asked);
        self.sync = Some(stream);
        match answer {
            SyncAnswer::Error(_) => None,
            answer => Some(answer),
        }
    }

    /// Pushes on a sync stream, and waits until the victim has read it or hung up.
    pub(super) async fn push(&mut self, push: Push) {
        let mut stream = self.open(SYNC).await.expect("a member's stream is taken");
        write(&mut stream, &SyncCall::Push(push)).await;
        write(&mut stream, &SyncCall::Request(1, SyncRequest::Status)).await;
        let _: Option<SyncReply> = read(&mut stream).await;
    }

    /// Asks for blocks; whether anything came back.
    pub(super) async fn ask_block(&mut self, request: BlockRequest) -> bool {
        let Some(mut stream) = self.open(BLOCKS).await else {
            return false;
        };
        if write(&mut stream, &BlockCall::Request(1, request))
            .await
            .is_none()
        {
            return false;
        }
        let mut byte = [0];
        matches!(
            timeout(STEP_WITHIN, stream.read_exact(&mut byte)).await,
            Ok(Ok(()))
        )
    }

    /// Sends bytes that are no message; whether the victim then hangs up.
    pub(super) async fn babble(&mut self, protocol: StreamProtocol, bytes: &[u8]) -> bool {
        let mut stream = self
            .open(protocol)
            .await
            .expect("a member's stream is taken");
        if stream.write_all(bytes).await.is_err() || stream.flush().await.is_err() {
            return true;
        }
        // It may say why before it does.
        let mut rest = Vec::new();
        timeout(STEP_WITHIN, stream.read_to_end(&mut rest))
            .await
            .is_ok()
    }
}

pub(super) async fn write(stream: &mut Stream, message: &impl Serialize) -> Option<()> {
    let mut frame = cbor4ii::serde::to_vec(vec![0; 4], message).unwrap();
    let length = u32::try_from(frame.len() - 4).unwrap();
    frame[..4].copy_from_slice(&length.to_be_bytes());
    stream.write_all(&frame).await.ok()?;
    stream.flush().await.ok()
}

async fn read<T: DeserializeOwned>(stream: &mut Stream) -> Option<T> {
    timeout(STEP_WITHIN, next(stream)).await.ok()?
}

/// The next message, however long it takes; none when the stream ends.
pub(super) async fn next<T: DeserializeOwned>(stream: &mut Stream) -> Option<T> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await.ok()?;
    let length = u32::from_be_bytes(length) as usize;
    assert!(length <= MESSAGE_BYTES_MAX);
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await.ok()?;
    Some(cbor4ii::serde::from_slice(&bytes).expect("the message is what the protocol says"))
}

/// What a trap caught.
pub(super) struct Trapped {
    pub(super) proofs_seen: u32,
    pub(super) let_in: u32,
}

/// Listens for members that dial it. Each gets, as its challenge, that of a victim; what it proves with is shown to that
/// victim, and given back to itself as the listener's proof. Ends when it has
/// tried them all, or when nobody dials any more.
pub(super) async fn trap(listen: String, victims: [String; 2], ready: Sender<String>) -> Trapped {
    let identity = Keypair::generate_ed25519();
    let mut swarm = swarm(identity.clone());
    let mut control = swarm.behaviour().new_control();
    let mut hellos = control.accept(HELLO).unwrap();
    swarm.listen_on(listen.parse().unwrap()).unwrap();
    ready
        .send(format!("{listen}/p2p/{}", identity.public().to_peer_id()))
        .unwrap();
    let swarm = tokio::spawn(async move {
        loop {
            swarm.select_next_some().await;
        }
    });
    let mut trapped = Trapped {
        proofs_seen: 0,
        let_in: 0,
    };
    for victim in &victims {
        let mut attacker = Attacker::connect_as(identity.clone(), victim).await;
        let challenge = attacker.challenge().await;
        // Whoever was fooled once may not dial again.
        let Ok(Some((_, mut stream))) = timeout(Duration::from_secs(20), hellos.next()).await
        else {
            break;
        };
        stream.write_all(&[1]).await.unwrap();
        let Some(()) = write(&mut stream, &challenge).await else {
            continue;
        };
        let Some(caught) = read::<Hello>(&mut stream).await else {
            continue;
        };
        trapped.proofs_seen += 1;
        if attacker.answer(&caught).await.is_some() {
            trapped.let_in += 1;
        }
        let hello = PeerHello {
            protocol: PROTOCOL,
            node: "trap".into(),
            version: "0".into(),
            epoch: 0,
            keeps_all: false,
            promises: false,
            trees: false,
            sole: false,
        };
        let reflected = ListenerProof {
            proof: caught.proof,
            hello,
        };
        write(&mut stream, &reflected).await;
        // A member that fell for it would now say who it is.
        if read::<PeerHello>(&mut stream).await.is_some() {
            trapped.let_in += 1;
        }
    }
    swarm.abort();
    trapped
}
