//! Many streams over one connection: yamux in frames of 256 KiB.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures::{AsyncRead, AsyncWrite, io::BufWriter};
use libp2p::core::{Endpoint, StreamMuxer, muxing::StreamMuxerEvent};
use tokio::time::{Sleep, sleep};
use yamux::{Connection, ConnectionError, Mode, Stream};

/// Largest data frame. Measured: 64 KiB is 7 % slower, 1 MiB a third.
const FRAME_BYTES_MAX: usize = 256 * 1024;

/// yamux writes the head of a frame and what is in it one after the other: up to this size they leave together, as one record of
/// TLS and one packet, so that a question wakes the other side once.
const GATHERED_BYTES_MAX: usize = 4096;

/// Streams of one connection, both directions; yamux ends a connection that exceeds it. A pair of members uses about a
/// dozen.
const STREAMS_MAX: usize = 32;

/// Longest time for saying that a connection ends. libp2p counts it as connected until then, and a stopped peer whose
/// buffers are full would take no last word, ever.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// What the streams of one connection may hold unread, together. Each starts with 256 KiB and grows with what is read from
/// it; 64 MiB keeps 1 GiB/s busy over 60 ms.
const RECEIVE_WINDOW_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Name of the multiplexer in protocol negotiation.
pub(super) const NAME: &str = "/yamux/1.0.0";

/// A multiplexed connection.
///
/// yamux moves bytes only while it is asked for the next inbound stream, and libp2p asks for that only when it wants one.
/// So [`StreamMuxer::poll`] asks, and keeps what comes in `arrived` until libp2p wants it.
pub(super) struct Muxer<C> {
    connection: Connection<BufWriter<C>>,
    /// At most [`STREAMS_MAX`]; one that comes when it is full is reset.
    arrived: VecDeque<Stream>,
    /// Whoever waits for `arrived`.
    waiting: Option<Waker>,
    /// Set once it is being closed.
    closing: Option<Pin<Box<Sleep>>>,
}

impl<C: AsyncRead + AsyncWrite + Unpin> Muxer<C> {
    pub(super) fn new(channel: C, role: Endpoint) -> Self {
        let mode = match role {
            Endpoint::Dialer => Mode::Client,
            Endpoint::Listener => Mode::Server,
        };
        let mut config = yamux::Config::default();
        config
            .set_max_num_streams(STREAMS_MAX)
            .set_max_connection_receive_window(Some(RECEIVE_WINDOW_BYTES_MAX))
            .set_split_send_size(FRAME_BYTES_MAX);
        let channel = BufWriter::with_capacity(GATHERED_BYTES_MAX, channel);
        Self {
            connection: Connection::new(channel, config, mode),
            arrived: VecDeque::new(),
            waiting: None,
            closing: None,
        }
    }

    /// Moves bytes until there is nothing to do, or a stream arrived.
    fn advance(&mut self, cx: &mut Context<'_>) -> Poll<Result<Stream, ConnectionError>> {
        self.connection
            .poll_next_inbound(cx)
            .map(|next| next.unwrap_or(Err(ConnectionError::Closed)))
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> StreamMuxer for Muxer<C> {
    type Substream = Stream;
    type Error = ConnectionError;

    fn poll_inbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Stream, ConnectionError>> {
        if let Some(stream) = self.arrived.pop_front() {
            return Poll::Ready(Ok(stream));
        }
        let next = self.advance(cx);
        if next.is_pending() {
            self.waiting = Some(cx.waker().clone());
        }
        next
    }

    fn poll_outbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Stream, ConnectionError>> {
        self.connection.poll_new_outbound(cx)
    }

    fn poll_close(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), ConnectionError>> {
        let deadline = self
            .closing
            .get_or_insert_with(|| Box::pin(sleep(CLOSE_WITHIN)));
        if deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        self.connection.poll_close(cx)
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<StreamMuxerEvent, ConnectionError>> {
        while let Poll::Ready(stream) = self.advance(cx) {
            let stream = stream?;
            if self.arrived.len() < STREAMS_MAX {
                self.arrived.push_back(stream);
            }
            if let Some(waiting) = self.waiting.take() {
                waiting.wake();
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures::AsyncWriteExt;
    use tokio_util::compat::TokioAsyncReadCompatExt;

    use super::*;

    #[tokio::test]
    async fn closing_does_not_wait_for_a_peer_that_takes_nothing() {
        let (ours, _theirs) = tokio::io::duplex(64);
        let mut muxer = Muxer::new(ours.compat(), Endpoint::Dialer);
        let mut stream = poll_fn(|cx| Pin::new(&mut muxer).poll_outbound(cx))
            .await
            .unwrap();
        stream.write_all(&[0; 10_000]).await.unwrap();
        let stuck = poll_fn(|cx| Poll::Ready(Pin::new(&mut muxer).poll(cx).is_pending())).await;
        assert!(stuck);
        let closed = poll_fn(|cx| Pin::new(&mut muxer).poll_close(cx));
        tokio::time::timeout(CLOSE_WITHIN * 3, closed)
            .await
            .unwrap()
            .unwrap();
    }
}
