//! Where keys come from: a file, a descriptor, or somebody at the terminal. Never an argument or
//! the environment, which other users can read.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::secret::{Credential, SecretError, check_fd, inherited_fd};

use super::error::CliError;
use super::prompt;

/// How messages call standard input.
const STDIN_NAME: &str = "standard input";

/// The key that unlocks the disk. Without one, a passphrase is asked for on the terminal.
#[derive(Args, Clone, Debug, Default)]
#[group(id = "key", multiple = false)]
pub struct KeyArgs {
    /// Key file: at least 32 bytes, readable by its owner only (`-`: standard input)
    #[arg(long, value_name = "FILE", help_heading = "Key")]
    pub key_file: Option<PathBuf>,
    /// Read the key from this inherited descriptor, to its end
    #[arg(long, value_name = "N", help_heading = "Key")]
    pub key_fd: Option<i32>,
    /// Read a passphrase from this inherited descriptor (one newline at its end is dropped)
    #[arg(long, value_name = "N", help_heading = "Key")]
    pub passphrase_fd: Option<i32>,
}

/// The key of a protector to be added.
#[derive(Args, Clone, Debug, Default)]
#[group(id = "new-key", multiple = false)]
pub(super) struct NewKeyArgs {
    /// New key file: at least 32 bytes, readable by its owner only (`-`: standard input)
    #[arg(long, value_name = "FILE", help_heading = "New key")]
    new_key_file: Option<PathBuf>,
    /// Read the new key from this inherited descriptor
    #[arg(long, value_name = "N", help_heading = "New key")]
    new_key_fd: Option<i32>,
    /// Read the new passphrase from this inherited descriptor
    #[arg(long, value_name = "N", help_heading = "New key")]
    new_passphrase_fd: Option<i32>,
}

impl KeyArgs {
    /// Refuses descriptors that were not passed in. To be called before anything is opened: what we open
    /// ourselves may get the number of one that was not.
    pub fn check(&self) -> Result<(), CliError> {
        check_fds([self.key_fd, self.passphrase_fd])
    }

    /// The key of an existing disk.
    pub fn read(&self) -> Result<Credential, CliError> {
        match self.read_given()? {
            Some(credential) => Ok(credential),
            None => prompt_once("Passphrase: "),
        }
    }

    /// The key of a disk to be made: a typed passphrase is asked for twice.
    pub(super) fn read_new(&self) -> Result<Credential, CliError> {
        match self.read_given()? {
            Some(credential) => Ok(credential),
            None => prompt_twice("--key", "--passphrase"),
        }
    }

    /// The key that the command line names, if it names one.
    pub(super) fn read_given(&self) -> Result<Option<Credential>, CliError> {
        read_source(self.key_file.as_deref(), self.key_fd, self.passphrase_fd)
    }

    /// Whether it is to come from standard input.
    fn wants_stdin(&self) -> bool {
        wants_stdin(self.key_file.as_deref(), [self.key_fd, self.passphrase_fd])
    }
}

impl NewKeyArgs {
    /// Refuses a command line on which both keys would have to come from one descriptor, and descriptors
    /// that were not passed in. To be called before anything is opened.
    pub(super) fn check_beside(&self, existing: &KeyArgs) -> Result<(), CliError> {
        let mine = [self.new_key_fd, self.new_passphrase_fd];
        let theirs = [existing.key_fd, existing.passphrase_fd];
        let shared = mine.iter().flatten().any(|fd| theirs.contains(&Some(*fd)));
        if shared || (existing.wants_stdin() && wants_stdin(self.new_key_file.as_deref(), mine)) {
            return Err(CliError::Usage(
                "the existing and the new key cannot both come from one descriptor: \
                 use a second one"
                    .to_owned(),
            ));
        }
        check_fds(mine)
    }

    /// The new key; a typed passphrase is asked for twice.
    pub(super) fn read(&self) -> Result<Credential, CliError> {
        let given = read_source(
            self.new_key_file.as_deref(),
            self.new_key_fd,
            self.new_passphrase_fd,
        )?;
        match given {
            Some(credential) => Ok(credential),
            None => prompt_twice("--new-key", "--new-passphrase"),
        }
    }
}

fn check_fds(fds: [Option<i32>; 2]) -> Result<(), CliError> {
    let mut given = fds.into_iter().flatten();
    given.try_for_each(check_fd).map_err(CliError::Key)
}

fn wants_stdin(file: Option<&Path>, fds: [Option<i32>; 2]) -> bool {
    file == Some(Path::new("-")) || fds.contains(&Some(0))
}

fn read_source(
    key_file: Option<&Path>,
    key_fd: Option<i32>,
    passphrase_fd: Option<i32>,
) -> Result<Option<Credential>, CliError> {
    let credential = if let Some(path) = key_file {
        if path == Path::new("-") {
            read_stdin()
        } else {
            Credential::from_key_file(path)
        }
    } else if let Some(fd) = key_fd {
        inherited_fd(fd).and_then(|file| Credential::read_key(file, &fd_name(fd)))
    } else if let Some(fd) = passphrase_fd {
        inherited_fd(fd).and_then(|file| Credential::read_passphrase(file, &fd_name(fd)))
    } else {
        return Ok(None);
    };
    credential.map(Some).map_err(CliError::Key)
}

/// Past the standard library's buffer, in which the key would stay.
fn read_stdin() -> Result<Credential, SecretError> {
    match io::stdin().as_fd().try_clone_to_owned() {
        Ok(stdin) => Credential::read_key(File::from(stdin), STDIN_NAME),
        Err(error) => Err(SecretError::Read(STDIN_NAME.to_owned(), error)),
    }
}

fn fd_name(fd: i32) -> String {
    format!("descriptor {fd}")
}

fn prompt_once(prompt: &str) -> Result<Credential, CliError> {
    // /dev/tty can be there all the same: nobody is asked behind the back of a script.
    if !io::stdin().is_terminal() {
        return Err(CliError::NoKey("--key", "--passphrase"));
    }
    ask(prompt)
}

fn prompt_twice(key: &'static str, passphrase: &'static str) -> Result<Credential, CliError> {
    if !io::stdin().is_terminal() {
        return Err(CliError::NoKey(key, passphrase));
    }
    let first = ask("New passphrase: ")?;
    let second = ask("The same again: ")?;
    match (&first, &second) {
        (Credential::Passphrase(a), Credential::Passphrase(b)) if a.bytes() == b.bytes() => {
            Ok(first)
        }
        _ => Err(CliError::PassphrasesDiffer),
    }
}

fn ask(prompt: &str) -> Result<Credential, CliError> {
    prompt::ask(prompt).map_err(CliError::Key)
}
