//! A network interface as it is asked for: `tap=NAME[,create][,bridge=BRIDGE][,mac=MAC]`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::ConfigError;

/// A network interface of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicConfig {
    /// Where its cable leads on this host.
    pub tap: TapConfig,
    /// Its address. Without one it follows from the guest's identity.
    pub mac: Option<Mac>,
}

/// A tap interface of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapConfig {
    /// The interface.
    pub name: InterfaceName,
    /// Whether it may be made, for as long as the guest is here, where there is none. This host's affair: not told to
    /// another one.
    #[serde(skip)]
    pub create: bool,
    /// The bridge that it is to be a port of. Without one it stays what it is. This host's affair, too.
    #[serde(skip)]
    pub bridge: Option<InterfaceName>,
}

/// The name of a network interface of this host: 1 to 15 (`IFNAMSIZ`) letters, digits, '-', '_' or '.'.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InterfaceName(String);

impl InterfaceName {
    /// Most bytes.
    pub const MAX: usize = 15;

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InterfaceName {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let possible = (1..=Self::MAX).contains(&text.len()) && text.chars().all(plain);
        let possible = possible && !matches!(text, "." | "..");
        possible.then(|| Self(text.into())).ok_or_else(|| ConfigError::Interface(text.into()))
    }
}

impl TryFrom<String> for InterfaceName {
    type Error = ConfigError;

    fn try_from(text: String) -> Result<Self, ConfigError> {
        text.parse()
    }
}

impl From<InterfaceName> for String {
    fn from(name: InterfaceName) -> Self {
        name.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An Ethernet address of one station.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac([u8; 6]);

impl Mac {
    /// Of the interface at this place of a guest without one of its own: locally administered (IEEE 802, bit 1 of the
    /// first byte), from the random bits of its identity.
    #[must_use]
    pub fn for_place(guest: Uuid, place: usize) -> Self {
        let [.., a, b, c, d, e] = *guest.as_bytes();
        Self([0x02, a, b, c, d, e.wrapping_add(place as u8)])
    }

    /// Its bytes, as they are on the wire.
    #[must_use]
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for Mac {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let impossible = || ConfigError::Mac(text.into());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let hex = |part: &&str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
            let part = parts.next().filter(hex).ok_or_else(impossible)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| impossible())?;
        }
        // Bit 0 of the first byte: a group's address.
        let station = bytes[0] & 1 == 0 && bytes != [0; 6] && parts.next().is_none();
        station.then_some(Self(bytes)).ok_or_else(impossible)
    }
}

impl TryFrom<String> for Mac {
    type Error = ConfigError;

    fn try_from(text: String) -> Result<Self, ConfigError> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for NicConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let impossible = || ConfigError::Nic(text.into());
        let (mut name, mut create, mut bridge, mut mac) = (None, false, None, None);
        for word in text.split(',') {
            match word.split_once('=') {
                Some(("tap", tap)) => name = Some(tap.parse()?),
                Some(("bridge", over)) => bridge = Some(over.parse()?),
                Some(("mac", address)) => mac = Some(address.parse()?),
                None if word == "create" => create = true,
                _ => return Err(impossible()),
            }
        }
        let name = name.ok_or_else(impossible)?;
        Ok(Self { tap: TapConfig { name, create, bridge }, mac })
    }
}

/// Where a guest that arrives finds its network: `tap=NAME[,create][,bridge=BRIDGE]`.
impl FromStr for TapConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text.parse::<NicConfig>() {
            Ok(NicConfig { tap, mac: None }) => Ok(tap),
            Ok(_) => Err(ConfigError::Tap(text.into())),
            Err(ConfigError::Nic(_)) => Err(ConfigError::Tap(text.into())),
            Err(other) => Err(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_read() {
        let nic: NicConfig = "tap=vm-tap.0,create,bridge=br0,mac=02:00:5e:Aa:00:01".parse().unwrap();
        assert_eq!((nic.tap.name.as_str(), nic.tap.create), ("vm-tap.0", true));
        assert_eq!(nic.tap.bridge.unwrap().as_str(), "br0");
        assert_eq!(nic.mac.unwrap().to_string(), "02:00:5e:aa:00:01");
        let nic: NicConfig = "tap=t".parse().unwrap();
        assert_eq!((nic.tap.create, nic.tap.bridge, nic.mac), (false, None, None));
    }

    #[test]
    fn impossible_interfaces_are_named_with_the_way_out() {
        let message = |text: &str| text.parse::<NicConfig>().unwrap_err().to_string();
        let usage = "is not possible: write tap=NAME[,create][,bridge=BRIDGE][,mac=MAC]";
        assert_eq!(message("eth0"), format!("network interface \"eth0\" {usage}"));
        assert!(message("mac=02:00:00:00:00:01").ends_with(usage), "without a tap");
        assert!(message("tap=a b").starts_with("interface name \"a b\" is not possible: use 1 to 15"));
        assert!(message("tap=1234567890123456").contains("1 to 15"));
        for mac in [
            "02:00:00:00:00",
            "02:00:00:00:00:001",
            "03:00:00:00:00:01",
            "00:00:00:00:00:00",
            "+2:00:00:00:00:01",
        ] {
            let says = message(&format!("tap=t,mac={mac}"));
            assert!(says.starts_with(&format!("MAC address \"{mac}\" is not possible")), "{says}");
        }
        let message = |text: &str| text.parse::<TapConfig>().unwrap_err().to_string();
        assert!(message("tap=t,mac=02:00:00:00:00:01").contains("write tap=NAME[,create][,bridge=BRIDGE]"));
        assert!(serde_json::from_str::<InterfaceName>("\"a/b\"").is_err());
    }

    #[test]
    fn addresses_of_one_guest_differ_and_stay() {
        let guest = Uuid::from_u128(0xff);
        let macs = [0, 1].map(|place| Mac::for_place(guest, place).to_string());
        assert_eq!(macs, ["02:00:00:00:00:ff", "02:00:00:00:00:00"]);
    }
}
