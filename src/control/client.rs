//! The other end of the control socket, for the command line.

use std::{path::Path, time::Duration};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;
use tokio_util::task::AbortOnDropHandle;

use super::short_socket_path;

/// Most bytes of an answer (a `find` over a million files).
const ANSWER_BYTES_MAX: usize = 512 * 1024 * 1024;
/// Most bytes of a line of a report that goes on.
const LINE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Why a mount could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No process is behind the state folder.
    #[error("no mount is running there")]
    NotRunning,
    /// Somebody else listens there.
    #[error("the process there belongs to another user (uid {0})")]
    Foreign(u32),
    /// It refused, in its own words.
    #[error("{0}")]
    Refused(String),
    /// What was asked for makes no sense to it, in its own words.
    #[error("{0}")]
    Wrong(String),
    /// It did not answer in time.
    #[error("the mount did not answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The answer makes no sense, as between very different versions.
    #[error("the mount's answer was not understood: {0}")]
    Garbled(String),
}

/// A client of one mount.
#[derive(Clone, Debug)]
pub struct ControlClient {
    dir: std::path::PathBuf,
}

impl ControlClient {
    /// For the mount whose state folder this is.
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_path_buf(),
        }
    }

    /// The version of the running mount.
    pub async fn version(&self) -> Result<String, ClientError> {
        let text = self
            .exchange(Method::GET, "/version", Vec::new(), Duration::from_secs(5))
            .await?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Whether the mount is coming to its end.
    pub async fn is_ending(&self) -> Result<bool, ClientError> {
        self.get("/ending", Duration::from_secs(1)).await
    }

    /// Reads a report.
    pub async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        within: Duration,
    ) -> Result<T, ClientError> {
        let text = self.exchange(Method::GET, path, Vec::new(), within).await?;
        serde_json::from_slice(&text).map_err(|error| ClientError::Garbled(error.to_string()))
    }

    /// Asks for an action.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        request: &impl Serialize,
        within: Duration,
    ) -> Result<T, ClientError> {
        let body =
            serde_json::to_vec(request).map_err(|error| ClientError::Garbled(error.to_string()))?;
        let text = self.exchange(Method::POST, path, body, within).await?;
        serde_json::from_slice(&text).map_err(|error| ClientError::Garbled(error.to_string()))
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        within: Duration,
    ) -> Result<Bytes, ClientError> {
        tokio::time::timeout(within, self.exchange_unbounded(method, path, body))
            .await
            .map_err(|_| ClientError::TimedOut(within))?
    }

    async fn exchange_unbounded(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<Bytes, ClientError> {
        let (answer, _connection) = self.send(method, path, body).await?;
        text_of(answer).await
    }

    /// Follows a report that goes on, line by line.
    pub async fn follow(&self, path: &str, within: Duration) -> Result<Lines, ClientError> {
        self.lines(Method::GET, path, Vec::new(), within).await
    }

    /// Asks for an action and follows, line by line, how it goes. Dropping the lines gives it up.
    pub async fn start(
        &self,
        path: &str,
        request: &impl Serialize,
        within: Duration,
    ) -> Result<Lines, ClientError> {
        let body =
            serde_json::to_vec(request).map_err(|error| ClientError::Garbled(error.to_string()))?;
        self.lines(Method::POST, path, body, within).await
    }

    async fn lines(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        within: Duration,
    ) -> Result<Lines, ClientError> {
        let begin = async {
            let (answer, connection) = self.send(method, path, body).await?;
            if answer.status() == StatusCode::OK {
                return Ok(Lines {
                    body: answer.into_body(),
                    read: Vec::new(),
                    _connection: connection,
                });
            }
            Err(match text_of(answer).await {
                Ok(_) => ClientError::Garbled("an empty report".into()),
                Err(error) => error,
            })
        };
        tokio::time::timeout(within, begin)
            .await
            .map_err(|_| ClientError::TimedOut(within))?
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(Response<Incoming>, AbortOnDropHandle<hyper::Result<()>>), ClientError> {
        let garbled = |error: &dyn std::fmt::Display| ClientError::Garbled(error.to_string());
        let folder = std::fs::File::open(&self.dir).map_err(|_| ClientError::NotRunning)?;
        let stream = UnixStream::connect(short_socket_path(&folder, "control.sock"))
            .await
            .map_err(|_| ClientError::NotRunning)?;
        let peer = stream.peer_cred().map_err(|error| garbled(&error))?;
        if peer.uid() != rustix::process::geteuid().as_raw() {
            return Err(ClientError::Foreign(peer.uid()));
        }
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| garbled(&error))?;
        let connection = AbortOnDropHandle::new(tokio::spawn(connection));
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "p2pfs")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| garbled(&error))?;
        let answer = sender
            .send_request(request)
            .await
            .map_err(|error| garbled(&error))?;
        Ok((answer, connection))
    }
}

/// The whole of an answer, or what it says went wrong.
async fn text_of(answer: Response<Incoming>) -> Result<Bytes, ClientError> {
    let status = answer.status();
    let text = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
        .collect()
        .await
        .map_err(|error| ClientError::Garbled(error.to_string()))?
        .to_bytes();
    let words = || String::from_utf8_lossy(&text).into_owned();
    match status {
        StatusCode::OK => Ok(text),
        StatusCode::CONFLICT => Err(ClientError::Refused(words())),
        StatusCode::BAD_REQUEST => Err(ClientError::Wrong(words())),
        _ => Err(ClientError::Garbled(format!("{status}: {}", words()))),
    }
}

/// A report that goes on.
pub struct Lines {
    body: Incoming,
    read: Vec<u8>,
    _connection: AbortOnDropHandle<hyper::Result<()>>,
}

/// How long a mount may say nothing of how far something is; it says so several times a second.
const PROGRESS_WITHIN: Duration = Duration::from_secs(20);

impl Lines {
    /// As [`Lines::next`], of a report that tells how far something is.
    ///
    /// # Errors
    /// Nothing came for 20 s, too: the mount's process is stopped, say.
    pub async fn next_told(&mut self) -> Result<Option<String>, ClientError> {
        tokio::time::timeout(PROGRESS_WITHIN, self.next())
            .await
            .map_err(|_| ClientError::TimedOut(PROGRESS_WITHIN))?
    }

    /// The next line without its end, as soon as there is one; `None` when the mount ends the report.
    ///
    /// # Errors
    /// The mount is gone, or sends a line of more than 16 MiB. Cancelling it loses nothing.
    pub async fn next(&mut self) -> Result<Option<String>, ClientError> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let rest = self.read.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.read, rest);
                line.truncate(end);
                let line = String::from_utf8(line);
                return Ok(Some(
                    line.map_err(|error| ClientError::Garbled(error.to_string()))?,
                ));
            }
            if self.read.len() > LINE_BYTES_MAX {
                return Err(ClientError::Garbled("a line without an end".into()));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(_)) => return Err(ClientError::NotRunning),
                Some(Ok(frame)) => self.read.extend(frame.data_ref().into_iter().flatten()),
            }
        }
    }
}

/// Escapes a query value (RFC 3986: everything but unreserved characters).
pub fn escape(value: &str) -> String {
    value
        .bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
