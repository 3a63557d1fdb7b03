//! Answers that go on until the VMM ends them.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::{ClientError, Result};
use crate::progress::Event;

/// Longest line of the event stream; the report at its end is the longest by far.
const MAX_LINE: usize = 16 << 20;

/// Events as they happen, one JSON object a line.
#[derive(Debug)]
pub struct Events {
    name: String,
    body: Incoming,
    buffer: BytesMut,
}

impl Events {
    pub(super) fn new(name: String, body: Incoming) -> Self {
        Self { name, body, buffer: BytesMut::new() }
    }

    /// The next event; `None` when the VMM has ended the stream. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// When the connection broke, or what came is no event.
    pub async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                return serde_json::from_slice(&line)
                    .map(Some)
                    .map_err(|error| self.garbled(&error.to_string()));
            }
            if self.buffer.len() > MAX_LINE {
                return Err(self.garbled(&format!("a line of more than {MAX_LINE} bytes")));
            }
            match read(&mut self.body, &self.name).await? {
                Some(bytes) => self.buffer.extend_from_slice(&bytes),
                None => return Ok(None),
            }
        }
    }

    fn garbled(&self, reason: &str) -> ClientError {
        ClientError::Garbled {
            name: self.name.clone(),
            what: "GET /events".to_owned(),
            reason: reason.to_owned(),
        }
    }
}

/// What the guest says on its console.
#[derive(Debug)]
pub struct ConsoleOutput {
    body: Incoming,
}

impl ConsoleOutput {
    pub(super) fn new(body: Incoming) -> Self {
        Self { body }
    }

    /// The next bytes; `None` when the VMM is gone: a console ends with its guest, however that came about.
    pub async fn next(&mut self) -> Option<Bytes> {
        read(&mut self.body, "").await.ok().flatten()
    }
}

/// The next data of a body, at least one byte.
async fn read(body: &mut Incoming, name: &str) -> Result<Option<Bytes>> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ClientError::Unreachable {
            name: name.to_owned(),
            reason: format!("the connection broke: {error}"),
        })?;
        if let Ok(data) = frame.into_data()
            && !data.is_empty()
        {
            return Ok(Some(data));
        }
    }
    Ok(None)
}
