//! Buffers of about a megabyte that are used again: what a range travels in.
//!
//! New memory of that size costs a third of the time that moving the range takes: the system maps it page by page and clears
//! it, and gives it back at once. Here a buffer goes back to a list when it is dropped. The list is bounded.
//!
//! A buffer's bytes are what its last use left there: whoever takes one fills it before anybody reads it.

use std::ops::{Deref, DerefMut};

use bytes::Bytes;
use parking_lot::Mutex;

/// Smaller ones come from the allocator, which keeps those well.
const KEPT_BYTES_MIN: usize = 64 * 1024;
/// Larger ones are rare. A range of 16 blocks with its proof, or a read of the kernel, is smaller.
const KEPT_BYTES_MAX: usize = 1280 * 1024;
/// Idle buffers that are kept: 40 MiB at most.
const IDLE_MAX: usize = 32;

static IDLE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// See the module.
#[derive(Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    length: usize,
}

impl Buffer {
    /// A buffer of `length` bytes, whatever they are.
    pub fn new(length: usize) -> Self {
        let bytes = if (KEPT_BYTES_MIN..=KEPT_BYTES_MAX).contains(&length) {
            let idle = IDLE.lock().pop();
            // All of one size, so that each fits every use.
            idle.unwrap_or_else(|| vec![0; KEPT_BYTES_MAX])
        } else {
            vec![0; length]
        };
        Self { bytes, length }
    }

    /// Makes it shorter; a length beyond its own changes nothing.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.bytes.len() == KEPT_BYTES_MAX {
            let mut idle = IDLE.lock();
            if idle.len() < IDLE_MAX {
                idle.push(std::mem::take(&mut self.bytes));
            }
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(..self.length).unwrap_or_default()
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<Buffer> for Bytes {
    fn from(buffer: Buffer) -> Self {
        Self::from_owner(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_has_the_length_that_was_asked_for() {
        for length in [
            0,
            1,
            KEPT_BYTES_MIN,
            KEPT_BYTES_MAX,
            KEPT_BYTES_MAX + 1,
            5_000_000,
        ] {
            let mut buffer = Buffer::new(length);
            assert_eq!(buffer.len(), length);
            buffer.fill(7);
            buffer.truncate(length + 1);
            assert_eq!(buffer.len(), length);
            buffer.truncate(length / 2);
            let bytes = Bytes::from(buffer);
            assert_eq!(bytes, vec![7; length / 2]);
        }
    }

    #[test]
    fn idle_buffers_are_bounded() {
        let many: Vec<Buffer> = (0..IDLE_MAX * 2)
            .map(|_| Buffer::new(KEPT_BYTES_MIN))
            .collect();
        drop(many);
        assert!(IDLE.lock().len() <= IDLE_MAX);
    }
}
