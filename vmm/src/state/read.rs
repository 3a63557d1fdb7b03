//! Reading: everything is checked before anything is given out.

use super::{
    CHECKSUM_AT, FIELD_BYTES, HEADER_BYTES, Kind, MAGIC, MAX_FIELDS, MAX_SECTION_BYTES, MAX_SECTIONS,
    NAME_BYTES, REQUIRED, SECTION_BYTES, SectionName, StateError, VERSION, checksum,
};

/// A stream whose lengths, checksums and tags are right.
#[derive(Debug)]
pub struct Stream<'a> {
    sections: Vec<Section<'a>>,
}

/// One section of a stream.
#[derive(Debug)]
pub struct Section<'a> {
    name: SectionName,
    fields: Vec<(u16, &'a [u8])>,
}

impl<'a> Stream<'a> {
    /// Checks a whole stream against the kinds of sections this program knows.
    ///
    /// # Errors
    /// What is wrong with it, or which part of it must be known but is not.
    pub fn read(bytes: &'a [u8], kinds: &[Kind]) -> Result<Self, StateError> {
        let mut cursor = Cursor { bytes, at: 0 };
        let header = cursor.take(HEADER_BYTES)?;
        if header[..8] != MAGIC {
            return Err(StateError::Magic);
        }
        if number::<4>(header, 8) != u64::from(VERSION) {
            return Err(StateError::Version(number::<4>(header, 8) as u32));
        }
        let count = number::<4>(header, 12) as u32;
        if count == 0 || count > MAX_SECTIONS {
            return Err(cursor.damaged("a number of sections that cannot be"));
        }
        let mut sections: Vec<Section<'a>> = Vec::new();
        for _ in 0..count {
            let Some(section) = read_section(&mut cursor, kinds)? else { continue };
            if sections.iter().any(|known| known.name == section.name) {
                return Err(cursor.damaged("a section that was there before"));
            }
            sections.push(section);
        }
        if cursor.at != bytes.len() {
            return Err(cursor.damaged("bytes after the last section"));
        }
        Ok(Self { sections })
    }

    /// The section that must be there.
    ///
    /// # Errors
    /// When it is not.
    pub fn section(&self, kind: &Kind, instance: u32) -> Result<&Section<'a>, StateError> {
        let name = SectionName::new(kind.name, instance);
        self.sections.iter().find(|section| section.name == name).ok_or(StateError::NoSection(name))
    }
}

impl<'a> Section<'a> {
    /// Its name and instance.
    #[must_use]
    pub fn name(&self) -> SectionName {
        self.name
    }

    /// The value of a field, if it is there.
    #[must_use]
    pub fn optional(&self, tag: u16) -> Option<&'a [u8]> {
        self.fields.iter().find(|field| field.0 == tag).map(|field| field.1)
    }

    /// The value of a field that must be there, of any size.
    ///
    /// # Errors
    /// When it is not there.
    pub fn required(&self, tag: u16, name: &'static str) -> Result<&'a [u8], StateError> {
        self.optional(tag).ok_or(StateError::NoField { section: self.name, tag, name })
    }

    /// The value of a field that must be there with this size.
    ///
    /// # Errors
    /// When it is not there or has another size.
    pub fn exactly(&self, tag: u16, name: &'static str, wanted: usize) -> Result<&'a [u8], StateError> {
        let value = self.required(tag, name)?;
        let found = value.len();
        let wrong = StateError::FieldSize { section: self.name, tag, name, found, wanted };
        if found == wanted { Ok(value) } else { Err(wrong) }
    }

    /// A little-endian number of `N` ≤ 8 bytes that must be there.
    ///
    /// # Errors
    /// When it is not there or has another size.
    pub fn number<const N: usize>(&self, tag: u16, name: &'static str) -> Result<u64, StateError> {
        Ok(number::<N>(self.exactly(tag, name, N)?, 0))
    }

    /// The error for a value that cannot be.
    #[must_use]
    pub fn impossible(&self, what: &'static str) -> StateError {
        StateError::Value { section: self.name, what }
    }
}

/// The next section, or none where it is unknown and may be skipped.
fn read_section<'a>(cursor: &mut Cursor<'a>, kinds: &[Kind]) -> Result<Option<Section<'a>>, StateError> {
    let head = cursor.take(SECTION_BYTES)?;
    let mut name = SectionName { name: [0; NAME_BYTES], instance: number::<4>(head, 16) as u32 };
    name.name.copy_from_slice(&head[..NAME_BYTES]);
    let (version, flags) = (number::<2>(head, 20) as u16, number::<2>(head, 22) as u16);
    let (length, crc) = (number::<4>(head, 24) as usize, number::<4>(head, CHECKSUM_AT));
    if length > MAX_SECTION_BYTES {
        return Err(cursor.damaged("a section longer than can be"));
    }
    let payload = cursor.take(length)?;
    if u64::from(checksum(&head[..CHECKSUM_AT], payload)) != crc {
        return Err(StateError::Checksum(name));
    }
    match kinds.iter().find(|kind| SectionName::new(kind.name, name.instance) == name) {
        Some(kind) if version > kind.version => {
            Err(StateError::SectionVersion { section: name, found: version, known: kind.version })
        }
        Some(kind) => read_fields(name, payload, kind).map(Some),
        None if flags & REQUIRED != 0 => Err(StateError::UnknownSection(name)),
        None => Ok(None),
    }
}

fn read_fields<'a>(section: SectionName, payload: &'a [u8], kind: &Kind) -> Result<Section<'a>, StateError> {
    let mut cursor = Cursor { bytes: payload, at: 0 };
    let mut fields: Vec<(u16, &[u8])> = Vec::new();
    for _ in 0..MAX_FIELDS {
        if cursor.at == payload.len() {
            return Ok(Section { name: section, fields });
        }
        let head = cursor.take(FIELD_BYTES)?;
        let (tag, flags) = (number::<2>(head, 0) as u16, number::<2>(head, 2) as u16);
        let value = cursor.take(number::<4>(head, 4) as usize)?;
        if fields.iter().any(|field| field.0 == tag) {
            return Err(cursor.damaged("a field that was there before"));
        }
        if kind.tags.contains(&tag) {
            fields.push((tag, value));
        } else if flags & REQUIRED != 0 {
            return Err(StateError::UnknownField { section, tag });
        }
    }
    Err(cursor.damaged("more fields than can be"))
}

/// A place in bytes.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], StateError> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..count).ok_or_else(|| self.damaged("it ends here"))?;
        self.at += count;
        Ok(taken)
    }

    fn damaged(&self, what: &'static str) -> StateError {
        StateError::Damaged { at: self.at, what }
    }
}

/// The little-endian number of `N` ≤ 8 bytes at `at`, which the caller knows to be inside.
fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    let mut wide = [0; 8];
    wide[..N].copy_from_slice(&bytes[at..at + N]);
    u64::from_le_bytes(wide)
}
