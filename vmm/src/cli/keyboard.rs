//! What is typed, on its way to a guest.

use std::io::{self, IsTerminal, Read};

use tokio::sync::mpsc;

use super::escape::Escape;

/// Something typed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Typed {
    /// For the guest.
    Bytes(Vec<u8>),
    /// For us: Ctrl-A x.
    Leave,
}

/// Listens on standard input, until it ends. On a thread of its own, because a terminal cannot be read
/// otherwise without changing it for all who share it; the thread ends with the process.
pub(super) fn listen() -> mpsc::Receiver<Typed> {
    let (sender, receiver) = mpsc::channel(16);
    let mut escape = io::stdin().is_terminal().then(Escape::default);
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = io::stdin().read(&mut buffer) {
            let (bytes, leave) = match &mut escape {
                Some(escape) => escape.feed(&buffer[..count]),
                None => (buffer[..count].to_vec(), false),
            };
            let said = (!bytes.is_empty()).then_some(Typed::Bytes(bytes));
            for typed in said.into_iter().chain(leave.then_some(Typed::Leave)) {
                if sender.blocking_send(typed).is_err() {
                    return;
                }
            }
        }
    });
    receiver
}
