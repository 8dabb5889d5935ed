//! The gateways that have links with this node: what they said of themselves, for as long as they are there. Nothing of it is
//! written down, and no client can touch it.
//!
//! A gateway has links with all nodes, so every node knows all of those it can be reached by; the leader's word is the one that
//! is asked for. Whoever lost its last link is shown for a moment longer: it may only be linking anew.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::gaios::link::v1 as wire;
use consensus_core::Mono;
use parking_lot::Mutex;

use crate::clock;

/// How long a gateway without a link is shown. One that lost a connection is back in tens of milliseconds.
const GRACE: Duration = Duration::from_secs(2);
/// Gateways that are shown. Others are served all the same.
const GATEWAYS_MAX: usize = 1024;
/// Of a name, a region and a zone: as configurations have them.
const NAME_BYTES_MAX: usize = 63;
/// Client URLs of one gateway, and the bytes of each.
const URLS_MAX: usize = 8;
const URL_BYTES_MAX: usize = 512;

/// All of them. A clone is the same list.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gateways(Arc<Mutex<List>>);

/// One link of a gateway that is shown. It is one less when this is dropped.
#[derive(Debug)]
pub(crate) struct Shown {
    gateways: Gateways,
    key: Key,
}

impl Gateways {
    /// A gateway has linked. `None` if it is not shown: it does not say how clients reach it, or too much, or there are too many.
    pub(crate) fn come(&self, hello: &wire::Hello) -> Option<Shown> {
        let gateway = wire::Gateway {
            name: hello.name.clone(),
            region: hello.region.clone(),
            zone: hello.zone.clone(),
            client_urls: hello.client_urls.clone(),
            capacity: hello.capacity,
        };
        let key = self.0.lock().come(clock::now(), gateway)?;
        Some(Shown { gateways: self.clone(), key })
    }

    /// Those that are there, by region and name.
    pub(crate) fn list(&self) -> wire::GatewayList {
        wire::GatewayList { gateways: self.0.lock().list(clock::now()) }
    }

    /// Those that have links now, by name.
    pub(crate) fn linked(&self) -> Vec<wire::LinkedGateway> {
        self.0.lock().linked()
    }
}

impl Shown {
    /// What the gateway does, by its own word.
    pub(crate) fn tell(&self, figures: wire::GatewayFigures) {
        self.gateways.0.lock().tell(&self.key, figures);
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.gateways.0.lock().leave(clock::now(), &self.key);
    }
}

/// Region and name: the name is unique in the region.
type Key = (String, String);

#[derive(Debug, Default)]
struct List(BTreeMap<Key, Known>);

#[derive(Debug)]
struct Known {
    /// As the newest link said.
    gateway: wire::Gateway,
    /// As it said last, on whichever link.
    figures: Option<wire::GatewayFigures>,
    links: u32,
    /// When the last one ended.
    left: Mono,
}

impl List {
    fn come(&mut self, now: Mono, gateway: wire::Gateway) -> Option<Key> {
        if !can_be_shown(&gateway) {
            return None;
        }
        self.forget_gone(now);
        let key = (gateway.region.clone(), gateway.name.clone());
        if self.0.len() >= GATEWAYS_MAX && !self.0.contains_key(&key) {
            return None;
        }
        let known = self.0.entry(key.clone()).or_insert_with(|| Known {
            gateway: gateway.clone(),
            figures: None,
            links: 0,
            left: now,
        });
        known.gateway = gateway;
        known.links += 1;
        Some(key)
    }

    fn leave(&mut self, now: Mono, key: &Key) {
        if let Some(known) = self.0.get_mut(key) {
            known.links -= 1;
            known.left = now;
        }
    }

    fn tell(&mut self, key: &Key, figures: wire::GatewayFigures) {
        if let Some(known) = self.0.get_mut(key)
            && figures.version.len() <= NAME_BYTES_MAX
        {
            known.figures = Some(figures);
        }
    }

    fn list(&mut self, now: Mono) -> Vec<wire::Gateway> {
        self.forget_gone(now);
        self.0.values().map(|known| known.gateway.clone()).collect()
    }

    fn linked(&self) -> Vec<wire::LinkedGateway> {
        let linked = self.0.values().filter(|known| known.links > 0);
        linked
            .map(|Known { gateway, figures, links, .. }| wire::LinkedGateway {
                name: gateway.name.clone(),
                links: *links,
                region: gateway.region.clone(),
                zone: gateway.zone.clone(),
                figures: figures.clone(),
            })
            .collect()
    }

    fn forget_gone(&mut self, now: Mono) {
        self.0.retain(|_, known| known.links > 0 || now.since(known.left) < GRACE);
    }
}

