//! The package is its test.
