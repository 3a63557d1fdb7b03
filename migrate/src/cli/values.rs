//! Times and sizes as people write them.

use std::time::Duration;

/// A time: a number and a unit, `us`, `ms`, `s`, `m` or `h`; `300ms`, `1.5s`, `2m`. Not zero, at most 30 days.
///
/// # Errors
/// A line that says what is wrong with it.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    const LONGEST: f64 = 30.0 * 86_400.0;
    let (number, unit) = split(text);
    let seconds = match unit {
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "" => return Err(format!("a time needs a unit: {text}ms or {text}s?")),
        _ => return Err("not a time: write a number and us, ms, s, m or h, such as 300ms".to_owned()),
    };
    match decimal(number).map(|number| number * seconds) {
        None => Err("not a time: write a number and us, ms, s, m or h, such as 300ms".to_owned()),
        Some(seconds) if seconds < 1e-6 => Err("must be 1us or more".to_owned()),
        Some(seconds) if seconds > LONGEST => Err("more than 30 days".to_owned()),
        Some(seconds) => Ok(Duration::from_micros((seconds * 1e6).round() as u64)),
    }
}

/// A size in bytes: a number and perhaps `K`, `M`, `G` or `T`, powers of 1024; `512M`, `1.5G`. Not zero.
///
/// # Errors
/// A line that says what is wrong with it.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || "not a size: write a number and K, M, G or T (powers of 1024), such as 512M".to_owned();
    let (number, unit) = split(text);
    let unit = unit.strip_suffix("iB").or_else(|| unit.strip_suffix('B')).unwrap_or(unit);
    let shift = match unit {
        "" => 0,
        "k" | "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(wrong()),
    };
    let bytes = decimal(number).ok_or_else(wrong)? * (1_u64 << shift) as f64;
    match bytes {
        bytes if bytes < 1.0 => Err("must be 1 byte or more".to_owned()),
        bytes if bytes >= (1_u64 << 53) as f64 => Err("more than 8192T".to_owned()),
        bytes => Ok(bytes.round() as u64),
    }
}

/// The same, or 0.
///
/// # Errors
/// A line that says what is wrong with it.
pub fn parse_bytes_or_zero(text: &str) -> Result<u64, String> {
    if text == "0" { Ok(0) } else { parse_bytes(text) }
}

fn split(text: &str) -> (&str, &str) {
    text.split_at(text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len()))
}

/// Digits and at most one point: no sign, exponent, infinity.
fn decimal(digits: &str) -> Option<f64> {
    if digits.starts_with('.') || digits.ends_with('.') { None } else { digits.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let time = |text| parse_duration(text).unwrap();
        assert_eq!(time("300ms"), Duration::from_millis(300));
        assert_eq!(time("60s"), Duration::from_secs(60));
        assert_eq!(time("2m"), Duration::from_secs(120));
        assert_eq!(time("1.5h"), Duration::from_secs(5400));
        assert_eq!(time("250us"), Duration::from_micros(250));
        assert_eq!(parse_duration("60").unwrap_err(), "a time needs a unit: 60ms or 60s?");
        assert_eq!(parse_duration("0s").unwrap_err(), "must be 1us or more");
        assert_eq!(parse_duration("31000m").unwrap(), Duration::from_secs(1_860_000));
        assert_eq!(parse_duration("1000h").unwrap_err(), "more than 30 days");
        for wrong in ["ms", "-1s", "1e3s", "1.2.3s", ".5s", "5.s", "1s2", "soon", "1 s"] {
            assert!(parse_duration(wrong).unwrap_err().starts_with("not a time"), "{wrong}");
        }
    }

    #[test]
    fn sizes() {
        let size = |text| parse_bytes(text).unwrap();
        assert_eq!((size("100M"), size("1G"), size("64k"), size("12")), (100 << 20, 1 << 30, 64 << 10, 12));
        assert_eq!((size("1.5G"), size("1GiB"), size("2MB")), (3 << 29, 1 << 30, 2 << 20));
        assert_eq!(parse_bytes("0").unwrap_err(), "must be 1 byte or more");
        assert_eq!(parse_bytes("9000T").unwrap_err(), "more than 8192T");
        for wrong in ["", "M", "-1M", "1X", "1MM", "1e9", "1 G"] {
            assert!(parse_bytes(wrong).unwrap_err().starts_with("not a size"), "{wrong}");
        }
    }
}
