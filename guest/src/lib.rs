//! x
#[allow(missing_docs)]
pub mod telemetry;
/// image
pub static IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest.elf"));
