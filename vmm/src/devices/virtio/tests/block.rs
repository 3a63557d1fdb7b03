//! The disk.

use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use tempfile::NamedTempFile;
use virtio_bindings::bindings::virtio_config::*;
use virtio_bindings::bindings::virtio_mmio::*;
use virtio_bindings::virtio_blk::*;

use super::*;
use crate::config::DiskAccess;

const HEAD: u64 = BUFFERS;
const STATUS: u64 = BUFFERS + 0x100;
const DATA: u64 = BUFFERS + 0x1000;
const SECTORS: u64 = 64;

fn image() -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    let content: Vec<u8> = (0..SECTORS * 512).map(|at| (at / 512) as u8 + 1).collect();
    file.as_file().write_all_at(&content, 0).unwrap();
    file
}

fn disk(file: &NamedTempFile, access: DiskAccess) -> Block {
    Block::new(Arc::new(DiskImage::open(file.path(), access).unwrap()), "a-serial".parse().unwrap())
}

fn driver(access: DiskAccess) -> (Driver, NamedTempFile) {
    let file = image();
    (Driver::ready(disk(&file, access)), file)
}

/// Writes a head, and a status that no device gives.
fn head(driver: &Driver, kind: u32, sector: u64) {
    driver.put(HEAD, &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
    driver.put(STATUS, &[0x77]);
}

/// Has a request served. Its status, and how many bytes were written.
fn ask(driver: &mut Driver, kind: u32, sector: u64, data: &[(u64, u32, u16)]) -> (u32, u32) {
    head(driver, kind, sector);
    let chain = [&[(HEAD, 16, 0)], data, &[(STATUS, 1, WRITE)]].concat();
    let written = driver.request(&chain);
    (driver.look(STATUS, 1)[0].into(), written)
}

#[test]
fn sectors_are_read_and_written_through_pieces_of_any_size() {
    let (mut driver, file) = driver(DiskAccess::ReadWrite);
    let pieces = [(DATA, 100, WRITE), (DATA + 0x1000, 924, WRITE)];
    assert_eq!(ask(&mut driver, VIRTIO_BLK_T_IN, 5, &pieces), (VIRTIO_BLK_S_OK, 1025));
    assert_eq!(driver.look(DATA, 101), [&[6; 100][..], &[0]].concat());
    assert_eq!(driver.look(DATA + 0x1000, 924), [&[6; 412][..], &[7; 512]].concat());

    driver.put(DATA, &[0xaa; 512]);
    assert_eq!(ask(&mut driver, VIRTIO_BLK_T_OUT, SECTORS - 1, &[(DATA, 512, 0)]), (VIRTIO_BLK_S_OK, 1));
    let mut written = [0; 1024];
    file.as_file().read_exact_at(&mut written, (SECTORS - 2) * 512).unwrap();
    assert_eq!(written, [[SECTORS as u8 - 1; 512], [0xaa; 512]].concat()[..]);
    assert_eq!(ask(&mut driver, VIRTIO_BLK_T_FLUSH, 0, &[]), (VIRTIO_BLK_S_OK, 1));
    assert_eq!(ask(&mut driver, VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 20, WRITE)]), (VIRTIO_BLK_S_OK, 21));
    assert_eq!(driver.look(DATA, 20), b"a-serial\0\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn a_head_may_be_in_pieces_and_share_them_with_the_data() {
    let (mut driver, _file) = driver(DiskAccess::ReadWrite);
    head(&driver, VIRTIO_BLK_T_OUT, 0);
    driver.put(HEAD + 16, &[0xbb; 512]);
    assert_eq!(driver.request(&[(HEAD, 3, 0), (HEAD + 3, 13 + 512, 0), (DATA + 511, 1, WRITE)]), 1);
    assert_eq!(driver.look(DATA + 511, 1), [0]);
    head(&driver, VIRTIO_BLK_T_IN, 0);
    assert_eq!(driver.request(&[(HEAD, 16, 0), (DATA, 513, WRITE)]), 513);
    assert_eq!(driver.look(DATA, 513), [&[0xbb; 512][..], &[0]].concat());
}

#[test]
fn what_a_disk_reads_into_memory_reaches_the_dirty_log() {
    let (mut driver, _file) = driver(DiskAccess::ReadWrite);
    head(&driver, VIRTIO_BLK_T_IN, 0);
    let chain = driver.chain(&[
        (HEAD, 16, 0),
        (DATA + 0xe00, 1024, WRITE),
        (DATA + 0x5000, 512, WRITE),
        (STATUS, 1, WRITE),
    ]);
    driver.offer(chain);
    driver.ram.own_writes();
    driver.notify();
    let data = DATA / PAGE;
    assert_eq!(driver.ram.own_writes(), [USED / PAGE, STATUS / PAGE, data, data + 1, data + 5]);
}

