//! Talking to the tracker. (being written)
