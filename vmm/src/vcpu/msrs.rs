//! Model-specific registers: which are saved, and all of them in one call.

mod owners;

use std::io;
use std::os::fd::BorrowedFd;

use super::template::Template;
use super::tsc::{IA32_TSC, IA32_TSC_DEADLINE};
use crate::kvm::ioctl::{self, MSR_BYTES, MSRS_HEAD};
use crate::kvm::{KvmError, KvmHost};

/// Most MSRs of a vCPU; the kernel takes fewer than 256 in one call (`MAX_IO_MSRS`).
pub(super) const MAX_MSRS: usize = 255;

/// Indices of the MSRs this host's KVM says are worth saving, those that only tell included: what a guest has read there
/// it is to read everywhere.
///
/// # Errors
/// When the kernel refuses.
pub fn supported_msrs(kvm: &KvmHost) -> Result<Vec<u32>, KvmError> {
    let system = kvm.system();
    let list = system.get_msr_index_list().map_err(KvmError::refused("list its MSRs"))?;
    let telling = system.get_msr_feature_index_list().map_err(KvmError::refused("list its feature MSRs"))?;
    Ok([list.as_slice(), telling.as_slice()].concat())
}

/// Of the MSRs worth saving, those that are there with the guest's CPU and that can be read on this vCPU and set to what
/// was read: in the order in which they are saved, TSC first and TSC deadline last. The vCPU has this CPU and has not
/// run yet.
///
/// # Errors
/// When the kernel refuses, or there are more than fit in one call.
pub fn probe_msrs(kvm: &KvmHost, fd: BorrowedFd<'_>, cpu: &Template) -> Result<Vec<u32>, KvmError> {
    let mut indices = supported_msrs(kvm)?;
    indices.retain(|index| owners::is_there(*index, cpu));
    indices.sort_unstable_by_key(|index| (rank(*index), *index));
    indices.dedup();
    let refused = KvmError::refused::<io::Error>;
    // What is listed may be more than one call takes; what is there may not.
    let mut readable = Vec::new();
    for part in indices.chunks(MAX_MSRS) {
        let mut part = part.to_vec();
        keep_working(&mut part, |buffer| ioctl::get_msrs(fd, buffer)).map_err(refused("read MSRs"))?;
        readable.extend(part);
    }
    let indices = few_enough(readable)?;
    let values = read(fd, &indices).map_err(refused("read MSRs"))?;
    let mut settable = indices.clone();
    keep_working(&mut settable, |buffer| {
        for place in buffer[MSRS_HEAD..].chunks_exact_mut(MSR_BYTES) {
            let at = indices.iter().position(|index| index.to_le_bytes() == place[..4]);
            let from = MSRS_HEAD + at.unwrap_or(0) * MSR_BYTES;
            place.copy_from_slice(&values[from..from + MSR_BYTES]);
        }
        ioctl::set_msrs(fd, buffer)
    })
    .map_err(refused("set MSRs"))?;
    Ok(settable)
}

/// Those, if they fit in one call.
fn few_enough(indices: Vec<u32>) -> Result<Vec<u32>, KvmError> {
    let found = indices.len();
    if found <= MAX_MSRS { Ok(indices) } else { Err(KvmError::TooManyMsrs { found, most: MAX_MSRS }) }
}

fn rank(index: u32) -> u8 {
    match index {
        IA32_TSC => 0,
        IA32_TSC_DEADLINE => 2,
        _ => 1,
    }
}

/// Takes out of `indices` those at which `call` stops.
fn keep_working(
    indices: &mut Vec<u32>,
    mut call: impl FnMut(&mut [u8]) -> io::Result<usize>,
) -> io::Result<()> {
    while !indices.is_empty() {
        let mut buffer = room_for(indices);
        let done = call(&mut buffer)?;
        if done == indices.len() {
            break;
        }
        indices.remove(done);
    }
    Ok(())
}

/// A `kvm_msrs` with these indices and values of zero.
pub(super) fn room_for(indices: &[u32]) -> Vec<u8> {
    let mut buffer = vec![0; MSRS_HEAD + indices.len() * MSR_BYTES];
    for (place, index) in buffer[MSRS_HEAD..].chunks_exact_mut(MSR_BYTES).zip(indices) {
        place[..4].copy_from_slice(&index.to_le_bytes());
    }
    buffer
}

/// Reads these, as a `kvm_msrs`.
fn read(fd: BorrowedFd<'_>, indices: &[u32]) -> io::Result<Vec<u8>> {
    let mut buffer = room_for(indices);
    let done = ioctl::get_msrs(fd, &mut buffer)?;
    if done == indices.len() { Ok(buffer) } else { Err(io::ErrorKind::Unsupported.into()) }
}

/// Reads one.
pub(super) fn read_one(fd: BorrowedFd<'_>, index: u32) -> io::Result<u64> {
    let mut entry = [0; MSRS_HEAD + MSR_BYTES];
    entry[MSRS_HEAD..MSRS_HEAD + 4].copy_from_slice(&index.to_le_bytes());
    if ioctl::get_msrs(fd, &mut entry)? != 1 {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let (_, value) = entry.split_at(MSRS_HEAD + 8);
    Ok(value.try_into().map_or(0, u64::from_le_bytes))
}

/// Writes these; all of them, or it fails.
pub(super) fn write(fd: BorrowedFd<'_>, msrs: impl Iterator<Item = (u32, u64)>) -> io::Result<()> {
    let (indices, values): (Vec<u32>, Vec<u64>) = msrs.unzip();
    let mut buffer = room_for(&indices);
    for (place, value) in buffer[MSRS_HEAD..].chunks_exact_mut(MSR_BYTES).zip(values) {
        place[8..].copy_from_slice(&value.to_le_bytes());
    }
    let done = ioctl::set_msrs(fd, &mut buffer)?;
    if done == indices.len() { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) }
}

/// The index in one `kvm_msr_entry`.
pub(super) fn index_of(entry: &[u8]) -> u32 {
    entry.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_is_left_out_because_there_are_many() {
        assert_eq!(few_enough((0..255).collect()).unwrap().len(), 255);
        let error = few_enough((0..256).collect()).unwrap_err().to_string();
        assert_eq!(
            error,
            "KVM has 256 MSRs of a guest with this CPU to save, at most 255 can be: choose a smaller --cpu"
        );
    }
}
