//! Landlock: no file by its name.

use std::fmt;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

/// The newest interface that this was tested with: the rights that are taken away are all of its.
const TESTED: ABI = ABI::V7;

/// What the kernel enforces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Enforced {
    /// Landlock is not built in, or not enabled at boot.
    #[default]
    Nothing,
    /// What version so-and-so of the interface has.
    Part(i32),
    /// Everything that was asked for.
    All(i32),
}

impl fmt::Display for Enforced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("no Landlock in this kernel"),
            Self::Part(abi) => write!(f, "Landlock (ABI {abi}) in part: no paths"),
            Self::All(abi) => write!(f, "Landlock (ABI {abi}) in full: no paths, ports, signals"),
        }
    }
}

/// Takes every path from the calling thread and those that it starts, but for the removal of files in
/// `removable`.
pub(super) fn restrict(removable: Option<&Path>) -> Result<Enforced, RulesetError> {
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(TESTED))?
        .handle_access(AccessNet::from_all(TESTED))?
        .scope(Scope::from_all(TESTED))?
        .create()?;
    // A directory that cannot be named now could not be removed from later.
    if let Some(directory) = removable.and_then(|path| PathFd::new(path).ok()) {
        ruleset = ruleset.add_rule(PathBeneath::new(directory, AccessFs::RemoveFile))?;
    }
    let status = ruleset.restrict_self()?;
    let abi = match status.landlock {
        LandlockStatus::Available { effective_abi, .. } => effective_abi as i32,
        _ => 0,
    };
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Enforced::All(abi),
        RulesetStatus::PartiallyEnforced => Enforced::Part(abi),
        RulesetStatus::NotEnforced => Enforced::Nothing,
    })
}
