//! The way into a task: a queue that is taken whole, so that a busy task pays one lock for many events.

use std::mem;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::budget::{Budget, Use};

/// Many producers, one consumer.
#[derive(Debug)]
pub(crate) struct Inbox<T> {
    queue: Mutex<Queue<T>>,
    ready: Notify,
    /// Bytes that events pushed with [`Inbox::push`] may hold together.
    limit: usize,
    /// What they are taken from.
    budget: Option<Arc<Budget>>,
}

#[derive(Debug)]
struct Queue<T> {
    events: Vec<T>,
    bytes: usize,
}

impl<T> Inbox<T> {
    pub(crate) fn new(limit: usize) -> Self {
        let queue = Mutex::new(Queue { events: Vec::new(), bytes: 0 });
        Inbox { queue, ready: Notify::new(), limit, budget: None }
    }

    /// What waits is taken from this budget, though it refuses nothing.
    pub(crate) fn within(mut self, budget: &Arc<Budget>) -> Self {
        self.budget = Some(Arc::clone(budget));
        self
    }

    /// Hands in an event that holds `bytes` of memory, or gives it back when the consumer is too far behind.
    pub(crate) fn push(&self, event: T, bytes: usize) -> Result<(), T> {
        {
            let mut queue = self.queue.lock();
            if queue.bytes.saturating_add(bytes) > self.limit && !queue.events.is_empty() {
                return Err(event);
            }
            queue.bytes = queue.bytes.saturating_add(bytes);
            queue.events.push(event);
            if let Some(budget) = &self.budget {
                budget.take(Use::Requests, bytes);
            }
        }
        self.ready.notify_one();
        Ok(())
    }

    /// Hands in an event that must not be lost; there are few of them, and small.
    pub(crate) fn push_always(&self, event: T) {
        self.queue.lock().events.push(event);
        self.ready.notify_one();
    }

    /// Hands in an event that can wait until there is another one.
    pub(crate) fn push_quietly(&self, event: T) {
        self.queue.lock().events.push(event);
    }

    /// Returns once there may be something to take.
    pub(crate) async fn wait(&self) {
        self.ready.notified().await;
    }

    /// Moves everything that waits to the end of `events`.
    pub(crate) fn take(&self, events: &mut Vec<T>) {
        let mut queue = self.queue.lock();
        if let Some(budget) = &self.budget {
            budget.give_back(Use::Requests, queue.bytes);
        }
        queue.bytes = 0;
        if events.is_empty() {
            mem::swap(&mut queue.events, events);
        } else {
            events.append(&mut queue.events);
        }
    }
}

impl<T> Drop for Inbox<T> {
    fn drop(&mut self) {
        self.take(&mut Vec::new());
    }
}

#[cfg(test)]
mod tests {
    use prometheus::IntCounter;

    use super::*;

    #[test]
    fn what_waits_is_taken_from_the_budget() {
        let budget = Arc::new(Budget::new(1 << 20, IntCounter::new("ended", "ended").unwrap()));
        let inbox = Inbox::new(10).within(&budget);
        inbox.push(1, 4).unwrap();
        inbox.push(2, 5).unwrap();
        inbox.push(3, 5).unwrap_err();
        assert_eq!(budget.taken(Use::Requests), 9);
        inbox.take(&mut Vec::new());
        assert_eq!(budget.taken(Use::Requests), 0);
        inbox.push(1, 4).unwrap();
        drop(inbox);
        assert_eq!(budget.taken(Use::Requests), 0);
    }

    #[tokio::test]
    async fn an_event_pushed_before_the_wait_is_seen() {
        let inbox = Inbox::new(10);
        inbox.push(1, 4).unwrap();
        inbox.wait().await;
        let mut events = Vec::new();
        inbox.take(&mut events);
        assert_eq!(events, [1]);
    }

    #[tokio::test]
    async fn an_event_pushed_quietly_waits_for_another() {
        let inbox = Inbox::new(10);
        inbox.push_quietly(1);
        let mut woken = std::pin::pin!(inbox.wait());
        assert!(futures::poll!(&mut woken).is_pending());
        inbox.push_always(2);
        woken.await;
        let mut events = Vec::new();
        inbox.take(&mut events);
        assert_eq!(events, [1, 2]);
    }

    #[test]
    fn the_limit_refuses_without_taking_and_one_large_event_always_fits() {
        let inbox = Inbox::new(10);
        inbox.push("larger than the limit", 21).unwrap();
        assert_eq!(inbox.push("one more", 1), Err("one more"));
        inbox.push_always("must not be lost");
        let mut events = Vec::new();
        inbox.take(&mut events);
        assert_eq!(events, ["larger than the limit", "must not be lost"]);
        inbox.push("again", 1).unwrap();
    }
}
