//! vhost-user messages on the socket, byte by byte.
//!
//! The front-end of crate `vhost` retries a timed-out receive for ever and refuses to send what is not well-formed;
//! here every wait ends, and a test may send any bytes with any descriptors.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use vhost::vhost_user::message::FrontendReq;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// How long a back-end may take for any answer before a test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Version bits of every message's flags.
pub const FLAG_VERSION: u32 = 1;
/// Set in answers.
pub const FLAG_REPLY: u32 = 1 << 2;
/// Asks for an acknowledgement (needs protocol feature REPLY_ACK).
pub const FLAG_NEED_REPLY: u32 = 1 << 3;

/// Why a message exchange failed.
#[derive(Debug)]
pub enum WireError {
    /// The socket call failed.
    Io(io::Error),
    /// The back-end closed the connection.
    Closed,
    /// Nothing came within [`PATIENCE`].
    TimedOut,
    /// The acknowledgement was not zero.
    Refused(u64),
    /// The answer was not one to what was asked.
    Garbled(String),
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl From<io::Error> for WireError {
    fn from(err: io::Error) -> Self {
        match err.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::TimedOut,
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset => Self::Closed,
            _ => Self::Io(err),
        }
    }
}

/// An answer of the back-end.
#[derive(Clone, Debug)]
pub struct Message {
    /// Request code that it answers.
    pub request: u32,
    /// Version and REPLY flags.
    pub flags: u32,
    /// Payload.
    pub body: Vec<u8>,
}

/// One connection to a back-end.
#[derive(Debug)]
pub struct Wire {
    sock: UnixStream,
    acks: bool,
}

