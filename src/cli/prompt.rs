//! A passphrase typed at the terminal, which shows none of it and keeps none of it.
//!
//! The line is read in one piece from the terminal's own editor into memory for keys: what reads it
//! character by character into a growing string leaves copies of its beginning behind.

use std::fs::File;
use std::io::{self, Write};

use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr,
};

use crate::secret::{Credential, KeyMaterial, MAX_PASSPHRASE_LEN, SecretError};

/// How messages call it.
const NAME: &str = "the terminal";
/// What Ctrl-C types.
const CTRL_C: u8 = 3;

/// Asks for a passphrase on the controlling terminal.
pub(super) fn ask(prompt: &str) -> Result<Credential, SecretError> {
    let tty = File::options().read(true).write(true).open("/dev/tty");
    ask_on(&tty.map_err(unreadable)?, prompt)
}

fn unreadable(error: impl Into<io::Error>) -> SecretError {
    SecretError::Read(NAME.to_owned(), error.into())
}

fn ask_on(mut tty: &File, prompt: &str) -> Result<Credential, SecretError> {
    let typed = {
        let _quiet = Quiet::new(tty).map_err(unreadable)?;
        tty.write_all(prompt.as_bytes()).map_err(unreadable)?;
        KeyMaterial::read_line(tty, MAX_PASSPHRASE_LEN, NAME)?
    };
    if typed.bytes().last() == Some(&CTRL_C) {
        let _ = tty.write_all(b"\n");
        return Err(unreadable(io::Error::from(io::ErrorKind::Interrupted)));
    }
    Credential::passphrase(typed, NAME)
}

/// A terminal that does not show what is typed, until this is dropped.
struct Quiet<'a> {
    tty: &'a File,
    before: Termios,
}

impl<'a> Quiet<'a> {
    fn new(tty: &'a File) -> io::Result<Self> {
        let before = tcgetattr(tty)?;
        let mut quiet = before.clone();
        // Ctrl-C must not end us while the terminal is mute: it ends the line instead.
        quiet
            .local_modes
            .remove(LocalModes::ECHO | LocalModes::ISIG);
        quiet
            .local_modes
            .insert(LocalModes::ICANON | LocalModes::ECHONL);
        quiet.special_codes[SpecialCodeIndex::VEOL] = CTRL_C;
        // What was typed before the question is no answer to it.
        tcsetattr(tty, OptionalActions::Flush, &quiet)?;
        Ok(Self { tty, before })
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        // Without what is left of a line that was too long: the shell would take it for a command.
        if let Err(error) = tcsetattr(self.tty, OptionalActions::Flush, &self.before) {
            log::warn!("the terminal stays mute (`stty sane` helps): {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::thread;

    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};

    use super::*;

    /// Types `keys` when the question is there. Returns what came of it, and all that the screen shows.
    fn type_in(keys: &'static [u8]) -> (Result<Credential, SecretError>, String) {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
        let screen = openpt(flags).unwrap();
        grantpt(&screen).unwrap();
        unlockpt(&screen).unwrap();
        let tty: OwnedFd = ioctl_tiocgptpeer(&screen, flags).unwrap();
        let tty = File::from(tty);
        let mut screen = File::from(screen);
        let typist = thread::spawn(move || {
            let mut shown = Vec::new();
            let mut byte = [0];
            while !shown.ends_with(b"Word: ") {
                screen.read_exact(&mut byte).unwrap();
                shown.push(byte[0]);
            }
            screen.write_all(keys).unwrap();
            // Ends with an error when the other side is closed.
            let _closed = screen.read_to_end(&mut shown);
            String::from_utf8(shown).unwrap()
        });
        let before = tcgetattr(&tty).unwrap().local_modes;
        let answer = ask_on(&tty, "Word: ");
        assert_eq!(tcgetattr(&tty).unwrap().local_modes, before);
        drop(tty);
        (answer, typist.join().unwrap())
    }

    #[test]
    fn a_line_is_taken_and_not_shown() {
        let (answer, shown) = type_in(b"two wordz\x7fs\n");
        assert!(matches!(
            answer,
            Ok(Credential::Passphrase(typed)) if typed.bytes() == b"two words"
        ));
        assert_eq!(shown.replace('\r', ""), "Word: \n");
    }

    #[test]
    fn what_is_no_passphrase_is_refused() {
        let (answer, _) = type_in(b"\n");
        assert!(matches!(answer, Err(SecretError::Empty(_))));
        let (answer, _) = type_in(b"half\x03");
        assert!(matches!(
            answer,
            Err(SecretError::Read(_, error)) if error.kind() == io::ErrorKind::Interrupted
        ));
        let mut long = vec![b'x'; MAX_PASSPHRASE_LEN + 1];
        long.push(b'\n');
        let (answer, _) = type_in(long.leak());
        assert!(matches!(answer, Err(SecretError::TooLong(..))));
    }
}
