//! What a process writes, as it comes: kept, and waited for.

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::watch;

/// Everything a pipe has brought so far. The pipe is emptied in the background, so that no one writing to it waits.
#[derive(Debug, Clone)]
pub struct Output(watch::Receiver<Vec<u8>>);

impl Output {
    /// Begins to read.
    #[must_use]
    pub fn of(mut pipe: impl AsyncRead + Unpin + Send + 'static) -> Self {
        let (sender, receiver) = watch::channel(Vec::new());
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            // A pipe that fails is at its end as well.
            while let Ok(read @ 1..) = pipe.read(&mut buffer).await {
                sender.send_modify(|all| all.extend_from_slice(&buffer[..read]));
            }
        });
        Self(receiver)
    }

    /// What came so far.
    #[must_use]
    pub fn so_far(&self) -> Vec<u8> {
        self.0.borrow().clone()
    }

    /// Waits until what came so far is enough. `false` when the pipe has come to its end and it is not.
    pub async fn reaches(&mut self, enough: impl FnMut(&Vec<u8>) -> bool) -> bool {
        self.0.wait_for(enough).await.is_ok()
    }

    /// Waits for the end and has everything.
    pub async fn to_end(&mut self) -> Vec<u8> {
        self.reaches(|_| false).await;
        self.so_far()
    }
}

/// The last line that is not empty, for an error message.
#[must_use]
pub fn last_line(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    text.lines().map(str::trim).rfind(|line| !line.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn what_was_waited_for_comes_or_does_not() {
        let (mut writer, reader) = tokio::io::duplex(16);
        let mut output = Output::of(reader);
        writer.write_all(b"listening\nthen").await.unwrap();
        assert!(output.reaches(|all| all.ends_with(b"then")).await);
        drop(writer);
        assert!(!output.reaches(|all| all.ends_with(b"never")).await);
        assert_eq!(output.to_end().await, b"listening\nthen");
    }

    #[test]
    fn the_last_words() {
        assert_eq!(last_line(b"a\n b \n\n").as_deref(), Some("b"));
        assert_eq!(last_line(b" \n"), None);
    }
}
