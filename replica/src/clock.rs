//! The node's clock: CLOCK_BOOTTIME, which goes on while the machine sleeps, so that no lease outlives its time.

use std::time::{Duration, SystemTime};

use consensus_core::Mono;
use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

/// Now, on the clock that all deadlines of this crate are measured by.
pub(crate) fn now() -> Mono {
    let time = clock_gettime(ClockId::Boottime);
    // Seconds since boot are never negative, and 2^63 ns are 292 years.
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    Mono(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

/// The runtime's instant at which `deadline` has certainly come. A sleep of the machine makes it late, never early:
/// whoever wakes up asks [`now`] again.
pub(crate) fn instant(now: Mono, deadline: Mono) -> Instant {
    Instant::now() + deadline.since(now) + Duration::from_micros(1)
}

/// The calendar's time in sixteenths of a second since 2025; 0 before. Nothing may rely on it alone.
pub(crate) fn calendar() -> u64 {
    const START_OF_2025: Duration = Duration::from_secs(1_735_689_600);
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + START_OF_2025);
    time.map_or(0, |time| time.as_secs() * 16 + u64::from(time.subsec_millis()) * 16 / 1000)
}
