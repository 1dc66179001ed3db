//! Vectors as files: where the fetched ones are, and the hexadecimal in them.

use std::env;
use std::path::PathBuf;

/// The bytes that `hex` stands for.
pub fn unhex(hex: &str) -> Vec<u8> {
    assert!(hex.len().is_multiple_of(2), "odd hex: {hex}");
    (0..hex.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap())
        .collect()
}

/// A path in the cache, which `tests/vectors/fetch` fills.
pub fn fetched(name: &str) -> PathBuf {
    let cache = env::var_os("ZONEVAULT_CACHE").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".cache"),
        PathBuf::from,
    );
    let path = cache.join(name);
    assert!(
        path.exists(),
        "{} is not there: run tests/vectors/fetch first",
        path.display()
    );
    path
}
