//! A list of calls as a program for the kernel.

use std::collections::BTreeMap;
use std::env::consts::ARCH;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::calls::{Argument, Call, Thread};
use super::{Mode, SandboxError};

/// Leaves the calling thread its list. The kernel looks a call that is let through whatever its
/// arguments up in a table (Linux 5.11); only what depends on an argument runs the program.
pub(super) fn install(thread: Thread, mode: Mode) -> Result<(), SandboxError> {
    let program = program(thread, mode).map_err(|e| SandboxError::Seccomp(e.to_string()))?;
    seccompiler::apply_filter(&program).map_err(|e| SandboxError::Seccomp(e.to_string()))
}

fn program(thread: Thread, mode: Mode) -> Result<BpfProgram, seccompiler::BackendError> {
    let otherwise = match mode {
        Mode::On => SeccompAction::KillProcess,
        Mode::Log | Mode::Off => SeccompAction::Log,
    };
    let list = thread
        .calls()
        .map(|call| Ok((call.number, rules(call)?)))
        .collect::<Result<BTreeMap<_, _>, seccompiler::BackendError>>()?;
    let target = TargetArch::try_from(ARCH)?;
    SeccompFilter::new(list, otherwise, SeccompAction::Allow, target)?.try_into()
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
