//! The other end of the control socket, for the command line.

use std::{path::Path, time::Duration};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode, body::Bytes};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use super::short_socket_path;

/// Most bytes of an answer (a `find` over a million files).
const ANSWER_BYTES_MAX: usize = 512 * 1024 * 1024;

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

    /// Whether a process answers.
    pub async fn is_running(&self) -> bool {
        self.version().await.is_ok()
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
        let connection = tokio::spawn(connection);
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
        let status = answer.status();
        let text = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| ClientError::Garbled(error.to_string()))?
            .to_bytes();
        connection.abort();
        match status {
            StatusCode::OK => Ok(text),
            StatusCode::CONFLICT => Err(ClientError::Refused(
                String::from_utf8_lossy(&text).into_owned(),
            )),
            _ => Err(ClientError::Garbled(format!(
                "{status}: {}",
                String::from_utf8_lossy(&text)
            ))),
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
