//! What is said when a source comes back after the link was lost: what it knows, and what became of the guest.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The source has come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejoin {
    /// Whose.
    pub guest: Uuid,
    /// The guest's epoch there: on the destination as it was handed on, or on the source as it was forced.
    pub epoch: u64,
    /// What the source knows.
    pub knows: Knows,
}

/// What a source that has come back knows of its guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Knows {
    /// It sent commit and heard nothing.
    Committed,
    /// It heard `running`.
    Left,
    /// The guest runs on the source.
    Kept,
}

/// What became of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// In a word.
    pub fate: Fate,
    /// Pages still missing: so many are named by the `missing` frames that follow.
    pub missing: u64,
    /// In words, for people.
    pub reason: String,
}

/// What became of the guest, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// It is here and waits for commit.
    Held,
    /// It runs here.
    Running,
    /// It runs here, and nothing is missing.
    Arrived,
    /// It does not run here, and never did or will.
    NotRunning,
    /// It ran here and is lost.
    Gone,
    /// Nothing is known of it here, or not enough.
    Unknown,
}
