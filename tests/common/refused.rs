//! A kernel that lacks a system call, as an older one does, or an administrator's or a container's rules have it.
#![expect(
    unsafe_code,
    reason = "a filter of system calls has no safe form in the standard library"
)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Has the system call `number` fail with `errno` in the process that `command` starts, and in all of its threads.
pub fn refuse(command: &mut Command, number: libc::c_long, errno: i32) {
    // SAFETY: between fork and exec only system calls are made.
    unsafe {
        command.pre_exec(move || refuse_here(number, errno));
    }
}

fn refuse_here(number: libc::c_long, errno: i32) -> io::Result<()> {
    let statement = |code: u32, jump_false: u8, k: u32| libc::sock_filter {
        code: u16::try_from(code).unwrap_or(0),
        jt: 0,
        jf: jump_false,
        k,
    };
    let number = u32::try_from(number).unwrap_or(0);
    let refusal = libc::SECCOMP_RET_ERRNO | errno.cast_unsigned();
    let mut program = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, number),
        statement(libc::BPF_RET | libc::BPF_K, 0, refusal),
        statement(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog {
        len: 4,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the filter and its program outlive the calls, which copy them.
    let done = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const filter,
            ) == 0
    };
    if done {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
