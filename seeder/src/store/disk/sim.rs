//! A disk that can fail.
