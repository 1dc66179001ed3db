//! AES-GCM (NIST SP 800-38D) of one message, the cipher that also proves what it decrypts.
//!
//! The mode is that of AWS-LC: assembly that encrypts and authenticates in one pass. This module
//! adds only the shape that a disk needs: the caller gives the nonce, the message is encrypted in
//! place, the tag stands apart, and a message that is not proven is wiped.
//!
//! **A nonce must never be used twice under one key.** Two messages under the same nonce give away
//! the difference of their plaintexts and the key of the authentication. Nothing here can notice.
//!
//! What is wiped: the round keys and the hash key, when a [`Gcm`] is dropped. AWS-LC has them in one
//! allocation of its own, of which a move leaves no copy; `memory` has it lie in the
//! [arena](crate::arena). What is not: the copy of the powers of the hash key that every call has on its
//! stack, and registers.

mod memory;

use core::fmt;

use aws_lc_rs::aead::{AES_128_GCM, AES_192_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use thiserror::Error;

use crate::arena::scrubbed;

use super::{Cipher, KeyError};

/// Bytes of a nonce: the length for which GCM needs no hash to begin with.
pub const NONCE_LEN: usize = 12;
/// Bytes of a tag: the whole of what GCM computes.
pub const TAG_LEN: usize = 16;

/// The message is longer than GCM allows (2^36 - 32 bytes). It has been wiped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the message is too long for GCM")]
pub struct MessageTooLong;

/// The message, its associated data, its nonce or its tag is not what was sealed under this key. The
/// message has been wiped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the tag does not match")]
pub struct TagMismatch;

/// An expanded key. `Debug` does not show it.
pub struct Gcm(LessSafeKey);

impl fmt::Debug for Gcm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gcm").finish_non_exhaustive()
    }
}

impl Gcm {
    /// Bytes of the [arena](crate::arena) that hold its round keys and hash key.
    pub const ARENA_BYTES: usize = memory::KEY_BYTES;

    /// Expands a key of AES-256.
    ///
    /// # Errors
    /// [`KeyError::Length`] if the key has not 32 bytes, [`KeyError::Library`] without memory.
    pub fn new(key: &[u8]) -> Result<Self, KeyError> {
        let cipher = Cipher::Aes256Gcm;
        if key.len() != cipher.key_len() {
            return Err(KeyError::Length {
                cipher,
                len: key.len(),
            });
        }
        Self::with_any_key(key)
    }

    /// The same with a key of any AES: published test vectors are of all three, the product's keys
    /// are not.
    ///
    /// # Errors
    /// As [`Gcm::new`].
    #[doc(hidden)]
    pub fn with_any_key(key: &[u8]) -> Result<Self, KeyError> {
        let algorithm = match key.len() {
            16 => &AES_128_GCM,
            24 => &AES_192_GCM,
            32 => &AES_256_GCM,
            len => {
                return Err(KeyError::Length {
                    cipher: Cipher::Aes256Gcm,
                    len,
                });
            }
        };
        memory::use_arena();
        scrubbed(|| UnboundKey::new(algorithm, key))
            .map(|key| Self(LessSafeKey::new(key)))
            .map_err(|_| KeyError::Library)
    }

    /// Encrypts `message` in place and returns the tag that proves it together with `aad`.
    ///
    /// # Errors
    /// [`MessageTooLong`].
    #[inline]
    pub fn seal(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        message: &mut [u8],
    ) -> Result<[u8; TAG_LEN], MessageTooLong> {
        let nonce = Nonce::from(nonce);
        let sealed = self
            .0
            .seal_in_place_separate_tag(nonce, Aad::from(aad), message);
        let tag = sealed
            .ok()
            .and_then(|tag| <[u8; TAG_LEN]>::try_from(tag.as_ref()).ok());
        tag.ok_or_else(|| {
            message.fill(0);
            MessageTooLong
        })
    }

    /// Decrypts in place what [`Gcm::seal`] made.
    ///
    /// # Errors
    /// [`TagMismatch`] if anything is not as it was; the message is then all zeroes.
    #[inline]
    pub fn open(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        message: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<(), TagMismatch> {
        let nonce = Nonce::from(nonce);
        let opened = self
            .0
            .open_in_place_separate_tag(nonce, Aad::from(aad), tag, message);
        if opened.is_ok() {
            return Ok(());
        }
        // AWS-LC wipes too; but its word for it is a comment in its source.
        message.fill(0);
        Err(TagMismatch)
    }
}
