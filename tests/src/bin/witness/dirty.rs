//! Writing memory as fast as possible, page after page of a working set, each checked before it is written again.

use std::io;

use crate::says::{Seconds, corrupt};

/// Words of a page.
const PAGE: usize = 512;

/// Goes on until it is killed.
pub(crate) fn run(mib: usize) -> io::Result<()> {
    let mut memory = vec![0_u64; mib << 17];
    let mut seconds = Seconds::new("dirty");
    for lap in 1.. {
        for (number, page) in memory.chunks_exact_mut(PAGE).enumerate() {
            let at = number % PAGE;
            if page[at] != lap - 1 {
                corrupt("dirty", &format!("page {number} has {} instead of {}", page[at], lap - 1));
            }
            page[at] = lap;
        }
        seconds.tell(|| format!("{} pages", lap * (mib as u64) * 256));
    }
    Ok(())
}
