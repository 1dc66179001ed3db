//! Where keys are in the memory of a serving process, looked at from outside: `/proc/PID/mem`, every mapping that can
//! be read, every byte. As root, for the process lets nobody else look.
//!
//! | file | what it does |
//! |---|---|
//! | `secrets` | derives every key of a disk from its image and credential, without the crate's code |
//! | `scan` | looks for them, 16 bytes at a time, and says in what kind of mapping they are |
//! | `served` | the daemon, with or without memfd_secret; and a disk in a process that outlives it |

#![cfg(test)]

#[path = "../common/mod.rs"]
pub mod common;
mod scan;
mod secrets;
mod served;

#[expect(clippy::print_stdout, reason = "what was searched is told")]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::path::Path;

    use crate::common::frontend::{Frontend, Options};
    use crate::common::queue::Queue;
    use crate::common::request::{APPEND_TAIL_LINUX, kind, status};
    use crate::common::rng::Rng;
    use crate::scan::{Findings, scan};
    use crate::secrets::{Secret, of_key_file, of_passphrase, zone_secrets};
    use crate::served::{Credential, Disk, Memory, Served, dumps_core, has_memfd_secret, hosted};

    const CIPHERS: [&str; 4] = [
        "aes-256-gcm",
        "aes-256-xts",
        "aes-128-xts",
        "aes-256-xts+crc64",
    ];
    /// Sectors of a zone of 1 MiB.
    const ZONE: u64 = 2048;
    /// Zones of the disk, of which the first half is used.
    const ZONES: u64 = 16;
    const QUEUES: u16 = 2;

    /// Appends to eight zones and reads them, in requests of one block and of many, through all queues.
    fn load(f: &mut Frontend) {
        let mut rng = Rng::new(0x6b65_7973);
        for round in 0..6 {
            for zone in 0..ZONES / 2 {
                let q = &mut f.queues[usize::try_from(zone % u64::from(QUEUES)).unwrap()];
                let len = [4 << 10, 64 << 10][round % 2];
                let (done, at) = q.append(zone * ZONE, &rng.bytes(len), APPEND_TAIL_LINUX);
                assert_eq!(done, status::OK);
                let other = &mut f.queues[usize::try_from((zone + 1) % u64::from(QUEUES)).unwrap()];
                assert_eq!(other.read_ok(at, len).len(), len);
            }
        }
        f.queues.iter_mut().for_each(rest);
    }

    /// A flush, as a guest that rests does one.
    fn rest(q: &mut Queue) {
        assert_eq!(q.flush(), status::OK);
    }

    fn connect(socket: &Path) -> Frontend {
        Frontend::open_with(socket, Options::queues(QUEUES))
    }

    /// What is found must be in pages for keys and nowhere else, and nothing at all in pages that cannot be read.
    fn assert_guarded(found: &Findings, memory: Memory, when: &str) {
        println!("{when}: {found}");
        assert!(found.stray.is_empty(), "{when}: {found}");
        assert!(found.searched > 1 << 20, "{when}: {found}");
        match memory {
            Memory::Secret => assert!(found.unreadable > 0 && found.guarded == 0, "{found}"),
            Memory::Locked => assert!(found.unreadable == 0 && found.guarded > 0, "{found}"),
        }
    }

    /// The kinds of memory that this kernel has. The other one is always there: it is what the daemon falls back to.
    fn memories() -> Vec<Memory> {
        if has_memfd_secret() {
            vec![Memory::Secret, Memory::Locked]
        } else {
            println!("this kernel has no memfd_secret: only locked memory is tested");
            vec![Memory::Locked]
        }
    }

    #[test]
    fn a_daemon_has_its_keys_in_pages_for_keys_alone() {
        for memory in memories() {
            for cipher in CIPHERS {
                let disk = Disk::new(cipher, &Credential::random_key());
                let served = Served::daemon(&disk, memory);
                let mut f = connect(served.socket());
                load(&mut f);
                let mut secrets = of_key_file(&disk);
                secrets.extend(zone_secrets(&disk, 0..ZONES));
                let found = scan(served.pid(), &secrets);
                assert_guarded(&found, memory, &format!("{cipher}, {memory:?}, in use"));
                if memory == Memory::Locked {
                    assert!(found.names.iter().any(|name| name.starts_with("zone 3 ")));
                    assert!(!found.names.iter().any(|name| name.starts_with("key file")));
                }

                // Keys of zones that are reset are gone at once.
                let old = zone_secrets(&disk, 0..ZONES / 2);
                assert_eq!(f.queue().simple(kind::ZONE_RESET_ALL, 0), status::OK);
                let found = scan(served.pid(), &old);
                println!("{cipher}, {memory:?}, erased: {found}");
                assert!(found.is_nothing(), "{found}");

                load(&mut f);
                secrets.extend(zone_secrets(&disk, 0..ZONES));
                drop(f);
                let found = scan(served.pid(), &secrets);
                assert_guarded(&found, memory, &format!("{cipher}, {memory:?}, detached"));
                served.stop();
            }
        }
    }

    #[test]
    fn a_passphrase_is_gone_when_the_disk_is_open() {
        for memory in memories() {
            let credential = Credential::random_passphrase();
            let disk = Disk::new("aes-256-gcm", &credential);
            let served = Served::daemon(&disk, memory);
            let secrets: Vec<Secret> = of_passphrase(&disk);
            let _f = connect(served.socket());
            let found = scan(served.pid(), &secrets);
            assert_guarded(&found, memory, "passphrase");
            assert!(
                !found
                    .names
                    .iter()
                    .any(|name| name.starts_with("passphrase")),
                "{found}"
            );
            served.stop();
        }
    }

    #[test]
    fn a_closed_disk_leaves_no_key_behind() {
        for memory in memories() {
            for cipher in CIPHERS {
                let disk = Disk::new(cipher, &Credential::random_key());
                let mut host = Served::host(&disk, memory);
                let mut f = connect(host.socket());
                load(&mut f);
                let mut secrets = of_key_file(&disk);
                secrets.extend(zone_secrets(&disk, 0..ZONES));
                let found = scan(host.pid(), &secrets);
                assert_guarded(&found, memory, &format!("{cipher}, {memory:?}, in a host"));
                drop(f);
                host.close_disk();
                let found = scan(host.pid(), &secrets);
                println!("{cipher}, {memory:?}, closed: {found}");
                assert!(found.is_nothing(), "{cipher}, {memory:?}, closed: {found}");
            }
        }
    }

    /// Not a test of its own: the process that `a_closed_disk_leaves_no_key_behind` looks into.
    #[test]
    #[ignore = "is run by a test, with arguments in the environment"]
    fn host() {
        hosted();
    }

    #[test]
    fn a_daemon_that_crashes_leaves_no_core() {
        if !dumps_core() {
            println!("this machine dumps no core at all: only the limit is tested");
        }
        for signal in [libc::SIGSEGV, libc::SIGABRT] {
            let disk = Disk::new("aes-256-gcm", &Credential::random_key());
            let served = Served::daemon(&disk, Memory::Locked);
            let mut f = connect(served.socket());
            load(&mut f);
            let limits = std::fs::read_to_string(format!("/proc/{}/limits", served.pid())).unwrap();
            let core = limits.lines().find(|l| l.starts_with("Max core file size"));
            let core: Vec<_> = core.unwrap().split_whitespace().skip(4).collect();
            assert_eq!(core[..2], ["0", "0"]);
            let status = served.crash(signal);
            assert_eq!(status.signal(), Some(signal));
            assert!(!status.core_dumped());
            for entry in std::fs::read_dir(disk.dir()).unwrap() {
                let name = entry.unwrap().file_name();
                assert!(!name.to_string_lossy().starts_with("core"), "{name:?}");
            }
        }
    }
}
