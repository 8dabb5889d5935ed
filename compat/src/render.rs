//! An answer as text in which what may differ (see `allowed.rs`) is gone, so that two ends are compared by comparing text.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use api::{etcdserverpb as pb, mvccpb};
use tonic::Status;

use crate::call::Reply;
use crate::step::{Op, RangeStep, Step, TxnStep};

/// What the text of one end depends on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    /// Revision at which the sequence began.
    pub(crate) base: i64,
    /// Lease ids by the number of their grant.
    pub(crate) leases: BTreeMap<i64, usize>,
}

impl Names {
    pub(crate) fn rev(&self, revision: i64) -> String {
        if revision == 0 { "0".to_owned() } else { format!("@{:+}", revision - self.base) }
    }

    fn lease(&self, id: i64) -> String {
        match self.leases.get(&id) {
            Some(number) => format!("lease#{number}"),
            None => id.to_string(),
        }
    }

    pub(crate) fn header(&self, header: Option<&pb::ResponseHeader>) -> String {
        let Some(header) = header else { return "no header".to_owned() };
        let mark = |set: bool, letter: char| if set { letter } else { '-' };
        let cluster = mark(header.cluster_id != 0, 'c');
        let member = mark(header.member_id != 0, 'm');
        let term = mark(header.raft_term != 0, 't');
        format!("{cluster}{member}{term} {}", self.rev(header.revision))
    }

    pub(crate) fn key_value(&self, kv: &mvccpb::KeyValue) -> String {
        let create = self.rev(kv.create_revision);
        let modified = self.rev(kv.mod_revision);
        let lease = if kv.lease == 0 { String::new() } else { format!(" {}", self.lease(kv.lease)) };
        format!(
            "{}={} create {create} mod {modified} version {}{lease}",
            bytes(&kv.key),
            bytes(&kv.value),
            kv.version
        )
    }

