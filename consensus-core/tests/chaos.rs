//! Random faults on the small cluster.

mod harness;

use harness::chaos;

#[test]
fn survives_faults() {
    let seeds = match std::env::var("CHAOS_SEEDS") {
        Ok(seeds) => {
            let mut ends = seeds.split("..").map(|end| end.parse::<u64>().expect("a number"));
            let first = ends.next().expect("a first seed");
            first..ends.next().unwrap_or(first + 1)
        }
        Err(_) => 0..300,
    };
    for seed in seeds {
        if std::panic::catch_unwind(|| chaos::run(seed, |_| {})).is_err() {
            panic!("seed {seed} failed: run with CHAOS_SEEDS={seed}");
        }
    }
}
