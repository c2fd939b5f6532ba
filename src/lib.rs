//! p2pfs: a peer-to-peer shared filesystem.
