//! The ways out: ports at which a guest asks for a reset or powers itself off.

use super::{Device, End};

/// Port at which writing bit 2 resets (the chipset's reset control register).
pub const RESET_CONTROL: u16 = 0xcf9;
/// Command port of the keyboard controller, which can reset the machine.
pub const KEYBOARD_COMMAND: u16 = 0x64;
/// Port at which any write powers off. A guest of this VMM's own knows it; there is no ACPI to announce it.
pub const POWER_OFF: u16 = 0x604;

/// Keyboard controller: pulse output line 0, which is wired to the CPU's reset.
const PULSE_RESET: u8 = 0xfe;
/// Reset control: reset now.
const RESET_CPU: u8 = 1 << 2;

/// The two registers that reset. There is no keyboard: the rest of its controller is absent (reads as ones).
#[derive(Debug)]
pub enum ResetControl {
    /// At [`KEYBOARD_COMMAND`].
    Keyboard,
    /// At [`RESET_CONTROL`].
    Chipset,
}

impl Device for ResetControl {
    fn read(&self, _: u64) -> u8 {
        match self {
            Self::Keyboard => 0xff,
            Self::Chipset => 0,
        }
    }

    fn write(&self, _: u64, value: u8) -> Option<End> {
        let reset = match self {
            Self::Keyboard => value == PULSE_RESET,
            Self::Chipset => value & RESET_CPU != 0,
        };
        reset.then_some(End::Reset)
    }
}

/// Powers off on any write.
#[derive(Debug)]
pub struct PowerPorts;

impl Device for PowerPorts {
    fn read(&self, _: u64) -> u8 {
        0xff
    }

    fn write(&self, _: u64, _: u8) -> Option<End> {
        Some(End::Shutdown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_values_reset() {
        assert_eq!(ResetControl::Keyboard.write(0, 0xfe), Some(End::Reset));
        assert_eq!(ResetControl::Keyboard.write(0, 0xff), None);
        assert_eq!(ResetControl::Chipset.write(0, 2), None);
        assert_eq!(ResetControl::Chipset.write(0, 6), Some(End::Reset));
        assert_eq!(PowerPorts.write(0, 0), Some(End::Shutdown));
    }
}
