//! Golden files of the devices that need nothing but a driver. Those of the others are beside their tests.

use tempfile::NamedTempFile;

use super::*;
use crate::config::DiskAccess;
use crate::state::golden;

/// A device in the middle of its work is saved as its golden file is, which another one like it can take.
pub(super) fn holds(here: &Driver, there: &Driver) {
    golden::holds(here.transport.kind(), &here.save(), |bytes| {
        there.restore(bytes).unwrap();
        there.save()
    });
}

#[test]
fn golden_rng() {
    let mut driver = Driver::ready(Rng);
    driver.request(&[(BUFFERS, 64, WRITE)]);
    holds(&driver, &Driver::new(Rng));
}

#[test]
fn golden_disk() {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(96 * 512).unwrap();
    let disk = || {
        let image = Arc::new(DiskImage::open(file.path(), DiskAccess::ReadOnly).unwrap());
        Block::new(image, "golden".parse().unwrap())
    };
    let mut driver = Driver::ready(disk());
    driver.request(&[(BUFFERS, 16, 0), (BUFFERS + 0x1000, 512, WRITE), (BUFFERS + 0x100, 1, WRITE)]);
    holds(&driver, &Driver::new(disk()));
}
