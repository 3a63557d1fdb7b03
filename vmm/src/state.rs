//! The frame of the saved state: named sections of tagged fields, each checked before it is believed.
//!
//! `docs/state.md` describes every byte. The writer appends to one buffer and never fails; the reader takes any
//! bytes and either gives back all sections or says what is wrong. It never panics and copies nothing.

use std::fmt;

/// First bytes of a stream.
pub const MAGIC: [u8; 8] = *b"VMSTATE\0";
/// Version of the frame.
pub const VERSION: u32 = 1;

const HEADER_BYTES: usize = 16;
const NAME_BYTES: usize = 16;
const SECTION_BYTES: usize = NAME_BYTES + 16;
/// Where a section's checksum is: at the end of its head, over all before it and the payload.
const CHECKSUM_AT: usize = SECTION_BYTES - 4;
const FIELD_BYTES: usize = 8;
const MAX_SECTIONS: u32 = 1024;
const MAX_SECTION_BYTES: usize = 4 << 20;
const MAX_FIELDS: usize = 256;
const REQUIRED: u16 = 1;

/// Why bytes are not a saved state that can be used here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Other bytes altogether.
    #[error("this is not a saved state: it does not begin with \"VMSTATE\"")]
    Magic,
    /// Another frame.
    #[error("saved state is of version {0}, this program reads version {VERSION}")]
    Version(u32),
    /// The stream ends too early or has lengths that cannot be.
    #[error("saved state is damaged at byte {at}: {what}")]
    Damaged {
        /// Where.
        at: usize,
        /// What is wrong there.
        what: &'static str,
    },
    /// A checksum does not match.
    #[error("saved state is damaged: section {0} has another checksum")]
    Checksum(SectionName),
    /// A section this program must know but does not.
    #[error("saved state has the section {0}, which this program does not know and must not skip")]
    UnknownSection(SectionName),
    /// A field this program must know but does not.
    #[error(
        "saved state has field {tag} in section {section}, which this program does not know and must not skip"
    )]
    UnknownField {
        /// Where.
        section: SectionName,
        /// Which.
        tag: u16,
    },
    /// A section of a later program.
    #[error("section {section} of the saved state is of version {found}, this program reads up to {known}")]
    SectionVersion {
        /// Which.
        section: SectionName,
        /// Its version.
        found: u16,
        /// The version known here.
        known: u16,
    },
    /// A section that must be there.
    #[error("saved state has no section {0}")]
    NoSection(SectionName),
    /// A field that must be there.
    #[error("section {section} of the saved state has no field {tag} ({name})")]
    NoField {
        /// Where.
        section: SectionName,
        /// Which.
        tag: u16,
        /// What it holds.
        name: &'static str,
    },
    /// A field of a size it cannot have.
    #[error("field {tag} ({name}) in section {section} of the saved state has {found} bytes, not {wanted}")]
    FieldSize {
        /// Where.
        section: SectionName,
        /// Which.
        tag: u16,
        /// What it holds.
        name: &'static str,
        /// Its size.
        found: usize,
        /// The size it must have.
        wanted: usize,
    },
    /// A value that does not fit the machine built.
    #[error("saved state is of another machine: {what} is {found:#x}, here {wanted:#x}")]
    OtherMachine {
        /// What differs.
        what: &'static str,
        /// What the stream says.
        found: u64,
        /// What was built.
        wanted: u64,
    },
    /// A value that cannot be.
    #[error("section {section} of the saved state has an impossible {what}")]
    Value {
        /// Where.
        section: SectionName,
        /// What.
        what: &'static str,
    },
}

impl StateError {
    /// Refuses a value that is not that of the machine built.
    ///
    /// # Errors
    /// Where both differ.
    pub fn unless_same(what: &'static str, found: u64, wanted: u64) -> Result<(), Self> {
        if found == wanted { Ok(()) } else { Err(Self::OtherMachine { what, found, wanted }) }
    }
}

/// Name and instance of a section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SectionName {
    name: [u8; NAME_BYTES],
    instance: u32,
}

impl SectionName {
    /// For a name of at most 16 ASCII characters.
    #[must_use]
    pub const fn new(name: &str, instance: u32) -> Self {
        let mut padded = [0; NAME_BYTES];
        let (head, _) = padded.split_at_mut(name.len());
        head.copy_from_slice(name.as_bytes());
        Self { name: padded, instance }
    }
}

impl fmt::Display for SectionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.name.iter().position(|b| *b == 0).unwrap_or(NAME_BYTES);
        write!(f, "\"{}\"", self.name[..end].escape_ascii())?;
        if self.instance == 0 { Ok(()) } else { write!(f, " {}", self.instance) }
    }
}

/// One kind of section as this program knows it.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// Its name.
    pub name: &'static str,
    /// The version written, and the latest that can be read.
    pub version: u16,
    /// The tags known.
    pub tags: &'static [u16],
}

/// The checksum of a section.
fn checksum(head: &[u8], payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(head);
    crc.update(payload);
    crc.finalize()
}

mod read;
mod write;

pub use read::{Section, Stream};
pub use write::{SectionWriter, StreamWriter};

#[cfg(test)]
pub(crate) use tests::restamp;
#[cfg(test)]
pub(crate) mod golden;
#[cfg(test)]
mod tests;
