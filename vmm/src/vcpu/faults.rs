//! How many pages each vCPU made KVM map, by the kernel's own statistics: while writes are logged, that is who writes.

use std::fs::File;
use std::mem::offset_of;
use std::os::unix::fs::FileExt;

use kvm_bindings::{kvm_stats_desc, kvm_stats_header};
use kvm_ioctls::VcpuFd;

use crate::kvm::ioctl;

/// Page faults that KVM has settled: slowly, and quickly by taking off a protection.
const NAMES: [&[u8]; 2] = [b"pf_fixed", b"pf_fast"];

/// More statistics, or longer names, than any kernel has.
const MOST: usize = 4096;

/// A vCPU's faults.
#[derive(Debug)]
pub(super) struct Faults {
    file: File,
    /// Where in it the counts are.
    at: Vec<u64>,
}

impl Faults {
    /// None where the kernel does not say (before Linux 5.14).
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
        let counts = all.chunks_exact(each).filter_map(|description| {
            let (fixed, name) = description.split_at(size_of::<kvm_stats_desc>());
            let name = name.split(|byte| *byte == 0).next()?;
            let offset = field(fixed, offset_of!(kvm_stats_desc, offset))?;
            NAMES.contains(&name).then_some(u64::from(data) + u64::from(offset))
        });
        let at: Vec<u64> = counts.collect();
        (at.len() == NAMES.len()).then_some(Self { file, at })
    }

    /// Since the vCPU was made.
    pub(super) fn count(&self) -> Option<u64> {
        let mut all = 0_u64;
        for at in &self.at {
            let mut count = [0; 8];
            self.file.read_exact_at(&mut count, *at).ok()?;
            all = all.wrapping_add(u64::from_le_bytes(count));
        }
        Some(all)
    }
}
