//! The ways out: ports at which a guest asks for a reset or powers itself off, and the power button, by which it is
//! asked to. ACPI's tables announce them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Device, End};
use crate::state::{Kind, Section, SectionWriter, StateError};

/// Port at which writing bit 2 resets (the chipset's reset control register).
pub const RESET_CONTROL: u16 = 0xcf9;
/// Command port of the keyboard controller, which can reset the machine.
pub const KEYBOARD_COMMAND: u16 = 0x64;
/// First port of ACPI's fixed power management registers, in the order in which they lie there: status and enable of
/// events, control.
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
/// PWRBTN_STS and PWRBTN_EN: the power button was pressed, and the guest wants to hear of it.
const BUTTON: u16 = 1 << 8;

/// The interrupt line of ACPI's own interrupt (SCI).
pub const SCI: u8 = 9;

/// Its section in the saved state.
pub const KIND: Kind = Kind { name: "power", version: 1, tags: &[1] };

/// Everything the registers know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PowerState {
    /// What has happened and was not acknowledged. Only the power button can happen.
    pub status: u16,
    /// What the guest wants to hear of.
    pub enable: u16,
}

/// ACPI's fixed registers (ACPI 6.5, 4.8.3), and the power button behind them.
///
/// The interrupt is a level: high as long as something is enabled that has happened. It is set by `KVM_IRQ_LINE`, which
/// returns when the interrupt controllers know of it, so that a state saved afterwards has it.
pub struct PowerManagement {
    /// vCPUs and whoever presses the button come at the same time.
    state: Mutex<PowerState>,
    line: Arc<dyn Fn(bool) + Send + Sync>,
}

/// The control register, seen from [`PM1_EVENTS`].
const CONTROL: usize = (PM1_CONTROL - PM1_EVENTS) as usize;

impl PowerManagement {
    /// Registers after reset. `line` sets the level of [`SCI`].
    #[must_use]
    pub fn new(line: Arc<dyn Fn(bool) + Send + Sync>) -> Self {
        Self { state: Mutex::default(), line }
    }

    /// Presses the power button. What the guest makes of it is its own affair.
    pub fn press(&self) {
        self.change(|state| state.status |= BUTTON);
    }

    /// What it knows.
    #[must_use]
    pub fn state(&self) -> PowerState {
        *self.lock()
    }

    /// Puts a state in place, and the line with it: the interrupt controllers do not know who holds it.
    pub fn set_state(&self, state: PowerState) {
        self.change(|mine| *mine = state);
    }

    fn change(&self, change: impl FnOnce(&mut PowerState)) {
        let mut state = self.lock();
        change(&mut state);
        (self.line)(state.status & state.enable != 0);
    }

    /// A state is written whole.
    fn lock(&self) -> MutexGuard<'_, PowerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Device for PowerManagement {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let PowerState { status, enable } = self.state();
        let [[s0, s1], [e0, e1]] = [status, enable].map(u16::to_le_bytes);
        let registers = [s0, s1, e0, e1, ACPI_MODE, 0];
        for (byte, at) in data.iter_mut().zip(offset as usize..) {
            *byte = registers.get(at).copied().unwrap_or_default();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<End> {
        let at = offset as usize..;
        let sleep = data.iter().zip(at.clone()).any(|(byte, at)| at == CONTROL + 1 && byte & SLEEP != 0);
        self.change(|state| {
            for (byte, at) in data.iter().zip(at) {
                let (bits, keep) = (u16::from(*byte) << (at % 2 * 8), !(0xff << (at % 2 * 8)));
                match at / 2 {
                    // Writing a one takes note of the event.
                    0 => state.status &= !bits,
                    1 => state.enable = state.enable & keep | bits,
                    _ => {}
                }
            }
        });
        sleep.then_some(End::Shutdown)
    }
}

impl PowerState {
    /// Writes its section's fields.
    pub fn write(self, section: &mut SectionWriter<'_>) {
        let [[s0, s1], [e0, e1]] = [self.status, self.enable].map(u16::to_le_bytes);
        section.required(1, &[s0, s1, e0, e1]);
    }

