//! What a row of the tables is.

/// How strongly a clause binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Force {
    /// MUST or MUST NOT.
    Must,
    /// SHALL.
    Shall,
    /// SHOULD or SHOULD NOT.
    Should,
}

/// Why a clause holds.
#[derive(Clone, Copy, Debug)]
pub enum Proof {
    /// These tests fail if it does not: `target::function`, `lib` being the crate's own unit tests.
    Tests(&'static [&'static str]),
    /// It speaks of a feature (a bit, and its name) that is offered on no disk; `rules` looks that up on each kind.
    NotOffered(u32, &'static str),
    /// It speaks of a legacy or transitional device: VERSION_1 is offered always, and whoever does not take it gets no
    /// other behaviour.
    NotLegacy,
    /// It binds the driver. These tests break it on purpose, and the device must go on.
    Driver(&'static [&'static str]),
    /// It binds the driver, and a driver that breaks it hurts only itself: nothing of the device depends on it.
    DriverAlone(&'static str),
    /// The front-end or the transport does it, not a vhost-user back-end.
    FrontEnd(&'static str),
}

/// One MUST, SHALL or SHOULD.
#[derive(Clone, Copy, Debug)]
pub struct Clause {
    /// Unique, ascending within its table.
    pub id: &'static str,
    /// Section of virtio 1.4.
    pub section: &'static str,
    /// How strongly it binds.
    pub force: Force,
    /// What it says, in short.
    pub says: &'static str,
    /// Why it holds.
    pub proof: Proof,
}

/// A row.
pub const fn clause(
    id: &'static str,
    section: &'static str,
    force: Force,
    says: &'static str,
    proof: Proof,
) -> Clause {
    Clause {
        id,
        section,
        force,
        says,
        proof,
    }
}
