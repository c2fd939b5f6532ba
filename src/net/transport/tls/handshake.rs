//! The handshake, which rustls makes, up to where [`super::records`] takes over with the keys.

use std::io;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use rustls::{
    CommonState, Error, ExtractedSecrets,
    client::UnbufferedClientConnection,
    server::UnbufferedServerConnection,
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus},
};

use super::records::{Channel, Renewal};

/// Bytes that are read at a time: a handshake takes about two thousand.
const READ_BYTES: usize = 4096;
/// Most that is held of what the other side sends before its handshake is understood. rustls takes no longer message.
const HELD_BYTES_MAX: usize = 64 * 1024;

/// One of the two sides.
pub(super) trait Side: Send {
    type Data;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data>;

    fn state(&self) -> &CommonState;

    fn into_keys(self) -> Result<(ExtractedSecrets, Box<dyn Renewal>), Error>;
}

impl Side for UnbufferedClientConnection {
    type Data = rustls::client::ClientConnectionData;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn state(&self) -> &CommonState {
        self
    }

    fn into_keys(self) -> Result<(ExtractedSecrets, Box<dyn Renewal>), Error> {
        let (secrets, renewal) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Box::new(renewal)))
    }
}

impl Side for UnbufferedServerConnection {
    type Data = rustls::server::ServerConnectionData;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn state(&self) -> &CommonState {
        self
    }

    fn into_keys(self) -> Result<(ExtractedSecrets, Box<dyn Renewal>), Error> {
        let (secrets, renewal) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Box::new(renewal)))
    }
}

/// What is to be done before rustls can go on.
enum Next {
    Nothing,
    Send,
    Receive,
    Done,
    Refused(Error),
}

/// Makes the handshake. `look` sees its outcome before anything else is read or written.
pub(super) async fn shake<H, S, T, E>(
    mut side: H,
    mut socket: S,
    look: impl FnOnce(&CommonState) -> Result<T, E>,
) -> Result<(T, Channel<S>), E>
where
    H: Side,
    S: AsyncRead + AsyncWrite + Unpin,
    E: From<io::Error>,
{
    let mut incoming = Vec::new();
    let mut outgoing = Vec::new();
    // What the other side sent along with the end of its handshake.
    let mut early = Vec::new();
    loop {
        let UnbufferedStatus { discard, state } = side.process(&mut incoming);
        let next = match state {
            Ok(ConnectionState::EncodeTlsData(data)) => {
                encode(data, &mut outgoing).map_err(io::Error::other)?;
                Next::Nothing
            }
            Ok(ConnectionState::TransmitTlsData(sent)) => {
                sent.done();
                Next::Send
            }
            Ok(ConnectionState::BlockedHandshake) => Next::Receive,
            Ok(ConnectionState::WriteTraffic(_)) => Next::Done,
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    early.extend_from_slice(record.map_err(refused)?.payload);
                }
                Next::Nothing
            }
            Ok(_) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Err(error) => Next::Refused(error),
        };
        incoming.drain(..discard);
        match next {
            Next::Nothing => {}
            Next::Send => {
                socket.write_all(&outgoing).await?;
                outgoing.clear();
                socket.flush().await?;
            }
            Next::Receive => {
                let held = incoming.len();
                if held >= HELD_BYTES_MAX {
                    return Err(io::Error::from(io::ErrorKind::InvalidData).into());
                }
                incoming.resize(held + READ_BYTES, 0);
                let came = socket.read(&mut incoming[held..]).await?;
                incoming.truncate(held + came);
                if came == 0 {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
            }
            Next::Done => break,
            Next::Refused(error) => {
                // Why, for the other side, as far as it still listens. Nothing of what came is looked at any more.
                while side.state().wants_write()
                    && let Ok(ConnectionState::EncodeTlsData(data)) = side.process(&mut []).state
                {
                    encode(data, &mut outgoing).map_err(io::Error::other)?;
                }
                if socket.write_all(&outgoing).await.is_ok() {
                    let _ = socket.flush().await;
                }
                return Err(refused(error).into());
            }
        }
    }
    let seen = look(side.state())?;
    let (secrets, renewal) = side.into_keys().map_err(refused)?;
    let channel = Channel::new(socket, secrets, renewal, early, &incoming)?;
    Ok((seen, channel))
}

fn refused(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Appends what rustls has to say.
fn encode<D>(mut data: EncodeTlsData<'_, D>, outgoing: &mut Vec<u8>) -> Result<(), EncodeError> {
    let start = outgoing.len();
    let mut written = data.encode(&mut []);
    if let Err(EncodeError::InsufficientSize(short)) = &written {
        outgoing.resize(start + short.required_size, 0);
        written = data.encode(&mut outgoing[start..]);
    }
    outgoing.truncate(start + written?);
    Ok(())
}
