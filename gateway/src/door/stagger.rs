//! Something that many have to do, one after the other: clients that are sent away all at once would all come to the other
//! gateways at once.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::random::random_u32;

/// Cheap to clone; all clones begin together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stagger(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    begun: CancellationToken,
    over: OnceLock<(Instant, Duration)>,
}

/// One place among all, by chance.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place(u32);

impl Place {
    pub(crate) fn draw() -> Place {
        Place(random_u32())
    }
}

impl Stagger {
    /// From now on, over so much time. What was begun is not begun again.
    pub(crate) fn begin(&self, spread: Duration) {
        let _ = self.0.over.set((Instant::now(), spread));
        self.0.begun.cancel();
    }

    /// Waits until it has begun.
    pub(crate) async fn begun(&self) {
        self.0.begun.cancelled().await;
    }

    /// Waits until it is the turn of `place`. Safe to drop and call again.
    pub(crate) async fn turn(&self, place: Place) {
        self.begun().await;
        if let Some((begun, spread)) = self.0.over.get() {
            sleep_until(*begun + spread.mul_f64(f64::from(place.0) / f64::from(u32::MAX))).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_has_its_turn_within_the_time_given() {
        let stagger = Stagger::default();
        let start = Instant::now();
        let waiting = [0, u32::MAX / 2, u32::MAX].map(|place| {
            let stagger = stagger.clone();
            tokio::spawn(async move {
                stagger.turn(Place(place)).await;
                start.elapsed()
            })
        });
        tokio::time::sleep(Duration::from_secs(5)).await;
        stagger.begin(Duration::from_secs(2));
        stagger.begin(Duration::ZERO);
        let mut at = Vec::new();
        for turn in waiting {
            at.push(turn.await.unwrap().as_secs());
        }
        assert_eq!(at, [5, 6, 7], "rounded up by the timer's step at most");
    }
}
