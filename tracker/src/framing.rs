//! Length-prefixed CBOR frames over any asynchronous stream.
//!
//! A frame is a big-endian `u32` length and that many bytes of one CBOR value, with nothing behind it. The caller names the
//! most bytes that it takes for each frame. A claimed length is checked against that before anything is allocated, and memory
//! grows with the bytes that did arrive, so that a claim alone costs nothing.
//!
//! No deadlines in here: a caller that waits for a peer puts its own around the call. Reading is not cancel-safe: a stream
//! whose read was dropped half way is to be closed.

use std::io;

use futures::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use serde::{
    Serialize,
    de::{DeserializeOwned, IgnoredAny},
};

/// Bytes of the length in front of a frame.
const PREFIX_BYTES: usize = 4;
/// Most bytes by which a receive buffer grows ahead of the data.
const GROWTH_BYTES_MAX: usize = 64 * 1024;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream ended between two frames.
    #[error("the stream was closed")]
    Closed,
    /// The frame is longer than the caller takes.
    #[error("a message of {length} bytes is longer than the {max} allowed")]
    TooLong {
        /// What the frame claims, or has.
        length: usize,
        /// What the caller takes.
        max: usize,
    },
    /// Not the CBOR of the expected message.
    #[error("a message could not be decoded: {0}")]
    Malformed(String),
    /// The message has no encoding.
    #[error("a message could not be encoded: {0}")]
    Encode(String),
    /// The stream failed, or ended within a frame.
    #[error("the stream failed: {0}")]
    Io(#[from] io::Error),
}

/// Encodes a value as a whole frame, length included; refuses one whose CBOR has more than `max_bytes`.
pub fn encode_frame<T: Serialize>(value: &T, max_bytes: usize) -> Result<Vec<u8>, FrameError> {
    let mut frame = cbor4ii::serde::to_vec(vec![0; PREFIX_BYTES], value)
        .map_err(|error| FrameError::Encode(error.to_string()))?;
    let length = frame.len().saturating_sub(PREFIX_BYTES);
    let too_long = FrameError::TooLong {
        length,
        max: max_bytes,
    };
    if length > max_bytes {
        return Err(too_long);
    }
    let prefix = u32::try_from(length).map_err(|_| too_long)?.to_be_bytes();
    for (slot, byte) in frame.iter_mut().zip(prefix) {
        *slot = byte;
    }
    Ok(frame)
}

/// Decodes the CBOR of one frame: one value, whole and with nothing behind it.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    // A type may leave a part of its value unread, as of a map that names a kind and ends there. So all of it is read first.
    read_whole::<IgnoredAny>(bytes)?;
    read_whole(bytes)
}

fn read_whole<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    use cbor4ii::core::{dec::Read, utils::SliceReader};
    let mut deserializer = cbor4ii::serde::Deserializer::new(SliceReader::new(bytes));
    let value = T::deserialize(&mut deserializer)
        .map_err(|error| FrameError::Malformed(error.to_string()))?;
    let mut rest = deserializer.into_inner();
    match rest.fill(1) {
        Ok(left) if left.as_ref().is_empty() => Ok(value),
        _ => Err(FrameError::Malformed(
            "there are bytes behind the message".into(),
        )),
    }
}

/// Reads the bytes of one frame of at most `max_bytes`.
pub async fn read_frame_bytes<S>(stream: &mut S, max_bytes: usize) -> Result<Vec<u8>, FrameError>
where
    S: AsyncRead + Unpin + ?Sized,
{
    let mut prefix = [0; PREFIX_BYTES];
    let (first, others) = prefix.split_at_mut(1);
    if stream.read(first).await? == 0 {
        return Err(FrameError::Closed);
    }
    stream.read_exact(others).await?;
    let length = usize::try_from(u32::from_be_bytes(prefix)).unwrap_or(usize::MAX);
    if length > max_bytes {
        return Err(FrameError::TooLong {
            length,
            max: max_bytes,
        });
    }
    let mut bytes = Vec::new();
    while bytes.len() < length {
        let have = bytes.len();
        let grown = have + (length - have).min(GROWTH_BYTES_MAX);
        bytes.resize(grown, 0);
        stream
            .read_exact(bytes.get_mut(have..).unwrap_or_default())
            .await?;
    }
    Ok(bytes)
}

/// Reads one message of at most `max_bytes`.
pub async fn read_frame<T, S>(stream: &mut S, max_bytes: usize) -> Result<T, FrameError>
where
    T: DeserializeOwned,
    S: AsyncRead + Unpin + ?Sized,
{
    decode(&read_frame_bytes(stream, max_bytes).await?)
}

/// Writes one message of at most `max_bytes` and flushes.
pub async fn write_frame<T, S>(
    stream: &mut S,
    value: &T,
    max_bytes: usize,
) -> Result<(), FrameError>
where
    T: Serialize,
    S: AsyncWrite + Unpin + ?Sized,
{
    stream.write_all(&encode_frame(value, max_bytes)?).await?;
    stream.flush().await?;
    Ok(())
}

#[cfg(test)]
mod tests;
