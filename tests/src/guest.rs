//! The guests that tests start: the demo guest with a workload.

/// What to start.
#[derive(Debug, Clone, Copy)]
pub struct Guest {
    /// Its command line; `guest/src/lib.rs` has the words.
    pub words: &'static str,
    /// RAM.
    pub memory: &'static str,
    /// vCPUs.
    pub cpus: u32,
    /// Its disk, as `vmm run --disk` takes it. With one it is a guest of its own kernel, with virtio devices.
    pub disk: Option<&'static str>,
    /// Its network interface, as `vmm run --net` takes it. With one the same is true.
    pub nic: Option<&'static str>,
    /// Its CPU, as `vmm run --cpu` takes it.
    pub cpu: &'static str,
}

impl Guest {
    /// Writes 5000 pages a second over 32 MiB; 96 MiB of its 256 are filled with what cannot be compressed.
    pub const BUSY: Self = Self {
        words: "dirty ws=32 rate=5000 fill=96",
        memory: "256M",
        cpus: 1,
        disk: None,
        nic: None,
        cpu: "host",
    };

    /// Only reads the TSC.
    pub const IDLE: Self = Self { words: "idle", memory: "64M", cpus: 1, disk: None, nic: None, cpu: "host" };

    /// The same with other words.
    #[must_use]
    pub fn words(self, words: &'static str) -> Self {
        Self { words, ..self }
    }

    /// The same with other RAM.
    #[must_use]
    pub fn memory(self, memory: &'static str) -> Self {
        Self { memory, ..self }
    }

    /// The same with a disk.
    #[must_use]
    pub fn disk(self, disk: &'static str) -> Self {
        Self { disk: Some(disk), ..self }
    }

    /// The same with another CPU.
    #[must_use]
    pub fn cpu(self, cpu: &'static str) -> Self {
        Self { cpu, ..self }
    }

    /// The same with so many vCPUs.
    #[must_use]
    pub fn cpus(self, cpus: u32) -> Self {
        Self { cpus, ..self }
    }
}
