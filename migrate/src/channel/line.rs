//! A line: a link that speaks messages. All connections do, if only to say hello.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Link;
use crate::failure::Failure;
use crate::wire::limits::HEAD_BYTES;
use crate::wire::message::{Reason, tame};
use crate::wire::{Error, Head, Kind, Message};

/// A link that speaks messages. Many may tell; one thread hears.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    link: Arc<dyn Link>,
    peer: Arc<str>,
    /// The link's time limit in ms, to say it when it has passed.
    limit_ms: Arc<AtomicU64>,
    /// Bytes told.
    told: Arc<AtomicU64>,
}

impl Line {
    pub(crate) fn new(link: Arc<dyn Link>, limit: Duration) -> Result<Self, Failure> {
        let peer: Arc<str> = link.peer().into();
        let line = Self { link, peer, limit_ms: Arc::default(), told: Arc::default() };
        line.set_limit(limit)?;
        Ok(line)
    }

    pub(crate) fn link(&self) -> &Arc<dyn Link> {
        &self.link
    }

    pub(crate) fn peer(&self) -> &str {
        &self.peer
    }

    /// Bytes told so far.
    pub(crate) fn told(&self) -> u64 {
        self.told.load(Ordering::Relaxed)
    }

    /// Sets how long the peer may be silent.
    pub(crate) fn set_limit(&self, limit: Duration) -> Result<(), Failure> {
        self.limit_ms.store(limit.as_millis() as u64, Ordering::Relaxed);
        self.link.set_limit(limit).map_err(Failure::link(&self.peer, limit))
    }

    /// Says `message`.
    pub(crate) fn tell(&self, message: &Message) -> Result<(), Failure> {
        let too_large =
            |error: Error| Failure::Guest { doing: "tell the other side", why: error.to_string() };
        let frame = message.encode().map_err(too_large)?;
        self.told.fetch_add(frame.len() as u64, Ordering::Relaxed);
        self.link.send(&frame).map_err(self.broken())
    }

    /// Says why this side gives up. The peer may be gone already.
    pub(crate) fn abort(&self, failure: &Failure) {
        let reason = tame(&failure.to_string());
        let _ = self.tell(&Message::Abort(Reason { reason }));
    }

    /// The next head that is not a mere sign of life. An abort is a failure wherever it comes.
    pub(crate) fn hear_head(&self) -> Result<Head, Failure> {
        loop {
            let mut bytes = [0; HEAD_BYTES];
            self.link.receive(&mut bytes).map_err(self.broken())?;
            let head = Head::decode(&bytes).map_err(Failure::wire(&self.peer))?;
            if head.kind != Kind::Alive {
                return Ok(head);
            }
        }
    }

    /// The message that `head` announces.
    pub(crate) fn body(&self, head: &Head) -> Result<Message, Failure> {
        let mut payload = vec![0; head.length];
        self.link.receive(&mut payload).map_err(self.broken_off())?;
        match Message::decode(head, &payload).map_err(Failure::wire(&self.peer))? {
            Message::Abort(Reason { reason }) => {
                Err(Failure::Aborted { peer: self.peer.to_string(), reason })
            }
            message => Ok(message),
        }
    }

    /// The next message.
    pub(crate) fn hear(&self) -> Result<Message, Failure> {
        let head = self.hear_head()?;
        self.body(&head)
    }

    /// The failure for a message that does not belong here.
    pub(crate) fn unexpected(&self, got: Kind, expected: &'static str) -> Failure {
        Failure::wire(&self.peer)(Error::Unexpected { got, expected })
    }

    /// Wraps what the link says where a message has begun: silence is the end of it.
    pub(crate) fn broken_off(&self) -> impl FnOnce(std::io::Error) -> Failure {
        let broken = self.broken();
        move |error| match error.kind() {
            ErrorKind::WouldBlock => broken(ErrorKind::TimedOut.into()),
            _ => broken(error),
        }
    }

    /// Wraps what the link says.
    pub(crate) fn broken(&self) -> impl FnOnce(std::io::Error) -> Failure {
        Failure::link(&self.peer, Duration::from_millis(self.limit_ms.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::memory;

    #[test]
    fn signs_of_life_are_heard_but_not_told_and_an_abort_fails() {
        let (near, far) = memory::pair();
        let limit = Duration::from_secs(5);
        let near = Line::new(near, limit).expect("open");
        let far = Line::new(far, limit).expect("open");
        for message in [Message::Alive, Message::Alive, Message::Commit] {
            near.tell(&message).expect("open");
        }
        assert_eq!(far.hear(), Ok(Message::Commit));
        near.abort(&Failure::Cancelled("enough".to_owned()));
        let heard = far.hear().expect_err("an abort").to_string();
        assert_eq!(heard, "the other side gave up: cancelled: enough");
    }

    #[test]
    fn silence_between_messages_is_no_broken_message_and_after_a_head_it_is() {
        let (near, far) = memory::pair();
        let far = Line::new(far, Duration::from_millis(20)).expect("open");
        assert!(matches!(far.hear(), Err(Failure::Silent { .. })));
        near.send(&Head::new(Kind::Hello, 100, 0).encode()).expect("open");
        let cut = far.hear().expect_err("no more comes").to_string();
        assert!(cut.contains("stopped in the middle of a message"), "{cut}");
    }
}
