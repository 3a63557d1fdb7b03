//! The `migrate` command as a process, where no VM is running.

use std::process::Command;

/// Exit status and standard error.
fn migrate(arguments: &[&str]) -> (Option<i32>, String) {
    let nowhere = concat!(env!("CARGO_TARGET_TMPDIR"), "/no-vms");
    let mut command = Command::new(env!("CARGO_BIN_EXE_migrate"));
    let output = command.args(arguments).env("VMM_RUNTIME_DIR", nowhere).output().unwrap();
    assert!(output.stdout.is_empty(), "only reports go to standard output");
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn without_a_vm_there_is_one_clear_line() {
    for arguments in [&["--to", "there:7000"][..], &["status"], &["cancel"], &["watch", "--vm", "demo"]] {
        let (status, said) = migrate(arguments);
        assert_eq!(status, Some(2), "{arguments:?}");
        assert!(said.starts_with("migrate: no VM is running (none answers in "), "{said}");
        assert!(said.ends_with("; start one with vmm run\n"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn wrong_arguments_are_wrong_before_anything_else() {
    let (status, said) = migrate(&["--to", "there"]);
    assert_eq!(status, Some(2));
    assert!(said.contains("\"there\" is not HOST:PORT"), "{said}");
    assert_eq!(migrate(&["--mode", "precopy"]).0, Some(2));
    assert_eq!(migrate(&["resolve"]).0, Some(2));
}