    pub(crate) fn event(&self, event: &mvccpb::Event) -> String {
        let kind = match event.r#type {
            0 => "PUT".to_owned(),
            1 => "DELETE".to_owned(),
            other => format!("TYPE {other}"),
        };
        let kv = event.kv.as_ref().map_or_else(|| "no kv".to_owned(), |kv| self.key_value(kv));
        let prev =
            event.prev_kv.as_ref().map_or_else(String::new, |kv| format!(" prev {}", self.key_value(kv)));
        format!("{kind} {kv}{prev}")
    }

    pub(crate) fn status(status: &Status) -> String {
        format!("{:?}: {}", status.code(), status.message())
    }

    /// The answer to `step`, whose options tell how its order is to be read.
    pub(crate) fn reply(&self, step: &Step, reply: &Reply) -> String {
        let mut text = String::new();
        match reply {
            Reply::Range(response) => {
                let range = if let Step::Range(range) = step { Some(range) } else { None };
                self.range(&mut text, "", range, response);
            }
            Reply::Put(response) => self.put(&mut text, "", response),
            Reply::Delete(response) => self.delete(&mut text, "", response),
            Reply::Txn(response) => {
                let txn = if let Step::Txn(txn) = step { Some(txn) } else { None };
                self.txn(&mut text, "", txn, response);
            }
            Reply::Compact(response) => line(&mut text, "", &self.header(response.header.as_ref())),
            Reply::Grant(response) => {
                let (header, id) = (self.header(response.header.as_ref()), self.lease(response.id));
                line(
                    &mut text,
                    "",
                    &format!("{header} {id} ttl {} error {:?}", response.ttl, response.error),
                );
            }
            Reply::Revoke(response) => line(&mut text, "", &self.header(response.header.as_ref())),
            Reply::KeepAlive(responses) => {
                for response in responses {
                    let (header, id) = (self.header(response.header.as_ref()), self.lease(response.id));
                    line(&mut text, "", &format!("{header} {id} ttl {}", response.ttl));
                }
            }
            Reply::TimeToLive(response) => {
                // Allowed: the remaining time, and the order of keys.
                let (left, granted) = (response.ttl, response.granted_ttl);
                let left = if left > 0 && (granted - 5..=granted).contains(&left) {
                    "fresh".to_owned()
                } else {
                    left.to_string()
                };
                let mut keys: Vec<_> = response.keys.iter().map(|key| bytes(key)).collect();
                keys.sort();
                let (header, id) = (self.header(response.header.as_ref()), self.lease(response.id));
                line(
                    &mut text,
                    "",
                    &format!("{header} {id} ttl {left} granted {granted} keys {}", keys.join(" ")),
                );
            }
            Reply::Leases(response) => {
                // Allowed: the order.
                let mut leases: Vec<_> = response.leases.iter().map(|lease| self.lease(lease.id)).collect();
                leases.sort();
                line(
                    &mut text,
                    "",
                    &format!("{} {}", self.header(response.header.as_ref()), leases.join(" ")),
                );
            }
            Reply::MemberList(response) => {
                line(&mut text, "", &self.header(response.header.as_ref()));
                for member in &response.members {
                    let named = !member.name.is_empty();
                    let urls = !member.client_urls.is_empty();
                    let learner = member.is_learner;
                    line(
                        &mut text,
                        "  ",
                        &format!("id {} name {named} urls {urls} learner {learner}", member.id != 0),
                    );
                }
            }
            Reply::Status(status) => {
                let leader = status.leader != 0;
                let (term, index) = (status.raft_term != 0, status.raft_index != 0);
                let (applied, size) = (status.raft_applied_index != 0, status.db_size != 0);
                line(&mut text, "", &self.header(status.header.as_ref()));
                let version = status.version.split('.').next().unwrap_or_default();
                line(
                    &mut text,
                    "  ",
                    &format!("version {version}.x leader {leader} term {term} index {index}"),
                );
                let learner = status.is_learner;
                line(
                    &mut text,
                    "  ",
                    &format!("applied {applied} size {size} learner {learner} errors {:?}", status.errors),
                );
            }
            Reply::Alarm(response) => {
                line(
                    &mut text,
                    "",
                    &format!("{} {:?}", self.header(response.header.as_ref()), response.alarms),
                );
            }
            Reply::Health(response) => line(&mut text, "", &format!("{:?}", response.status())),
        }
        text
    }

    fn range(
        &self,
        text: &mut String,
        indent: &str,
        asked: Option<&RangeStep>,
        response: &pb::RangeResponse,
    ) {
        let header = self.header(response.header.as_ref());
        line(text, indent, &format!("{header} range: count {} more {}", response.count, response.more));
        let keys_only = asked.is_some_and(|range| range.keys_only);
        let shown = |kv: &mvccpb::KeyValue| {
            // Allowed: `lease` with keys_only.
            let mut kv = kv.clone();
            if keys_only {
                kv.lease = 0;
            }
            self.key_value(&kv)
        };
        let by = |kv: &mvccpb::KeyValue| {
            asked.map_or_else(String::new, |range| sort_value(self, range.target, kv))
        };
        let cut = response.more || asked.is_some_and(|range| range.limit > 0);
        let groups: Vec<&[mvccpb::KeyValue]> = if asked.is_some_and(|range| range.target != 0) {
            response.kvs.chunk_by(|a, b| by(a) == by(b)).collect()
        } else {
            response.kvs.chunks(1).collect()
        };
        for (index, group) in groups.iter().enumerate() {
            // Allowed: the order of equals, and which of them the limit cut off.
            if group.len() == 1
                && !(cut && index + 1 == groups.len() && asked.is_some_and(|range| range.target != 0))
            {
                line(text, indent, &format!("  {}", shown(&group[0])));
            } else if cut && index + 1 == groups.len() {
                line(text, indent, &format!("  {} keys with {}", group.len(), by(&group[0])));
            } else {
                let mut equals: Vec<_> = group.iter().map(shown).collect();
                equals.sort();
                equals.iter().for_each(|kv| line(text, indent, &format!("  {kv}")));
            }
        }
    }

    fn put(&self, text: &mut String, indent: &str, response: &pb::PutResponse) {
        let prev =
            response.prev_kv.as_ref().map_or_else(String::new, |kv| format!(" prev {}", self.key_value(kv)));
        line(text, indent, &format!("{} put{prev}", self.header(response.header.as_ref())));
    }

    fn delete(&self, text: &mut String, indent: &str, response: &pb::DeleteRangeResponse) {
        line(
            text,
            indent,
            &format!("{} deleted {}", self.header(response.header.as_ref()), response.deleted),
        );
        for kv in &response.prev_kvs {
            line(text, indent, &format!("  prev {}", self.key_value(kv)));
        }
    }

    fn txn(&self, text: &mut String, indent: &str, asked: Option<&TxnStep>, response: &pb::TxnResponse) {
        let header = self.header(response.header.as_ref());
        line(text, indent, &format!("{header} txn: succeeded {}", response.succeeded));
        let indent = format!("{indent}  ");
        let branch = asked.map(|txn| if response.succeeded { &txn.success } else { &txn.failure });
        for (index, answer) in response.responses.iter().enumerate() {
            let op = branch.and_then(|ops| ops.get(index));
            match &answer.response {
                Some(pb::response_op::Response::ResponseRange(response)) => {
                    let range = if let Some(Op::Range(range)) = op { Some(range) } else { None };
                    self.range(text, &indent, range, response);
                }
                Some(pb::response_op::Response::ResponsePut(response)) => self.put(text, &indent, response),
                Some(pb::response_op::Response::ResponseDeleteRange(response)) => {
                    self.delete(text, &indent, response)
                }
                Some(pb::response_op::Response::ResponseTxn(response)) => {
                    let txn = if let Some(Op::Txn(txn)) = op { Some(txn) } else { None };
                    self.txn(text, &indent, txn, response);
                }
                None => line(text, &indent, "an empty answer"),
            }
        }
    }
}

/// What a range sorts `kv` by.
fn sort_value(names: &Names, target: i32, kv: &mvccpb::KeyValue) -> String {
    match target {
        1 => format!("version {}", kv.version),
        2 => format!("create {}", names.rev(kv.create_revision)),
        3 => format!("mod {}", names.rev(kv.mod_revision)),
        4 => format!("value {}", bytes(&kv.value)),
        _ => format!("key {}", bytes(&kv.key)),
    }
}

/// Bytes, readable and short.
pub(crate) fn bytes(bytes: &[u8]) -> String {
    const SHOWN: usize = 40;
    let head: &[u8] = bytes.get(..SHOWN).unwrap_or(bytes);
    let rest = if bytes.len() > SHOWN { format!("… ({} bytes)", bytes.len()) } else { String::new() };
    format!("\"{}\"{rest}", head.escape_ascii())
}

fn line(text: &mut String, indent: &str, content: &str) {
    writeln!(text, "{indent}{content}").expect("writing to a string cannot fail");
}