fn can_be_shown(gateway: &wire::Gateway) -> bool {
    let short = |name: &str| name.len() <= NAME_BYTES_MAX;
    !gateway.name.is_empty()
        && [&gateway.name, &gateway.region, &gateway.zone].into_iter().all(|name| short(name))
        && (1..=URLS_MAX).contains(&gateway.client_urls.len())
        && gateway.client_urls.iter().all(|url| (1..=URL_BYTES_MAX).contains(&url.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway(region: &str, name: &str) -> wire::Gateway {
        wire::Gateway {
            name: name.to_owned(),
            region: region.to_owned(),
            client_urls: vec![format!("http://{name}:2379")],
            ..wire::Gateway::default()
        }
    }

    fn names(list: &mut List, now: Mono) -> Vec<String> {
        list.list(now).into_iter().map(|gateway| format!("{}/{}", gateway.region, gateway.name)).collect()
    }

    #[test]
    fn a_gateway_is_there_as_long_as_one_of_its_links_and_a_moment_longer() {
        let (mut list, start) = (List::default(), Mono(0));
        let key = list.come(start, gateway("r", "a")).unwrap();
        list.come(start, gateway("r", "a")).unwrap();
        list.come(start, gateway("q", "a")).unwrap();
        assert_eq!(names(&mut list, start), ["q/a", "r/a"], "the same name in two regions is two gateways");
        let told: Vec<_> = list.linked().into_iter().map(|gateway| (gateway.name, gateway.links)).collect();
        assert_eq!(told, [("a".to_owned(), 1), ("a".to_owned(), 2)]);
        let later = start.after(GRACE * 10);
        list.leave(later, &key);
        assert_eq!(names(&mut list, later.after(GRACE)), ["q/a", "r/a"], "it has another link");
        let last = later.after(GRACE * 2);
        list.leave(last, &key);
        assert_eq!(names(&mut list, last.after(GRACE / 2)), ["q/a", "r/a"], "it may be linking anew");
        list.come(last.after(GRACE / 2), gateway("r", "a")).unwrap();
        assert_eq!(names(&mut list, last.after(GRACE * 9)), ["q/a", "r/a"]);
        list.leave(last.after(GRACE * 9), &key);
        assert_eq!(names(&mut list, last.after(GRACE * 10)), ["q/a"]);
    }

    #[test]
    fn what_it_said_last_counts() {
        let mut list = List::default();
        list.come(Mono(0), gateway("r", "a"));
        let moved = wire::Gateway { client_urls: vec!["https://b:1".to_owned()], ..gateway("r", "a") };
        list.come(Mono(1), moved.clone());
        assert_eq!(list.list(Mono(2)), [moved]);
    }

    #[test]
    fn what_it_does_is_told_as_it_said_last() {
        let mut list = List::default();
        let key = list.come(Mono(0), gateway("r", "a")).unwrap();
        list.come(Mono(0), gateway("q", "a")).unwrap();
        let figures = |connections| wire::GatewayFigures { connections, ..wire::GatewayFigures::default() };
        list.tell(&key, figures(7));
        list.tell(&key, figures(9));
        let told =
            |list: &List| -> Vec<_> { list.linked().into_iter().map(|linked| linked.figures).collect() };
        assert_eq!(told(&list), [None, Some(figures(9))], "of the one in the other region nothing is known");
        let large = "v".repeat(NAME_BYTES_MAX + 1);
        list.tell(&key, wire::GatewayFigures { version: large, ..figures(11) });
        assert_eq!(told(&list), [None, Some(figures(9))]);
    }

    #[test]
    fn nobody_takes_more_than_a_share_of_memory() {
        let mut list = List::default();
        let odd = [
            wire::Gateway { client_urls: Vec::new(), ..gateway("r", "a") },
            wire::Gateway { client_urls: vec!["u".to_owned(); URLS_MAX + 1], ..gateway("r", "a") },
            wire::Gateway { client_urls: vec!["u".repeat(URL_BYTES_MAX + 1)], ..gateway("r", "a") },
            wire::Gateway { client_urls: vec![String::new()], ..gateway("r", "a") },
            gateway("r", ""),
            gateway("r", &"n".repeat(NAME_BYTES_MAX + 1)),
            gateway(&"r".repeat(NAME_BYTES_MAX + 1), "a"),
        ];
        for gateway in odd {
            assert_eq!(list.come(Mono(0), gateway), None);
        }
        let keys: Vec<_> =
            (0..GATEWAYS_MAX).map(|n| list.come(Mono(0), gateway("r", &n.to_string())).unwrap()).collect();
        assert_eq!(list.come(Mono(0), gateway("r", "one more")), None);
        assert!(list.come(Mono(0), gateway("r", "7")).is_some(), "one that is there already");
        list.leave(Mono(0), &keys[0]);
        assert!(list.come(Mono(0).after(GRACE), gateway("r", "one more")).is_some(), "there is room again");
        assert_eq!(list.list(Mono(0)).len(), GATEWAYS_MAX);
    }
}
