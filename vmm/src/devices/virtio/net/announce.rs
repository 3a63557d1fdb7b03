//! Telling the network where a guest is now: a reverse ARP request in its name (RFC 903), which asks for nothing that
//! anyone would answer. It only makes every switch on the way learn at which port the address is. The guest's own
//! protocol addresses are announced by its driver, which knows them.

use std::time::Duration;

use super::HEADER_BYTES;
use crate::config::Mac;

/// When announcements follow a guest's arrival. The first ones may be lost: a bridge's port opens a moment after the
/// tap has its carrier, and a switch may be busy.
pub(super) const TIMES: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_millis(1000),
];

/// The least payload that Ethernet knows is padded to.
const BYTES: usize = HEADER_BYTES + 60;

/// The frame, behind a header that asks for nothing.
pub(super) fn frame(mac: Mac) -> [u8; BYTES] {
    let mac = mac.bytes();
    // Ethernet's addresses and type; hardware Ethernet, protocol IPv4, lengths 6 and 4, operation 3: "reverse request".
    let head = [&[0xff; 6][..], &mac, &[0x80, 0x35], &[0, 1, 8, 0, 6, 4, 0, 3]].concat();
    // Whose address is asked for: the sender's own. Protocol addresses are unknown.
    let body = [&mac[..], &[0; 4], &mac, &[0; 4]].concat();
    let mut frame = [0; BYTES];
    let content = [head, body].concat();
    frame[HEADER_BYTES..HEADER_BYTES + content.len()].copy_from_slice(&content);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_reverse_arp_request_to_all_from_the_guest() {
        let frame = frame("02:00:00:00:00:07".parse().unwrap());
        let mac = [2, 0, 0, 0, 0, 7];
        assert_eq!(frame[..12], [0; 12]);
        assert_eq!(
            (&frame[12..18], &frame[18..24], &frame[24..26]),
            (&[0xff; 6][..], &mac[..], &[0x80, 0x35][..])
        );
        assert_eq!(frame[26..34], [0, 1, 8, 0, 6, 4, 0, 3]);
        assert_eq!((&frame[34..40], &frame[44..50]), (&mac[..], &mac[..]));
        assert_eq!(frame.len(), 72);
    }
}
