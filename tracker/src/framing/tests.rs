use std::{
    pin::Pin,
    task::{Context, Poll},
};

use futures::{executor::block_on, io::Cursor};
use proptest::prelude::*;

use super::*;

/// Notes the largest buffer that it is asked to fill.
struct Witness<R> {
    inner: R,
    largest: usize,
}

impl<R: AsyncRead + Unpin> AsyncRead for Witness<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.largest = self.largest.max(buffer.len());
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(messages in proptest::collection::vec((any::<u64>(), ".{0,40}"), 0..8)) {
        block_on(async {
            let mut wire = Cursor::new(Vec::new());
            for message in &messages {
                write_frame(&mut wire, message, 1024).await.unwrap();
            }
            let mut wire = Cursor::new(wire.into_inner());
            for message in &messages {
                let read: (u64, String) = read_frame(&mut wire, 1024).await.unwrap();
                assert_eq!(&read, message);
            }
            assert!(matches!(read_frame_bytes(&mut wire, 1024).await, Err(FrameError::Closed)));
        });
    }

    #[test]
    fn arbitrary_bytes_are_refused_or_decoded_but_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode::<crate::protocol::Request>(&bytes);
        let _ = decode::<crate::protocol::Answer>(&bytes);
    }
}

#[test]
fn an_over_long_claim_is_refused_before_anything_is_read() {
    let mut wire = Witness {
        inner: Cursor::new(vec![0xff; 8]),
        largest: 0,
    };
    let refused = block_on(read_frame_bytes(&mut wire, 1000));
    assert!(
        matches!(refused, Err(FrameError::TooLong { length, max: 1000 }) if length == u32::MAX as usize)
    );
    assert!(wire.largest <= PREFIX_BYTES);
}

#[test]
fn memory_grows_with_the_bytes_that_arrive() {
    let mut bytes = (64u32 << 20).to_be_bytes().to_vec();
    bytes.extend([0; 1000]);
    let mut wire = Witness {
        inner: Cursor::new(bytes),
        largest: 0,
    };
    let cut = block_on(read_frame_bytes(&mut wire, 64 << 20));
    assert!(
        matches!(cut, Err(FrameError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof)
    );
    assert!(wire.largest <= GROWTH_BYTES_MAX);
}

#[test]
fn a_stream_that_ends_within_a_frame_is_an_error_not_an_end() {
    for cut in 1..6 {
        let mut frame = encode_frame(&(7u8, 300u16), 100).unwrap();
        frame.truncate(cut);
        assert!(matches!(
            block_on(read_frame_bytes(&mut Cursor::new(frame), 100)),
            Err(FrameError::Io(_))
        ));
    }
}

#[test]
fn bytes_behind_the_message_are_refused() {
    let mut bytes = cbor4ii::serde::to_vec(Vec::new(), &7u8).unwrap();
    bytes.push(0);
    assert!(matches!(
        decode::<u8>(&bytes),
        Err(FrameError::Malformed(_))
    ));
}

#[test]
fn a_message_beyond_its_bound_is_not_sent() {
    assert!(matches!(
        encode_frame(&"four", 4),
        Err(FrameError::TooLong { length: 5, max: 4 })
    ));
    assert!(encode_frame(&"four", 5).is_ok());
}

#[test]
fn a_message_that_ends_within_a_value_is_refused_also_where_its_type_would_not_read_that() {
    use crate::protocol::{Ask, Request, RequestId};

    // {"id": 1, "ask": {"Heads": and nothing for it
    let cut = b"\xa2\x62id\x01\x63ask\xa1\x65Heads";
    assert!(decode::<Request>(cut).is_err());
    assert!(decode::<RequestId>(cut).is_err());
    let whole = b"\xa2\x62id\x01\x63ask\x65Heads";
    assert_eq!(decode::<Request>(whole).unwrap().ask, Ask::Heads);
}
