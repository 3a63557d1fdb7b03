//! Streams that go on until the VMM ends: what the guest says, and what happens to it.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::{Stream, stream};
use migrate::progress::Event;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};

use crate::devices::{ConsoleReader, Heard};

/// Something that has something to say now and then.
pub(super) trait Feed: Send + 'static {
    /// Waits for it; `None` when there will be nothing more. Nothing is lost when the future is dropped.
    fn next(&mut self) -> impl Future<Output = Option<Bytes>> + Send;
}

impl Feed for ConsoleReader {
    /// Output of the guest, and before it how much of it this listener has missed.
    async fn next(&mut self) -> Option<Bytes> {
        let Heard { lost, bytes } = ConsoleReader::next(self).await;
        Some(match lost {
            0 => bytes.into(),
            lost => [format!("\r\n[{lost} bytes lost]\r\n").into_bytes(), bytes].concat().into(),
        })
    }
}

impl Feed for broadcast::Receiver<Event> {
    /// An event as a line of JSON.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            match self.recv().await {
                Ok(event) => {
                    // An event that cannot be written as JSON would be a mistake of ours; its line is then empty.
                    let mut line = serde_json::to_vec(&event).unwrap_or_default();
                    line.push(b'\n');
                    return Some(line.into());
                }
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    }
}

/// What the feed says, until the VMM ends; what it had to say by then is still told.
pub(super) fn follow(
    feed: impl Feed,
    closing: watch::Receiver<bool>,
) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
    stream::unfold((feed, closing), |(mut feed, mut closing)| async move {
        let bytes = tokio::select! {
            biased;
            bytes = Feed::next(&mut feed) => bytes?,
            _ = closing.wait_for(|&closing| closing) => return None,
        };
        Some((Ok(bytes), (feed, closing)))
    })
}
