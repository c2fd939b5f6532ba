//! p2pfs: a peer-to-peer shared filesystem. See `docs/architecture.md` for the map.
//!
//! Pure code (no clock, no I/O): [`cluster`], [`content`], [`manifest`], [`transfer::scheduler`].
//! Small parts that several use: `bucket` (pure), limits of rates; `awake`, time that was slept through; `buffers`, memory that
//! is used again; `idle`, work that keeps nobody from the disk; `linux`, the running kernel.
//! Shells: [`store`], [`net`], [`transfer`], [`fs`], [`control`], [`cli`]; [`node`] owns and wires them.
//! Dependencies point from shells to pure code, never back.

mod awake;
mod bucket;
mod buffers;
pub mod cli;
pub mod cluster;
pub mod content;
pub mod control;
pub mod fs;
mod idle;
mod linux;
pub mod manifest;
pub mod net;
pub mod node;
pub mod store;
pub mod transfer;
