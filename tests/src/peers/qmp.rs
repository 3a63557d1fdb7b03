//! QEMU's control socket (QMP): commands, their answers, and events, which come between them.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::error::{PeersError, within};

const START: Duration = Duration::from_secs(20);
const ANSWER: Duration = Duration::from_secs(20);
/// Between two looks for the socket.
const PAUSE: Duration = Duration::from_millis(10);

/// One QEMU's.
#[derive(Debug)]
pub(super) struct Qmp {
    lines: Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
    events: VecDeque<Value>,
}

impl Qmp {
    /// Waits for the socket and greets.
    pub(super) async fn connect(path: &Path) -> Result<Self, PeersError> {
        let stream = within(START, "QEMU's control socket", async {
            loop {
                if let Ok(stream) = UnixStream::connect(path).await {
                    return stream;
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
        let (reader, writer) = stream.await?.into_split();
        let mut qmp = Self { lines: BufReader::new(reader).lines(), writer, events: VecDeque::new() };
        within(START, "QEMU's greeting", qmp.read()).await??;
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// A command that must succeed.
    pub(super) async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, PeersError> {
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.writer.write_all(line.as_bytes()).await.map_err(PeersError::host("speak to QEMU"))?;
        within(ANSWER, format!("QEMU's answer to {command}"), async {
            loop {
                let mut said = self.read().await?;
                if said.get("event").is_some() {
                    self.events.push_back(said);
                } else if let Some(error) = said.get("error") {
                    return Err(PeersError::Failed(format!("QEMU refuses {command}: {}", error["desc"])));
                } else {
                    return Ok(said["return"].take());
                }
            }
        })
        .await?
    }

    /// The next event of this name.
    pub(super) async fn event(&mut self, name: &str) -> Result<Value, PeersError> {
        loop {
            let said = match self.events.pop_front() {
                Some(event) => event,
                None => self.read().await?,
            };
            if said["event"] == name {
                return Ok(said);
            }
        }
    }

    async fn read(&mut self) -> Result<Value, PeersError> {
        let line = self.lines.next_line().await.map_err(PeersError::host("hear QEMU"))?;
        let line = line.ok_or_else(|| PeersError::Failed("QEMU has ended".to_owned()))?;
        serde_json::from_str(&line).map_err(|_| PeersError::Failed(format!("QEMU said {line:?}")))
    }
}
