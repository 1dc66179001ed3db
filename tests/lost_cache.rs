//! kill -9 of the daemon under load, and in half of the rounds the power goes with it: on a file system that forgets
//! what was not synced (`forgetful`) everything that was flushed must be there again, what was not may be gone from some
//! point on, and nothing is ever torn, mixed up, or of a zone's life before its reset.
//!
//! `ZONEVAULT_SEED` repeats a run's choices: what is written, when the daemon is killed and what the medium forgets. It
//! cannot repeat how far the daemon got by then, so a failure may need several runs to come again.
//! `ZONEVAULT_ROUNDS` sets the rounds of each campaign: 500 make 3,000 in all. Needs root and /dev/fuse.

#[cfg(test)]
pub mod common;
#[cfg(test)]
pub mod forgetful;

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};
    use std::os::unix::fs::FileExt;

    use crate::common::rng::Rng;
    use crate::forgetful::campaign::{Campaign, Plan};
    use crate::forgetful::medium::{Keep, Loss};
    use crate::forgetful::mount::Mount;

    /// Rounds of each campaign.
    const ROUNDS: u64 = 50;

    const PLAN: Plan = Plan {
        stream: 50,
        cipher: "aes-256-gcm",
        block: 4096,
        cache: "direct",
        writethrough: false,
        rounds: ROUNDS,
    };

    #[test]
    fn gcm() {
        Campaign::new(PLAN).run();
    }

    #[test]
    fn gcm_through_the_page_cache_in_small_blocks() {
        Campaign::new(Plan {
            stream: 51,
            block: 512,
            cache: "writeback",
            ..PLAN
        })
        .run();
    }

    #[test]
    fn gcm_without_write_cache() {
        Campaign::new(Plan {
            stream: 52,
            writethrough: true,
            ..PLAN
        })
        .run();
    }

    #[test]
    fn crc64() {
        Campaign::new(Plan {
            stream: 53,
            cipher: "aes-256-xts+crc64",
            ..PLAN
        })
        .run();
    }

    #[test]
    fn xts() {
        Campaign::new(Plan {
            stream: 54,
            cipher: "aes-256-xts",
            ..PLAN
        })
        .run();
    }

    #[test]
    fn xts_through_the_page_cache_in_small_blocks() {
        Campaign::new(Plan {
            stream: 55,
            cipher: "aes-256-xts",
            block: 512,
            cache: "writeback",
            ..PLAN
        })
        .run();
    }

    /// Opens a file of a mount.
    fn open(mount: &Mount) -> File {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        options.open(mount.path("file")).unwrap()
    }

    #[test]
    fn a_cut_takes_what_was_not_synced_and_nothing_else() {
        let mut rng = Rng::from_env(60);
        let mount = Mount::new(&["file"], None);
        let file = open(&mount);
        file.set_len(1 << 20).unwrap();
        file.write_all_at(&[1; 8192], 4096).unwrap();
        file.sync_data().unwrap();
        file.write_all_at(&[2; 4096], 8192).unwrap();
        let mut seen = [0; 12288];
        file.read_exact_at(&mut seen, 0).unwrap();
        let blocks = |seen: &[u8]| [0, 4096, 8192].map(|at| seen[at]);
        assert_eq!(blocks(&seen), [0, 1, 2], "everybody sees what was written");
        let loss = mount.cut(Keep::Nothing, &mut rng);
        let expected = Loss {
            kept: 0,
            lost: 8,
            torn: 0,
        };
        assert_eq!(loss, expected);
        // A process of before has no power any more.
        assert!(file.write_all_at(&[3; 512], 0).is_err());
        assert!(file.sync_data().is_err());
        assert_eq!(mount.traffic().stale, 2);
        let file = open(&mount);
        file.read_exact_at(&mut seen, 0).unwrap();
        assert_eq!(blocks(&seen), [0, 1, 1], "and the medium what was synced");
        assert_eq!(file.metadata().unwrap().len(), 1 << 20);
    }

    #[test]
    fn a_cut_tears_writes_between_sectors() {
        let mut rng = Rng::from_env(61);
        let mount = Mount::new(&["file"], None);
        let file = open(&mount);
        file.write_all_at(&[1; 64 << 10], 0).unwrap();
        file.sync_all().unwrap();
        // Across sectors at both ends, and over itself: either version may stay.
        file.write_all_at(&[2; 10_000], 100).unwrap();
        file.write_all_at(&[3; 512], 1024).unwrap();
        let loss = mount.cut(Keep::Sectors(50), &mut rng);
        assert_eq!((loss.kept + loss.lost, loss.torn), (21, 1), "{loss:?}");
        let mut seen = vec![0; 64 << 10];
        open(&mount).read_exact_at(&mut seen, 0).unwrap();
        for (at, sector) in seen.chunks_exact(512).enumerate() {
            let (first, last) = (sector[100], sector[115]);
            assert!(first == last && (1..=3).contains(&first), "sector {at}");
        }
        let kept = seen.chunks_exact(512).filter(|s| s[100] != 1).count() as u64;
        assert!(kept == loss.kept || kept + 1 == loss.kept, "{loss:?}");
    }
}