#[test]
fn requests_that_cannot_be_done_fail_and_the_disk_goes_on() {
    let (mut driver, file) = driver(DiskAccess::ReadWrite);
    let sector = [(DATA, 512, WRITE)];
    for at in [SECTORS, u64::MAX, u64::MAX / 512 + 1] {
        assert_eq!(ask(&mut driver, VIRTIO_BLK_T_IN, at, &sector), (VIRTIO_BLK_S_IOERR, 1), "{at:#x}");
    }
    let two = [(DATA, 1024, 0)];
    assert_eq!(ask(&mut driver, VIRTIO_BLK_T_OUT, SECTORS - 1, &two), (VIRTIO_BLK_S_IOERR, 1));
    assert_eq!(ask(&mut driver, VIRTIO_BLK_T_IN, 0, &[(DATA, 511, WRITE)]), (VIRTIO_BLK_S_IOERR, 1));
    assert_eq!(ask(&mut driver, 99, 0, &[]), (VIRTIO_BLK_S_UNSUPP, 1));
    assert_eq!(ask(&mut driver, VIRTIO_BLK_T_DISCARD, 0, &[(DATA, 8, 0)]), (VIRTIO_BLK_S_IOERR, 1));
    file.as_file().set_len(512).unwrap();
    assert_eq!(
        ask(&mut driver, VIRTIO_BLK_T_IN, 1, &sector),
        (VIRTIO_BLK_S_IOERR, 1),
        "the host took it away"
    );
    assert_eq!(ask(&mut driver, VIRTIO_BLK_T_IN, 0, &sector), (VIRTIO_BLK_S_OK, 513));
}

