//! The control API of a VMM: its types and a client.
pub mod types;
