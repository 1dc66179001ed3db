//! AES-XTS in GB/s a core: each backend of ours, the crate `xts-mode` and OpenSSL, side by side.
//!
//! ```text
//! cargo bench --bench xts                    # a minute and a half
//! OPENSSL=/path/to/openssl cargo bench --bench xts
//! ```
//! How it measures is said in `measure.rs`.
//!
//! OpenSSL is measured by its own `openssl speed`, which works on one data unit a call and sets no
//! tweak before it, as a disk would have to. "64K as 512s" means nothing to it.
#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

#[path = "measure.rs"]
pub mod measure;

use std::env;
use std::hint::black_box;
use std::process::Command;
use std::time::Duration;

use aes::cipher::KeyInit;
use aes::{Aes128, Aes256};
use measure::{Buffer, LONGEST, Pace, measure, median};
use xts_mode::{Xts128, get_tweak_default};
use zonevault::crypt::{Backend, Cipher, Direction, ZoneCipher};

/// Block size and length of a run, in bytes.
const SHAPES: [(&str, usize, usize); 4] = [
    ("lone 512", 512, 512),
    ("64K of 512", 512, LONGEST),
    ("lone 4K", 4096, 4096),
    ("64K of 4K", 4096, LONGEST),
];

/// Who takes a turn.
enum Contender {
    Ours(ZoneCipher, Backend),
    XtsMode128(Box<Xts128<Aes128>>),
    XtsMode256(Box<Xts128<Aes256>>),
    OpenSsl(Cipher),
}

impl Contender {
    fn all(cipher: Cipher) -> Vec<Self> {
        let key: Vec<u8> = (0..64).take(cipher.key_len()).collect();
        let (data, tweak) = key.split_at(key.len() / 2);
        let mut all: Vec<_> = Backend::available()
            .map(|backend| {
                let keys = ZoneCipher::with_backend(cipher, &key, backend).unwrap();
                Self::Ours(keys, backend)
            })
            .collect();
        all.push(match cipher {
            Cipher::Aes128Xts => Self::XtsMode128(Box::new(Xts128::new(
                Aes128::new_from_slice(data).unwrap(),
                Aes128::new_from_slice(tweak).unwrap(),
            ))),
            _ => Self::XtsMode256(Box::new(Xts128::new(
                Aes256::new_from_slice(data).unwrap(),
                Aes256::new_from_slice(tweak).unwrap(),
            ))),
        });
        all
    }

    fn name(&self) -> String {
        match self {
            Self::Ours(_, backend) => format!("zonevault {}", backend.name()),
            Self::XtsMode128(_) | Self::XtsMode256(_) => "xts-mode".to_owned(),
            Self::OpenSsl(_) => openssl_version().unwrap_or_else(|| "openssl: none".to_owned()),
        }
    }

    /// GB/s of one turn; `None` if the shape is nothing for this contender, or there is none.
    fn turn(
        &self,
        turn: Duration,
        direction: Direction,
        (block_size, len): (usize, usize),
        buffer: &mut Buffer,
    ) -> Option<f64> {
        let data = &mut buffer.0[..len];
        let encrypt = direction == Direction::Encrypt;
        match self {
            Self::Ours(keys, _) => Some(measure(turn, len, |dun| {
                let data = black_box(&mut *data);
                match direction {
                    Direction::Encrypt => keys.encrypt(block_size, dun, data).unwrap(),
                    Direction::Decrypt => keys.decrypt(block_size, dun, data).unwrap(),
                }
            })),
            Self::XtsMode128(xts) => Some(measure(turn, len, |dun| {
                let data = black_box(&mut *data);
                if encrypt {
                    xts.encrypt_area(data, block_size, dun.into(), get_tweak_default);
                } else {
                    xts.decrypt_area(data, block_size, dun.into(), get_tweak_default);
                }
            })),
            Self::XtsMode256(xts) => Some(measure(turn, len, |dun| {
                let data = black_box(&mut *data);
                if encrypt {
                    xts.encrypt_area(data, block_size, dun.into(), get_tweak_default);
                } else {
                    xts.decrypt_area(data, block_size, dun.into(), get_tweak_default);
                }
            })),
            Self::OpenSsl(cipher) if block_size == len => openssl_speed(*cipher, encrypt, len),
            Self::OpenSsl(_) => None,
        }
    }
}

fn openssl() -> Command {
    Command::new(env::var_os("OPENSSL").unwrap_or_else(|| "openssl".into()))
}

/// Name and version, as "OpenSSL 3.0.19".
fn openssl_version() -> Option<String> {
    let output = openssl().arg("version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let words: Vec<_> = text.split_whitespace().take(2).collect();
    (words.len() == 2).then(|| words.join(" "))
}

fn openssl_speed(cipher: Cipher, encrypt: bool, bytes: usize) -> Option<f64> {
    let mut command = openssl();
    command.args([
        "speed",
        "-mr",
        "-seconds",
        "1",
        "-bytes",
        &bytes.to_string(),
    ]);
    command.args(["-evp", cipher.name()]);
    if !encrypt {
        command.arg("-decrypt");
    }
    let output = command.output().ok()?;
    // The line of figures: +F:number:name:bytes per second
    let text = String::from_utf8(output.stdout).ok()?;
    let figures = text.lines().find(|line| line.starts_with("+F:"))?;
    let per_second: f64 = figures.rsplit(':').next()?.parse().ok()?;
    Some(per_second / 1e9)
}

fn table(cipher: Cipher, direction: Direction, pace: Option<Pace>) {
    let mut contenders = Contender::all(cipher);
    if pace.is_some() {
        // A turn of OpenSSL is never shorter than a second.
        contenders.push(Contender::OpenSsl(cipher));
    }
    let Pace { rounds, turn } = pace.unwrap_or(Pace::GLIMPSE);
    let mut buffer = Buffer::new();
    let mut figures = vec![[const { vec![] }; SHAPES.len()]; contenders.len()];
    for _ in 0..rounds {
        for (contender, figures) in contenders.iter().zip(&mut figures) {
            for ((_, block_size, len), figures) in SHAPES.into_iter().zip(figures) {
                let figure = contender.turn(turn, direction, (block_size, len), &mut buffer);
                figures.extend(figure);
            }
        }
    }
    println!("\n{cipher}, {direction:?}, GB/s");
    print!("{:22}", "");
    for (name, ..) in SHAPES {
        print!("{name:>12}");
    }
    println!();
    for (contender, figures) in contenders.iter().zip(&mut figures) {
        print!("{:22}", contender.name());
        for figures in figures {
            match median(figures) {
                Some(median) => print!("{median:12.2}"),
                None => print!("{:>12}", "-"),
            }
        }
        println!();
    }
}

fn main() {
    let pace = Pace::full();
    for cipher in [Cipher::Aes256Xts, Cipher::Aes128Xts] {
        for direction in [Direction::Encrypt, Direction::Decrypt] {
            table(cipher, direction, pace);
        }
    }
}
