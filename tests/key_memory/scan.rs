//! Looks for secrets in the memory of a process.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use crate::common::wire::PATIENCE;
use crate::secrets::Secret;

/// Secrets are looked for in pieces of so many bytes, each for itself: a cipher block, half of what any key has.
const PIECE: usize = 16;
/// Bytes read at once.
const READ: usize = 1 << 20;

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Bytes that were searched.
    pub(crate) searched: u64,
    /// Bytes of mappings that hold keys and cannot be read.
    pub(crate) unreadable: u64,
    /// Pieces found in pages that are locked, not dumped and not inherited.
    pub(crate) guarded: usize,
    /// Names of what was found there.
    pub(crate) names: BTreeSet<String>,
    /// What was found elsewhere, and where.
    pub(crate) stray: Vec<String>,
}

impl Findings {
    pub(crate) fn is_nothing(&self) -> bool {
        self.guarded == 0 && self.stray.is_empty()
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} MiB searched, {} KiB of secret memory; {} pieces of keys in pages for keys, {} elsewhere",
            self.searched >> 20,
            self.unreadable >> 10,
            self.guarded,
            self.stray.len()
        )?;
        for stray in self.stray.iter().take(40) {
            write!(f, "\n  {stray}")?;
        }
        Ok(())
    }
}

/// A mapping, as smaps shows it.
#[derive(Debug)]
struct Mapping {
    start: u64,
    end: u64,
    access: String,
    name: String,
    flags: Vec<String>,
    resident: bool,
}

impl Mapping {
    fn is_secret(&self) -> bool {
        self.name.starts_with("/secretmem")
    }

    fn is_guarded(&self) -> bool {
        let has = |flag: &str| self.flags.iter().any(|other| other == flag);
        has("lo") && has("dd") && has("wf")
    }
}

fn mappings(pid: u32) -> Vec<Mapping> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps"))
        .expect("smaps of the daemon: only root may read them");
    let mut found: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let range = words[0].split_once('-').and_then(|(start, end)| {
            let number = |text| u64::from_str_radix(text, 16).ok();
            Some((number(start)?, number(end)?))
        });
        if let Some((start, end)) = range {
            found.push(Mapping {
                start,
                end,
                access: words[1].to_owned(),
                name: words.get(5..).unwrap_or_default().join(" "),
                flags: Vec::new(),
                resident: false,
            });
        } else if let Some(mapping) = found.last_mut() {
            match words[0] {
                "VmFlags:" => mapping.flags = words[1..].iter().map(ToString::to_string).collect(),
                // What is swapped out is memory all the same.
                "Rss:" | "Swap:" => mapping.resident |= words[1] != "0",
                _ => {}
            }
        }
    }
    found
}

/// The pieces of secrets, to be found fast.
struct Pieces {
    /// By their first eight bytes.
    by_head: HashMap<u64, Vec<([u8; PIECE], String)>>,
    /// A bit for each pair of first bytes that there is.
    pairs: Vec<u64>,
}

impl Pieces {
    fn of(secrets: &[Secret]) -> Self {
        let mut by_head: HashMap<u64, Vec<_>> = HashMap::new();
        let mut pairs = vec![0; (1 << 16) / 64];
        for secret in secrets {
            for (at, piece) in secret.bytes.as_chunks::<PIECE>().0.iter().enumerate() {
                let name = format!("{} [{}]", secret.name, at * PIECE);
                let same = by_head.entry(head(piece)).or_default();
                if same.iter().all(|(other, _)| other != piece) {
                    same.push((*piece, name));
                }
                let pair = usize::from(u16::from_le_bytes([piece[0], piece[1]]));
                pairs[pair / 64] |= 1 << (pair % 64);
            }
        }
        Self { by_head, pairs }
    }

    fn find<'a>(&'a self, memory: &'a [u8]) -> impl Iterator<Item = (usize, &'a str)> {
        let starts = memory.windows(PIECE).enumerate().filter(|(_, window)| {
            let pair = usize::from(u16::from_le_bytes([window[0], window[1]]));
            self.pairs[pair / 64] & (1 << (pair % 64)) != 0
        });
        starts.filter_map(|(at, window)| {
            let same = self.by_head.get(&head(window))?;
            let (_, name) = same.iter().find(|(piece, _)| piece == window)?;
            Some((at, name.as_str()))
        })
    }
}

fn head(piece: &[u8]) -> u64 {
    u64::from_le_bytes(piece[..8].try_into().unwrap())
}

/// Searches all memory of the process `pid`.
pub(crate) fn scan(pid: u32, secrets: &[Secret]) -> Findings {
    assert!(secrets.iter().all(|secret| secret.bytes.len() >= PIECE));
    let pieces = Pieces::of(secrets);
    let deadline = Instant::now() + PATIENCE;
    loop {
        match search(pid, &pieces) {
            // A queue that is still being watched has not wiped its stack yet.
            Ok(found) if found.stray.is_empty() || Instant::now() >= deadline => return found,
            Ok(_) => {}
            // A mapping went while it was read: what goes with a front-end that detaches.
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn search(pid: u32, pieces: &Pieces) -> Result<Findings, String> {
    let memory = File::open(format!("/proc/{pid}/mem"))
        .expect("memory of the daemon: only root may read it");
    let mut found = Findings::default();
    let mut buffer = vec![0; READ + PIECE - 1];
    for mapping in mappings(pid) {
        // The kernel's own pages are not ours, and those that nobody touched hold nothing.
        if !mapping.resident || !mapping.access.starts_with('r') || mapping.name.starts_with("[v") {
            continue;
        }
        let mut at = mapping.start;
        while at < mapping.end {
            // One piece less a byte more than a step, so that none is missed where two steps meet.
            let left = usize::try_from(mapping.end - at).unwrap();
            let part = left.min(buffer.len());
            let read = memory.read_exact_at(&mut buffer[..part], at);
            if mapping.is_secret() {
                assert!(read.is_err(), "memory of memfd_secret was read");
                found.unreadable += mapping.end - mapping.start;
                break;
            }
            read.map_err(|err| format!("{:x} {}: {err}", mapping.start, mapping.name))?;
            let step = left.min(READ);
            for (offset, name) in pieces.find(&buffer[..part]) {
                if offset >= step {
                    continue;
                }
                if mapping.is_guarded() {
                    found.guarded += 1;
                    found.names.insert(name.to_owned());
                } else {
                    let place = at + offset as u64;
                    let stray =
                        format!("{name} at {place:x}, {} {:x}", mapping.name, mapping.start);
                    found.stray.push(stray);
                }
            }
            found.searched += step as u64;
            at += step as u64;
        }
    }
    Ok(found)
}
