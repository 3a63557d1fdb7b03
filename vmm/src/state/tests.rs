//! Frames of saved state: what is written is read, and nothing else is.

use proptest::prelude::*;

use super::*;

const KNOWN: Kind = Kind { name: "known", version: 1, tags: &[1, 2] };

fn stream(kind: &Kind, tags: &[(u16, bool)]) -> Vec<u8> {
    let mut writer = StreamWriter::new(Vec::new());
    writer.section(kind, 3, |section| {
        for (tag, required) in tags {
            if *required { section.required(*tag, b"value") } else { section.optional(*tag, b"value") }
        }
    });
    writer.finish()
}

/// Makes the checksums right, as far as the lengths make sense.
pub(crate) fn restamp(stream: &mut [u8]) {
    let mut rest = &mut stream[HEADER_BYTES..];
    while let Some((head, after)) = rest.split_at_mut_checked(SECTION_BYTES) {
        let length = u32::from_le_bytes(head[24..28].try_into().unwrap()) as usize;
        let Some((payload, next)) = after.split_at_mut_checked(length) else { return };
        let crc = checksum(&head[..CHECKSUM_AT], payload);
        head[CHECKSUM_AT..].copy_from_slice(&crc.to_le_bytes());
        rest = next;
    }
}

#[test]
fn what_is_written_is_read() {
    let bytes = stream(&KNOWN, &[(1, true), (2, false)]);
    let read = Stream::read(&bytes, &[KNOWN]).unwrap();
    let section = read.section(&KNOWN, 3).unwrap();
    assert_eq!(section.required(1, "one"), Ok(&b"value"[..]));
    assert_eq!(section.optional(2), Some(&b"value"[..]));
    assert_eq!(
        section.exactly(1, "one", 4).unwrap_err().to_string(),
        "field 1 (one) in section \"known\" 3 of the saved state has 5 bytes, not 4"
    );
    assert_eq!(read.section(&KNOWN, 0).unwrap_err().to_string(), "saved state has no section \"known\"");
}

#[test]
fn unknown_fields_are_skipped_or_refused_by_name() {
    let bytes = stream(&KNOWN, &[(1, true), (9, false)]);
    assert!(Stream::read(&bytes, &[KNOWN]).is_ok());
    let bytes = stream(&KNOWN, &[(1, true), (9, true)]);
    let error = Stream::read(&bytes, &[KNOWN]).unwrap_err().to_string();
    assert!(error.contains("field 9 in section \"known\" 3"), "{error}");
}

#[test]
fn unknown_and_later_sections_are_refused_by_name() {
    let bytes = stream(&Kind { name: "other", ..KNOWN }, &[]);
    let error = Stream::read(&bytes, &[KNOWN]).unwrap_err().to_string();
    assert!(error.contains("section \"other\" 3"), "{error}");
    let bytes = stream(&Kind { version: 2, ..KNOWN }, &[]);
    let error = Stream::read(&bytes, &[KNOWN]).unwrap_err().to_string();
    assert!(error.contains("version 2") && error.contains("up to 1"), "{error}");
    let mut bytes = stream(&Kind { name: "other", ..KNOWN }, &[]);
    bytes[HEADER_BYTES + 22] = 0; // No longer required.
    restamp(&mut bytes);
    assert!(Stream::read(&bytes, &[KNOWN]).is_ok());
}

#[test]
fn every_cut_and_every_flipped_byte_of_a_section_is_noticed() {
    let bytes = stream(&KNOWN, &[(1, true)]);
    for end in 0..bytes.len() {
        assert!(Stream::read(&bytes[..end], &[KNOWN]).is_err(), "cut at {end}");
    }
    for at in HEADER_BYTES..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        assert!(Stream::read(&damaged, &[KNOWN]).is_err(), "flipped at {at}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Stream::read(&bytes, &[KNOWN]);
    }

    #[test]
    fn any_damage_is_read_without_panic(at in 0_usize..100, value: u8, payload in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut bytes = stream(&KNOWN, &[(1, true), (2, false)]);
        let at = at % bytes.len();
        bytes[at] = value;
        bytes.extend_from_slice(&payload);
        let _ = Stream::read(&bytes, &[KNOWN]);
    }

    /// Random payloads under a right checksum reach the fields' parser.
    #[test]
    fn any_payload_is_read_without_panic(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut bytes = stream(&KNOWN, &[]);
        let head = HEADER_BYTES;
        bytes[head + 24..head + 28].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&payload);
        restamp(&mut bytes);
        if let Ok(read) = Stream::read(&bytes, &[KNOWN]) {
            prop_assert!(read.section(&KNOWN, 3).is_ok());
        }
    }
}
