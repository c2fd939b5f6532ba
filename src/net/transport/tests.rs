//! The transport against libp2p's own, in both directions, and against an impostor.

use std::time::Duration;

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Swarm, SwarmBuilder,
    identity::Keypair,
    ping,
    swarm::{NetworkBehaviour, SwarmEvent, dial_opts::DialOpts},
};
use tokio::time::timeout;

use super::*;

#[derive(NetworkBehaviour)]
struct Ping {
    ping: ping::Behaviour,
}

fn pinging() -> Ping {
    Ping {
        ping: ping::Behaviour::default(),
    }
}

fn own() -> Swarm<Ping> {
    let key = Keypair::generate_ed25519();
    Swarm::new(
        build(&key, Arc::default(), Arc::default()).unwrap(),
        pinging(),
        key.public().to_peer_id(),
        libp2p::swarm::Config::with_tokio_executor(),
    )
}

fn stock_tls() -> Swarm<Ping> {
    SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(
            tcp::Config::default(),
            libp2p::tls::Config::new,
            libp2p::yamux::Config::default,
        )
        .unwrap()
        .with_behaviour(|_| pinging())
        .unwrap()
        .build()
}

fn stock_noise() -> Swarm<Ping> {
    SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(
            tcp::Config::default(),
            noise::Config::new,
            libp2p::yamux::Config::default,
        )
        .unwrap()
        .with_behaviour(|_| pinging())
        .unwrap()
        .build()
}

async fn listen(swarm: &mut Swarm<Ping>) -> Multiaddr {
    let anywhere = "/ip4/127.0.0.1/tcp/0".parse().unwrap();
    swarm.listen_on(anywhere).unwrap();
    loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            return address;
        }
    }
}

/// Runs both until each has had an answer to a ping of its own, over streams that each opened.
async fn ping_each_other(mut dialer: Swarm<Ping>, mut listener: Swarm<Ping>) {
    let address = listen(&mut listener).await;
    let named = address.with_p2p(*listener.local_peer_id()).unwrap();
    dialer.dial(named).unwrap();
    let mut answered = [false; 2];
    let both = async {
        while answered != [true; 2] {
            let (side, event) = tokio::select! {
                event = dialer.select_next_some() => (0, event),
                event = listener.select_next_some() => (1, event),
            };
            match event {
                SwarmEvent::Behaviour(PingEvent::Ping(event)) => {
                    event.result.unwrap();
                    answered[side] = true;
                }
                SwarmEvent::OutgoingConnectionError { error, .. } => panic!("{error:?}"),
                SwarmEvent::IncomingConnectionError { error, .. } => panic!("{error:?}"),
                _ => {}
            }
        }
    };
    timeout(Duration::from_secs(10), both).await.unwrap();
}

#[tokio::test]
async fn two_of_our_own_understand_each_other() {
    ping_each_other(own(), own()).await;
}

#[tokio::test]
async fn stock_tls_understands_us_in_both_directions() {
    ping_each_other(own(), stock_tls()).await;
    ping_each_other(stock_tls(), own()).await;
}

#[tokio::test]
async fn stock_noise_understands_us_in_both_directions() {
    ping_each_other(own(), stock_noise()).await;
    ping_each_other(stock_noise(), own()).await;
}

/// Dials `listener` under a name that isn't its own; tells what came of it.
async fn dial_impostor(mut listener: Swarm<Ping>) -> String {
    let address = listen(&mut listener).await;
    tokio::spawn(async move { while listener.next().await.is_some() {} });
    let mut dialer = own();
    let somebody_else = PeerId::random();
    let options = DialOpts::peer_id(somebody_else).addresses(vec![address]);
    dialer.dial(options.build()).unwrap();
    let outcome = async {
        loop {
            match dialer.select_next_some().await {
                SwarmEvent::OutgoingConnectionError { error, .. } => return format!("{error:?}"),
                SwarmEvent::ConnectionEstablished { peer_id, .. } => {
                    panic!("took {peer_id} for {somebody_else}")
                }
                _ => {}
            }
        }
    };
    timeout(Duration::from_secs(10), outcome).await.unwrap()
}

#[tokio::test]
async fn an_impostor_is_refused_by_the_handshake_itself() {
    let tls = dial_impostor(own()).await;
    assert!(tls.contains("ApplicationVerificationFailure"), "{tls}");
    let noise = dial_impostor(stock_noise()).await;
    assert!(noise.contains("OtherPeer"), "{noise}");
}
