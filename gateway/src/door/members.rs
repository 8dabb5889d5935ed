//! The members that a client sees: gateways. Those of the region it is in come first, and are all that it is told of, so that
//! a client which follows the list stays near; only where the region has no second one are others added, since a client should
//! always know another.

use super::{Member, member_id};
use crate::domain::KnownGateway;

/// What `MemberList` answers with.
#[derive(Debug)]
pub(crate) enum Members {
    /// These, as configured.
    Configured(Vec<Member>),
    /// The gateways that are there; this one is always among them.
    Living {
        /// This one.
        own: Member,
        /// Where it stands.
        region: String,
    },
}

impl Members {
    /// The list, of the gateways that the cluster knows. `known` is not used where there is a configured one.
    pub(crate) fn list(&self, known: &[KnownGateway]) -> Vec<Member> {
        let (own, region) = match self {
            Members::Configured(members) => return members.clone(),
            Members::Living { own, region } => (own, region),
        };
        let (near, far): (Vec<_>, Vec<_>) = known
            .iter()
            .map(|gateway| (gateway.region == *region, member(gateway)))
            .filter(|(_, member)| member.id != own.id)
            .partition(|(near, _)| *near);
        let (mut near, far) = (sorted(near), sorted(far));
        let alone = near.is_empty();
        near.push(own.clone());
        near.sort_by(|one, other| one.name.cmp(&other.name));
        if alone {
            near.extend(far);
        }
        near
    }

    /// The one that is shown as the leader: the same at all gateways of a region.
    pub(crate) fn leader(&self, known: &[KnownGateway]) -> u64 {
        let members = match self {
            Members::Configured(members) => return lowest(members).unwrap_or_default(),
            Members::Living { own, region } => known
                .iter()
                .filter(|gateway| gateway.region == *region)
                .map(member)
                .chain([own.clone()])
                .collect::<Vec<_>>(),
        };
        lowest(&members).unwrap_or_default()
    }

    /// Whether the cluster need not be asked.
    pub(crate) fn are_configured(&self) -> bool {
        matches!(self, Members::Configured(_))
    }
}

fn lowest(members: &[Member]) -> Option<u64> {
    members.iter().map(|member| member.id).min()
}

fn sorted(members: Vec<(bool, Member)>) -> Vec<Member> {
    let mut members: Vec<_> = members.into_iter().map(|(_, member)| member).collect();
    members.sort_by(|one, other| (&one.name, one.id).cmp(&(&other.name, other.id)));
    members
}

fn member(gateway: &KnownGateway) -> Member {
    Member {
        id: member_id(&gateway.region, &gateway.name),
        name: gateway.name.clone(),
        client_urls: gateway.client_urls.clone(),
        peer_urls: gateway.client_urls.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(region: &str, name: &str) -> KnownGateway {
        KnownGateway {
            name: name.to_owned(),
            region: region.to_owned(),
            zone: String::new(),
            client_urls: vec![format!("http://{region}-{name}")],
            capacity: 1,
        }
    }

    fn living(region: &str, name: &str) -> Members {
        Members::Living { own: member(&known(region, name)), region: region.to_owned() }
    }

    fn urls(members: &Members, known: &[KnownGateway]) -> Vec<String> {
        members.list(known).into_iter().flat_map(|member| member.client_urls).collect()
    }

    #[test]
    fn a_client_is_told_of_the_gateways_of_its_region() {
        let all = [known("far", "a"), known("near", "c"), known("near", "b"), known("far", "b")];
        let members = living("near", "c");
        assert_eq!(urls(&members, &all), ["http://near-b", "http://near-c"]);
        assert_eq!(urls(&living("near", "b"), &all), urls(&members, &all), "whichever of them is asked");
        // The region has no second one: the client should know another all the same.
        assert_eq!(
            urls(&members, &[known("far", "b"), known("far", "a")]),
            ["http://near-c", "http://far-a", "http://far-b"]
        );
        assert_eq!(urls(&members, &[]), ["http://near-c"], "itself always");
    }

    #[test]
    fn ids_differ_by_region_and_the_leader_is_one_for_a_region() {
        let all = [known("far", "a"), known("near", "a"), known("near", "b")];
        let (a, b) = (living("near", "a"), living("near", "b"));
        assert_eq!(a.leader(&all), b.leader(&all));
        assert!(a.list(&all).iter().any(|member| member.id == a.leader(&all)));
        assert_ne!(member_id("far", "a"), member_id("near", "a"));
    }

    #[test]
    fn a_configured_list_stands_as_it_is() {
        let configured = vec![member(&known("", "x"))];
        let members = Members::Configured(configured.clone());
        assert_eq!(members.list(&[known("", "y")]), configured);
        assert_eq!(members.leader(&[]), configured[0].id);
    }
}