    /// Reads its section.
    ///
    /// # Errors
    /// When a part is missing or cannot be.
    pub fn read(section: &Section<'_>) -> Result<Self, StateError> {
        let both = section.number::<4>(1, "PM1 events")?;
        let state = Self { status: both as u16, enable: (both >> 16) as u16 };
        if state.status & !BUTTON != 0 {
            return Err(section.impossible("event"));
        }
        Ok(state)
    }
}

impl std::fmt::Debug for PowerManagement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "power management at {PM1_EVENTS:#x}")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn only_the_right_values_reset() {
        assert_eq!(ResetControl::Keyboard.write(0, &[0xfe]), Some(End::Reset));
        assert_eq!(ResetControl::Keyboard.write(0, &[0xff]), None);
        assert_eq!(ResetControl::Chipset.write(0, &[2]), None);
        assert_eq!(ResetControl::Chipset.write(0, &[6]), Some(End::Reset));
    }

    #[test]
    fn golden_power() {
        let written = |state: PowerState| {
            let mut stream = crate::state::StreamWriter::new(Vec::new());
            stream.section(&KIND, 0, |section| state.write(section));
            stream.finish()
        };
        crate::state::golden::holds(
            &KIND,
            &written(PowerState { status: BUTTON, enable: 0x0521 }),
            |bytes| {
                let stream = crate::state::Stream::read(bytes, &[KIND]).unwrap();
                written(PowerState::read(stream.section(&KIND, 0).unwrap()).unwrap())
            },
        );
    }

    /// Registers, and how high their line is.
    fn registers() -> (PowerManagement, Arc<AtomicBool>) {
        let line = Arc::new(AtomicBool::new(false));
        let level = Arc::clone(&line);
        (PowerManagement::new(Arc::new(move |high| level.store(high, Ordering::SeqCst))), line)
    }

    fn read<const N: usize>(registers: &PowerManagement, offset: u64) -> [u8; N] {
        let mut data = [0xff; N];
        registers.read(offset, &mut data);
        data
    }

    #[test]
    fn a_guest_powers_itself_off() {
        const AT: u64 = CONTROL as u64;
        let (registers, _) = registers();
        assert_eq!(registers.write(AT, &[0, 0x20]), Some(End::Shutdown));
        assert_eq!(registers.write(AT + 1, &[0x20]), Some(End::Shutdown));
        assert_eq!(registers.write(AT, &[0x20, 0x1d]), None, "a sleep type alone");
        assert_eq!(registers.write(0, &[0xff; 4]), None, "status registers are cleared");
        assert_eq!(read(&registers, AT), [1, 0]);
    }

    #[test]
    fn the_button_is_heard_until_it_is_acknowledged() {
        let (registers, line) = registers();
        let high = || line.load(Ordering::SeqCst);
        registers.press();
        assert!(!high(), "the guest does not listen");
        assert_eq!(read(&registers, 0), [0, 1, 0, 0]);
        registers.write(3, &[1]);
        assert!(high(), "it was pressed before");
        registers.write(0, &[0xff, 0]);
        assert!(high(), "other events are acknowledged");
        registers.write(0, &[0, 1]);
        assert!(!high());
        assert_eq!(read(&registers, 0), [0, 0, 0, 1, 1, 0]);
        registers.write(2, &[0x20, 1]);
        registers.press();
        assert!(high());
        assert_eq!(read(&registers, 2), [0x20, 1]);
    }

    #[test]
    fn a_button_pressed_before_a_move_is_heard_after_it() {
        let (from, _) = registers();
        from.write(2, &[0, 1]);
        from.press();
        let mut writer = crate::state::StreamWriter::new(Vec::new());
        writer.section(&KIND, 0, |section| from.state().write(section));
        let bytes = writer.finish();
        let stream = crate::state::Stream::read(&bytes, &[KIND]).unwrap();
        let (to, line) = registers();
        to.set_state(PowerState::read(stream.section(&KIND, 0).unwrap()).unwrap());
        assert!(line.load(Ordering::SeqCst));
        assert_eq!(to.state(), PowerState { status: BUTTON, enable: BUTTON });
        to.set_state(PowerState::default());
        assert!(!line.load(Ordering::SeqCst));
    }
}
