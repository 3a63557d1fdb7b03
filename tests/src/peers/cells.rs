//! The guests that are moved: the cells of the table.

use vmm::lab::guest::{Content, GuestPlan, Load};

/// One guest, under a name that can be asked for.
#[derive(Debug, Clone)]
pub struct Cell {
    /// Its name.
    pub name: &'static str,
    /// Its memory, and what it does.
    pub guest: GuestPlan,
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
        let memory = memory.parse().expect("a size");
        let cpus = "1".parse().expect("a number of vCPUs");
        let content = Content::Random;
        Cell { name, guest: GuestPlan { memory, cpus, fill_mib, content, working_set_mib, load } }
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
        let mut names: Vec<_> = all().iter().map(|cell| cell.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!((names.len(), few().len()), (8, 2));
    }
}
