//! A second reader of the saved state: written from `docs/state.md`, not from the code, so that the document is enough.
//!
//! It reads a stream's frame, and checks every section that the document describes against its table there. Of values it
//! knows what the document says of them. It is strict where a program must be lenient: a section or field that the
//! document does not describe is an error, because nobody may write one.

/// What is read of a stream.
#[derive(Debug)]
pub struct Section {
    /// Its kind.
    pub name: String,
    /// Which of its kind.
    pub instance: u32,
    /// Version of its fields.
    pub version: u16,
    /// In the order in which they are written.
    pub fields: Vec<Field>,
}

/// A tagged value.
#[derive(Debug)]
pub struct Field {
    /// Its meaning, in its section.
    pub tag: u16,
    /// Whether a reader that does not know it must refuse the stream.
    pub required: bool,
    /// Its bytes.
    pub value: Vec<u8>,
}

/// Bytes of a value.
enum Size {
    Is(usize),
    Within(usize, usize),
    /// So many each, at most that often.
    Times(usize, usize),
}
use Size::{Is, Times, Within};

/// Tag, whether it is required, and its size.
type Row = (u16, bool, Size);

/// The frame: "Nothing follows the last section."
///
/// # Errors
/// What the document does not allow.
pub fn read(stream: &[u8]) -> Result<Vec<Section>, String> {
    let mut rest = stream;
    expect(take(&mut rest, 8)? == b"VMSTATE\0", "the magic is another")?;
    expect(number(take(&mut rest, 4)?) == 1, "the frame's version is not 1")?;
    let count = number(take(&mut rest, 4)?);
    expect((1..=1024).contains(&count), "there are not 1 to 1024 sections")?;
    let sections = (0..count).map(|_| section(&mut rest)).collect::<Result<Vec<_>, _>>()?;
    expect(rest.is_empty(), "bytes follow the last section")?;
    for (at, section) in sections.iter().enumerate() {
        let same = |other: &Section| (&other.name, other.instance) == (&section.name, section.instance);
        expect(!sections[..at].iter().any(same), &format!("{} is there twice", section.name))?;
    }
    Ok(sections)
}

fn section(rest: &mut &[u8]) -> Result<Section, String> {
    let head = *rest;
    let name = take(rest, 16)?;
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(16);
    let padded = name[end..].iter().all(|byte| *byte == 0) && name.is_ascii();
    let name = String::from_utf8_lossy(&name[..end]).into_owned();
    expect(padded, &format!("{name} is not ASCII, padded with zeros"))?;
    let instance = number(take(rest, 4)?) as u32;
    let version = number(take(rest, 2)?) as u16;
    expect(number(take(rest, 2)?) == 1, &format!("{name} is not written as required"))?;
    let length = number(take(rest, 4)?) as usize;
    expect(length <= 4 << 20, &format!("{name} is longer than 4 MiB"))?;
    let sum = number(take(rest, 4)?) as u32;
    let mut payload = take(rest, length)?;
    expect(crc32(&[&head[..28], payload]) == sum, &format!("{name} has another checksum"))?;
    let mut fields: Vec<Field> = Vec::new();
    while !payload.is_empty() {
        let (tag, flags) = (number(take(&mut payload, 2)?) as u16, number(take(&mut payload, 2)?));
        expect(flags <= 1, &format!("field {tag} of {name} has flags that there are not"))?;
        let length = number(take(&mut payload, 4)?) as usize;
        let value = take(&mut payload, length)?.to_vec();
        expect(
            !fields.iter().any(|field| field.tag == tag),
            &format!("field {tag} of {name} is there twice"),
        )?;
        fields.push(Field { tag, required: flags == 1, value });
    }
    Ok(Section { name, instance, version, fields })
}

/// The tables of the document: of each section at its version. The instance may be more than 0 where that is said.
fn table(name: &str, version: u16) -> Option<(bool, Vec<Row>)> {
    let virtio = |queues: usize| {
        vec![
            (1, true, Is(4)),
            (2, true, Is(4)),
            (3, true, Is(8)),
            (4, true, Is(12)),
            (5, true, Is(32 * queues)),
            (6, false, Is(4)),
        ]
    };
    let with = |mut rows: Vec<Row>, own: Vec<Row>| {
        rows.extend(own);
        rows
    };
    Some(match (name, version) {
        ("machine", 1) => (false, vec![(1, true, Is(4)), (2, true, Is(8)), (3, true, Is(4))]),
        ("vcpu", 1) => (
            true,
            vec![
                (1, true, Is(4)),
                (2, true, Is(144)),
                (3, true, Is(312)),
                (4, true, Within(4096, usize::MAX)),
                (5, true, Is(392)),
                (6, true, Is(128)),
                (7, true, Is(1024)),
                (8, true, Times(16, 256)),
                (9, false, Is(24)),
                (10, true, Is(64)),
            ],
        ),
        ("chips", 1) => {
            (false, vec![(1, true, Is(520)), (2, true, Is(520)), (3, true, Is(520)), (4, true, Is(112))])
        }
        ("clock", 1) => (false, vec![(1, true, Is(8)), (2, false, Is(8))]),
        ("serial", 1) => {
            (false, vec![(1, true, Is(9)), (2, true, Within(0, 64)), (3, false, Within(0, 65536))])
        }
        ("power", 1) => (false, vec![(1, true, Is(4))]),
        ("virtio-rng", 1) => (false, virtio(1)),
        ("virtio-console", 1) => (false, virtio(2)),
        ("virtio-blk", 1) => {
            (true, with(virtio(1), vec![(16, true, Is(8)), (17, true, Is(1)), (18, true, Is(20))]))
        }
        ("virtio-net", 1) => (true, with(virtio(3), vec![(16, true, Is(6))])),
        _ => return None,
    })
}

