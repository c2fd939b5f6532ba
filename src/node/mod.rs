//! The node: owns the parts of one mount and wires them.

pub mod namespace;
