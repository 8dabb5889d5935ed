//! The checks that need no state: etcd makes them before a request is proposed
//! (`server/etcdserver/api/v3rpc/key.go`, checkRangeRequest to checkIntervals).

use std::collections::BTreeSet;

use super::{
    DeleteRangeRequest, Error, PutRequest, RangeRequest, Request, RequestOp, Rules, SortOrder, SortTarget,
    TxnRequest,
};

/// Checks the form of a request.
pub(super) fn request(request: &Request, rules: Rules) -> Result<(), Error> {
    match request {
        Request::Range(request) => range(request),
        Request::Put(request) => put(request),
        Request::DeleteRange(request) => delete_range(request),
        Request::Txn(request) => {
            txn(request, rules.txn_ops_max)?;
            Writes::of(&request.success)?;
            Writes::of(&request.failure)?;
            Ok(())
        }
        Request::Compact(_)
        | Request::LeaseGrant(_)
        | Request::LeaseRevoke(_)
        | Request::LeaseKeepAlive(_)
        | Request::LeaseTimeToLive(_)
        | Request::Leases => Ok(()),
    }
}

fn range(request: &RangeRequest) -> Result<(), Error> {
    if request.range.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    let bad_order = request.sort_order == SortOrder::Unrecognised;
    if bad_order || request.sort_target == SortTarget::Unrecognised {
        return Err(Error::InvalidSortOption);
    }
    Ok(())
}

fn put(request: &PutRequest) -> Result<(), Error> {
    if request.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(Error::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Error::LeaseProvided);
    }
    Ok(())
}

fn delete_range(request: &DeleteRangeRequest) -> Result<(), Error> {
    if request.range.key.is_empty() { Err(Error::EmptyKey) } else { Ok(()) }
}

/// `ops_max` is what the levels above have left. It also bounds the recursion: each level uses up at least one.
fn txn(request: &TxnRequest, ops_max: usize) -> Result<(), Error> {
    let ops = request.compare.len().max(request.success.len()).max(request.failure.len());
    if ops > ops_max {
        return Err(Error::TooManyOps);
    }
    if request.compare.iter().any(|compare| compare.range.key.is_empty()) {
        return Err(Error::EmptyKey);
    }
    for op in request.success.iter().chain(&request.failure) {
        match op {
            RequestOp::Range(request) => range(request)?,
            RequestOp::Put(request) => put(request)?,
            RequestOp::DeleteRange(request) => delete_range(request)?,
            RequestOp::Txn(request) => txn(request, ops_max - ops)?,
            RequestOp::Empty => return Err(Error::KeyNotFound),
        }
    }
    Ok(())
}

/// What a list of operations may write, to find keys written twice in one revision. The rule is etcd's, holes
/// included: an open end (one zero byte) is not translated here, so a delete to the end of the keyspace conflicts with
/// nothing; of two inner transactions only the later one's puts are held against the earlier one's deletes; deletes
/// never conflict with each other, nor with anything reads.
#[derive(Default)]
struct Writes<'a> {
    puts: BTreeSet<&'a [u8]>,
    deletes: Vec<(&'a [u8], &'a [u8])>,
}

impl<'a> Writes<'a> {
    fn of(ops: &'a [RequestOp]) -> Result<Writes<'a>, Error> {
        let mut writes = Writes::default();
        for op in ops {
            if let RequestOp::DeleteRange(request) = op {
                writes.deletes.push((&request.range.key, &request.range.range_end));
            }
        }
        for op in ops {
            if let RequestOp::Txn(request) = op {
                writes.add_inner(Writes::of(&request.success)?, Writes::of(&request.failure)?)?;
            }
        }
        for op in ops {
            if let RequestOp::Put(request) = op {
                writes.add_put(&request.key)?;
            }
        }
        Ok(writes)
    }

    fn add_put(&mut self, key: &'a [u8]) -> Result<(), Error> {
        if self.deletes(key) || !self.puts.insert(key) {
            return Err(Error::DuplicateKey);
        }
        Ok(())
    }

    /// Adds an inner transaction. Only one of its branches runs, so they do not conflict with each other.
    fn add_inner(&mut self, success: Writes<'a>, failure: Writes<'a>) -> Result<(), Error> {
        for key in &success.puts {
            self.add_put(key)?;
        }
        for key in &failure.puts {
            if !success.puts.contains(key) {
                self.add_put(key)?;
            }
        }
        self.deletes.extend(success.deletes);
        self.deletes.extend(failure.deletes);
        Ok(())
    }

    fn deletes(&self, key: &[u8]) -> bool {
        self.deletes
            .iter()
            .any(|(start, end)| if end.is_empty() { key == *start } else { key >= *start && key < *end })
    }
}
