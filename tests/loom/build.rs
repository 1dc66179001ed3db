//! Takes the sources as they are and puts loom's atomics and locks in the place of the real ones, so
//! that what is tested is what is served. Of some it makes a copy with a mistake, which the tests must
//! find.

use std::path::{Path, PathBuf};
use std::{env, fs};

type Words<'a> = (&'a str, &'a str);

const SHIMS: [Words<'_>; 7] = [
    ("std::sync::atomic", "loom::sync::atomic"),
    ("std::thread::yield_now", "loom::thread::yield_now"),
    ("parking_lot::", "crate::shim::"),
    ("vmm_sys_util::eventfd", "crate::shim"),
    // loom's atomics are made while a case runs.
    ("const fn", "fn"),
    (
        "[const { Place::free() }; N]",
        "std::array::from_fn(|_| Place::free())",
    ),
    ("//!", "//"),
];

/// Where the device's threads find everything but each other.
const WORLD: [Words<'_>; 6] = [
    ("crate::", "crate::world::"),
    ("std::fs::File", "crate::world::File"),
    ("std::thread::", "crate::world::thread::"),
    ("virtio_queue::", "crate::world::"),
    ("vm_memory::", "crate::world::"),
    ("vmm_sys_util::epoll", "crate::world::epoll"),
];

/// The same for who writes the memory that a front-end keeps. It runs on one thread: what it would give way
/// to is a kill.
const KEPT: [Words<'_>; 8] = [
    ("crate::", "crate::kept::"),
    ("std::fs::File", "crate::kept::File"),
    ("std::os::unix::fs::MetadataExt", "crate::kept::MetadataExt"),
    ("std::sync::Arc", "std::rc::Rc as Arc"),
    ("crc_fast::", "crate::kept::"),
    ("memfd::", "crate::kept::"),
    ("vm_memory::", "crate::kept::"),
    ("//!", "//"),
];

fn read(source: &str) -> String {
    let path = Path::new("../../src").join(source);
    println!("cargo::rerun-if-changed={}", path.display());
    let text = fs::read_to_string(&path).expect("a source file");
    let (code, _tests) = text.split_once("#[cfg(test)]").unwrap_or((&text, ""));
    code.to_owned()
}

fn replace(mut code: String, words: &[Words<'_>]) -> String {
    for (real, shim) in words {
        code = code.replace(real, shim);
    }
    code
}

fn mistaken(source: &str, code: &str, (right, wrong): Words<'_>) -> String {
    assert!(code.contains(right), "{source} has no {right:?} any more");
    code.replacen(right, wrong, 1)
}

fn out(name: &str) -> PathBuf {
    Path::new(&env::var("OUT_DIR").expect("set by cargo")).join(name)
}

fn take_in(source: &str, name: &str, mistake: Option<Words<'_>>) {
    let mut code = read(source);
    if let Some(mistake) = mistake {
        code = mistaken(source, &code, mistake);
    }
    fs::write(out(name), replace(code, &SHIMS)).expect("the output directory");
}

/// Those methods of a type that are named, as a block of their own.
fn methods(source: &str, code: &str, of: &str, names: &[&str]) -> String {
    let mut block = format!("impl<M: Medium> {of}<M> {{\n");
    for name in names {
        let starts = ["fn ", "pub(super) fn "].map(|start| format!("\n    {start}{name}("));
        let start = starts.iter().find_map(|start| code.find(start));
        let from = start.unwrap_or_else(|| panic!("{source} has no {name} any more"));
        let len = code[from..].find("\n    }\n").expect("its end") + "\n    }\n".len();
        let method = code[from..from + len].replacen("    fn ", "    pub(super) fn ", 1);
        block.push_str(&method);
    }
    block.push_str("}\n");
    block
}

/// The device's threads, into a directory of their own; `mistake`: in which source, and what.
fn take_in_device(kind: &str, mistake: Option<(&str, Words<'_>)>) {
    fs::create_dir_all(out(kind)).expect("the output directory");
    for name in ["handle", "ring", "worker", "state", "handler"] {
        let source = format!("device/{name}.rs");
        let mut code = read(&source);
        if let Some((_, words)) = mistake.filter(|(place, _)| *place == name) {
            code = mistaken(&source, &code, words);
        }
        let code = match name {
            "state" => methods(&source, &code, "Device", &["rest", "stop_all", "busy"]),
            "handler" => {
                let names = [
                    "queue",
                    "try_start",
                    "change_memory",
                    "use_memory",
                    "refuse_foreign",
                    "set_addresses",
                    "set_kick",
                    "stop",
                ];
                methods(&source, &code, "Handler", &names)
            }
            _ => code,
        };
        let code = replace(replace(code, &WORLD), &SHIMS);
        fs::write(out(kind).join(format!("{name}.rs")), code).expect("the output directory");
    }
}

fn device() {
    take_in_device("right", None);
    let says_it_starts = "self.queue.set_resting(false);";
    take_in_device("silent_start", Some(("worker", (says_it_starts, ""))));
    let rests = "self.drain(&mut ring);\n                drop(ring);";
    take_in_device("undrained", Some(("worker", (rests, "drop(ring);"))));
    let looks = "if self.queue.is_paused() {";
    let forgets = "if self.queue.is_paused() && false {";
    take_in_device("unseen_pause", Some(("worker", (looks, forgets))));
    let asks = "self.stop.store(true, Ordering::Release);\n            self.knock();";
    let hopes = "self.stop.store(true, Ordering::Release);";
    take_in_device("no_knock", Some(("handle", (asks, hopes))));
    let stops = "queue.reach()?.stop();";
    take_in_device("still_served", Some(("handler", (stops, ""))));
    take_in_device(
        "no_pause",
        Some(("handler", ("queue.pause();", "let _ = queue;"))),
    );
    let goes_on = "self.paused.store(false, Ordering::Release);\n        self.knock();";
    let may_go_on = "self.paused.store(false, Ordering::Release);";
    take_in_device("no_go", Some(("handle", (goes_on, may_go_on))));
}

fn take_in_kept(name: &str, mistake: Option<Words<'_>>) {
    let source = "queue/inflight.rs";
    let mut code = read(source);
    if let Some(mistake) = mistake {
        code = mistaken(source, &code, mistake);
    }
    fs::write(out(name), replace(code, &KEPT)).expect("the output directory");
}

fn kept() {
    take_in_kept("inflight.rs", None);
    let number = "self.part.bytes.store_u64(at, self.counter);";
    let flag = "self.part.set_in_flight(head, true);";
    let right = format!("{number}\n            {flag}");
    let wrong = format!("{flag}\n            {number}");
    take_in_kept("inflight_flag_first.rs", Some((&right, &wrong)));
    let first = "let places = (1_u64..)";
    let wrong = format!("self.bytes.store_u64(at, counter);\n        {first}");
    take_in_kept("inflight_counter_first.rs", Some((first, &wrong)));
    let batch = "for head in self.batch.drain(..) {";
    let index = "let at = self.part.state + USED_INDEX;\n        self.part.bytes.store_u16(at, used_index);";
    let wrong = format!("{index}\n        {batch}");
    take_in_kept("inflight_index_first.rs", Some((batch, &wrong)));
    let seen = "if seen <= descriptors";
    let wrong = format!("bytes.store_u16(state + USED_INDEX, used_index);\n        {seen}");
    take_in_kept("inflight_index_before_batch.rs", Some((seen, &wrong)));
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
    device();
    kept();
}
