//! The processor that is to encrypt.

use clap::Args;

use crate::crypt::cpu::AesInstructions;

use super::error::CliError;

/// What the processor may lack.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(super) struct CpuArgs {
    /// Go on without AES instructions: correct, in constant time, and many times slower
    #[arg(long)]
    allow_slow_aes: bool,
}

impl CpuArgs {
    /// Refuses a processor without AES instructions unless it is allowed.
    pub(super) fn check(self) -> Result<(), CliError> {
        AesInstructions::detect()
            .require(self.allow_slow_aes)
            .map_err(|error| {
                CliError::Failure(format!("{error}; --allow-slow-aes goes on all the same"))
            })
    }
}
