//! demo guest (placeholder)
