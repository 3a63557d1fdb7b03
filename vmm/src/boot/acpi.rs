//! ACPI tables: where distributions' kernels find CPUs, interrupt controllers, devices and the way out.
//!
//! ACPI 6.5, chapter 5. Tables lie one after the other from [`AT`], where kernels of old look for them by themselves;
//! newer ones are told. Each is built by rust-vmm's `acpi_tables`; here is only what this machine has.

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};

use crate::devices::virtio::MmioSlot;
use crate::devices::{
    PM1_CONTROL, PM1_END, PM1_EVENTS, RESET_CONTROL, RESET_NOW, SCI, SERIAL_GSI, SERIAL_PORT,
};

/// Where the first of them lies, in the range that is searched for it (5.2.5.1).
pub(super) const AT: u64 = 0xe_0000;

const OEM: [u8; 6] = *b"VMM   ";
const TABLE: [u8; 8] = *b"VMM     ";
const REVISION: u32 = 1;

/// Where every x86 machine has them until told otherwise (Intel SDM vol. 3A, 11.4.1; 82093AA data sheet).
const LAPIC: u32 = 0xfee0_0000;
const IOAPIC: u32 = 0xfec0_0000;

/// All tables, to be put at [`AT`].
pub(super) fn tables(cpus: u32, virtio: &[MmioSlot]) -> Vec<u8> {
    let mut area = Area(vec![0; Rsdp::len().next_multiple_of(ALIGN)]);
    let dsdt = area.add(&dsdt(virtio));
    let fadt = area.add(&fadt(dsdt));
    let madt = area.add(&madt(cpus));
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = area.add(&xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    area.0[..rsdp.len()].copy_from_slice(&rsdp);
    area.0
}

const ALIGN: usize = 16;

/// Tables so far.
struct Area(Vec<u8>);

impl Area {
    /// Adds one; its address.
    fn add(&mut self, table: &dyn Aml) -> u64 {
        self.0.resize(self.0.len().next_multiple_of(ALIGN), 0);
        let at = AT + self.0.len() as u64;
        table.to_aml_bytes(&mut self.0);
        at
    }
}

/// Fixed hardware (5.2.9): the power button, how to power off and to reset.
fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    /// No VGA, no battery-backed clock (5.2.9.3): kernels look for neither, and take the time from kvmclock.
    const NO_VGA: u16 = 1 << 2;
    const NO_CMOS_CLOCK: u16 = 1 << 5;
    let ports = |port: u16, bytes: u16| {
        GAS::new(AddressSpace::SystemIo, (bytes * 8) as u8, 0, AccessSize::Undefined, u64::from(port))
    };
    // A flag for a button says that it is no fixed hardware: so the power button is, and there is none to sleep.
    let flags = [Flags::Wbinvd, Flags::ProcC1, Flags::SlpButton, Flags::ResetRegSup];
    let mut fadt = flags
        .into_iter()
        .fold(FADTBuilder::new(OEM, TABLE, REVISION).dsdt_32(dsdt as u32).dsdt_64(dsdt), FADTBuilder::flag);
    fadt.sci_int = u16::from(SCI).into();
    fadt.pm1a_evt_blk = u32::from(PM1_EVENTS).into();
    fadt.pm1_evt_len = (PM1_CONTROL - PM1_EVENTS) as u8;
    fadt.x_pm1a_evt_blk = ports(PM1_EVENTS, PM1_CONTROL - PM1_EVENTS);
    fadt.pm1a_cnt_blk = u32::from(PM1_CONTROL).into();
    fadt.pm1_cnt_len = (PM1_END - PM1_CONTROL) as u8;
    fadt.x_pm1a_cnt_blk = ports(PM1_CONTROL, PM1_END - PM1_CONTROL);
    fadt.iapc_boot_arch = (NO_VGA | NO_CMOS_CLOCK).into();
    fadt.reset_reg = ports(RESET_CONTROL, 1);
    fadt.reset_value = RESET_NOW;
    fadt.finalize()
}

