//! Images as text: a line with the length, then a line for each stretch that is not zero.

use std::fmt::Write;

/// Bytes of a line; shorter runs of zeroes within it are written out.
const LINE: usize = 32;

/// The text of an image.
pub fn pack(image: &[u8]) -> String {
    let mut text = format!("length {}\n", image.len());
    for (number, line) in image.chunks(LINE).enumerate() {
        let Some(last) = line.iter().rposition(|&byte| byte != 0) else {
            continue;
        };
        write!(text, "{:x} ", number * LINE).unwrap();
        for byte in &line[..=last] {
            write!(text, "{byte:02x}").unwrap();
        }
        text.push('\n');
    }
    text
}

/// The image of a text.
pub fn unpack(text: &str) -> Vec<u8> {
    let (first, rest) = text.split_once('\n').unwrap();
    let length = first.strip_prefix("length ").unwrap();
    let mut image = vec![0; length.parse().unwrap()];
    for line in rest.lines() {
        let (offset, hex) = line.split_once(' ').unwrap();
        let offset = usize::from_str_radix(offset, 16).unwrap();
        let digits = hex.as_bytes().chunks(2);
        for (to, pair) in image[offset..].iter_mut().zip(digits) {
            let pair = std::str::from_utf8(pair).unwrap();
            *to = u8::from_str_radix(pair, 16).unwrap();
        }
    }
    image
}

#[test]
fn what_is_packed_comes_out_again() {
    let mut image = vec![0; 1000];
    assert_eq!(unpack(&pack(&image)), image);
    for at in [0, 31, 32, 500, 501, 996, 999] {
        image[at] = u8::try_from(at % 255 + 1).unwrap();
    }
    assert_eq!(unpack(&pack(&image)), image);
    assert_eq!(pack(&[0; 40]), "length 40\n");
    assert_eq!(
        pack(&[vec![0; 33], vec![7, 0]].concat()),
        "length 35\n20 0007\n"
    );
}
