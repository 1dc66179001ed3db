//! Whether this processor has instructions for AES.

use thiserror::Error;

/// What the processor has for AES.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AesInstructions {
    /// Instructions for its rounds: AES-NI, or the Armv8 cryptography extension.
    Present,
    /// None. The code that is used then takes the same time for every key and every block, for it looks
    /// up nothing in tables, and many times as long.
    Absent,
}

impl AesInstructions {
    /// Those of the processor at hand.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        let present = is_x86_feature_detected!("aes");
        #[cfg(target_arch = "aarch64")]
        let present = std::arch::is_aarch64_feature_detected!("aes");
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let present = false;
        if present { Self::Present } else { Self::Absent }
    }

    /// Whether data may be encrypted with them.
    ///
    /// # Errors
    /// [`SlowAes`] if there are none and nobody `allows` the slow code.
    pub fn require(self, allows: bool) -> Result<(), SlowAes> {
        match self {
            Self::Absent if !allows => Err(SlowAes),
            _ => Ok(()),
        }
    }
}

/// There are no instructions for AES, and nobody allowed to do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "this processor has no AES instructions (flag `aes` of /proc/cpuinfo; a virtual machine may hide \
     them): without, encryption takes many times as long"
)]
pub struct SlowAes;

#[cfg(test)]
mod tests {
    use super::AesInstructions::{Absent, Present};
    use super::*;

    #[test]
    fn only_who_allows_it_does_without_instructions() {
        assert_eq!(Present.require(false), Ok(()));
        assert_eq!(Present.require(true), Ok(()));
        assert_eq!(Absent.require(false), Err(SlowAes));
        assert_eq!(Absent.require(true), Ok(()));
        assert!(SlowAes.to_string().contains("no AES instructions"));
    }

    /// The kernel's word for it is another one than the processor's.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn detection_agrees_with_the_kernel() {
        let text = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let flags = text.lines().find(|line| line.starts_with("flags")).unwrap();
        let present = flags.split_whitespace().any(|flag| flag == "aes");
        assert_eq!(AesInstructions::detect() == Present, present);
    }
}
