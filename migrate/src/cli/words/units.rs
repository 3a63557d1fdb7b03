//! Figures for people: three digits that matter, and a unit.

/// A time given in µs.
#[must_use]
pub fn micros(us: f64) -> String {
    match us {
        us if us < 999.5 => format!("{us:.0} µs"),
        us if us < 999_500.0 => format!("{} ms", three(us / 1e3)),
        us if us < 119_950_000.0 => format!("{} s", three(us / 1e6)),
        us => {
            let seconds = (us / 1e6).round() as u64;
            format!("{} min {} s", seconds / 60, seconds % 60)
        }
    }
}

/// A size or rate given in bytes, in units of 1024.
#[must_use]
pub fn bytes(bytes: f64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024.0 {
        return format!("{bytes:.0} B");
    }
    let mut value = bytes / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if value < 9.995 { 2 } else { 1 };
    format!("{value:.digits$} {}", units[unit])
}

/// A number with its thousands apart.
#[must_use]
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut apart = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            apart.push(',');
        }
        apart.push(digit);
    }
    apart
}

fn three(value: f64) -> String {
    match value {
        value if value < 9.995 => format!("{value:.2}"),
        value if value < 99.95 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_three_digits() {
        let cases = [
            (0.0, "0 µs"),
            (999.0, "999 µs"),
            (999.9, "1.00 ms"),
            (12_400.0, "12.4 ms"),
            (231_000.0, "231 ms"),
        ];
        for (us, words) in cases {
            assert_eq!(micros(us), words);
        }
        assert_eq!((micros(1_234_000.0), micros(150e6)), ("1.23 s".into(), "2 min 30 s".into()));
    }

    #[test]
    fn sizes_and_counts() {
        assert_eq!((bytes(17.0), bytes(2048.0)), ("17 B".into(), "2.00 KiB".into()));
        assert_eq!((bytes(1_048_575.0), bytes(1.5e9)), ("1.00 MiB".into(), "1.40 GiB".into()));
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
    }
}
