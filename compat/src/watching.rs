//! Watches at one end: what they have told, and what they should have told by now.
//!
//! A reference watch over all keys, opened before anything is written, tells every event of a sequence. From it follows what
//! each other watch must tell, so a watch is known to be complete without waiting for silence.

use std::time::{Duration, Instant};

use api::mvccpb::event::EventType;
use api::{etcdserverpb as pb, mvccpb};
use bytes::Bytes;

use crate::call::{Front, Unreachable, WatchPipe};
use crate::render::Names;

/// Catch-up runs every 100 ms in etcd; a busy machine, on which even leaders may change, adds to it.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(20);

/// One watch.
#[derive(Debug)]
struct Watch {
    id: i64,
    request: pb::WatchCreateRequest,
    /// First revision it must tell.
    start: i64,
    /// The compacted revision when it was opened.
    compacted: i64,
    /// By a compaction or by us.
    canceled: bool,
    /// How a compaction cancelled it, until that is compared. It comes at any moment, so a settled stream tells it.
    cancel_note: Option<String>,
    /// It began in the past and has told nothing yet, so nobody knows whether it has caught up.
    maybe_behind: bool,
    /// A compaction came while it was `maybe_behind`.
    uncertain: bool,
    /// We have asked to cancel it.
    cancel_asked: bool,
    /// Our asking was answered. Until then etcd keeps the id, also when a compaction has cancelled the watch.
    gone: bool,
    /// Told and not filtered by `allowed.rs`.
    events: Vec<mvccpb::Event>,
    /// How many of `events` have been compared.
    compared: usize,
    /// Pieces of a fragmented response still to come.
    fragmented: bool,
}

impl Watch {
    fn covers(&self, event: &mvccpb::Event) -> bool {
        let Some(kv) = &event.kv else { return false };
        // An empty key stands for the smallest one.
        let key: &[u8] = if self.request.key.is_empty() { b"\0" } else { &self.request.key };
        let end: &[u8] = &self.request.range_end;
        let inside = match end {
            [] => kv.key == key,
            [0] => &kv.key[..] >= key,
            end => &kv.key[..] >= key && &kv.key[..] < end,
        };
        // The filter numbers are those of the event types they drop.
        inside
            && kv.mod_revision >= self.start
            && !self.request.filters.contains(&event.r#type)
            && !self.optional(event)
    }

    /// Allowed: the tombstone at the compacted revision.
    fn optional(&self, event: &mvccpb::Event) -> bool {
        let revision = event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
        event.r#type() == EventType::Delete && revision == self.compacted
    }

    /// Its start was compacted away before it was opened, so that it will be cancelled.
    fn is_doomed(&self) -> bool {
        self.request.start_revision != 0 && self.start < self.compacted
    }
}

/// A stream of watches.
#[derive(Debug)]
pub(crate) struct Stream {
    pipe: WatchPipe,
    watches: Vec<Watch>,
    /// Creates in order, with the id each got; `None` was refused.
    created: Vec<Option<i64>>,
    /// The create whose answer has not come.
    pending: Option<pb::WatchCreateRequest>,
    /// Progress answers not yet compared.
    progress: Vec<String>,
    /// Answers other than events, and broken rules, not yet compared.
    notes: Vec<String>,
    ended: bool,
}

/// What a step learnt.
pub(crate) type Told = String;

impl Stream {
    pub(crate) async fn open(front: &Front) -> Result<Self, Unreachable> {
        Ok(Self {
            pipe: front.watch().await?,
            watches: Vec::new(),
            created: Vec::new(),
            pending: None,
            progress: Vec::new(),
            notes: Vec::new(),
            ended: false,
        })
    }

    /// Opens a watch and waits for the answer.
    pub(crate) async fn create(
        &mut self,
        request: pb::WatchCreateRequest,
        compacted: i64,
        names: &Names,
    ) -> Result<Told, Unreachable> {
        self.pending = Some(request.clone());
        self.send(pb::watch_request::RequestUnion::CreateRequest(request)).await;
        let answered = self.pump_until(names, compacted, |stream| stream.pending.is_none()).await;
        Ok(self.told(answered, "created"))
    }

