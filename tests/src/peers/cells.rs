//! The guests that are moved: the cells of the table.

use vmm::lab::guest::{Content, GuestPlan, Load};
use vmm::lab::slow::Network;

/// One guest, under a name that can be asked for.
#[derive(Debug, Clone)]
pub struct Cell {
    /// Its name.
    pub name: &'static str,
    /// Its memory, and what it does.
    pub guest: GuestPlan,
    /// What it is moved over, where that is not loopback as it is.
    pub network: Option<Network>,
}

/// 100 Mbit/s, and a round trip of 50 ms.
const SLOW: Network = Network { bytes_per_s: 12_500_000, round_trip_us: 50_000 };

impl Cell {
    fn new(name: &'static str, memory: &str, fill_mib: u64, working_set_mib: u64, load: Load) -> Self {
        let memory = memory.parse().expect("a size");
        let cpus = "1".parse().expect("a number of vCPUs");
        let content = Content::Random;
        let guest = GuestPlan { memory, cpus, fill_mib, content, working_set_mib, load };
        Self { name, guest, network: None }
    }

    fn over_slow_network(mut self, content: Content) -> Self {
        self.guest.content = content;
        Self { network: Some(SLOW), ..self }
    }

    /// For people.
    #[must_use]
    pub fn describe(&self) -> String {
        let over = self.network.map(|network| format!("; over {}", network.describe()));
        self.guest.describe() + &over.unwrap_or_default()
    }
}

/// All of them.
#[must_use]
pub fn all() -> Vec<Cell> {
    [
        ("1G-idle", "1G", 920, 0, Load::Idle),
        ("1G-10k", "1G", 920, 512, Load::Rate(10_000)),
        ("1G-50k", "1G", 920, 512, Load::Rate(50_000)),
        ("1G-max-512M", "1G", 920, 512, Load::Max),
        ("1G-max-64M", "1G", 920, 64, Load::Max),
        ("4G-10k", "4G", 3700, 512, Load::Rate(10_000)),
        ("1G-256M-idle", "1G", 256, 0, Load::Idle),
        ("8G-empty", "8G", 0, 0, Load::Idle),
    ]
    .map(|(name, memory, fill_mib, working_set_mib, load)| {
        Cell::new(name, memory, fill_mib, working_set_mib, load)
    })
    .into()
}

/// Guests that are moved over a slow network: what compresses well, and what does not.
#[must_use]
pub fn slow() -> Vec<Cell> {
    [
        ("slow-text-idle", Content::Text, Load::Idle),
        ("slow-text-2k", Content::Text, Load::Rate(2000)),
        ("slow-random-idle", Content::Random, Load::Idle),
        ("slow-random-2k", Content::Random, Load::Rate(2000)),
    ]
    .map(|(name, content, load)| {
        let working_set_mib = if load == Load::Idle { 0 } else { 16 };
        Cell::new(name, "512M", 160, working_set_mib, load).over_slow_network(content)
    })
    .into()
}

/// The cells of a short look: what an idle guest costs that is not full, and the usual load.
#[must_use]
pub fn few() -> Vec<Cell> {
    all().into_iter().filter(|cell| ["1G-256M-idle", "1G-10k"].contains(&cell.name)).collect()
}

/// A guest that boots and then does nothing, for what is measured without a move.
#[must_use]
pub fn bare() -> GuestPlan {
    GuestPlan { fill_mib: 0, working_set_mib: 0, load: Load::Idle, ..all()[0].guest }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_of_one_cell_each() {
        let mut names: Vec<_> = all().iter().chain(&slow()).map(|cell| cell.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!((names.len(), few().len()), (12, 2));
    }

    #[test]
    fn a_slow_network_is_named() {
        let said = slow()[1].describe();
        assert!(said.contains("2000 pages/s over 16 MiB"), "{said}");
        assert!(said.ends_with("; over 0.1 Gbit/s with a round trip of 50 ms"), "{said}");
        assert!(all().iter().all(|cell| cell.describe() == cell.guest.describe()));
    }
}
