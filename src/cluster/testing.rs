//! Fixed identities for tests.

use libp2p::{PeerId, identity::Keypair};

use super::{ClusterId, ClusterKeys};

pub(crate) fn id() -> ClusterId {
    ClusterId::generate(std::array::from_fn(|index| index as u8))
}

pub(crate) fn keys() -> ClusterKeys {
    id().keys()
}

pub(crate) fn other_keys() -> ClusterKeys {
    ClusterId::generate([7; 32]).keys()
}

pub(crate) fn node(number: u8) -> Keypair {
    Keypair::ed25519_from_bytes([number; 32]).unwrap()
}

pub(crate) fn peer(number: u8) -> PeerId {
    node(number).public().to_peer_id()
}
