//! Messages on a stream: four bytes of length (big-endian), then CBOR.
//!
//! The length is checked before anything is allocated, and memory grows with what really arrives, so a peer that claims
//! 4 MiB and sends nothing costs nothing.

use std::io;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use serde::{Serialize, de::DeserializeOwned};

/// First allocation for a message; it doubles from there.
const FIRST_BYTES: usize = 16 * 1024;

/// Why there is no message.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream ended or broke: nobody's fault.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The peer sent something that is no message.
    #[error("{0}")]
    Malformed(String),
}

/// Encodes a message with its length in front.
///
/// # Errors
/// [`FrameError::Malformed`] when it has more than `bytes_max` bytes.
pub fn encode(message: &impl Serialize, bytes_max: usize) -> Result<Vec<u8>, FrameError> {
    let frame = cbor4ii::serde::to_vec(vec![0; 4], message)
        .map_err(|error| FrameError::Malformed(error.to_string()))?;
    seal(frame, bytes_max)
}

fn seal(mut frame: Vec<u8>, bytes_max: usize) -> Result<Vec<u8>, FrameError> {
    let length = frame.len() - 4;
    match u32::try_from(length) {
        Ok(prefix) if length <= bytes_max => {
            frame[..4].copy_from_slice(&prefix.to_be_bytes());
            Ok(frame)
        }
        _ => Err(FrameError::Malformed(format!(
            "a message of {length} bytes, where {bytes_max} are the limit"
        ))),
    }
}

/// Writes a message of at most `bytes_max` bytes and flushes.
pub async fn write<S: AsyncWrite + Unpin>(
    stream: &mut S,
    message: &impl Serialize,
    bytes_max: usize,
) -> Result<(), FrameError> {
    stream.write_all(&encode(message, bytes_max)?).await?;
    stream.flush().await?;
    Ok(())
}

/// Reads the bytes of one message, at most `bytes_max`. The caller bounds the time.
pub async fn read_bytes<S: AsyncRead + Unpin>(
    stream: &mut S,
    bytes_max: usize,
) -> Result<Vec<u8>, FrameError> {
    let mut prefix = [0; 4];
    stream.read_exact(&mut prefix).await?;
    let length = u32::from_be_bytes(prefix) as usize;
    if length > bytes_max {
        return Err(FrameError::Malformed(format!(
            "a message of {length} bytes, where {bytes_max} are the limit"
        )));
    }
    let mut bytes = Vec::new();
    while bytes.len() < length {
        let filled = bytes.len();
        bytes.resize(length.min((2 * filled).max(FIRST_BYTES)), 0);
        stream.read_exact(&mut bytes[filled..]).await?;
    }
    Ok(bytes)
}

/// Decodes the bytes of one message.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    cbor4ii::serde::from_slice(bytes).map_err(|error| FrameError::Malformed(error.to_string()))
}

/// Reads one message of at most `bytes_max` bytes. The caller bounds the time.
pub async fn read<S: AsyncRead + Unpin, T: DeserializeOwned>(
    stream: &mut S,
    bytes_max: usize,
) -> Result<T, FrameError> {
    decode(&read_bytes(stream, bytes_max).await?)
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_comes_back_as_it_was_written() {
        let mut wire = Vec::new();
        let message = (7u64, "x".repeat(100_000));
        block_on(write(&mut wire, &message, 200_000)).unwrap();
        let back: (u64, String) = block_on(read(&mut wire.as_slice(), 200_000)).unwrap();
        assert_eq!(back, message);
    }

    #[test]
    fn a_length_beyond_the_bound_is_refused_before_the_bytes_are_read() {
        let wire = u32::MAX.to_be_bytes();
        let refused = block_on(read_bytes(&mut wire.as_slice(), 1024));
        assert!(matches!(refused, Err(FrameError::Malformed(_))));
    }

    #[test]
    fn a_message_that_is_too_long_is_never_written() {
        assert!(encode(&"x".repeat(2000), 1024).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = block_on(read::<_, crate::net::proto::SyncRequest>(&mut bytes.as_slice(), 100));
        }
    }
}
