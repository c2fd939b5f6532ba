//! The operations, as methods of [`super::core::Core`].

mod copy;
mod files;
mod folders;
mod look;
mod names;
mod rename;
mod set;

pub(crate) use copy::Place;
pub(crate) use files::{Mode, OpenFile};
pub(crate) use folders::{Listed, Listings};
pub(crate) use look::Found;
pub(crate) use rename::Replace;
pub(crate) use set::Changes;
