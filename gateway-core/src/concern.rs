//! Which keys a request concerns, and so which group.

use keyspace::{KeyRange, Op, Query, Txn, TxnOp};

/// What a request concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Concern {
    /// These keys; with none, nobody's in particular.
    Keys(Vec<KeyRange>),
    /// The domain as a whole, and so every group that carries it.
    Domain,
}

impl Concern {
    /// What a write concerns.
    pub fn of_op(op: &Op) -> Concern {
        match op {
            Op::Put(put) => Concern::Keys(vec![KeyRange::single(put.key.clone())]),
            Op::DeleteRange(delete) => Concern::Keys(vec![delete.range.clone()]),
            Op::Txn(txn) => Concern::of_txn(txn),
            Op::Compact { .. }
            | Op::LeaseGrant { .. }
            | Op::LeaseRevoke { .. }
            | Op::AlarmActivate { .. }
            | Op::AlarmDeactivate { .. } => Concern::Domain,
        }
    }

    /// What a query concerns.
    pub fn of_query(query: &Query) -> Concern {
        match query {
            Query::Range(range) => Concern::Keys(vec![range.range.clone()]),
            Query::Page(page) => Concern::Keys(vec![page.range.clone()]),
            Query::List(list) => Concern::Keys(vec![list.range.clone()]),
            Query::Txn(txn) => Concern::of_txn(txn),
            Query::LeaseTimeToLive { .. }
            | Query::Leases
            | Query::HashKv { .. }
            | Query::Status
            | Query::Alarms => Concern::Domain,
        }
    }

    fn of_txn(txn: &Txn) -> Concern {
        let mut ranges = Vec::new();
        ranges_of_txn(txn, &mut ranges);
        Concern::Keys(ranges)
    }
}

fn ranges_of_txn(txn: &Txn, ranges: &mut Vec<KeyRange>) {
    ranges.extend(txn.compare.iter().map(|compare| compare.range.clone()));
    for op in txn.success.iter().chain(&txn.failure) {
        match op {
            TxnOp::Range(range) => ranges.push(range.range.clone()),
            TxnOp::Put(put) => ranges.push(KeyRange::single(put.key.clone())),
            TxnOp::DeleteRange(delete) => ranges.push(delete.range.clone()),
            TxnOp::Txn(txn) => ranges_of_txn(txn, ranges),
            TxnOp::Empty => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use keyspace::{Compare, CompareResult, CompareTarget, DeleteRange, Put};

    use super::*;

    #[test]
    fn a_transaction_concerns_the_keys_of_all_its_parts() {
        let range = |key: &'static str| KeyRange::single(key);
        let nested = Txn {
            compare: Vec::new(),
            success: vec![TxnOp::DeleteRange(DeleteRange { range: range("c"), prev_kv: false })],
            failure: vec![TxnOp::Empty],
        };
        let compare =
            Compare { range: range("a"), result: CompareResult::Equal, target: CompareTarget::Version(0) };
        let txn = Txn {
            compare: vec![compare],
            success: vec![TxnOp::Put(Put::new("b", "value"))],
            failure: vec![TxnOp::Txn(nested)],
        };
        assert_eq!(Concern::of_op(&Op::Txn(txn)), Concern::Keys(vec![range("a"), range("b"), range("c")]));
        assert_eq!(Concern::of_op(&Op::Compact { revision: 7 }), Concern::Domain);
        assert_eq!(Concern::of_query(&Query::Leases), Concern::Domain);
    }
}
