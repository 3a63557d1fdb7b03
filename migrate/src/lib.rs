//! migrate
pub mod client;
pub mod guest;
pub mod options;
pub mod pages;
pub mod progress;
pub mod report;
pub mod wire {
    //! Wire
    pub mod limits {
        //! Limits
        /// Runs in one frame of pages: what one `writev` takes with its head.
        pub const RUNS_PER_FRAME: usize = 512;
    }
}
