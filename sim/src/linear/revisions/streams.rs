//! Watches: each by itself, and against what happened.

use std::collections::BTreeMap;

use super::facts::{Authors, Facts};
use super::{Violation, ViolationKind, json};
use crate::linear::history::{WatchMessage, WatchResponse, WatchStream};
use crate::model::{Commit, Event, Model, WatchRequest};

/// What one watch received, by revision.
pub(super) struct Stream<'a> {
    index: usize,
    request: &'a WatchRequest,
    /// The first revision it must show; none if nothing arrived that tells it.
    start: Option<i64>,
    /// The last revision it was told about: by an event, or by a progress message.
    end: i64,
    /// The events, and when the last one of the revision arrived.
    seen: BTreeMap<i64, (u64, Vec<&'a Event>)>,
    /// Whether the stream broke off inside a split message: its last revision may be incomplete.
    cut: bool,
    /// The compact revision it was cancelled for, and when.
    compacted: Option<(i64, u64)>,
}

/// Sorts all streams by revision, and judges what needs no model.
pub(super) fn read_all(streams: &[WatchStream]) -> (Vec<Stream<'_>>, Vec<Violation>) {
    let mut violations = Vec::new();
    let read = streams.iter().enumerate().map(|(index, stream)| Reader::read(index, stream, &mut violations));
    let read = read.collect();
    check_shared(streams, &mut violations);
    (read, violations)
}

/// Whoever shares a stream shares its progress: Kubernetes takes the revision of a progress answer for that of a list of
/// everything it watches on the stream. So no answer is below what any watch of the stream has been told.
fn check_shared(streams: &[WatchStream], violations: &mut Vec<Violation>) {
    let mut shared: BTreeMap<u64, Vec<(u64, usize, &WatchResponse)>> = BTreeMap::new();
    for (index, stream) in streams.iter().enumerate().filter(|(_, stream)| stream.shared != 0) {
        let responses = stream.responses.iter().map(|response| (response.at, index, response));
        shared.entry(stream.shared).or_default().extend(responses);
    }
    for mut responses in shared.into_values() {
        responses.sort_by_key(|(at, ..)| *at);
        let mut told = i64::MIN;
        for (_, watch, response) in responses {
            if matches!(response.message, WatchMessage::Progress) && response.revision < told {
                let detail =
                    format!("a progress message is below {told}, which another watch of the stream was told");
                violations.push(Violation::of_watch(
                    ViolationKind::WatchHeader,
                    response.revision,
                    watch,
                    detail,
                ));
            }
            told = told.max(response.revision);
        }
    }
}

