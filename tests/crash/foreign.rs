//! Now and then the Python reader, written by other hands against OpenSSL, reads the same image as it was left, and must
//! find what the device finds when it opens it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;
use zonevault::store::mem::Moment;

use crate::model::End;
use crate::payload::identify;
use crate::rig::Report;
use crate::shape::{KEY, Shape, ZONE_SIZE};

/// The Python that `tests/vectors/fetch` made, with a recent OpenSSL.
fn python() -> Result<PathBuf, String> {
    let cache = std::env::var_os("ZONEVAULT_CACHE").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache"),
        PathBuf::from,
    );
    let python = cache.join("openssl-venv/bin/python");
    if python.exists() {
        Ok(python)
    } else {
        Err(format!(
            "{} is missing: run tests/vectors/fetch",
            python.display()
        ))
    }
}

/// Has the image of `left`, which ended so, read; the device, once it was opened, reported `reports`.
pub(crate) fn read(
    shape: &Shape,
    left: &Moment,
    end: End,
    reports: &[Report],
) -> Result<(), String> {
    let folder = TempDir::new().expect("a folder for an image");
    let path = |name: &str| folder.path().join(name);
    let len = usize::try_from(left.len()).expect("a small image");
    fs::write(path("image"), left.peek(0, len)).expect("room for an image");
    fs::write(path("key"), KEY).expect("room for a key");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reader/zvread.py");
    let mut command = Command::new("timeout");
    command.arg("120").arg(python()?).arg(script);
    command
        .arg(path("image"))
        .arg("--key-file")
        .arg(path("key"));
    command.arg("--out").arg(path("disk"));
    if end == End::Cut {
        command.arg("--after-power-cut");
    }
    let out = command.stdin(Stdio::null()).output().expect("python runs");
    if !out.status.success() {
        let why = String::from_utf8_lossy(&out.stderr).into_owned();
        return Err(format!("the Python reader refuses ({}): {why}", out.status));
    }
    let disk = fs::read(path("disk")).expect("what it wrote");
    let zones = disk.chunks(usize::try_from(ZONE_SIZE).expect("a small zone"));
    for (zone, (bytes, report)) in zones.zip(reports).enumerate() {
        let blocks = bytes.chunks(shape.block_len()).take(report.blocks.len());
        let found: Vec<_> = blocks.map(identify).collect();
        if found != report.blocks {
            return Err(format!(
                "zone {zone}: the Python reader finds {found:x?}, the device {:x?}",
                report.blocks
            ));
        }
    }
    Ok(())
}