    /// Cancels the watch opened as number `nth`, and waits for the answer if one is due.
    pub(crate) async fn cancel(&mut self, nth: usize, names: &Names) -> Told {
        // An id nobody has is ignored without an answer.
        let id = self.created.get(nth).copied().flatten().unwrap_or(987_654);
        let known = self.watches.iter_mut().find(|watch| watch.id == id && !watch.gone);
        let is_known = known.is_some();
        known.into_iter().for_each(|watch| watch.cancel_asked = true);
        self.send(pb::watch_request::RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: id }))
            .await;
        if !is_known {
            return self.told(true, "canceled");
        }
        let is_canceled =
            |stream: &Self| !stream.watches.iter().any(|watch| watch.cancel_asked && !watch.gone);
        let answered = self.pump_until(names, 0, is_canceled).await;
        self.told(answered, "canceled")
    }

    /// Asks how far the stream is; only sensible once it has settled.
    /// `now` is the end's revision.
    pub(crate) async fn progress(&mut self, now: i64, names: &Names) -> Told {
        // Allowed: silence while a watch may be behind, or has not begun.
        let live = self.watches.iter().filter(|watch| !watch.canceled && !watch.uncertain);
        if live.clone().count() == 0
            || live.clone().any(|watch| watch.maybe_behind || watch.request.start_revision > now)
        {
            return "no settled watch to ask about\n".to_owned();
        }
        self.send(pb::watch_request::RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).await;
        let answered = self.pump_until(names, 0, |stream| !stream.progress.is_empty()).await;
        let mut text: String = self.progress.drain(..).map(|line| line + "\n").collect();
        text.push_str(&self.told(answered, "progress"));
        text
    }

    /// Waits until every watch has told what `reference` says it must; tells what is new.
    pub(crate) async fn settle(&mut self, reference: &[mvccpb::Event], names: &Names) -> Told {
        let complete = |stream: &Self| stream.watches.iter().all(|watch| missing(watch, reference) == 0);
        let answered = self.pump_until(names, 0, complete).await;
        let mut text = self.told(answered, "settled");
        for watch in self.watches.iter_mut().filter(|watch| !watch.uncertain) {
            if let Some(note) = watch.cancel_note.take() {
                text.push_str(&(note + "\n"));
            }
            let expected: Vec<&mvccpb::Event> = if watch.is_doomed() {
                Vec::new()
            } else {
                reference.iter().filter(|event| watch.covers(event)).collect()
            };
            for event in &watch.events[watch.compared..] {
                text.push_str(&format!("watch {}: {}\n", watch.id, names.event(event)));
            }
            let agree = watch.canceled
                || watch.events.iter().map(identity).eq(expected.iter().map(|event| identity(event)));
            if !agree {
                let (told, due) = (watch.events.len(), expected.len());
                text.push_str(&format!(
                    "{VIOLATION} watch {} told {told} events, {due} were due\n",
                    watch.id
                ));
            }
            watch.compared = watch.events.len();
        }
        text
    }

    /// A compaction is about to succeed. Allowed: whether it cancels a watch that may not have caught up.
    pub(crate) fn before_compaction(&mut self) {
        for watch in self.watches.iter_mut().filter(|watch| !watch.canceled) {
            watch.uncertain |= watch.maybe_behind;
        }
    }

    /// Everything told so far by the first watch.
    pub(crate) fn events(&self) -> &[mvccpb::Event] {
        self.watches.first().map_or(&[], |watch| &watch.events)
    }

    /// Reads until `done` of the events of the first watch.
    pub(crate) async fn read_until(
        &mut self,
        names: &Names,
        done: impl Fn(&[mvccpb::Event]) -> bool,
    ) -> Told {
        let answered = self.pump_until(names, 0, |stream| done(stream.events())).await;
        self.told(answered, "events")
    }

    async fn send(&mut self, request: pb::watch_request::RequestUnion) {
        // A stream that has ended tells so itself.
        let _ = self.pipe.requests.send(pb::WatchRequest { request_union: Some(request) }).await;
    }

    /// The notes since the last time, and whether what was waited for came.
    fn told(&mut self, answered: bool, what: &str) -> Told {
        let mut text: String = self.notes.drain(..).map(|line| line + "\n").collect();
        if !answered {
            text.push_str(&format!("{VIOLATION} not {what} within {SETTLE_TIMEOUT:?}\n"));
        }
        text
    }

    async fn pump_until(&mut self, names: &Names, compacted: i64, done: impl Fn(&Self) -> bool) -> bool {
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        // What has come already is part of the picture, also when `done` holds without it.
        while let Ok(response) = self.pipe.responses.try_recv() {
            self.take(response, names, compacted);
        }
        while !done(self) {
            if self.ended {
                return false;
            }
            match tokio::time::timeout_at(deadline.into(), self.pipe.responses.recv()).await {
                Ok(Some(response)) => self.take(response, names, compacted),
                Ok(None) => {
                    self.ended = true;
                    self.notes.push("the stream ended".to_owned());
                }
                Err(_) => return false,
            }
        }
        true
    }

    fn take(&mut self, response: Result<pb::WatchResponse, tonic::Status>, names: &Names, compacted: i64) {
        let response = match response {
            Ok(response) => response,
            Err(status) => {
                self.ended = true;
                self.notes.push(format!("the stream ended: {}", Names::status(&status)));
                return;
            }
        };
        let header = names.header(response.header.as_ref());
        let id = response.watch_id;
        if response.created {
            self.take_created(&response, names, compacted);
        } else if response.canceled {
            let (compact, reason) = (names.rev(response.compact_revision), &response.cancel_reason);
            let note = format!("{header} watch {id} canceled, compact revision {compact}, reason {reason:?}");
            match self.watches.iter_mut().find(|watch| watch.id == id && !watch.gone) {
                Some(watch) if watch.cancel_asked => {
                    (watch.canceled, watch.gone) = (true, true);
                    self.notes.push(note);
                }
                Some(watch) if !watch.canceled => {
                    watch.canceled = true;
                    watch.cancel_note = Some(note);
                }
                Some(_) | None => {
                    self.notes.push(format!("{VIOLATION} watch {id} was canceled, but is none"))
                }
            }
        } else if id == -1 && response.events.is_empty() {
            self.progress.push(format!("{header} progress"));
        } else if response.events.is_empty() {
            self.notes.push(format!("{header} watch {id} has a response without events"));
        } else {
            self.take_events(response);
        }
    }

    fn take_created(&mut self, response: &pb::WatchResponse, names: &Names, compacted: i64) {
        let header = names.header(response.header.as_ref());
        let id = response.watch_id;
        let (refused, reason) = (response.canceled, &response.cancel_reason);
        let refusal = if refused { format!(", refused: {reason:?}") } else { String::new() };
        self.notes.push(format!("{header} watch {id} created{refusal}"));
        let Some(request) = self.pending.take() else {
            self.notes.push(format!("{VIOLATION} nothing was to be created"));
            return;
        };
        self.created.push((!refused).then_some(id));
        if refused {
            return;
        }
        let revision = response.header.as_ref().map_or(0, |header| header.revision);
        let start = if request.start_revision == 0 { revision + 1 } else { request.start_revision };
        self.watches.push(Watch {
            id,
            request,
            start,
            compacted,
            canceled: false,
            cancel_note: None,
            maybe_behind: start <= revision,
            uncertain: false,
            cancel_asked: false,
            gone: false,
            events: Vec::new(),
            compared: 0,
            fragmented: false,
        });
    }

    fn take_events(&mut self, response: pb::WatchResponse) {
        let id = response.watch_id;
        let Some(watch) = self.watches.iter_mut().find(|watch| watch.id == id && !watch.canceled) else {
            self.notes.push(format!("{VIOLATION} events for watch {id}, which is none"));
            return;
        };
        let first =
            response.events.first().and_then(|event| event.kv.as_ref()).map_or(0, |kv| kv.mod_revision);
        let last = response.events.last().and_then(|event| event.kv.as_ref()).map_or(0, |kv| kv.mod_revision);
        let told = watch.events.last().and_then(|event| event.kv.as_ref()).map_or(0, |kv| kv.mod_revision);
        // Revisions only grow, and one revision is in one response.
        if first < told || (first == told && !watch.fragmented) {
            self.notes.push(format!("{VIOLATION} watch {id} told a revision late, again, or in pieces"));
        }
        if !response.events.is_sorted_by_key(|event| event.kv.as_ref().map(|kv| kv.mod_revision)) {
            self.notes.push(format!("{VIOLATION} watch {id} told revisions out of order"));
        }
        if response.header.as_ref().is_none_or(|header| header.revision < last) {
            self.notes.push(format!("{VIOLATION} watch {id} told of a revision above its header's"));
        }
        if response.fragment && !watch.request.fragment {
            self.notes.push(format!("{VIOLATION} watch {id} did not ask for fragments"));
        }
        watch.fragmented = response.fragment;
        for event in response.events {
            if !watch.optional(&event) {
                watch.maybe_behind = false;
                watch.events.push(event);
            }
        }
    }
}

/// Begins a line that tells of a rule broken at one end, whatever the other end says.
pub(crate) const VIOLATION: &str = "BROKEN RULE:";

/// How much a watch has still to tell.
fn missing(watch: &Watch, reference: &[mvccpb::Event]) -> usize {
    if watch.canceled || watch.uncertain {
        return 0;
    }
    if watch.is_doomed() {
        return 1;
    }
    let due = reference.iter().filter(|event| watch.covers(event)).count();
    due.saturating_sub(watch.events.len())
}

/// What makes two watches' events the same: one may carry `prev_kv` and the other not.
fn identity(event: &mvccpb::Event) -> (i32, Option<(Bytes, i64, Bytes)>) {
    (event.r#type, event.kv.as_ref().map(|kv| (kv.key.clone(), kv.mod_revision, kv.value.clone())))
}
