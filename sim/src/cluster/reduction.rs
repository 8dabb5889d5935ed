//! What is taken from what a seed decides, to see whether it fails without that, too.

use std::fmt;

use super::clock::{MILLI, Time};
use super::profile::Fault;

/// See the module. The seed decides everything else as it does without.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reduction {
    /// Kinds of faults that do not occur, as bits, by their place among all.
    without: u32,
    /// Faults end by then at the latest, in milliseconds.
    heal_at_ms: Option<u64>,
}

impl Reduction {
    /// Without these kinds of faults, whose names stand between commas.
    ///
    /// # Errors
    /// There is no such kind.
    pub fn without(self, names: &str) -> Result<Reduction, String> {
        names.split(',').try_fold(self, |reduction, name| {
            let fault = Fault::ALL.into_iter().find(|fault| format!("{fault:?}") == name);
            fault.map(|fault| reduction.omit(fault)).ok_or(format!("no such fault: {name}"))
        })
    }

    /// Faults end after so many milliseconds at the latest.
    #[must_use]
    pub fn heal_at(self, ms: u64) -> Reduction {
        Reduction { heal_at_ms: Some(ms), ..self }
    }

    pub(crate) fn omit(self, fault: Fault) -> Reduction {
        Reduction { without: self.without | 1 << fault as u32, ..self }
    }

    pub(crate) fn omits(self, fault: Fault) -> bool {
        self.without >> fault as u32 & 1 == 1
    }

    /// When faults end that would end then.
    pub(crate) fn heals_by(self, at: Time) -> Time {
        self.heal_at_ms.map_or(at, |ms| at.min(ms * MILLI))
    }
}

/// As flags of the command line.
impl fmt::Display for Reduction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut flag = " --without ";
        for fault in Fault::ALL.into_iter().filter(|fault| self.omits(*fault)) {
            write!(f, "{flag}{fault:?}")?;
            flag = ",";
        }
        match self.heal_at_ms {
            Some(ms) => write!(f, " --heal-at {ms}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_in_flags_is_read_from_them() {
        let reduction = Reduction::default().without("Kill,Snapshot").unwrap().heal_at(700);
        assert_eq!(reduction.to_string(), " --without Kill,Snapshot --heal-at 700");
        assert!(reduction.omits(Fault::Kill) && !reduction.omits(Fault::PowerCut));
        assert_eq!((reduction.heals_by(MILLI), reduction.heals_by(900 * MILLI)), (MILLI, 700 * MILLI));
        assert_eq!(Reduction::default().to_string(), "");
        assert!(Reduction::default().without("Kill,Nothing").is_err());
    }
}