impl Wire {
    /// Connects, waiting for the socket to appear and accept for at most [`PATIENCE`].
    pub fn connect(path: &Path) -> io::Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        let sock = loop {
            match UnixStream::connect(path) {
                Ok(sock) => break sock,
                Err(err)
                    if Instant::now() < deadline
                        && matches!(
                            err.kind(),
                            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                        ) =>
                {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(err) => return Err(err),
            }
        };
        sock.set_read_timeout(Some(PATIENCE))?;
        sock.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { sock, acks: false })
    }

    /// Ends the session, and waits until the other side has noticed.
    pub fn leave(&mut self) -> io::Result<()> {
        self.sock.shutdown(Shutdown::Write)?;
        io::copy(&mut self.sock, &mut io::sink()).map(|_| ())
    }

    /// Ask for an acknowledgement with every message that has no answer of its own.
    pub fn use_acks(&mut self, acks: bool) {
        self.acks = acks;
    }

    /// Bounds each receive by `timeout` instead of [`PATIENCE`].
    pub fn set_timeout(&mut self, timeout: Duration) -> io::Result<()> {
        self.sock.set_read_timeout(Some(timeout))
    }

    /// Sends any bytes with any descriptors.
    pub fn send_bytes(&mut self, bytes: &[u8], fds: &[RawFd]) -> Result<(), WireError> {
        let sent = self
            .sock
            .send_with_fds(&[bytes], fds)
            .map_err(|err| WireError::from(io::Error::from(err)))?;
        if sent == bytes.len() {
            Ok(())
        } else {
            Err(WireError::Garbled(format!(
                "sent {sent} of {}",
                bytes.len()
            )))
        }
    }

    /// Sends one message with a correct header.
    pub fn send(
        &mut self,
        request: u32,
        flags: u32,
        body: &[u8],
        fds: &[RawFd],
    ) -> Result<(), WireError> {
        let len = u32::try_from(body.len()).expect("message size");
        let mut bytes = Vec::with_capacity(12 + body.len());
        for word in [request, FLAG_VERSION | flags, len] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(body);
        self.send_bytes(&bytes, fds)
    }

    /// Receives one message. Descriptors that come with it are closed by the kernel.
    pub fn receive(&mut self) -> Result<Message, WireError> {
        let mut header = [0; 12];
        self.sock.read_exact(&mut header)?;
        self.receive_body(header)
    }

    /// Receives one message and the descriptor that comes with it; more than one is an error.
    pub fn receive_file(&mut self) -> Result<(Message, Option<File>), WireError> {
        let mut header = [0; 12];
        let (got, file) = self
            .sock
            .recv_with_fd(&mut header)
            .map_err(|err| WireError::from(io::Error::from(err)))?;
        match got {
            0 => Err(WireError::Closed),
            12 => Ok((self.receive_body(header)?, file)),
            // Nobody sends a header in two pieces.
            _ => Err(WireError::Garbled(format!("header of {got} bytes"))),
        }
    }

    fn receive_body(&mut self, header: [u8; 12]) -> Result<Message, WireError> {
        let [request, flags, len] = [0, 4, 8].map(|at| le32(&header, at));
        if len > 0x1_0000 {
            return Err(WireError::Garbled(format!("answer of {len} bytes")));
        }
        let mut body = vec![0; len as usize];
        self.sock.read_exact(&mut body)?;
        Ok(Message {
            request,
            flags,
            body,
        })
    }

    /// Sends a message that the protocol answers, and returns the answer's payload.
    pub fn ask(&mut self, request: FrontendReq, body: &[u8]) -> Result<Vec<u8>, WireError> {
        let code = request as u32;
        self.send(code, 0, body, &[])?;
        let answer = self.receive()?;
        if answer.request != code || answer.flags != FLAG_VERSION | FLAG_REPLY {
            return Err(WireError::Garbled(format!("{answer:?} to {request:?}")));
        }
        Ok(answer.body)
    }

    /// Like [`Wire::ask`] for an answer that brings a descriptor.
    pub fn ask_file(
        &mut self,
        request: FrontendReq,
        body: &[u8],
    ) -> Result<(Vec<u8>, Option<File>), WireError> {
        let code = request as u32;
        self.send(code, 0, body, &[])?;
        let (answer, file) = self.receive_file()?;
        if answer.request != code || answer.flags != FLAG_VERSION | FLAG_REPLY {
            return Err(WireError::Garbled(format!("{answer:?} to {request:?}")));
        }
        Ok((answer.body, file))
    }

    /// Like [`Wire::ask`] for an answer that is one 64-bit number.
    pub fn ask_u64(&mut self, request: FrontendReq) -> Result<u64, WireError> {
        let body = self.ask(request, &[])?;
        if body.len() == 8 {
            Ok(le64(&body, 0))
        } else {
            Err(WireError::Garbled(format!("{request:?}: {body:?}")))
        }
    }

    /// Sends a message without an answer; with acknowledgements in use, waits for its own.
    pub fn tell(
        &mut self,
        request: FrontendReq,
        body: &[u8],
        fds: &[RawFd],
    ) -> Result<(), WireError> {
        if !self.acks {
            return self.send(request as u32, 0, body, fds);
        }
        self.send(request as u32, FLAG_NEED_REPLY, body, fds)?;
        let answer = self.receive()?;
        if answer.request != request as u32 || answer.body.len() != 8 {
            return Err(WireError::Garbled(format!("{answer:?} to {request:?}")));
        }
        match le64(&answer.body, 0) {
            0 => Ok(()),
            code => Err(WireError::Refused(code)),
        }
    }

    /// Closes the connection in both directions.
    pub fn close(&self) {
        // Closed by the other side already is as good.
        let _ = self.sock.shutdown(std::net::Shutdown::Both);
    }

    /// Waits until the back-end closes the connection; whatever it still sends is dropped. One that
    /// it never accepted, or closed with bytes of ours unread, is reset, which is as good.
    pub fn wait_closed(&mut self) -> Result<(), WireError> {
        let mut sink = [0; 512];
        loop {
            match self.sock.read(&mut sink).map_err(WireError::from) {
                Ok(0) | Err(WireError::Closed) => return Ok(()),
                Ok(_) => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// Concatenates 32-bit little-endian words.
pub fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Concatenates 64-bit little-endian words.
pub fn longs(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// The little-endian 16-bit number at byte `at`.
pub fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

/// The little-endian 32-bit number at byte `at`.
pub fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// The little-endian 64-bit number at byte `at`.
pub fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
