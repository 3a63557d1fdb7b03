//! The saved state, as `docs/state.md` describes it: read by a program that was written from the document alone.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tests::saved::{check, check_machine, number, read};
use vmm::config::{Kernel, MachineConfig};
use vmm::devices::Console;
use vmm::machine::Machine;

/// Against hangs only.
const DEADLINE: Duration = Duration::from_secs(60);

fn golden_files() -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../vmm/tests/golden");
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = paths.filter(|path| path.extension().is_some_and(|end| end == "bin"));
    files.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

#[test]
fn golden_files_are_as_the_document_says() {
    let files = golden_files();
    for (path, bytes) in &files {
        let sections = read(bytes).unwrap_or_else(|wrong| panic!("{}: {wrong}", path.display()));
        let [section] = sections.as_slice() else { panic!("{}: not one section", path.display()) };
        check(section).unwrap_or_else(|wrong| panic!("{}: {wrong}", path.display()));
        let name = path.file_name().unwrap().to_string_lossy();
        assert!(name.starts_with(&format!("{}-{}", section.name, section.version)), "{name} is misnamed");
    }
    assert!(files.len() >= 9, "{} golden files", files.len());
}

/// The reader is not blind.
#[test]
fn every_cut_and_every_flipped_bit_of_a_golden_file_is_noticed() {
    for (path, bytes) in golden_files() {
        for end in 0..bytes.len() {
            assert!(read(&bytes[..end]).is_err(), "{} cut at {end}", path.display());
        }
        for at in (0..bytes.len()).step_by(1 + bytes.len() / 200) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            assert!(read(&damaged).is_err(), "{} flipped at {at}", path.display());
        }
    }
}

/// A machine with the demo guest at work and every device that needs nothing of the network.
#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn what_a_machine_saves_is_as_the_document_says() {
    let folder = tempfile::tempdir().unwrap();
    let (kernel, disk) = (folder.path().join("kernel"), folder.path().join("disk.img"));
    std::fs::write(&kernel, guest::IMAGE).unwrap();
    std::fs::File::create(&disk).unwrap().set_len(77 * 512).unwrap();
    let config = MachineConfig {
        name: "saved".parse().unwrap(),
        uuid: Default::default(),
        memory: "64M".parse().unwrap(),
        cpus: "2".parse().unwrap(),
        cmdline: "dirty ws=8 fill=8".parse().unwrap(),
        kernel: Kernel::File(kernel),
        initramfs: None,
        disks: vec![format!("{},serial=a", disk.display()).parse().unwrap()],
        nics: Vec::new(),
        cpu: vmm::vcpu::CpuChoice::default(),
        virtio_console: true,
        on_reset: vmm::config::OnReset::Reboot,
    };
    let console = Console::new();
    let machine = Machine::boot(&config, console.clone()).unwrap().resume();
    assert!(console.wait_for("working", DEADLINE), "the guest is not at work");
    let machine = machine.pause().unwrap();
    console.input(b"typed while it stands still");
    let sections = read(&machine.save().unwrap()).unwrap();
    check_machine(&sections).unwrap();

    let of = |name: &str| sections.iter().find(|section| section.name == name).unwrap();
    assert_eq!((number(of("machine").value(1)), number(of("machine").value(2))), (2, 64 << 20));
    assert_eq!(of("serial").value(3), b"typed while it stands still");
    let disk = of("virtio-blk");
    assert_eq!((number(disk.value(16)), disk.value(17)), (77, &[0][..]));
    assert_eq!(disk.value(18), b"a\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    let names: Vec<_> = sections[7..].iter().map(|section| section.name.as_str()).collect();
    assert_eq!(names, ["virtio-rng", "virtio-blk", "virtio-console"]);
    let described: Vec<_> = machine.description().devices.into_iter().map(|device| device.name).collect();
    assert!(
        ["serial", "power", "virtio-rng", "virtio-blk", "virtio-console"]
            .iter()
            .all(|name| described.contains(&(*name).into()))
    );
}
