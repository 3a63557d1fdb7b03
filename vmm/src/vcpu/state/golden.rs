//! The golden vCPU: recorded from the demo guest. What is read of it is all of it.

use super::tsc::Base;
use super::*;
use crate::state::{Stream, StreamWriter, golden};

/// Of no clock: so that it is there whatever host the file was recorded on.
const TSC_BYTES: [u8; 24] =
    [0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];

fn image(stream: &[u8]) -> Box<VcpuImage> {
    let read = Stream::read(stream, &[KIND]).unwrap();
    let section = read.section(&KIND, 0).unwrap();
    VcpuImage::from_section(section, section.optional(XSAVE).unwrap().len()).unwrap()
}

/// Writes what was read, in the order in which [`save`] does it.
fn written(image: &VcpuImage) -> Vec<u8> {
    let part = |part: &Part| &image.parts[PARTS.iter().position(|known| known.tag == part.tag).unwrap()];
    let mut stream = StreamWriter::new(Vec::new());
    stream.section(&KIND, 0, |section| {
        for fixed in [&MP_STATE, &REGS, &SREGS] {
            section.required(fixed.tag, part(fixed));
        }
        section.required(XSAVE, &image.xsave);
        for fixed in [&XCRS, &DEBUGREGS] {
            section.required(fixed.tag, part(fixed));
        }
        section.required(MSRS, &image.msrs);
        if let Some(tsc) = image.tsc {
            section.optional(TSC, &tsc.to_bytes());
        }
        for fixed in [&LAPIC, &EVENTS] {
            section.required(fixed.tag, part(fixed));
        }
    });
    stream.finish()
}

/// A stream that was just saved, with the field that not every host gives.
pub(crate) fn with_every_field(stream: &[u8]) -> Vec<u8> {
    let mut image = image(stream);
    image.tsc = SavedTsc::from_bytes(&TSC_BYTES);
    written(&image)
}

#[test]
fn golden_vcpus_are_read_wholly() {
    for (path, bytes) in golden::of(&KIND) {
        let image = image(&bytes);
        assert!(path != golden::path(&KIND) || written(&image) == bytes, "{}", path.display());
        let base = Base { tsc: 0x0807_0605_0403_0201, realtime_ns: 0x100f_0e0d_0c0b_0a09 };
        assert_eq!(image.tsc, Some(SavedTsc { offset: 8_u64.wrapping_neg(), base }));
        // The demo guest at work: it can run, its MSRs begin with the TSC, and it is in 64-bit mode with paging.
        assert_eq!((image.parts[0].as_slice(), msrs::index_of(&image.msrs)), (&[0; 4][..], IA32_TSC));
        let large_page_at_0 = 0x83;
        assert!(!image.first_pages(|_| Some(large_page_at_0)).is_empty());
    }
}
