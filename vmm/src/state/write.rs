//! Writing: sections go one after another into a buffer that is reused.

use super::{
    CHECKSUM_AT, FIELD_BYTES, HEADER_BYTES, Kind, MAGIC, REQUIRED, SECTION_BYTES, SectionName, VERSION,
    checksum,
};

/// Writes a whole stream.
#[derive(Debug)]
pub struct StreamWriter {
    bytes: Vec<u8>,
    sections: u32,
}

impl StreamWriter {
    /// Begins a stream in `buffer`, whose capacity is kept and whose content is dropped.
    #[must_use]
    pub fn new(mut buffer: Vec<u8>) -> Self {
        buffer.clear();
        buffer.extend_from_slice(&MAGIC);
        buffer.extend_from_slice(&VERSION.to_le_bytes());
        buffer.extend_from_slice(&0_u32.to_le_bytes());
        Self { bytes: buffer, sections: 0 }
    }

    /// Writes one section.
    pub fn section(&mut self, kind: &Kind, instance: u32, fields: impl FnOnce(&mut SectionWriter<'_>)) {
        write_section(&mut self.bytes, kind, instance, |section| {
            fields(section);
            Ok::<(), std::convert::Infallible>(())
        })
        .unwrap_or_else(|never| match never {});
        self.sections += 1;
    }

    /// Appends sections written elsewhere with [`SectionWriter::write`].
    pub fn append(&mut self, sections: u32, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.sections += sections;
    }

    /// The stream.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&self.sections.to_le_bytes());
        self.bytes
    }
}

/// Writes the fields of one section.
#[derive(Debug)]
pub struct SectionWriter<'a> {
    bytes: &'a mut Vec<u8>,
}

impl SectionWriter<'_> {
    /// Appends a section to `bytes`, to be put into a stream by [`StreamWriter::append`].
    ///
    /// # Errors
    /// As `fields` fails.
    pub fn write<E>(
        bytes: &mut Vec<u8>,
        kind: &Kind,
        instance: u32,
        fields: impl FnOnce(&mut SectionWriter<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        write_section(bytes, kind, instance, fields)
    }

    /// A field that a reader must know.
    pub fn required(&mut self, tag: u16, value: &[u8]) {
        self.head(tag, REQUIRED, value.len());
        self.bytes.extend_from_slice(value);
    }

    /// A field that a reader may skip.
    pub fn optional(&mut self, tag: u16, value: &[u8]) {
        self.head(tag, 0, value.len());
        self.bytes.extend_from_slice(value);
    }

    /// A required field of `len` zero bytes, to be filled in place.
    pub fn room(&mut self, tag: u16, len: usize) -> &mut [u8] {
        self.head(tag, REQUIRED, len);
        let start = self.bytes.len();
        self.bytes.resize(start + len, 0);
        &mut self.bytes[start..]
    }

    fn head(&mut self, tag: u16, flags: u16, len: usize) {
        let mut head = [0; FIELD_BYTES];
        head[..2].copy_from_slice(&tag.to_le_bytes());
        head[2..4].copy_from_slice(&flags.to_le_bytes());
        head[4..].copy_from_slice(&(len as u32).to_le_bytes());
        self.bytes.extend_from_slice(&head);
    }
}

fn write_section<E>(
    bytes: &mut Vec<u8>,
    kind: &Kind,
    instance: u32,
    fields: impl FnOnce(&mut SectionWriter<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let start = bytes.len();
    bytes.resize(start + SECTION_BYTES, 0);
    fields(&mut SectionWriter { bytes })?;
    let (head, payload) = bytes[start..].split_at_mut(SECTION_BYTES);
    head[..16].copy_from_slice(&SectionName::new(kind.name, instance).name);
    head[16..20].copy_from_slice(&instance.to_le_bytes());
    head[20..22].copy_from_slice(&kind.version.to_le_bytes());
    head[22..24].copy_from_slice(&REQUIRED.to_le_bytes());
    head[24..28].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    let crc = checksum(&head[..CHECKSUM_AT], payload);
    head[CHECKSUM_AT..].copy_from_slice(&crc.to_le_bytes());
    Ok(())
}