/// Compares all streams with what happened.
pub(super) fn compare_all(
    streams: &[Stream<'_>],
    facts: &Facts<'_>,
    model: &Model,
    authors: &Authors,
) -> Vec<Violation> {
    streams.iter().flat_map(|stream| stream.compare(facts, model, authors)).collect()
}

impl Stream<'_> {
    /// How many events arrived.
    pub(super) fn events(&self) -> usize {
        self.seen.values().map(|(_, events)| events.len()).sum()
    }

    /// Whether the stream allows that the revision changed this: it was not told about the revision, or saw just that.
    pub(super) fn allows(&self, commit: &Commit) -> bool {
        let revision = commit.revision;
        let told = self.start.is_some_and(|start| start <= revision) && revision <= self.end;
        let expected = self.expected(commit);
        let got = self.seen.get(&revision).map(|(_, events)| events.as_slice()).unwrap_or_default();
        if self.cut && revision == self.end {
            return got.iter().all(|event| expected.iter().any(|expected| same_change(expected, event)));
        }
        !told
            || expected.len() == got.len()
                && expected.iter().zip(got).all(|(expected, event)| same_change(expected, event))
    }

    fn expected(&self, commit: &Commit) -> Vec<Event> {
        commit.events.iter().filter_map(|event| self.request.filter(event)).collect()
    }

    fn compare(&self, facts: &Facts<'_>, model: &Model, authors: &Authors) -> Vec<Violation> {
        let start = self.start.unwrap_or(i64::MAX);
        let mut violations = Vec::new();
        let mut add = |kind, revision, detail: String| {
            violations.push(Violation::of_watch(kind, revision, self.index, detail));
        };
        let commits = model.commits();
        let first = commits.partition_point(|commit| commit.revision < start);
        let told = commits.iter().skip(first).take_while(|commit| commit.revision <= self.end);
        for commit in told {
            let expected = self.expected(commit);
            match self.seen.get(&commit.revision) {
                None if expected.is_empty() => {}
                None => {
                    let detail = format!("{} events of this revision are missing", expected.len());
                    add(ViolationKind::WatchGap, commit.revision, detail);
                }
                Some((at, got)) => {
                    let cut = self.cut && commit.revision == self.end;
                    if let Some((kind, detail)) = difference(&expected, got, cut, facts) {
                        add(kind, commit.revision, detail);
                    }
                    let author = authors.get(&commit.revision).copied().flatten();
                    if author.is_some_and(|author| facts.operations[author].call > *at) {
                        let detail = "an event arrived before its write was called".to_owned();
                        add(ViolationKind::WatchFuture, commit.revision, detail);
                    }
                }
            }
        }
        if let Some((revision, at)) =
            self.compacted.filter(|&(revision, at)| !facts.compaction_called(revision, at))
        {
            let detail = format!("cancelled at {at} for a compaction that nobody had asked for");
            add(ViolationKind::WatchCancel, revision, detail);
        }
        for &revision in
            self.seen.keys().filter(|&&revision| revision >= start && model.commit(revision).is_none())
        {
            add(ViolationKind::WatchPhantom, revision, "this revision changed nothing".to_owned());
        }
        violations
    }
}

/// The same change of the same key, previous versions aside.
fn same_change(a: &Event, b: &Event) -> bool {
    a.kind == b.kind && a.kv == b.kv
}

/// What is wrong with the events of one revision.
fn difference(
    expected: &[Event],
    got: &[&Event],
    cut: bool,
    facts: &Facts<'_>,
) -> Option<(ViolationKind, String)> {
    let same = |a: &Event, b: &Event| {
        let previous_compacted =
            b.prev_kv.is_none() && a.prev_kv.is_some() && facts.may_have_lost_previous(a.revision());
        same_change(a, b) && (a.prev_kv == b.prev_kv || previous_compacted)
    };
    let in_order = expected.iter().zip(got).all(|(expected, got)| same(expected, got));
    if in_order && (expected.len() == got.len() || cut && got.len() < expected.len()) {
        return None;
    }
    // Take each event received out of those expected.
    let mut missing: Vec<&Event> = expected.iter().collect();
    let mut surplus = Vec::new();
    for event in got {
        match missing.iter().position(|expected| same(expected, event)) {
            Some(position) => drop(missing.remove(position)),
            None => surplus.push(*event),
        }
    }
    let kind = match (missing.is_empty(), surplus.is_empty()) {
        (true, true) => ViolationKind::WatchOrder,
        (false, true) if cut => return None,
        (false, true) => ViolationKind::WatchTorn,
        (true, false)
            if surplus.iter().all(|event| expected.iter().any(|expected| same(expected, event))) =>
        {
            ViolationKind::WatchDuplicate
        }
        (_, false) => ViolationKind::WatchPhantom,
    };
    Some((kind, format!("missing {}, unexpected {}", json(&missing), json(&surplus))))
}

/// Reads one stream message by message.
struct Reader<'a, 'b> {
    stream: Stream<'a>,
    violations: &'b mut Vec<Violation>,
    /// The last progress message.
    progress: i64,
    /// The last event.
    last: Option<i64>,
    /// Whether the last message was a piece of a split one.
    in_fragment: bool,
    over: bool,
}

