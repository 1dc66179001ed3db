//! Images of format version 1 that are kept: this version must open them, and every later one. `README.md` beside this
//! file says what they are and when they may be made anew.

#[cfg(test)]
#[path = "../tamper/disk.rs"]
pub mod disk;
#[cfg(test)]
pub mod golden;
#[cfg(test)]
pub mod pack;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Output, Stdio};

    use serde_json::Value;
    use zonevault::crypt::Cipher;
    use zonevault::format::OpenState;
    use zonevault::format::image::unlock;
    use zonevault::volume::Options;
    use zonevault::zone::ZoneState;

    use crate::disk::{Disk, ZONE, bytes_of, credential, medium_of};
    use crate::golden::{Golden, all, block, passphrase};
    use crate::pack::{pack, unpack};

    /// Most bytes of a golden file: they are in every copy of the repository.
    const MAX_FILE: usize = 20 << 10;

    /// The Python that `tests/vectors/fetch` made.
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

    fn file(golden: &Golden) -> PathBuf {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        folder.join(golden.name).with_extension("img")
    }

    fn kept(golden: &Golden) -> Vec<u8> {
        unpack(&fs::read_to_string(file(golden)).unwrap())
    }

    /// The disk as the guest reads it.
    fn content(golden: &Golden) -> Vec<u8> {
        let zone_len = usize::try_from(ZONE).unwrap();
        let mut content = vec![0; golden.zones.len() * zone_len];
        for (zone, expected) in (0..).zip(&golden.zones) {
            for &(number, life) in &expected.blocks {
                let data = block(golden.shape, zone, number, life);
                let start = usize::try_from(u64::from(zone) * ZONE + number * golden.shape.block);
                content[start.unwrap()..][..data.len()].copy_from_slice(&data);
            }
        }
        content
    }

    /// Checks all that is known of the disk, opened in this way.
    fn check(golden: &Golden, image: &[u8], options: Options) -> Disk {
        let medium = medium_of(image);
        for credential in [credential(), passphrase()] {
            let header = unlock(&medium, &credential).unwrap().header;
            assert_eq!(*header.uuid(), golden.uuid);
            assert_eq!(header.cipher(), golden.shape.cipher);
            assert_eq!(*header.geometry(), golden.shape.geometry());
            assert_eq!(
                (header.created(), header.state),
                (1_800_000_000, golden.left)
            );
        }
        let mut disk = Disk::open(medium, options).unwrap();
        let content = content(golden);
        let zone_len = content.len() / golden.zones.len();
        for (zone, (expected, content)) in
            (0..).zip(golden.zones.iter().zip(content.chunks(zone_len)))
        {
            assert_eq!(disk.state(zone), expected.state, "zone {zone}");
            if expected.state == ZoneState::NotWritePointer {
                // What was never written there decrypts to noise.
                for &(number, life) in &expected.blocks {
                    let data = block(golden.shape, zone, number, life);
                    assert_eq!(disk.block(zone, number), Ok(data), "zone {zone}");
                }
                continue;
            }
            if expected.state == ZoneState::Closed {
                assert_eq!(
                    disk.write_pointer(zone),
                    expected.blocks.len() as u64,
                    "zone {zone}"
                );
            }
            assert_eq!(
                disk.read(zone, 0, zone_len).as_deref(),
                Ok(content),
                "zone {zone}"
            );
        }
        disk
    }

    fn check_all(golden: &Golden, image: &[u8]) {
        let read_only = Options {
            read_only: true,
            ..Options::default()
        };
        let disk = check(golden, image, read_only);
        assert_eq!(bytes_of(disk.medium()), image, "{}: read only", golden.name);
        let mut disk = check(golden, image, Options::default());
        assert_eq!(disk.volume().integrity_stats().bad_blocks, 0);
        // It lives on: what is written now stands behind what is there, and both are there the next time.
        let more = block(golden.shape, 1, 77, 0);
        let number = disk.append(1, &more);
        assert_eq!(number, golden.zones[1].blocks.len() as u64);
        let mut disk = Disk::open(disk.close(), Options::default()).unwrap();
        assert_eq!(disk.block(1, number), Ok(more));
        assert_eq!(disk.block(1, 0), Ok(block(golden.shape, 1, 0, 0)));
    }

    #[test]
    fn the_golden_images_open_and_hold_what_they_held() {
        for golden in all() {
            println!("{}", golden.name);
            check_all(&golden, &kept(&golden));
        }
    }

    /// What is made today is no different. With `ZONEVAULT_GOLDEN_OUT` set to a folder it is written there: see the
    /// README for when that may be this one.
    #[test]
    fn images_made_now_hold_the_same() {
        for golden in all() {
            let image = golden.make();
            check_all(&golden, &image);
            let text = pack(&image);
            assert!(text.len() <= MAX_FILE, "{}: {}", golden.name, text.len());
            if let Some(folder) = std::env::var_os("ZONEVAULT_GOLDEN_OUT") {
                let file = Path::new(&folder).join(golden.name).with_extension("img");
                fs::write(file, text).unwrap();
            }
        }
    }

    /// Runs the reader that knows the format from its documentation alone, in the folder of the image.
    fn read(folder: &Path, options: &[&str]) -> Output {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reader/zvread.py");
        let mut command = Command::new("timeout");
        command.arg("120").arg(python()).arg(script);
        command.args(["image", "--key-file", "key", "--out", "disk", "--json"]);
        let command = command.args(options).current_dir(folder);
        command.stdin(Stdio::null()).output().unwrap()
    }

    /// It finds the same in them, recovery from tags included; and in one under the cipher that no image is kept of.
    #[test]
    fn another_reader_finds_the_same() {
        let mut images = all().map(|golden| (kept(&golden), golden)).to_vec();
        let mut guarded = images[0].1.clone();
        guarded.shape.cipher = Cipher::Aes256XtsCrc64;
        images.push((guarded.make(), guarded));
        for (image, golden) in images {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("image"), image).unwrap();
            fs::write(folder.path().join("key"), [7; 64]).unwrap();
            let options: &[&str] = match golden.left {
                OpenState::Clean => &[],
                _ => &["--after-power-cut"],
            };
            let output = read(folder.path(), options);
            let complaint = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}: {complaint}", golden.name);
            let facts: Value = serde_json::from_slice(&output.stdout).unwrap();
            let (found, content) = (
                fs::read(folder.path().join("disk")).unwrap(),
                content(&golden),
            );
            let zone_len = content.len() / golden.zones.len();
            let zones = found.chunks(zone_len).zip(content.chunks(zone_len));
            for ((number, expected), (found, content)) in golden.zones.iter().enumerate().zip(zones)
            {
                let record = &facts["zones"][number];
                assert_eq!(record["state"], expected.state.name(), "zone {number}");
                if expected.state != ZoneState::NotWritePointer {
                    assert_eq!(record["written"], expected.blocks.len(), "zone {number}");
                    assert_eq!(found, content, "{}: zone {number}", golden.name);
                    continue;
                }
                let block = golden.shape.block_len();
                for &(at, _) in &expected.blocks {
                    let start = usize::try_from(at).unwrap() * block;
                    assert_eq!(found[start..start + block], content[start..start + block]);
                }
            }
        }
    }
}
