//! Another user on the control socket, whose mode was changed so that it can connect: it is refused, whatever it asks for.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::Uid;

use super::*;

const NOBODY: u32 = 65534;

/// What the server answers to a request of user `uid`. Only this thread becomes that user (setresuid(2)), and ends.
fn ask_as(uid: u32, socket: PathBuf, head: &'static str) -> String {
    let stranger = std::thread::spawn(move || {
        let user = Uid::from_raw(uid);
        rustix::thread::set_thread_res_uid(user, user, user).unwrap();
        let mut stream = UnixStream::connect(socket).unwrap();
        write!(stream, "{head} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    stranger.join().unwrap()
}

/// Undoes what keeps others out.
fn open_to_all(directory: &Path, socket: &Path) {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(socket, fs::Permissions::from_mode(0o666)).unwrap();
}

#[cfg_attr(no_root, ignore = "needs root")]
#[tokio::test]
async fn another_user_is_refused_even_where_the_socket_is_open_to_all() {
    let served = Served::start();
    let socket = served.directory.path().join("demo.sock");
    open_to_all(served.directory.path(), &socket);
    for head in ["GET /vm", "POST /vm/stop", "GET /console", "GET /nothing"] {
        let path = socket.clone();
        let answer = tokio::task::spawn_blocking(move || ask_as(NOBODY, path, head)).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 403 "), "{head}: {answer}");
        let why = "this VMM belongs to user 0 and serves that user and root only, not user 65534";
        assert!(answer.ends_with(&format!("{{\"error\":\"{why}\"}}")), "{head}: {answer}");
    }
    assert_eq!(served.vm.asked(), Vec::<String>::new());
    assert_eq!(served.client().info().await.unwrap(), served.vm.info(), "its own user is served");
}