/// One section, against its table.
///
/// # Errors
/// What is not as the document says.
pub fn check(section: &Section) -> Result<(), String> {
    let Section { name, instance, version, fields } = section;
    let (many, rows) =
        table(name, *version).ok_or(format!("the document has no section {name} of version {version}"))?;
    expect(many || *instance == 0, &format!("{name} has instance {instance}"))?;
    for (tag, required, size) in &rows {
        let Some(field) = fields.iter().find(|field| field.tag == *tag) else {
            expect(!required, &format!("{name} has no field {tag}"))?;
            continue;
        };
        let bytes = field.value.len();
        let fits = match size {
            Is(wanted) => bytes == *wanted,
            Within(least, most) => (*least..=*most).contains(&bytes),
            Times(each, most) => bytes.is_multiple_of(*each) && bytes / each <= *most,
        };
        expect(fits, &format!("field {tag} of {name} has {bytes} bytes"))?;
        // "Written as required, and only where there are any."
        let flagged = *required || name.starts_with("virtio-") && *tag == 6 || name == "clock" && *tag == 2;
        expect(field.required == flagged, &format!("field {tag} of {name} is not flagged as it should be"))?;
    }
    let unknown = fields.iter().find(|field| !rows.iter().any(|(tag, ..)| *tag == field.tag));
    expect(unknown.is_none(), &format!("the document has no field {unknown:?} of {name}"))?;
    check_values(section)
}

/// What the document says of single values.
fn check_values(section: &Section) -> Result<(), String> {
    let value = |tag: u16| section.value(tag);
    match section.name.as_str() {
        "vcpu" => {
            let order: Vec<u16> =
                section.fields.iter().map(|field| field.tag).filter(|tag| *tag != 9).collect();
            expect(
                order == [1, 2, 3, 4, 5, 6, 8, 7, 10],
                "a vCPU's fields are not in the order of the column get",
            )?;
            let msrs: Vec<_> =
                value(8).chunks(16).map(|msr| (number(&msr[..4]), number(&msr[4..8]))).collect();
            expect(msrs.iter().all(|(_, zero)| *zero == 0), "an MSR is not followed by zero")?;
            expect(msrs.first().is_some_and(|(index, _)| *index == 0x10), "IA32_TSC does not come first")?;
            let deadline = msrs.iter().position(|(index, _)| *index == 0x6e0);
            expect(deadline.is_none_or(|at| at + 1 == msrs.len()), "IA32_TSC_DEADLINE does not come last")
        }
        "chips" => {
            let ids = [1, 2, 3].map(|tag| number(&value(tag)[..4]));
            expect(ids == [0, 1, 2], "an interrupt controller has another number")
        }
        name if name.starts_with("virtio-") => {
            let (status, interrupt) = (number(value(1)), number(value(2)));
            expect(
                status & !0xcf == 0 && interrupt & !3 == 0,
                "a virtio device has a status that there is not",
            )?;
            value(5).chunks(32).try_for_each(check_queue)
        }
        _ => Ok(()),
    }
}

/// "A queue that is ready must be one that could be made ready."
fn check_queue(queue: &[u8]) -> Result<(), String> {
    let (ready, size) = (number(&queue[..2]), number(&queue[2..4]));
    let aligned =
        [(8, 16), (16, 2), (24, 4)].iter().all(|(at, to)| number(&queue[*at..*at + 8]).is_multiple_of(*to));
    expect(ready == 0 || ready == 1 && size.is_power_of_two() && aligned, "a queue cannot be as it is")
}

impl Section {
    /// A value that [`check`] has found; empty where it is not there.
    #[must_use]
    pub fn value(&self, tag: u16) -> &[u8] {
        self.fields.iter().find(|field| field.tag == tag).map_or(&[], |field| &field.value)
    }
}

/// A whole machine's state: every section, and that they are all there in their order.
///
/// # Errors
/// What is not as the document says.
pub fn check_machine(sections: &[Section]) -> Result<(), String> {
    sections.iter().try_for_each(check)?;
    let names: Vec<_> = sections.iter().map(|section| (section.name.as_str(), section.instance)).collect();
    expect(names.first() == Some(&("machine", 0)), "the section machine is not the first")?;
    let vcpus = number(sections[0].value(1)) as u32;
    let cpus: Vec<_> = (0..vcpus).map(|number| ("vcpu", number)).collect();
    let rest = names[1..].strip_prefix(cpus.as_slice()).ok_or("there is not a section for each vCPU")?;
    expect(
        rest.starts_with(&[("chips", 0), ("clock", 0), ("serial", 0), ("power", 0)]),
        "chips, clock, serial do not follow",
    )
}

/// The next bytes.
fn take<'a>(rest: &mut &'a [u8], count: usize) -> Result<&'a [u8], String> {
    let (taken, after) = rest.split_at_checked(count).ok_or("it ends too early")?;
    *rest = after;
    Ok(taken)
}

/// "All numbers are little-endian."
#[must_use]
pub fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// IEEE CRC-32: polynomial 0x04c11db7, reflected, from all ones, inverted.
fn crc32(parts: &[&[u8]]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    let bytes = parts.iter().flat_map(|part| part.iter());
    !bytes.fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

fn expect(holds: bool, otherwise: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise.to_owned()) }
}