impl<'a, 'b> Reader<'a, 'b> {
    fn read(index: usize, recorded: &'a WatchStream, violations: &'b mut Vec<Violation>) -> Stream<'a> {
        let request = &recorded.request;
        let asked = (request.start_revision > 0).then_some(request.start_revision);
        let stream = Stream {
            index,
            request,
            start: asked,
            end: i64::MIN,
            seen: BTreeMap::new(),
            cut: false,
            compacted: None,
        };
        let mut reader =
            Reader { stream, violations, progress: i64::MIN, last: None, in_fragment: false, over: false };
        for response in &recorded.responses {
            reader.message(response);
        }
        reader.stream.cut = reader.in_fragment;
        reader.stream
    }

    fn add(&mut self, kind: ViolationKind, revision: i64, detail: &str) {
        self.violations.push(Violation::of_watch(kind, revision, self.stream.index, detail));
    }

    fn message(&mut self, response: &'a WatchResponse) {
        if self.over {
            self.add(ViolationKind::WatchCancel, response.revision, "a message came after the watch's end");
        }
        match &response.message {
            // A start of 0 means "from the next revision on". The header is read after the watch was registered, so
            // events at or below it may follow: see `event`.
            WatchMessage::Created => self.stream.start = self.stream.start.or(Some(response.revision + 1)),
            WatchMessage::Events { events, fragment } => {
                let continues = std::mem::replace(&mut self.in_fragment, *fragment);
                let mut open = continues.then_some(self.last).flatten();
                for event in events {
                    self.event(event, response, open);
                    open = Some(event.revision());
                }
            }
            WatchMessage::Progress => {
                if response.revision < self.last.unwrap_or(i64::MIN).max(self.progress) {
                    self.add(ViolationKind::WatchHeader, response.revision, "a progress message went back");
                }
                self.progress = self.progress.max(response.revision);
                self.stream.end = self.stream.end.max(response.revision);
            }
            WatchMessage::Cancelled { compact_revision, .. } => {
                self.over = true;
                self.stream.compacted = (*compact_revision != 0).then_some((*compact_revision, response.at));
                let sent = self.last.unwrap_or(i64::MIN).max(self.stream.start.unwrap_or(i64::MIN));
                if *compact_revision != 0 && *compact_revision <= sent {
                    let detail = "the watch was already past the compact revision it was cancelled for";
                    self.add(ViolationKind::WatchCancel, *compact_revision, detail);
                }
            }
        }
    }

    /// `open` is the revision to which an event of this message may belong although it is not new.
    fn event(&mut self, event: &'a Event, response: &WatchResponse, open: Option<i64>) {
        let revision = event.revision();
        if response.revision < revision {
            self.add(ViolationKind::WatchHeader, revision, "a message's header is older than its events");
        }
        let last = self.last.unwrap_or(i64::MIN);
        if revision <= last && open != Some(revision) {
            let seen = self.stream.seen.get(&revision).map(|(_, seen)| seen.as_slice()).unwrap_or_default();
            let kind = if seen.contains(&event) {
                ViolationKind::WatchDuplicate
            } else if revision == last {
                ViolationKind::WatchTorn
            } else {
                ViolationKind::WatchOrder
            };
            self.add(kind, revision, "an event came after the events of its revision");
        } else if revision <= self.progress {
            self.add(ViolationKind::WatchProgress, revision, "an event came after progress beyond it");
        }
        match self.stream.start {
            Some(start) if revision < start && self.stream.request.start_revision > 0 => {
                self.add(
                    ViolationKind::WatchBeforeStart,
                    revision,
                    "an event is from before the start asked for",
                );
            }
            Some(start) => self.stream.start = Some(start.min(revision)),
            None => self.stream.start = Some(revision),
        }
        self.last = Some(last.max(revision));
        self.stream.end = self.stream.end.max(revision);
        let (at, events) = self.stream.seen.entry(revision).or_default();
        *at = response.at;
        events.push(event);
    }
}
