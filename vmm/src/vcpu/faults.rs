//! How many pages each vCPU made KVM map, by the kernel's own statistics: while writes are logged, that is who writes.

use std::fs::File;
use std::mem::offset_of;
use std::os::unix::fs::FileExt;

use kvm_bindings::{kvm_stats_desc, kvm_stats_header};
use kvm_ioctls::VcpuFd;

use crate::kvm::ioctl;

/// Page faults that KVM has settled.
const FIXED: &[u8] = b"pf_fixed";

/// … quickly, by taking off a protection. A kernel that counts these apart has them in the former, too.
const FAST: &[u8] = b"pf_fast";

/// More statistics, or longer names, than any kernel has.
const MOST: usize = 4096;

/// A vCPU's faults.
#[derive(Debug)]
pub(super) struct Faults {
    file: File,
    /// Where in it the count is.
    at: u64,
}

impl Faults {
    /// None where the kernel does not say (Linux before 5.19).
    pub(super) fn of(vcpu: &VcpuFd) -> Option<Self> {
        let file = File::from(ioctl::stats(ioctl::borrow(vcpu)).ok()?);
        let mut head = [0; size_of::<kvm_stats_header>()];
        file.read_exact_at(&mut head, 0).ok()?;
        let field = |bytes: &[u8], at| Some(u32::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?));
        let (name_bytes, count) = (
            field(&head, offset_of!(kvm_stats_header, name_size))? as usize,
            field(&head, offset_of!(kvm_stats_header, num_desc))? as usize,
        );
        let descriptions = field(&head, offset_of!(kvm_stats_header, desc_offset))?;
        let data = field(&head, offset_of!(kvm_stats_header, data_offset))?;
        let each = size_of::<kvm_stats_desc>() + name_bytes;
        if name_bytes > MOST || count > MOST {
            return None;
        }
        let mut all = vec![0; each * count];
        file.read_exact_at(&mut all, descriptions.into()).ok()?;
        let find = |wanted: &[u8]| {
            let mut descriptions = all.chunks_exact(each).map(|it| it.split_at(size_of::<kvm_stats_desc>()));
            let (fixed, _) =
                descriptions.find(|(_, name)| name.split(|byte| *byte == 0).next() == Some(wanted))?;
            Some(u64::from(data) + u64::from(field(fixed, offset_of!(kvm_stats_desc, offset))?))
        };
        find(FAST)?;
        Some(Self { at: find(FIXED)?, file })
    }

    /// Since the vCPU was made.
    pub(super) fn count(&self) -> Option<u64> {
        let mut count = [0; 8];
        self.file.read_exact_at(&mut count, self.at).ok()?;
        Some(u64::from_le_bytes(count))
    }
}
