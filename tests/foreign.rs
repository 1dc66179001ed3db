//! What lies on disk, read by other hands: `tests/reader/zvread.py` knows the format from its documentation alone and
//! decrypts with OpenSSL. It must find what the front-end wrote and saw, refuse what was altered, and, with every key
//! there is, not read what a reset erased.

#[cfg(test)]
pub mod common;

#[cfg(test)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "sizes of tests fit every integer they meet"
)]
mod tests {
    use std::collections::HashSet;
    use std::fs;
    use std::io::Write;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Output, Stdio};

    use serde_json::Value;

    use crate::common::daemon::{BINARY, Image, Rig};
    use crate::common::disk::{SMALL, ZONE, ZONE_CAPACITY, ZONES, state};
    use crate::common::frontend::Frontend;
    use crate::common::request::{ZoneInfo, kind, status};
    use crate::common::rng::Rng;

    /// The reader's exit status where something is damaged and everything can still be read.
    const DAMAGED: i32 = 3;
    /// The reader's exit status where it believes nothing.
    const REFUSED: i32 = 1;
    /// Where the zone records of [`SMALL`] lie: copy A, copy B, 128 bytes a zone.
    const RECORDS: [usize; 2] = [65536, 65536 + 4096];
    const RECORD_LEN: usize = 128;

    /// Everything of a disk's shape that the tests vary.
    #[derive(Clone, Copy, Debug)]
    struct Shape {
        cipher: &'static str,
        block: &'static str,
    }

    const SHAPES: [Shape; 4] = [
        Shape {
            cipher: "aes-256-xts",
            block: "4096",
        },
        Shape {
            cipher: "aes-128-xts",
            block: "4096",
        },
        Shape {
            cipher: "aes-256-xts",
            block: "512",
        },
        Shape {
            cipher: "aes-128-xts",
            block: "512",
        },
    ];

    impl Shape {
        fn options(self, geometry: &[&'static str]) -> Vec<&'static str> {
            let mine = ["--cipher", self.cipher, "--block-size", self.block];
            [geometry, &mine].concat()
        }

        fn block(self) -> u64 {
            self.block.parse().unwrap()
        }
    }

    /// The Python that `tests/vectors/fetch` made, with a recent OpenSSL.
    fn python() -> PathBuf {
        let cache = std::env::var_os("ZONEVAULT_CACHE").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache"),
            PathBuf::from,
        );
        let python = cache.join("openssl-venv/bin/python");
        assert!(
            python.exists(),
            "{} is missing: run tests/vectors/fetch",
            python.display()
        );
        python
    }

    /// Runs the reader on `image` with `credential`, an option and its value.
    fn read_with(image: &Path, credential: [&str; 2], options: &[&str]) -> Output {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reader/zvread.py");
        Command::new("timeout")
            .arg("120")
            .arg(python())
            .arg(script)
            .arg(image)
            .args(credential)
            .args(options)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn read(image: &Image, path: &Path, options: &[&str]) -> Output {
        let key = image.key();
        read_with(path, ["--key-file", key.to_str().unwrap()], options)
    }

    fn complaint(out: &Output) -> String {
        String::from_utf8_lossy(&out.stderr).into_owned()
    }

    /// What the reader says of an image that must be sound.
    fn facts(image: &Image) -> Value {
        let out = read(image, &image.path(), &["--json"]);
        assert!(out.status.success(), "{}", complaint(&out));
        serde_json::from_slice(&out.stdout).unwrap()
    }

    /// What the reader decrypts of the image at `path`: of `--zone N` or of the whole disk.
    fn decrypted(image: &Image, path: &Path, options: &[&str]) -> Vec<u8> {
        let file = image.dir().join("decrypted");
        let all = [options, &["--out", file.to_str().unwrap()]].concat();
        let out = read(image, path, &all);
        assert!(out.status.success(), "{options:?}: {}", complaint(&out));
        fs::read(file).unwrap()
    }

    fn number(record: &Value, name: &str) -> u64 {
        let value = record[name].as_u64();
        value.unwrap_or_else(|| panic!("{name} of {record}"))
    }

    /// The whole disk through the front-end.
    fn whole_disk(f: &mut Frontend) -> Vec<u8> {
        // A zone at a time: a read may not leave its zone.
        const STEP: u64 = ZONE * 512;
        let bytes = f.config().capacity() * 512;
        (0..bytes)
            .step_by(STEP as usize)
            .flat_map(|at| f.queue().read_ok(at / 512, STEP.min(bytes - at) as usize))
            .collect()
    }

    /// The reader's zones against a report that the daemon gave of the same records.
    fn assert_zones_match(facts: &Value, report: &[ZoneInfo]) {
        let block = number(facts, "block_size");
        let zones = facts["zones"].as_array().unwrap();
        assert_eq!(zones.len(), report.len());
        for (zone, told) in zones.iter().zip(report) {
            let written = number(zone, "written") * block / 512;
            let (wanted, wp) = match zone["state"].as_str().unwrap() {
                "not-wp" => (state::NOT_WP, 0),
                "empty" => (state::EMPTY, 0),
                "implicit-open" => (state::IOPEN, written),
                "explicit-open" => (state::EOPEN, written),
                "closed" => (state::CLOSED, written),
                "full" => (state::FULL, ZONE),
                other => panic!("state {other}"),
            };
            assert_eq!(
                (told.state, told.wp - told.start, told.capacity),
                (wanted, wp, number(zone, "capacity") * block / 512),
                "{zone}"
            );
        }
    }

    /// Sixteen bytes of plaintext in a row, wherever they stand in the image, are a leak.
    fn assert_no_plaintext(image: &Path, plaintext: &[u8]) {
        let windows: HashSet<&[u8]> = plaintext
            .chunks_exact(16)
            .filter(|part| part.iter().any(|byte| *byte != 0))
            .collect();
        assert!(windows.len() > 1000, "{} patterns", windows.len());
        let bytes = fs::read(image).unwrap();
        let leak = bytes.windows(16).position(|part| windows.contains(part));
        assert_eq!(leak, None, "plaintext in the image");
    }

    fn occurs(haystack: &[u8], needle: &[u8]) -> bool {
        haystack.windows(needle.len()).any(|part| part == needle)
    }

    fn from_hex(text: &str) -> Vec<u8> {
        (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
            .collect()
    }

    /// What a test wrote, as (first sector, bytes).
    type Written = Vec<(u64, Vec<u8>)>;

    /// Brings zones into every state that data can be in; returns what must be readable afterwards.
    fn fill(f: &mut Frontend, block: u64, rng: &mut Rng) -> Written {
        let q = f.queue();
        let mut written = Vec::new();
        let zone_bytes = ZONE as usize * 512;
        let mut write = |q: &mut crate::common::queue::Queue, sector: u64, data: Vec<u8>| {
            assert_eq!(q.write(sector, &data), status::OK, "write at {sector}");
            written.push((sector, data));
        };
        // Zone 0, conventional, whole; zone 1 in places.
        write(q, 0, rng.bytes(zone_bytes));
        write(q, ZONE + 64, rng.bytes(12288));
        write(q, ZONE + 8, rng.bytes(block as usize));
        // Zone 2 full, by writes of growing size.
        let mut at = 0;
        let mut blocks = 1;
        while at < ZONE_CAPACITY {
            let sectors = (blocks * block / 512).min(ZONE_CAPACITY - at);
            write(q, 2 * ZONE + at, rng.bytes(sectors as usize * 512));
            at += sectors;
            blocks += 3;
        }
        // Zone 3 by appends, left open; zone 4 closed; zone 5 finished early.
        for zone in [3, 4, 5] {
            for blocks in 1..5 {
                let data = rng.bytes((blocks * block) as usize);
                let (status, sector) = q.append(zone * ZONE, &data, 9);
                assert_eq!(status, status::OK, "append to zone {zone}");
                written.push((sector, data));
            }
        }
        assert_eq!(q.simple(kind::ZONE_CLOSE, 4 * ZONE), status::OK);
        assert_eq!(q.simple(kind::ZONE_FINISH, 5 * ZONE), status::OK);
        // Zone 6 in its third generation, opened by command; zone 7 in its second, and empty.
        for round in 0..3 {
            let data = rng.bytes(5 * block as usize);
            assert_eq!(q.write(6 * ZONE, &data), status::OK);
            assert_eq!(q.write(7 * ZONE, &data), status::OK);
            if round < 2 {
                assert_eq!(q.simple(kind::ZONE_RESET, 6 * ZONE), status::OK);
            } else {
                written.push((6 * ZONE, data));
                assert_eq!(q.simple(kind::ZONE_OPEN, 6 * ZONE), status::OK);
            }
            assert_eq!(q.simple(kind::ZONE_RESET, 7 * ZONE), status::OK);
        }
        assert_eq!(q.flush(), status::OK);
        written
    }

    fn assert_holds(disk: &[u8], written: &Written) {
        for (sector, data) in written {
            let at = *sector as usize * 512;
            assert!(disk[at..at + data.len()] == data[..], "sector {sector}");
        }
    }

    fn zoned(shape: Shape) {
        let geometry: Vec<&str> = SMALL
            .chunks(2)
            .filter(|pair| !pair[0].starts_with("--max-"))
            .flatten()
            .copied()
            .collect();
        let mut rig = Rig::new(&shape.options(&geometry), &[]);
        let mut f = Frontend::open(&rig.socket());
        let written = fill(&mut f, shape.block(), &mut Rng::from_env(70));
        let seen = whole_disk(&mut f);
        assert_holds(&seen, &written);
        let before = f.queue().zones(ZONES);

        // As the records stand after SIGKILL: exactly what the guest was told.
        drop(f);
        rig.daemon.take().unwrap().kill9();
        let told = facts(&rig.image);
        assert_eq!(told["state"], "open");
        assert_zones_match(&told, &before);
        assert!(
            decrypted(&rig.image, &rig.image.path(), &[]) == seen,
            "{shape:?}, killed"
        );

        // After another opening and an orderly end, which closes what was open.
        rig.start();
        let mut f = Frontend::open(&rig.socket());
        assert_eq!(f.queue().zones(ZONES), before);
        drop(f);
        rig.daemon.take().unwrap().stop();
        let told = facts(&rig.image);
        assert_eq!(told["state"], "clean");
        assert_eq!(told["cipher"], shape.cipher);
        for (zone, generation) in [(0, 0), (5, 0), (6, 2), (7, 3)] {
            assert_eq!(
                number(&told["zones"][zone], "generation"),
                generation,
                "zone {zone}"
            );
        }
        for zone in told["zones"].as_array().unwrap() {
            assert_eq!(zone["durable"], zone["written"], "closed in order");
        }
        assert!(
            decrypted(&rig.image, &rig.image.path(), &[]) == seen,
            "{shape:?}, stopped"
        );
        let zone_3 = decrypted(&rig.image, &rig.image.path(), &["--zone", "3"]);
        let at = 3 * ZONE as usize * 512;
        assert!(zone_3 == seen[at..at + zone_3.len()] && !zone_3.is_empty());
        let plaintext: Vec<u8> = written.into_iter().flat_map(|(_, data)| data).collect();
        assert_no_plaintext(&rig.image.path(), &plaintext);

        rig.start();
        let mut f = Frontend::open(&rig.socket());
        assert_zones_match(&told, &f.queue().zones(ZONES));
        drop(f);
        rig.daemon.take().unwrap().stop();
    }

    #[test]
    fn zoned_aes_256_blocks_of_4096() {
        zoned(SHAPES[0]);
    }

    #[test]
    fn zoned_aes_128_blocks_of_4096() {
        zoned(SHAPES[1]);
    }

    #[test]
    fn zoned_aes_256_blocks_of_512() {
        zoned(SHAPES[2]);
    }

    #[test]
    fn zoned_aes_128_blocks_of_512() {
        zoned(SHAPES[3]);
    }

    /// A plain disk that ends inside its last zone, written here and there, often across zones.
    #[test]
    fn plain_disks() {
        for shape in SHAPES {
            let mut rng = Rng::from_env(71);
            let mut rig = Rig::new(&shape.options(&["--size", "1052K", "--plain"]), &[]);
            let mut f = Frontend::open(&rig.socket());
            let (sectors, unit) = (f.config().capacity(), shape.block() / 512);
            let mut shadow = rng.bytes(sectors as usize * 512);
            assert_eq!(f.queue().write(0, &shadow), status::OK);
            for _ in 0..40 {
                let blocks = rng.range(1, 24);
                let sector = rng.below(sectors / unit - blocks) * unit;
                let data = rng.bytes((blocks * shape.block()) as usize);
                assert_eq!(f.queue().write(sector, &data), status::OK);
                let at = sector as usize * 512;
                shadow[at..at + data.len()].copy_from_slice(&data);
            }
            drop(f);
            rig.daemon.take().unwrap().stop();
            let told = facts(&rig.image);
            assert_eq!(told["model"], "plain");
            let zones = told["zones"].as_array().unwrap();
            let last = zones.last().unwrap();
            assert!(
                number(last, "capacity") < number(&zones[0], "capacity"),
                "{told}"
            );
            let got = decrypted(&rig.image, &rig.image.path(), &[]);
            assert!(got == shadow, "{shape:?}");
            assert_no_plaintext(&rig.image.path(), &shadow);
        }
    }

    /// Runs the binary with `input` on its standard input.
    fn run_binary(args: &[&str], input: &str) {
        let mut child = Command::new(BINARY)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).unwrap();
        drop(stdin);
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", complaint(&out));
    }

    #[test]
    fn a_passphrase_and_a_key_file_unlock_one_disk() {
        const PASSPHRASE: &str = "Zwölf Boxkämpfer jagen";
        let image = Image::empty();
        let (path, key) = (image.path(), image.key());
        let (path, key) = (path.to_str().unwrap(), key.to_str().unwrap());
        let create = ["create", path, "--passphrase-fd", "0"];
        let cost = ["--kdf-memory", "8M", "--kdf-time", "2"];
        run_binary(&[&create[..], &SMALL, &cost].concat(), PASSPHRASE);
        let by_passphrase = |text: &str| {
            let out = read_with(&image.path(), ["--passphrase", text], &["--json"]);
            let told: Option<Value> = serde_json::from_slice(&out.stdout).ok();
            (out.status.code(), told)
        };
        let (code, told) = by_passphrase(PASSPHRASE);
        assert_eq!(code, Some(0));
        let out = read(&image, &image.path(), &["--json"]);
        assert_eq!(out.status.code(), Some(REFUSED), "key file not added yet");

        let add = [
            "key",
            "add",
            path,
            "--passphrase-fd",
            "0",
            "--new-key-file",
            key,
        ];
        run_binary(&add, &format!("{PASSPHRASE}\n"));
        assert_eq!(Some(facts(&image)), told);
        assert_eq!(by_passphrase(PASSPHRASE), (Some(0), told));
        assert_eq!(
            by_passphrase("zwölf Boxkämpfer jagen"),
            (Some(REFUSED), None)
        );
    }

    /// An image with an altered copy of itself beside it.
    struct Forgery {
        image: Image,
        bytes: Vec<u8>,
        told: Value,
    }

    impl Forgery {
        /// A [`SMALL`] disk that was written to and closed.
        fn new() -> Self {
            let mut rig = Rig::new(&SMALL, &[]);
            let mut f = Frontend::open(&rig.socket());
            for zone in 2..5 {
                let (status, _) = f.queue().append(zone * ZONE, &[7; 8192], 9);
                assert_eq!(status, status::OK);
            }
            drop(f);
            rig.daemon.take().unwrap().stop();
            let bytes = fs::read(rig.image.path()).unwrap();
            let told = facts(&rig.image);
            Self {
                image: rig.image,
                bytes,
                told,
            }
        }

        /// The reader's exit status, facts and complaints about the image after `change`.
        fn judge(&self, change: impl FnOnce(&mut [u8])) -> (Option<i32>, Value, String) {
            self.judge_with(&[], change)
        }

        fn judge_with(
            &self,
            options: &[&str],
            change: impl FnOnce(&mut [u8]),
        ) -> (Option<i32>, Value, String) {
            let mut bytes = self.bytes.clone();
            change(&mut bytes);
            let path = self.image.dir().join("forged");
            fs::write(&path, bytes).unwrap();
            let out = read(&self.image, &path, &[&["--json"], options].concat());
            let told = serde_json::from_slice(&out.stdout).unwrap_or(Value::Null);
            (out.status.code(), told, complaint(&out))
        }

        /// The offset of the newest header.
        fn newest_header(&self) -> usize {
            4096 * (number(&self.told, "sequence") % 2) as usize
        }
    }

    /// Makes the CRC of the header at `at` right, as somebody without the key can.
    fn repair_crc(bytes: &mut [u8], at: usize) {
        let crc = at + 16..at + 20;
        bytes[crc.clone()].fill(0);
        let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &bytes[at..at + 512]);
        bytes[crc].copy_from_slice(&(sum as u32).to_le_bytes());
    }

    #[test]
    fn a_flipped_byte_of_a_header_is_refused() {
        let forgery = Forgery::new();
        let newest = forgery.newest_header();
        for at in [
            0, 8, 12, 16, 20, 40, 48, 64, 80, 104, 132, 168, 479, 480, 511, 512, 4095,
        ] {
            let (code, told, why) = forgery.judge(|bytes| bytes[newest + at] ^= 1);
            assert_eq!(code, Some(DAMAGED), "byte {at}: {why}");
            // The older copy holds, and nothing says that the disk was closed.
            let older = number(&forgery.told, "sequence") - 1;
            assert_eq!(number(&told, "sequence"), older, "byte {at}");
            assert_eq!(told["state"], "open", "byte {at}");
        }
        // A right CRC proves nothing: the MAC refuses, in one copy and in both.
        for at in [48, 64, 72, 80, 96, 112, 132, 144, 479, 500] {
            let forge = |bytes: &mut [u8], copy: usize| {
                bytes[copy + at] ^= 1;
                repair_crc(bytes, copy);
            };
            let (code, told, why) = forgery.judge(|bytes| forge(bytes, newest));
            // Another uuid leads to other keys; the twin's still unlock.
            assert_eq!(code, Some(DAMAGED), "byte {at}: {why}");
            assert!(why.contains("wrong MAC"), "byte {at}: {why}");
            assert_eq!(told["state"], "open", "byte {at}");
            let (code, told, why) = forgery.judge(|bytes| {
                forge(bytes, 0);
                forge(bytes, 4096);
            });
            assert_eq!(
                (code, told),
                (Some(REFUSED), Value::Null),
                "byte {at}: {why}"
            );
        }
    }

    #[test]
    fn a_flipped_byte_of_a_protector_is_refused() {
        let forgery = Forgery::new();
        for at in [0, 8, 12, 32, 40, 72, 103, 104, 175, 176, 511] {
            let (code, told, why) = forgery.judge(|bytes| bytes[8192 + at] ^= 1);
            assert_eq!(
                (code, told),
                (Some(REFUSED), Value::Null),
                "byte {at}: {why}"
            );
        }
        // The slot's number is part of what wraps the key.
        let (code, _, why) = forgery.judge(|bytes| bytes.copy_within(8192..12288, 12288));
        assert_eq!(
            code,
            Some(0),
            "a copy more is a key that fits nothing: {why}"
        );
        let (code, _, why) = forgery.judge(|bytes| {
            bytes.copy_within(8192..12288, 12288);
            bytes[8192..12288].fill(0);
        });
        assert_eq!(code, Some(REFUSED), "moved: {why}");
    }

    #[test]
    fn a_flipped_byte_of_a_record_is_refused() {
        let forgery = Forgery::new();
        // One byte in one copy of each zone: everything still stands in the other.
        let places = [0, 1, 2, 4, 8, 16, 24, 32, 40, 48, 79, 80, 95, 96, 111, 127];
        for area in RECORDS {
            let (code, told, why) = forgery.judge(|bytes| {
                for (zone, at) in places.into_iter().enumerate() {
                    bytes[area + zone * RECORD_LEN + at] ^= 0x80;
                }
            });
            assert_eq!(code, Some(DAMAGED), "{why}");
            assert_eq!(why.matches("wrong MAC").count(), ZONES, "{why}");
            let zones = told["zones"].as_array().unwrap();
            assert!(
                zones.iter().all(|zone| zone["state"] != "offline"),
                "{told}"
            );
        }
        // Both copies, and a record that lies in another zone's place: not what the disk was closed with. Accepted all the
        // same, that zone is lost, no other.
        let record = |area: usize, zone: usize| area + zone * RECORD_LEN;
        let forge = |bytes: &mut [u8]| {
            for area in RECORDS {
                bytes[record(area, 3) + 48] ^= 1;
                bytes.copy_within(record(area, 8)..record(area, 9), record(area, 9));
            }
        };
        let (code, _, why) = forgery.judge(forge);
        assert_eq!(code, Some(REFUSED), "{why}");
        let (code, told, why) = forgery.judge_with(&["--accept-records"], forge);
        assert_eq!(code, Some(DAMAGED), "{why}");
        assert!(why.contains("record of zone 8"), "{why}");
        for (zone, record) in told["zones"].as_array().unwrap().iter().enumerate() {
            let lost = [3, 9].contains(&zone);
            assert_eq!(record["state"] == "offline", lost, "{record}");
        }
    }

    /// Resets zones 4 and 5, by command and all at once, and gives an attacker everything: every key, the image as it
    /// is now, and the data extents as they were.
    #[test]
    fn what_a_reset_erased_stays_unreadable() {
        let mut rng = Rng::from_env(72);
        let secret = rng.bytes(ZONE_CAPACITY as usize * 512);
        let mut rig = Rig::new(&SMALL, &[]);
        let mut f = Frontend::open(&rig.socket());
        for zone in [4, 5] {
            assert_eq!(f.queue().write(zone * ZONE, &secret), status::OK);
        }
        assert_eq!(f.queue().flush(), status::OK);
        drop(f);
        rig.daemon.take().unwrap().stop();
        let before = fs::read(rig.image.path()).unwrap();
        let old = facts(&rig.image);

        for (zone, command, sector) in [
            (4, kind::ZONE_RESET, 4 * ZONE),
            (5, kind::ZONE_RESET_ALL, 0),
        ] {
            rig.start();
            let mut f = Frontend::open(&rig.socket());
            assert_eq!(f.queue().simple(command, sector), status::OK);
            // Killed at once: when the reset is complete, the salt is gone.
            drop(f);
            rig.daemon.take().unwrap().kill9();
            let mut after = fs::read(rig.image.path()).unwrap();
            let new = facts(&rig.image);
            let (old, new) = (&old["zones"][zone], &new["zones"][zone]);
            let salt = old["salt"].as_str().unwrap();
            let generation = number(old, "generation").to_string();
            assert_eq!(number(new, "generation"), number(old, "generation") + 1);
            assert_eq!(new["state"], "empty");
            assert!(occurs(&before, &from_hex(salt)));
            assert!(
                !occurs(&after, &from_hex(salt)),
                "the old salt is still there"
            );

            let start = number(old, "data_offset") as usize;
            let extent = start..start + secret.len();
            after[extent.clone()].copy_from_slice(&before[extent]);
            let spliced = rig.image.dir().join("spliced");
            fs::write(&spliced, &after).unwrap();
            let zone = zone.to_string();
            let whole = ["--zone", &zone, "--whole"];
            let decrypt =
                |more: &[&str]| decrypted(&rig.image, &spliced, &[&whole[..], more].concat());
            assert_eq!(
                decrypted(&rig.image, &spliced, &whole[..2]),
                b"",
                "nothing written"
            );
            for guess in [decrypt(&[]), decrypt(&["--generation", &generation])] {
                let blocks = guess.chunks(16).zip(secret.chunks(16));
                assert_eq!(guess.len(), secret.len());
                assert_eq!(blocks.filter(|(a, b)| a == b).count(), 0, "zone {zone}");
            }
            // The ciphertext is all there: the old salt alone was missing.
            let with_salt = ["--salt", salt, "--generation", &generation];
            assert!(decrypt(&with_salt) == secret, "zone {zone}");
        }
    }
}
