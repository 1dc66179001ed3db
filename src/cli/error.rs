//! What went wrong, in one line, and the exit code that says so to scripts.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use thiserror::Error;

use crate::device::{ServeError, SocketError};
use crate::format::{HeaderError, ImageError, ProtectorError};
use crate::sandbox::SandboxError;
use crate::secret::SecretError;
use crate::store::OpenError;
use crate::volume::VolumeError;

/// The exit codes, as `--help` lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Something failed at run time: I/O, memory, the operating system.
    Failure = 1,
    /// The command line asks for something that cannot be.
    Usage = 2,
    /// Not a zonevault image, or a truncated, damaged or unsupported one.
    BadImage = 3,
    /// The wrong key, or no usable key.
    Key = 4,
    /// The image or the socket is in use.
    InUse = 5,
    /// `check` found damage, and not all of it is repaired.
    Damage = 6,
    /// `check` found damage and repaired all of it.
    Repaired = 7,
    /// The disk is another one, or an older state of it, than the command line pins.
    Pinned = 8,
}

/// The list for `--help`.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done; of check: sound
  1  run-time failure (I/O, memory, operating system)
  2  usage: the command line asks for something that cannot be, or names no image
  3  not a zonevault image, or truncated, damaged, altered or of an unsupported version
  4  wrong key, or no usable key
  5  the image or the socket is in use
  6  check found damage
  7  check --repair found damage and repaired all of it
  8  the disk is not the one that --expect-... demands";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command failed. `Display` is the one line that the user reads: what, which file, what to
/// do.
#[derive(Debug, Error)]
pub enum CliError {
    /// A wish that cannot be granted.
    #[error("{0}")]
    Usage(String),
    /// The image at this path.
    #[error("{}: {source}{}", path.display(), advice(source))]
    Image {
        /// Which image.
        path: PathBuf,
        /// What is wrong with it.
        source: ImageError,
    },
    /// The image could not be opened or made.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The key material.
    #[error("{0}")]
    Key(SecretError),
    /// No key was named and nobody is there to type one.
    #[error(
        "no key given and no terminal to ask on: name one with {0}-file FILE, {0}-fd N or \
         {1}-fd N"
    )]
    NoKey(&'static str, &'static str),
    /// The two typed passphrases differ.
    #[error("the two passphrases differ: nothing was changed, try again")]
    PassphrasesDiffer,
    /// The disk could not be opened for serving, or not be closed.
    #[error("{}: {source}{}", path.display(), volume_advice(source))]
    Volume {
        /// Which image.
        path: PathBuf,
        /// Why.
        source: VolumeError,
    },
    /// The socket, or a front-end on it.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// What was to be given up could not be.
    #[error("sandbox: {0}")]
    Sandbox(#[from] SandboxError),
    /// What `check` found, in a line, where that is not all in order.
    #[error("{summary}")]
    Checked {
        /// The line.
        summary: String,
        /// Whether all of it is repaired.
        repaired: bool,
    },
    /// The disk is not what the command line pins.
    #[error("{}: {mismatch}: not served; if that is as it should be, change what is expected", path.display())]
    Pinned {
        /// Which image.
        path: PathBuf,
        /// What differs.
        mismatch: String,
    },
    /// A run-time failure in words.
    #[error("{0}")]
    Failure(String),
    /// Standard output.
    #[error("standard output: {0}")]
    Output(#[from] io::Error),
}

impl CliError {
    /// Names the image that `source` is about.
    pub fn image(path: &Path) -> impl FnOnce(ImageError) -> Self + '_ {
        move |source| Self::Image {
            path: path.to_owned(),
            source,
        }
    }

    /// Names the image of the disk that `source` is about.
    pub fn volume(path: &Path) -> impl FnOnce(VolumeError) -> Self + '_ {
        move |source| Self::Volume {
            path: path.to_owned(),
            source,
        }
    }

    /// The exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) => Exit::Usage,
            Self::Image { source, .. } => image_exit(source),
            Self::Open(error) => open_exit(error),
            Self::Key(error) => secret_exit(error),
            Self::NoKey(..) => Exit::Key,
            Self::PassphrasesDiffer => Exit::Usage,
            Self::Checked { repaired: true, .. } => Exit::Repaired,
            Self::Checked { .. } => Exit::Damage,
            Self::Pinned { .. } => Exit::Pinned,
            Self::Volume { source, .. } => match source {
                VolumeError::Image(error) => image_exit(error),
                VolumeError::Secret(error) => secret_exit(error),
                VolumeError::Io(_) | VolumeError::SyncFailed => Exit::Failure,
                VolumeError::ForeignRecords => Exit::BadImage,
            },
            Self::Serve(ServeError::Socket(error)) => match error {
                SocketError::InUse(_) => Exit::InUse,
                SocketError::NotASocket(_)
                | SocketError::NotOurs { .. }
                | SocketError::Inherit { .. }
                | SocketError::TooMany(_)
                | SocketError::Nowhere => Exit::Usage,
                SocketError::Listen { .. } => Exit::Failure,
            },
            Self::Serve(ServeError::System(_)) => Exit::Failure,
            Self::Sandbox(_) | Self::Failure(_) => Exit::Failure,
            // Who closed the pipe has seen enough: `zonevault zones IMAGE | head`.
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Ok,
            Self::Output(_) => Exit::Failure,
        }
    }
}

