//! A list of calls as a program for the kernel.

use std::collections::BTreeMap;
use std::env::consts::ARCH;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::calls::{ASSERTIONS, Argument, Call, DENIED, SANITIZER, Thread};
use super::{Mode, SandboxError};

/// Leaves the calling thread its list. The kernel looks a call that is let through whatever its
/// arguments up in a table (Linux 5.11); only what depends on an argument runs the programs.
pub(super) fn install(thread: Thread, mode: Mode) -> Result<(), SandboxError> {
    // What comes later in a list counts.
    let calls = ASSERTIONS.iter().chain(thread.calls()).chain(SANITIZER);
    let programs = match mode {
        Mode::Off => return Ok(()),
        Mode::Log => vec![only(calls, SeccompAction::Log)],
        // The strictest of all programs' answers counts, so the second one may let through what the
        // first one denies. It comes second, for it does not let a program be installed.
        Mode::On => vec![
            denied(),
            only(calls.chain(DENIED), SeccompAction::KillProcess),
        ],
    };
    for program in programs {
        let program = program.map_err(|e| SandboxError::Seccomp(e.to_string()))?;
        seccompiler::apply_filter(&program).map_err(|e| SandboxError::Seccomp(e.to_string()))?;
    }
    Ok(())
}

type Made = Result<BpfProgram, seccompiler::BackendError>;

/// Lets through what is listed.
fn only<'c>(calls: impl Iterator<Item = &'c Call>, otherwise: SeccompAction) -> Made {
    program(calls, otherwise, SeccompAction::Allow)
}

/// Denies what a library can do without.
fn denied() -> Made {
    let errno = SeccompAction::Errno(libc::EACCES.cast_unsigned());
    program(DENIED.iter(), SeccompAction::Allow, errno)
}

fn program<'c>(
    calls: impl Iterator<Item = &'c Call>,
    otherwise: SeccompAction,
    listed: SeccompAction,
) -> Made {
    let list = calls
        .map(|call| Ok((call.number, rules(call)?)))
        .collect::<Result<BTreeMap<_, _>, seccompiler::BackendError>>()?;
    let target = TargetArch::try_from(ARCH)?;
    SeccompFilter::new(list, otherwise, listed, target)?.try_into()
}

/// No rule: any arguments.
fn rules(call: &Call) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let rule = |&Argument { index, mask, value }: &Argument| {
        let operator = SeccompCmpOp::MaskedEq(mask);
        let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)?;
        SeccompRule::new(vec![condition])
    };
    call.arguments.iter().map(rule).collect()
}
