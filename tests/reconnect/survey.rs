//! Reading the whole disk back, in requests like all others: a daemon that dies meanwhile owes them too.

use crate::common::request::ZoneInfo;

use super::truth::ZONE_SECTORS;

/// Zones that are read at once.
const AT_ONCE: usize = 6;

/// What to ask for next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    Nothing,
    Report,
    /// A zone from its start, and how many bytes of it.
    Zone(usize, usize),
}

/// One reading of the disk; answers to an older one are dropped.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    number: u64,
    running: bool,
    asked: bool,
    zones: Vec<(ZoneInfo, Option<Vec<u8>>)>,
    next: usize,
    waiting: usize,
}

impl Survey {
    pub(crate) fn start(&mut self) {
        *self = Self {
            number: self.number + 1,
            running: true,
            ..Self::default()
        };
    }

    /// Nobody waits for it any more.
    pub(crate) fn stop(&mut self) {
        self.running = false;
        self.number += 1;
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn wants(&mut self) -> Want {
        if !self.running {
            return Want::Nothing;
        }
        if !self.asked {
            self.asked = true;
            return Want::Report;
        }
        while self.waiting < AT_ONCE && self.next < self.zones.len() {
            let zone = self.next;
            self.next += 1;
            let (info, data) = &mut self.zones[zone];
            let sectors = (info.wp - info.start).min(ZONE_SECTORS);
            if sectors == 0 {
                *data = Some(Vec::new());
                continue;
            }
            self.waiting += 1;
            return Want::Zone(zone, usize::try_from(sectors * 512).expect("length"));
        }
        Want::Nothing
    }

    pub(crate) fn reported(&mut self, number: u64, report: Vec<ZoneInfo>) {
        if number == self.number {
            self.zones = report.into_iter().map(|info| (info, None)).collect();
        }
    }

    pub(crate) fn inspected(&mut self, number: u64, zone: usize, bytes: &[u8]) {
        if number == self.number {
            self.waiting -= 1;
            self.zones[zone].1 = Some(bytes.to_vec());
        }
    }

    /// Everything was read.
    pub(crate) fn is_complete(&self) -> bool {
        self.running && !self.zones.is_empty() && self.zones.iter().all(|(_, data)| data.is_some())
    }

    pub(crate) fn take(&mut self) -> Vec<(ZoneInfo, Vec<u8>)> {
        self.running = false;
        std::mem::take(&mut self.zones)
            .into_iter()
            .map(|(info, data)| (info, data.unwrap_or_default()))
            .collect()
    }
}
