//! Drivers good and bad against the devices, without KVM.

mod block;
mod console;
mod driver;
mod golden;
mod hostile;
mod net;
mod rng;
mod transport;

use std::sync::Arc;

use super::*;
use crate::devices::Device;
use crate::memory::PAGE;
use crate::memory::layout::Layout;
use crate::memory::ram::GuestRam;
use crate::state::{Stream, StreamWriter};
use driver::*;
