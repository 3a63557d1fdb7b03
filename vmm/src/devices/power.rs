//! The ways out: ports at which a guest asks for a reset or powers itself off. ACPI's tables announce them.

use super::{Device, End};

/// Port at which writing bit 2 resets (the chipset's reset control register).
pub const RESET_CONTROL: u16 = 0xcf9;
/// Command port of the keyboard controller, which can reset the machine.
pub const KEYBOARD_COMMAND: u16 = 0x64;
/// First port of ACPI's fixed power management registers, in the order in which they lie there: status and enable
/// (none of their events happens here), control.
pub const PM1_EVENTS: u16 = 0x600;
/// ACPI's PM1 control register (ACPI 6.5, 4.8.3.2.1).
pub const PM1_CONTROL: u16 = 0x604;
/// One past the last of these ports.
pub const PM1_END: u16 = 0x606;

/// Keyboard controller: pulse output line 0, which is wired to the CPU's reset.
const PULSE_RESET: u8 = 0xfe;
/// Reset control: reset now.
const RESET_CPU: u8 = 1 << 2;
/// What to write to [`RESET_CONTROL`] for a reset of everything.
pub const RESET_NOW: u8 = RESET_CPU | 1 << 1;

/// The two registers that reset. There is no keyboard: the rest of its controller is absent (reads as ones).
#[derive(Debug)]
pub enum ResetControl {
    /// At [`KEYBOARD_COMMAND`].
    Keyboard,
    /// At [`RESET_CONTROL`].
    Chipset,
}

impl Device for ResetControl {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(match self {
            Self::Keyboard => 0xff,
            Self::Chipset => 0,
        });
    }

    fn write(&self, _: u64, data: &[u8]) -> Option<End> {
        let resets = |value: &u8| match self {
            Self::Keyboard => *value == PULSE_RESET,
            Self::Chipset => *value & RESET_CPU != 0,
        };
        data.iter().any(resets).then_some(End::Reset)
    }
}

/// SCI_EN: the machine is in ACPI mode, as always.
const ACPI_MODE: u8 = 1;
/// SLP_EN in the control register's high byte: enter the sleep state given beside it. There is only one, S5: off.
const SLEEP: u8 = 1 << (13 - 8);

/// ACPI's fixed registers, without state.
#[derive(Debug)]
pub struct PowerManagement;

/// Of the control register from [`PM1_EVENTS`].
const CONTROL: u64 = (PM1_CONTROL - PM1_EVENTS) as u64;

impl Device for PowerManagement {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = if at == CONTROL { ACPI_MODE } else { 0 };
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<End> {
        let sleep = data.iter().zip(offset..).any(|(byte, at)| at == CONTROL + 1 && byte & SLEEP != 0);
        sleep.then_some(End::Shutdown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_values_reset() {
        assert_eq!(ResetControl::Keyboard.write(0, &[0xfe]), Some(End::Reset));
        assert_eq!(ResetControl::Keyboard.write(0, &[0xff]), None);
        assert_eq!(ResetControl::Chipset.write(0, &[2]), None);
        assert_eq!(ResetControl::Chipset.write(0, &[6]), Some(End::Reset));
        assert_eq!(PowerManagement.write(CONTROL, &[0, 0x20]), Some(End::Shutdown));
        assert_eq!(PowerManagement.write(CONTROL + 1, &[0x20]), Some(End::Shutdown));
        assert_eq!(PowerManagement.write(CONTROL, &[0x20, 0x1d]), None, "a sleep type alone");
        assert_eq!(PowerManagement.write(0, &[0xff; 4]), None, "status registers are cleared");
        let mut control = [0xff; 2];
        PowerManagement.read(CONTROL, &mut control);
        assert_eq!(control, [1, 0]);
    }
}
