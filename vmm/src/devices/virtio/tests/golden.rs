//! Golden files of the devices that need nothing but a driver. Those of the others are beside their tests.

use tempfile::NamedTempFile;

use super::super::queue::{QueueState, VirtQueue};
use super::super::state::{Registers, TransportImage};
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

/// Of this one no two values are the same: all that the transport saves is where it was.
#[test]
fn golden_rng() {
    let driver = Driver::new(Rng);
    let registers = Registers {
        status: 15,
        interrupt: 3,
        features: COMMON_FEATURES,
        device_features_select: 1,
        driver_features_select: 2,
        queue_select: 4,
        left_over: 1,
    };
    let queue = QueueState {
        ready: true,
        size: 16,
        next_avail: 0x1234,
        next_used: 0x1230,
        descriptors: DESCRIPTORS,
        avail: AVAIL,
        used: USED,
    };
    let queues = vec![VirtQueue::from_state(64, &queue, &driver.ram).unwrap()];
    driver.transport.restore(TransportImage { registers, queues });
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
