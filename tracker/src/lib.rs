//! The tracker of p2pfs: how the peers of a cluster find each other.
//!
//! A tracker keeps soft state about clusters that it knows by their topic (the public half of the member key) alone: which
//! peers are there and at which addresses, who holds which content, and the newest sealed heads. It never sees names,
//! contents or content ids, never decides who is a member (a signature does), and no cluster depends on it: everything it
//! forgets is told again by the peers as they renew their leases.
//!
//! * [`framing`] and [`protocol`]: what travels.
//! * [`registry`]: every decision, as a pure state machine.
//! * [`server`]: libp2p and sled around the registry.
//! * [`client`] and [`policy`]: the other end, a session over one stream and the rules of when to do what.

pub mod client;
pub mod framing;
pub mod policy;
pub mod protocol;
pub mod registry;
pub mod server;

#[cfg(test)]
mod test_stream;
