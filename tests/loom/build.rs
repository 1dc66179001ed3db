//! Takes the sources as they are and puts loom's atomics and locks in the place of the real ones, so
//! that what is tested is what is served. Of some it makes a copy with a mistake, which the tests must
//! find.

use std::path::Path;
use std::{env, fs};

const SHIMS: [(&str, &str); 7] = [
    ("std::sync::atomic", "loom::sync::atomic"),
    ("std::thread::yield_now", "loom::thread::yield_now"),
    ("parking_lot::Mutex", "crate::shim::Mutex"),
    ("vmm_sys_util::eventfd", "crate::shim"),
    // loom's atomics are made while a case runs.
    ("const fn", "fn"),
    (
        "[const { Place::free() }; N]",
        "std::array::from_fn(|_| Place::free())",
    ),
    ("//! ", "// "),
];

fn take_in(source: &str, name: &str, mistake: Option<(&str, &str)>) {
    let path = Path::new("../../src").join(source);
    println!("cargo::rerun-if-changed={}", path.display());
    let text = fs::read_to_string(&path).expect("a source file");
    let (code, _tests) = text.split_once("#[cfg(test)]").unwrap_or((&text, ""));
    let mut code = code.to_owned();
    if let Some((right, wrong)) = mistake {
        assert!(code.contains(right), "{source} has no {right:?} any more");
        code = code.replace(right, wrong);
    }
    for (real, shim) in SHIMS {
        code = code.replace(real, shim);
    }
    let out = env::var("OUT_DIR").expect("set by cargo");
    fs::write(Path::new(&out).join(name), code).expect("the output directory");
}

fn main() {
    take_in("zone/view.rs", "view.rs", None);
    take_in(
        "zone/view.rs",
        "view_unfenced.rs",
        Some(("fence(Ordering::Release);", "")),
    );
    take_in("volume/mailbox.rs", "mailbox.rs", None);
    take_in(
        "volume/mailbox.rs",
        "mailbox_early.rs",
        Some((
            "self.items.lock().push(item);\n        self.wake()",
            "self.wake()?;\n        self.items.lock().push(item);\n        Ok(())",
        )),
    );
    take_in("guard/table.rs", "table.rs", None);
    take_in(
        "guard/table.rs",
        "table_uncounted.rs",
        Some(("self.changes.load(Ordering::Relaxed) == changes", "true")),
    );
    take_in(
        "guard/table.rs",
        "table_unfenced.rs",
        Some(("fence(Ordering::Release);", "")),
    );
    take_in(
        "guard/table.rs",
        "table_unclaimed.rs",
        Some(("if claim.is_err() {", "if claim.is_err() && false {")),
    );
}
