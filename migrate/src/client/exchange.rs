//! One request and its answer: HTTP/1.1 over a new connection to the VMM's socket.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::types::Problem;
use super::{ClientError, Result};

/// Longest wait for an answer. Stopping a guest is the slowest request and takes far less.
const DEADLINE: Duration = Duration::from_secs(10);

/// Largest answer that is not a stream: a report of very many rounds is well below it.
const MAX_ANSWER: usize = 16 << 20;

#[derive(Debug, Clone)]
pub(super) struct Exchange {
    name: String,
    socket: PathBuf,
}

impl Exchange {
    pub(super) fn new(name: &str, socket: PathBuf) -> Self {
        Self { name: name.to_owned(), socket }
    }

    /// A request whose answer is a value.
    pub(super) async fn fetch<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let body = self.whole(Method::GET, path, Bytes::new()).await?;
        serde_json::from_slice(&body)
            .map_err(|error| self.garbled(&format!("GET {path}"), &error.to_string()))
    }

    /// A request to do something, whose answer says what came of it.
    pub(super) async fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let body = self.whole(Method::POST, path, Bytes::new()).await?;
        serde_json::from_slice(&body)
            .map_err(|error| self.garbled(&format!("POST {path}"), &error.to_string()))
    }

    /// A request whose answer is that it was done, or why not.
    pub(super) async fn order(&self, method: Method, path: &str, body: Bytes) -> Result<()> {
        self.whole(method, path, body).await.map(drop)
    }

    /// A request whose answer goes on and on.
    pub(super) async fn stream(&self, path: &str) -> Result<Incoming> {
        let what = format!("GET {path}");
        let response = self.in_time(&what, self.send(Method::GET, path, Bytes::new())).await?;
        if response.status().is_success() {
            return Ok(response.into_body());
        }
        let status = response.status();
        let body = self.in_time(&what, self.collect(response)).await?;
        Err(self.refusal(&what, status, &body))
    }

    async fn whole(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes> {
        let what = format!("{method} {path}");
        let answer = async {
            let response = self.send(method, path, body).await?;
            Ok((response.status(), self.collect(response).await?))
        };
        let (status, body) = self.in_time(&what, answer).await?;
        if status.is_success() { Ok(body) } else { Err(self.refusal(&what, status, &body)) }
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.unreachable(&e))?;
        // Ends by itself with the connection; what goes wrong in it shows in the answer.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(hyper::header::HOST, "vmm")
            .header(hyper::header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| ClientError::Request(error.to_string()))?;
        sender.send_request(request).await.map_err(|error| self.unreachable(&error))
    }

    async fn collect(&self, response: Response<Incoming>) -> Result<Bytes> {
        let body = Limited::new(response.into_body(), MAX_ANSWER);
        body.collect().await.map(|body| body.to_bytes()).map_err(|error| self.unreachable(error.as_ref()))
    }

    async fn in_time<T>(&self, what: &str, answer: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::time::timeout(DEADLINE, answer).await.unwrap_or_else(|_| {
            Err(ClientError::TimedOut { name: self.name.clone(), what: what.to_owned(), after: DEADLINE })
        })
    }

    fn refusal(&self, what: &str, status: StatusCode, body: &[u8]) -> ClientError {
        match serde_json::from_slice::<Problem>(body) {
            Ok(Problem { taken: Some(taken), error }) => ClientError::NotAllTaken { taken, reason: error },
            Ok(problem) => ClientError::Refused { status: status.as_u16(), reason: problem.error },
            Err(_) => self.garbled(what, &format!("status {status}")),
        }
    }

    fn unreachable(&self, error: &(dyn std::error::Error + 'static)) -> ClientError {
        ClientError::Unreachable { name: self.name.clone(), reason: chain(error) }
    }

    fn garbled(&self, what: &str, reason: &str) -> ClientError {
        ClientError::Garbled { name: self.name.clone(), what: what.to_owned(), reason: reason.to_owned() }
    }
}

/// hyper says what it was doing; the cause below it says what happened.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
