//! Small writes leave together, and with what follows them.
//!
//! yamux writes the head of a frame and what is in it one after the other, and TLS makes a record of each write. As it is, the
//! head would be a record and a packet of its own, which wakes the other side for twelve bytes.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::{AsyncRead, AsyncWrite};

/// Written on once there is so much: the most that a record of TLS holds.
const GATHERED_BYTES: usize = 16 * 1024;

/// A channel whose writes are collected until they fill a record, or are flushed. Whole records of larger ones go through as
/// they are.
pub(super) struct Gather<C> {
    channel: C,
    /// At most [`GATHERED_BYTES`].
    gathered: Vec<u8>,
    /// How much of it is written.
    written: usize,
}

impl<C: AsyncWrite + Unpin> Gather<C> {
    pub(super) fn new(channel: C) -> Self {
        Self {
            channel,
            gathered: Vec::with_capacity(GATHERED_BYTES),
            written: 0,
        }
    }

    /// Writes on what was collected.
    fn write_on(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest @ [_, ..]) = self.gathered.get(self.written..) {
            let written = ready!(Pin::new(&mut self.channel).poll_write(cx, rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written;
        }
        self.gathered.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Gather<C> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.gathered.len() == GATHERED_BYTES {
            ready!(self.write_on(cx))?;
        }
        if self.gathered.is_empty() && bytes.len() >= GATHERED_BYTES {
            let records = bytes.len() - bytes.len() % GATHERED_BYTES;
            let whole = bytes.get(..records).unwrap_or(bytes);
            return Pin::new(&mut self.channel).poll_write(cx, whole);
        }
        let room = GATHERED_BYTES - self.gathered.len();
        let taken = bytes.get(..room).unwrap_or(bytes);
        self.gathered.extend_from_slice(taken);
        Poll::Ready(Ok(taken.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.write_on(cx))?;
        Pin::new(&mut self.channel).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.write_on(cx))?;
        Pin::new(&mut self.channel).poll_close(cx)
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Gather<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.channel).poll_read(cx, buffer)
    }
}

#[cfg(test)]
mod tests {
    use futures::{AsyncWriteExt, executor::block_on};

    use super::*;

    /// Notes each write; takes a little, then nothing, in turn where it is slow.
    #[derive(Default)]
    struct Writes {
        each: Vec<Vec<u8>>,
        is_slow: bool,
        refuses: bool,
    }

    impl AsyncWrite for Writes {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let mut taken = bytes;
            if self.is_slow {
                self.refuses = !self.refuses;
                if self.refuses {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                taken = bytes.get(..7000).unwrap_or(bytes);
            }
            self.each.push(taken.to_vec());
            Poll::Ready(Ok(taken.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn a_head_leaves_with_the_first_record_of_what_follows_and_the_end_with_the_next_head() {
        let mut gather = Gather::new(Writes::default());
        block_on(async {
            for _ in 0..2 {
                gather.write_all(&[1; 12]).await.unwrap();
                gather.write_all(&[2; 3 * GATHERED_BYTES]).await.unwrap();
            }
            assert_eq!(gather.channel.each.len(), 4);
            gather.flush().await.unwrap();
        });
        let lengths: Vec<usize> = gather.channel.each.iter().map(Vec::len).collect();
        let record = GATHERED_BYTES;
        assert_eq!(lengths, [record, 2 * record, record, 2 * record, 24]);
    }

    #[test]
    fn nothing_is_lost_or_moved_where_the_channel_takes_little_at_a_time() {
        for is_slow in [false, true] {
            let mut gather = Gather::new(Writes {
                is_slow,
                ..Writes::default()
            });
            let mut expected = Vec::new();
            let mut seed = 1_u32;
            block_on(async {
                for _ in 0..300 {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let length = match seed >> 30 {
                        0 => 12,
                        1 => (seed >> 8) as usize % 100,
                        2 => (seed >> 8) as usize % 20_000,
                        _ => (seed >> 8) as usize % 100_000,
                    };
                    let bytes: Vec<u8> = (0..length).map(|at| (at as u32 ^ seed) as u8).collect();
                    expected.extend_from_slice(&bytes);
                    gather.write_all(&bytes).await.unwrap();
                    if seed & 7 == 0 {
                        gather.flush().await.unwrap();
                    }
                }
                gather.close().await.unwrap();
            });
            assert!(gather.channel.each.concat() == expected);
        }
    }
}
