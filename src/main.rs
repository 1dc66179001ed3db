//! The `zonevault` command.
fn main() {}
