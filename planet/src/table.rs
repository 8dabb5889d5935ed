//! How far regions are from each other.
//!
//! Averages in milliseconds between regions of Amazon Web Services, by the table in "AWS Regions"
//! (acomputerscientistlearnsaws.blogspot.com, April 2017), which has them from "Latency Between AWS Global Regions"; of the two
//! directions of a pair, the shorter one. Networks have become a little faster since; the order of distances is the same.

use std::fmt;
use std::time::Duration;

/// A region, by the name that its provider gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Region(usize);

const NAMES: [&str; 9] = [
    "us-east-1",
    "us-west-1",
    "us-west-2",
    "eu-west-1",
    "eu-central-1",
    "ap-northeast-1",
    "ap-northeast-2",
    "ap-southeast-1",
    "ap-southeast-2",
];

/// Within a region, between two zones of it.
const WITHIN_MS: f64 = 0.7;

/// Round trips below the diagonal, in the order of the names.
const ROUND_TRIPS_MS: [&[f64]; 9] = [
    &[],
    &[71.63],
    &[86.98, 19.2],
    &[80.52, 153.2, 137.0],
    &[88.62, 166.6, 159.5, 19.55],
    &[145.3, 102.5, 89.1, 212.4, 236.5],
    &[176.6, 131.5, 118.2, 242.4, 265.3, 31.32],
    &[216.7, 173.9, 161.4, 238.1, 325.9, 73.79, 71.29],
    &[229.7, 157.5, 161.9, 309.6, 323.2, 103.9, 134.0, 175.3],
];

impl Region {
    /// The region of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Region> {
        NAMES.iter().position(|known| *known == name).map(Region)
    }

    /// All there are.
    pub fn all() -> impl Iterator<Item = Region> {
        (0..NAMES.len()).map(Region)
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        NAMES[self.0]
    }

    /// The time to there and back.
    #[must_use]
    pub fn round_trip(self, other: Region) -> Duration {
        let (near, far) = (self.0.min(other.0), self.0.max(other.0));
        let milliseconds = if near == far { WITHIN_MS } else { ROUND_TRIPS_MS[far][near] };
        Duration::from_secs_f64(milliseconds / 1000.0)
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_has_a_distance_that_is_the_same_both_ways() {
        for one in Region::all() {
            assert_eq!(Region::named(one.name()), Some(one));
            for other in Region::all() {
                let there = one.round_trip(other);
                assert_eq!(there, other.round_trip(one));
                assert_eq!(there < Duration::from_millis(1), one == other, "{one} {other}");
                assert!(there < Duration::from_millis(400), "{one} {other}");
            }
        }
        assert_eq!(Region::named("atlantis"), None);
        let [ireland, frankfurt, tokyo] =
            ["eu-west-1", "eu-central-1", "ap-northeast-1"].map(|name| Region::named(name).unwrap());
        assert!(ireland.round_trip(frankfurt) < ireland.round_trip(tokyo));
    }
}
