//! Proves that files which will not do are named with the way out, and that `migrate tls` makes what it says and overwrites
//! nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use migrate::protection::{Protection, authority};
use tempfile::TempDir;

#[test]
fn files_that_will_not_do_are_named() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    for ca in ["ours", "theirs"] {
        authority::init(&path(ca), &["a", "b"].map(str::to_owned)).unwrap();
    }
    authority::shared_key(&path("ours.psk")).unwrap();
    let shows = |dir: &str, name: Option<&str>| Protection::Certificates {
        dir: path(dir),
        name: name.map(str::to_owned),
    };
    let shows_key = |file: &str| Protection::SharedKey { file: path(file) };
    let wrong = |protection: Protection, says: &str| {
        let error = protection.identity("a:1").unwrap_err().to_string();
        assert!(error.contains(says) && !error.contains('\n'), "{error}");
    };
    wrong(shows("nowhere", None), "nowhere/ca.pem: No such file");
    wrong(shows("ours/a", Some("not a name")), "--tls-name: \"not a name\" is neither a DNS name");
    fs::copy(path("theirs/a/cert.pem"), path("ours/a/cert.pem")).unwrap();
    wrong(shows("ours/a", None), "do not belong together");
    chmod(&path("ours/b/key.pem"), 0o640);
    wrong(shows("ours/b", None), "key.pem is a secret that others can read (mode 0640): chmod 600");
    chmod(&path("ours.psk"), 0o644);
    wrong(shows_key("ours.psk"), "(mode 0644): chmod 600");
    let key = |content: &[u8]| {
        let file = path("key.psk");
        fs::write(&file, content).unwrap();
        chmod(&file, 0o600);
        shows_key("key.psk")
    };
    wrong(key(b"password"), "a key of 8 bytes can be guessed");
    wrong(key(b"00112233445566778899aabbccddee\n"), "a key of 15 bytes can be guessed");
    assert!(key(b"00112233445566778899aabbccddeeff\n").identity("a:1").unwrap().is_some());
    assert!(key(&[0xff; 32]).identity("a:1").unwrap().is_some());
}

#[test]
fn a_ca_is_made_once_and_hosts_are_added() {
    let dir = TempDir::new().unwrap();
    let host = |name: &str| authority::init(dir.path(), &[name.to_owned()]);
    assert!(host("a.example").unwrap().authority);
    let ca = fs::read(dir.path().join("ca.pem")).unwrap();
    assert!(!host("::1").unwrap().authority);
    assert_eq!(fs::read(dir.path().join("ca.pem")).unwrap(), ca);
    for secret in ["ca-key.pem", "a.example/key.pem", "::1/key.pem"] {
        let mode = fs::metadata(dir.path().join(secret)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{secret}");
    }
    let key = fs::read(dir.path().join("a.example/key.pem")).unwrap();
    assert!(host("a.example").unwrap_err().to_string().contains("is there already"));
    assert_eq!(fs::read(dir.path().join("a.example/key.pem")).unwrap(), key);
    assert!(host("../x").unwrap_err().to_string().contains("neither a DNS name nor an IP address"));
    let other = TempDir::new().unwrap();
    authority::init(other.path(), &[]).unwrap();
    fs::copy(other.path().join("ca.pem"), dir.path().join("ca.pem")).unwrap();
    let error = host("b").unwrap_err().to_string();
    assert!(error.contains("was not made by `migrate tls init`"), "{error}");
    assert!(!dir.path().join("b").exists());
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}
