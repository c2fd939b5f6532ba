//! A pair of connected in-memory streams, and identities, for tests.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use ed25519_dalek::{Signer, SigningKey};
use futures::io::{AsyncRead, AsyncWrite};
use tokio::io::{AsyncRead as _, AsyncWrite as _, DuplexStream, ReadBuf, duplex};

/// One end of the pair.
pub(crate) struct TestStream(DuplexStream);

pub(crate) fn pair() -> (TestStream, TestStream) {
    let (one, other) = duplex(4096);
    (TestStream(one), TestStream(other))
}

/// The member key of a cluster.
pub(crate) fn member(name: u8) -> SigningKey {
    SigningKey::from_bytes(&[name; 32])
}

pub(crate) fn signer(key: SigningKey) -> impl Fn(&[u8]) -> [u8; 64] + Sync {
    move |message| key.sign(message).to_bytes()
}

impl AsyncRead for TestStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        ready!(Pin::new(&mut self.0).poll_read(context, &mut buffer))?;
        Poll::Ready(Ok(buffer.filled().len()))
    }
}

impl AsyncWrite for TestStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
