//! vmm
pub mod memory;