/// Interrupt controllers (5.2.12): a LAPIC a vCPU, whose id is the vCPU's number; the IOAPIC.
fn madt(cpus: u32) -> Sdt {
    /// Two 8259 are there as well.
    const PCAT_COMPAT: u32 = 1;
    /// Interrupt source override (5.2.12.5): bus ISA, level-triggered, active high.
    const OVERRIDE: u8 = 2;
    const LEVEL_HIGH: u16 = 0b1101;
    let mut madt = Sdt::new(*b"APIC", 36, 5, OEM, TABLE, REVISION);
    madt.append(LAPIC);
    madt.append(PCAT_COMPAT);
    for number in 0..cpus {
        // Vcpus::MAX is below 256.
        ProcessorLocalApic::new(number as u8, number as u8, EnabledStatus::Enabled).to_aml_bytes(&mut madt);
    }
    IoApic::new(0, IOAPIC, 0).to_aml_bytes(&mut madt);
    madt.append_slice(&[OVERRIDE, 10, 0, SCI, SCI, 0, 0, 0]);
    madt.append_slice(&LEVEL_HIGH.to_le_bytes());
    madt
}

/// What cannot be found by itself, in ACPI's language: the state "off", the serial port, virtio devices.
fn dsdt(virtio: &[MmioSlot]) -> Sdt {
    const COM1: u16 = SERIAL_PORT;
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, REVISION);
    aml::Name::new("_S5_".into(), &aml::Package::new(vec![&0_u8, &0_u8, &0_u8, &0_u8]))
        .to_aml_bytes(&mut dsdt);
    aml::Device::new(
        "_SB_.COM1".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
            &aml::Name::new("_UID".into(), &0_u8),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::IO::new(COM1, COM1, 1, 8),
                    &aml::Interrupt::new(true, true, false, false, SERIAL_GSI),
                ]),
            ),
        ],
    )
    .to_aml_bytes(&mut dsdt);
    for (number, slot) in virtio.iter().enumerate() {
        virtio_device(number, slot, &mut dsdt);
    }
    dsdt
}

/// A virtio device, as Linux's virtio_mmio driver knows it (`LNRO0005`).
fn virtio_device(number: usize, slot: &MmioSlot, dsdt: &mut Sdt) {
    let name = format!("_SB_.V{number:03}");
    // The slots lie in the hole below 4 GiB.
    let registers = aml::Memory32Fixed::new(true, slot.address as u32, slot.bytes as u32);
    let interrupt = aml::Interrupt::new(true, true, false, false, slot.gsi);
    aml::Device::new(
        name.as_str().into(),
        vec![
            &aml::Name::new("_HID".into(), &"LNRO0005"),
            &aml::Name::new("_UID".into(), &(number as u8)),
            // Coherent with the caches (6.2.17).
            &aml::Name::new("_CCA".into(), &aml::ONE),
            &aml::Name::new("_CRS".into(), &aml::ResourceTemplate::new(vec![&registers, &interrupt])),
        ],
    )
    .to_aml_bytes(dsdt);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
    }

    fn number<const N: usize>(area: &[u8], at: usize) -> u64 {
        let mut wide = [0; 8];
        wide[..N].copy_from_slice(&area[at..at + N]);
        u64::from_le_bytes(wide)
    }

    /// A table at this address: its signature and all its bytes, checked.
    fn table(area: &[u8], address: u64) -> (&[u8], &[u8]) {
        let at = (address - AT) as usize;
        let bytes = &area[at..at + number::<4>(area, at + 4) as usize];
        assert_eq!(sum(bytes), 0, "checksum");
        (&bytes[..4], bytes)
    }

    #[test]
    fn every_table_is_reached_from_the_first_and_sums_to_zero() {
        let area = tables(3, &[MmioSlot { address: 0xd000_0000, bytes: 0x1000, gsi: 16 }]);
        assert!(area.len() < 0x2_0000);
        assert_eq!((&area[..8], sum(&area[..20]), sum(&area[..36])), (&b"RSD PTR "[..], 0, 0));
        let (signature, xsdt) = table(&area, number::<8>(&area, 24));
        assert_eq!((signature, xsdt.len()), (&b"XSDT"[..], 36 + 2 * 8));
        let (signature, fadt) = table(&area, number::<8>(xsdt, 36));
        assert_eq!(signature, b"FACP");
        let (signature, dsdt) = table(&area, number::<8>(fadt, 140));
        assert_eq!(signature, b"DSDT");
        assert!(dsdt.windows(8).any(|text| text == b"LNRO0005"), "a virtio device");
        let (signature, madt) = table(&area, number::<8>(xsdt, 44));
        assert_eq!(signature, b"APIC");
        let lapics: Vec<_> = madt[44..].chunks(8).take(3).map(|lapic| (lapic[0], lapic[3])).collect();
        assert_eq!(lapics, [(0, 0), (0, 1), (0, 2)], "type and id");
    }
}
