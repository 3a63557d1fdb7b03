//! What a handful of measurements says: the middle and the ends, never a mean.
//!
//! Downtimes have tails. A mean hides them, so none is computed here.

use serde::Serialize;

/// The shape of a set of measurements, in whatever unit they had.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// How many there were.
    pub runs: usize,
    /// Smallest.
    pub min: f64,
    /// Middle; of an even number the mean of the two in the middle.
    pub median: f64,
    /// 90th percentile by nearest rank: with fewer than 10 measurements the largest.
    pub p90: f64,
    /// 99th percentile by nearest rank: with fewer than 100 measurements the largest.
    pub p99: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// The shape of `values`; nothing when there are none. What is not a number is left out.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().filter(|value| !value.is_nan()).collect();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            runs: sorted.len(),
            min: *sorted.first()?,
            median: median(&sorted)?,
            p90: percentile(&sorted, 90.0)?,
            p99: percentile(&sorted, 99.0)?,
            max: *sorted.last()?,
        })
    }
}

fn median(sorted: &[f64]) -> Option<f64> {
    let middle = sorted.len() / 2;
    let upper = sorted.get(middle)?;
    Some(if sorted.len().is_multiple_of(2) { f64::midpoint(sorted[middle - 1], *upper) } else { *upper })
}

/// The smallest value that at least `percent` of all do not exceed (nearest rank). `sorted` ascends.
#[must_use]
pub fn percentile(sorted: &[f64], percent: f64) -> Option<f64> {
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_odd_and_even_sets() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]).unwrap().median, 2.0);
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        let one = Spread { runs: 1, min: 7.0, median: 7.0, p90: 7.0, p99: 7.0, max: 7.0 };
        assert_eq!(Spread::of([7.0]), Some(one));
    }

    #[test]
    fn nothing_measured_has_no_shape() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([f64::NAN]), None);
        assert_eq!(percentile(&[], 50.0), None);
    }

    #[test]
    fn percentiles_by_nearest_rank() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&hundred, 50.0), Some(50.0));
        assert_eq!(percentile(&hundred, 99.0), Some(99.0));
        assert_eq!(percentile(&hundred, 100.0), Some(100.0));
        assert_eq!(percentile(&hundred, 0.0), Some(1.0));
        assert_eq!(percentile(&[1.0, 2.0, 3.0], 99.0), Some(3.0));
        let spread = Spread::of(hundred.into_iter().rev()).unwrap();
        assert_eq!((spread.p90, spread.p99), (90.0, 99.0));
    }
}