fn open_exit(error: &OpenError) -> Exit {
    match error {
        OpenError::InUse { .. } => Exit::InUse,
        OpenError::NotAnImage { .. } | OpenError::Occupied { .. } | OpenError::TooSmall { .. } => {
            Exit::Usage
        }
        // A name that leads nowhere is a mistyped one.
        OpenError::Io { source, .. }
            if matches!(
                source.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Exit::Usage
        }
        _ => Exit::Failure,
    }
}

fn image_exit(error: &ImageError) -> Exit {
    match error {
        ImageError::Io(_) => Exit::Failure,
        ImageError::Header(HeaderError::Secret(error)) | ImageError::Secret(error) => {
            secret_exit(error)
        }
        ImageError::Header(_)
        | ImageError::Truncated { .. }
        | ImageError::ReadOnlyFeatures(_)
        | ImageError::TagSlot(_) => Exit::BadImage,
        ImageError::WrongKey => Exit::Key,
        ImageError::NoSuchSlot(_) => Exit::Usage,
        ImageError::Protector(error) => protector_exit(error),
    }
}

fn protector_exit(error: &ProtectorError) -> Exit {
    match error {
        ProtectorError::Unusable(_) => Exit::BadImage,
        ProtectorError::Label => Exit::Usage,
        ProtectorError::Memory(_) | ProtectorError::Wrap => Exit::Failure,
        ProtectorError::Secret(error) => secret_exit(error),
    }
}

fn secret_exit(error: &SecretError) -> Exit {
    match error {
        SecretError::Random(_) | SecretError::KeyLength => Exit::Failure,
        _ => Exit::Key,
    }
}

/// The same for a disk that does not open.
fn volume_advice(error: &VolumeError) -> &'static str {
    match error {
        VolumeError::ForeignRecords => {
            ": see `zonevault check`; --accept-records serves it as it is"
        }
        VolumeError::Image(error) => advice(error),
        VolumeError::Secret(_) | VolumeError::Io(_) | VolumeError::SyncFailed => "",
    }
}

/// What to do about it, where the error itself cannot know.
fn advice(error: &ImageError) -> &'static str {
    match error {
        ImageError::Header(HeaderError::NotAnImage) => {
            ": check the path, or make one with `zonevault create`"
        }
        ImageError::Header(HeaderError::Rot) => ": restore the image from a backup",
        ImageError::Header(HeaderError::Version(_) | HeaderError::Incompatible(_)) => {
            ": use a newer zonevault"
        }
        ImageError::Truncated { .. } => ": restore the image from a complete copy",
        ImageError::WrongKey => {
            ": check the key, and whether it is a key file or a passphrase (see `zonevault key list`)"
        }
        _ => "",
    }
}
