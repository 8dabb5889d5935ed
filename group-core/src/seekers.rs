//! Gateways that look for the group's leader, and wait for the answer: so they hear of a new one at once, and ask rarely.

use std::collections::BTreeMap;
use std::time::Duration;

use api::gaios::link::v1::StatusRequest;
use consensus_core::Mono;

use crate::clients::Waiter;
use crate::env::LinkId;

/// More than wait at a time are answered at once. Every gateway asks once on each of its links.
const SEEKERS_MAX: usize = 10_000;
/// The longest that anybody waits.
const WAIT_MAX: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(crate) struct Seekers(BTreeMap<Waiter, Seeker>);

#[derive(Debug)]
struct Seeker {
    least_term: u64,
    until: Mono,
}

impl Seekers {
    /// Takes in who asks; gives it back if it is to be answered at once. `led` is the round of the leader that is known.
    pub(crate) fn admit(
        &mut self,
        now: Mono,
        led: Option<u64>,
        waiter: Waiter,
        request: &StatusRequest,
    ) -> Option<Waiter> {
        let found = led.is_some_and(|term| term >= request.least_term);
        if found || request.wait_ms == 0 || self.0.len() >= SEEKERS_MAX {
            return Some(waiter);
        }
        let wait = Duration::from_millis(request.wait_ms.into()).min(WAIT_MAX);
        assert!(wait <= WAIT_MAX && self.0.len() < SEEKERS_MAX, "who waits is bounded, and for how long");
        self.0.insert(waiter, Seeker { least_term: request.least_term, until: now.after(wait) });
        None
    }

    /// Who is to be answered now.
    pub(crate) fn take_due(&mut self, now: Mono, led: Option<u64>) -> Vec<Waiter> {
        let due = |_: &Waiter, seeker: &mut Seeker| {
            now >= seeker.until || led.is_some_and(|term| term >= seeker.least_term)
        };
        self.0.extract_if(.., due).map(|(waiter, _)| waiter).collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn deadline(&self) -> Option<Mono> {
        self.0.values().map(|seeker| seeker.until).min()
    }

    /// Takes back a question. Returns whether it was there.
    pub(crate) fn cancel(&mut self, waiter: Waiter) -> bool {
        self.0.remove(&waiter).is_some()
    }

    pub(crate) fn close_link(&mut self, link: LinkId) {
        self.0.retain(|waiter, _| waiter.link != link);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(seekers: &mut Seekers, request: u64, led: Option<u64>, wait_ms: u32, least_term: u64) -> bool {
        let waiter = Waiter { link: LinkId(1), request };
        let asked = StatusRequest { wait_ms, least_term };
        seekers.admit(Mono(0), led, waiter, &asked).is_none()
    }

    fn due(seekers: &mut Seekers, at: Duration, led: Option<u64>) -> Vec<u64> {
        let due = seekers.take_due(Mono(0).after(at), led);
        due.into_iter().map(|waiter| waiter.request).collect()
    }

    #[test]
    fn who_looks_for_a_leader_is_answered_when_there_is_one_that_is_new_enough_or_time_is_up() {
        let mut seekers = Seekers::default();
        assert!(!ask(&mut seekers, 1, None, 0, 0), "does not want to wait");
        assert!(!ask(&mut seekers, 2, Some(5), 200, 5), "is known already");
        assert!(ask(&mut seekers, 3, Some(5), 200, 6));
        assert!(ask(&mut seekers, 4, None, 200, 8));
        assert!(ask(&mut seekers, 5, None, 5_000, 9));
        let ms = Duration::from_millis;
        assert_eq!(due(&mut seekers, ms(10), None), []);
        assert_eq!(due(&mut seekers, ms(20), Some(7)), [3]);
        assert_eq!(seekers.deadline(), Some(Mono(0).after(ms(200))));
        assert_eq!(due(&mut seekers, ms(200), Some(7)), [4]);
        assert_eq!(seekers.deadline(), Some(Mono(0).after(WAIT_MAX)));
        assert_eq!(due(&mut seekers, WAIT_MAX, None), [5]);
        assert!(seekers.is_empty());
    }

    #[test]
    fn a_link_that_is_gone_waits_for_nothing() {
        let mut seekers = Seekers::default();
        assert!(ask(&mut seekers, 1, None, 200, 0));
        seekers.close_link(LinkId(1));
        assert!(seekers.is_empty());
    }

    #[test]
    fn who_gave_up_is_not_answered() {
        let mut seekers = Seekers::default();
        let waiter = |request| Waiter { link: LinkId(1), request };
        assert!(ask(&mut seekers, 1, None, 200, 0) && ask(&mut seekers, 2, None, 200, 0));
        assert!(seekers.cancel(waiter(1)) && !seekers.cancel(waiter(1)));
        assert_eq!(due(&mut seekers, WAIT_MAX, None), [2]);
    }
}