#[test]
fn a_read_only_disk_is_not_written() {
    let (mut driver, file) = driver(DiskAccess::ReadOnly);
    assert_eq!(driver.get(VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
    driver.set(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
    let features = driver.get(VIRTIO_MMIO_DEVICE_FEATURES);
    assert_eq!(features >> VIRTIO_BLK_F_RO & 1, 1);
    assert_eq!(features >> VIRTIO_BLK_F_DISCARD & 1, 0);
    for kind in [VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(ask(&mut driver, kind, 0, &[(DATA, 512, 0)]), (VIRTIO_BLK_S_IOERR, 1));
    }
    assert_eq!(ask(&mut driver, VIRTIO_BLK_T_FLUSH, 0, &[]), (VIRTIO_BLK_S_OK, 1));
    let mut first = [0];
    file.as_file().read_exact_at(&mut first, 0).unwrap();
    assert_eq!(first, [1]);
}

#[test]
fn sectors_are_discarded_and_zeroed() {
    let (mut driver, file) = driver(DiskAccess::ReadWrite);
    let mut clear = |kind, sector: u64, sectors: u32, flags: u32| {
        driver.put(DATA, &[&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat());
        ask(&mut driver, kind, 0, &[(DATA, 16, 0)]).0
    };
    assert_eq!(clear(VIRTIO_BLK_T_DISCARD, 8, 8, 1), VIRTIO_BLK_S_UNSUPP, "a flag that discarding has not");
    assert_eq!(clear(VIRTIO_BLK_T_DISCARD, SECTORS, 1, 0), VIRTIO_BLK_S_IOERR);
    assert_eq!(clear(VIRTIO_BLK_T_DISCARD, u64::MAX, 1, 0), VIRTIO_BLK_S_IOERR);
    assert_eq!(clear(VIRTIO_BLK_T_WRITE_ZEROES, 0, u32::MAX, 0), VIRTIO_BLK_S_IOERR);
    let byte = |sector: u64| {
        let mut byte = [0];
        file.as_file().read_exact_at(&mut byte, sector * 512).unwrap();
        u32::from(byte[0])
    };
    for (kind, sector, flags) in
        [(VIRTIO_BLK_T_DISCARD, 8, 0), (VIRTIO_BLK_T_WRITE_ZEROES, 24, 1), (VIRTIO_BLK_T_WRITE_ZEROES, 40, 0)]
    {
        // Not every file system can; then it says so, and nothing has changed.
        let outcome = clear(kind, sector, 8, flags);
        let (inside, after) = (byte(sector + 7), byte(sector + 8));
        let expected = if outcome == VIRTIO_BLK_S_OK { 0 } else { sector as u32 + 8 };
        assert!([VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP].contains(&outcome));
        assert_eq!((inside, after), (expected, sector as u32 + 9));
    }
}

#[test]
fn requests_without_head_or_status_break_the_queue() {
    for chain in [&[(HEAD, 15, 0), (STATUS, 1, WRITE)][..], &[(HEAD, 16, 0)], &[(STATUS, 1, WRITE)]] {
        let (mut driver, _file) = driver(DiskAccess::ReadWrite);
        head(&driver, VIRTIO_BLK_T_FLUSH, 0);
        let chain = driver.chain(chain);
        driver.offer(chain);
        driver.notify();
        assert!(driver.needs_reset());
        assert_eq!(driver.finished(), 0);
    }
}

#[test]
fn the_configuration_space_is_read_at_any_width() {
    let (driver, _file) = driver(DiskAccess::ReadWrite);
    let mut capacity = [0; 8];
    driver.transport.read(0x100, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), SECTORS);
    let mut byte = [0];
    driver.transport.read(0x100 + 12, &mut byte);
    assert_eq!(byte, [126], "segments");
    assert_eq!(driver.get(0x100 + 20), 512);
    let mut beyond = [0xff; 4];
    driver.transport.read(0xffc, &mut beyond);
    assert_eq!(beyond, [0; 4]);
}

#[test]
fn a_write_that_waits_while_the_guest_moves_is_done_once_there() {
    let (mut here, file) = driver(DiskAccess::ReadWrite);
    head(&here, VIRTIO_BLK_T_OUT, 3);
    here.put(DATA, &[0xcc; 512]);
    let chain = here.chain(&[(HEAD, 16, 0), (DATA, 512, 0), (STATUS, 1, WRITE)]);
    here.offer(chain);
    let state = here.save();
    let there = Driver::with_ram(disk(&file, DiskAccess::ReadWrite), Arc::clone(&here.ram));
    there.restore(&state).unwrap();
    there.notify();
    assert_eq!((there.finished(), there.last_used()), (1, (0, 1)));
    let mut written = [0; 512];
    file.as_file().read_exact_at(&mut written, 3 * 512).unwrap();
    assert_eq!(written, [0xcc; 512]);
}

#[test]
fn the_state_of_another_disk_is_refused_by_name() {
    let (here, file) = driver(DiskAccess::ReadWrite);
    let state = here.save();
    let refused = |other: Block| {
        let driver = Driver::with_ram(other, Arc::clone(&here.ram));
        driver.restore(&state).unwrap_err().to_string()
    };
    assert!(refused(disk(&file, DiskAccess::ReadOnly)).contains("read-only"));
    let image = Arc::new(DiskImage::open(file.path(), DiskAccess::ReadWrite).unwrap());
    assert!(refused(Block::new(image, "b".parse().unwrap())).contains("serial"));
    file.as_file().set_len(512).unwrap();
    assert!(refused(disk(&file, DiskAccess::ReadWrite)).contains("sectors is 0x40, here 0x1"));
}

#[test]
fn images_that_are_no_disks_are_named_with_the_way_out() {
    let message =
        |path: &std::path::Path| DiskImage::open(path, DiskAccess::ReadOnly).unwrap_err().to_string();
    let file = NamedTempFile::new().unwrap();
    assert!(message(file.path()).contains("is empty: give a raw image"));
    file.as_file().set_len(1000).unwrap();
    let path = file.path().display();
    let wrong = format!("disk {path} has 1000 bytes, not a multiple of 512: give a raw image, or");
    assert!(message(file.path()).starts_with(&wrong), "{}", message(file.path()));
    assert!(message("/nonexistent".as_ref()).starts_with("cannot open disk /nonexistent: "));
    assert!(message("/".as_ref()).contains("neither a file nor a block device"));
}

#[test]
fn only_readers_share_an_image() {
    let file = image();
    let open = |access| DiskImage::open(file.path(), access).unwrap();
    let (writer, other) = (open(DiskAccess::ReadWrite), open(DiskAccess::ReadWrite));
    writer.take().unwrap();
    writer.take().unwrap();
    let error = other.take().unwrap_err().to_string();
    assert!(error.contains("is in use: stop the machine that has it"), "{error}");
    let reader = open(DiskAccess::ReadOnly);
    assert!(reader.take().is_err());
    writer.release().unwrap();
    other.take().unwrap();
    assert!(writer.take().is_err(), "it has gone on");
    drop(other);
    reader.take().unwrap();
    open(DiskAccess::ReadOnly).take().unwrap();
    assert!(writer.take().is_err());
}

proptest! {
    #[test]
    fn any_request_is_answered_or_breaks_the_queue(
        kind in 0_u32..16,
        sector: u64,
        near in 0..SECTORS + 2,
        lengths in proptest::collection::vec((0_u32..2000, any::<bool>()), 0..6),
    ) {
        let (mut driver, _file) = driver(DiskAccess::ReadWrite);
        head(&driver, kind, if near == 0 { sector } else { near });
        let mut pieces = vec![(HEAD, 16, 0)];
        pieces.extend(lengths.iter().map(|(bytes, write)| (DATA, *bytes, if *write { WRITE } else { 0 })));
        pieces.push((STATUS, 1, WRITE));
        let chain = driver.chain(&pieces);
        driver.offer(chain);
        driver.notify();
        let answered = driver.finished() == 1 && driver.look(STATUS, 1)[0] <= VIRTIO_BLK_S_UNSUPP as u8;
        prop_assert!(answered != driver.needs_reset());
    }
}
