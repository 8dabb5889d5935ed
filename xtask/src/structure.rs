//! `docs/structure.md`: crates, their modules and who needs whom, drawn from the code; and which types of the cores the
//! simulation runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::circles::Sources;

pub(crate) const PAGE: &str = "docs/structure.md";

/// Crates with enough rooms for a drawing of their own, as a newcomer would walk through them.
const DRAWN: &[&str] =
    &["consensus-core", "keyspace", "group-core", "replica", "gateway-core", "gateway", "sim"];

/// What decides, and must be the same where it is shipped and where it is simulated: a type, the crate it is of, and who
/// drives it in earnest.
const SAME: &[(&str, &str, &str)] = &[
    ("Replica", "group-core", "replica"),
    ("Turn", "group-core", "replica"),
    ("Liveness", "consensus-core", "replica"),
    ("Newcomer", "consensus-core", "replica"),
    ("Engine", "consensus-core", "group-core"),
    ("Keyspace", "keyspace", "group-core"),
    ("Journal", "journal", "replica"),
    ("Request", "gateway-core", "gateway"),
    ("GroupState", "gateway-core", "gateway"),
    ("Dialler", "gateway-core", "gateway"),
    ("Topology", "gateway-core", "gateway"),
    ("Links", "gateway-core", "gateway"),
    ("Upstreams", "gateway-core", "gateway"),
];

type Arrows = BTreeMap<String, BTreeSet<String>>;

/// The page; `crates` are the sources of every crate, `dependencies` says which of ours each depends on.
pub(crate) fn page(crates: &BTreeMap<String, Sources>, dependencies: &Arrows) -> Result<String, String> {
    let mut page = String::from(
        "# Structure\n\n\
         Written by `cargo xtask docs` from the code, checked by `cargo xtask tidy`; what the rooms are for is told in\n\
         [architecture.md](architecture.md) and at the head of each file. An arrow means \"needs\"; one that follows from others is\n\
         left out. `cargo xtask tidy` allows no two modules that need each other, but parents and children.\n\n\
         ## Crates\n\n",
    );
    page.push_str(&drawing(dependencies));
    for name in DRAWN {
        let sources = crates.get(*name).ok_or_else(|| format!("{name}: no such crate, says {PAGE}"))?;
        let _ = writeln!(page, "\n## {name}\n");
        page.push_str(&drawing(&sources.rooms()));
    }
    page.push_str(
        "\n## What is simulated is what is shipped\n\nModules, tests aside, that name the type of the core.\n\n\
         | type | of | shipped by | simulated by |\n| --- | --- | --- | --- |\n",
    );
    for (name, home, shell) in SAME {
        let users = |krate: &str| -> Result<String, String> {
            let modules = crates.get(krate).map(|sources| sources.users(name, home)).unwrap_or_default();
            if modules.is_empty() {
                return Err(format!("{krate}: nothing there uses {home}'s {name}, as {PAGE} says it does"));
            }
            let path = |module: &String| match module.as_str() {
                "" => format!("`{krate}`"),
                inner => format!("`{krate}::{inner}`"),
            };
            Ok(modules.iter().map(path).collect::<Vec<_>>().join(", "))
        };
        // What a core drives is driven by it in both worlds.
        let simulated = if *shell == "group-core" { "through `Replica`".to_owned() } else { users("sim")? };
        let _ = writeln!(page, "| `{name}` | `{home}` | {} | {simulated} |", users(shell)?);
    }
    Ok(page)
}

/// A graph in Mermaid's language.
fn drawing(arrows: &Arrows) -> String {
    let mut text = String::from("```mermaid\ngraph TD\n");
    for (from, needed) in reduced(arrows) {
        let _ = writeln!(text, "    {}[\"{from}\"]", id(&from));
        for to in needed {
            let _ = writeln!(text, "    {} --> {}", id(&from), id(&to));
        }
    }
    text.push_str("```\n");
    text
}

/// Some words are Mermaid's own, so no name stands for itself.
fn id(name: &str) -> String {
    format!("m_{}", name.replace('-', "_"))
}

/// Without the arrows that follow from others. There are no circles.
fn reduced(arrows: &Arrows) -> Arrows {
    let reach: Arrows = arrows.keys().map(|from| (from.clone(), reached(arrows, from))).collect();
    let follows = |from: &str, to: &str| {
        arrows[from]
            .iter()
            .any(|step| step != to && reach.get(step).is_some_and(|others| others.contains(to)))
    };
    arrows
        .iter()
        .map(|(from, needed)| {
            (from.clone(), needed.iter().filter(|to| !follows(from, to)).cloned().collect())
        })
        .collect()
}

fn reached(arrows: &Arrows, from: &str) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    let mut next: Vec<&String> = arrows.get(from).into_iter().flatten().collect();
    while let Some(name) = next.pop() {
        if reached.insert(name.clone()) {
            next.extend(arrows.get(name).into_iter().flatten());
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrows(of: &[(&str, &[&str])]) -> Arrows {
        of.iter()
            .map(|(from, to)| ((*from).to_owned(), to.iter().map(|to| (*to).to_owned()).collect()))
            .collect()
    }

    #[test]
    fn an_arrow_that_follows_from_others_is_left_out() {
        let all = arrows(&[("a", &["b", "c", "d"]), ("b", &["c"]), ("c", &[]), ("d", &[])]);
        assert_eq!(reduced(&all), arrows(&[("a", &["b", "d"]), ("b", &["c"]), ("c", &[]), ("d", &[])]));
    }

    #[test]
    fn a_type_that_nothing_simulates_is_a_finding() {
        let mut crates: BTreeMap<String, Sources> = BTreeMap::new();
        for name in DRAWN {
            crates.entry((*name).to_owned()).or_default().add("src/lib.rs", "");
        }
        crates.get_mut("replica").unwrap().add("src/lib.rs", "use group_core::{Out, Replica};");
        let error = page(&crates, &Arrows::new()).unwrap_err();
        assert!(error.starts_with("sim: nothing there uses group-core's Replica"), "{error}");
    }
}
