//! Files of a crate that need each other in a circle: nobody can read one of them without the others. A module and its own
//! children may.
//!
//! Only what `use` and paths that begin with `crate`, `super` or `self` say is looked at; tests are not.

use std::collections::{BTreeMap, BTreeSet};

/// A module's path in its crate; empty for the crate itself.
type Module = Vec<String>;

/// No module lies deeper.
const DEEPEST_MODULE: usize = 8;

/// The modules of one crate, with their text.
#[derive(Default)]
pub(crate) struct Sources(BTreeMap<Module, String>);

impl Sources {
    /// Adds `src/…`, a file of the crate.
    pub(crate) fn add(&mut self, path: &str, text: &str) {
        let Some(path) = path.strip_prefix("src/").and_then(|path| path.strip_suffix(".rs")) else { return };
        let mut module: Module = path.split('/').map(str::to_owned).collect();
        if module.last().is_some_and(|last| last == "tests") {
            return;
        }
        if matches!(module.last().map(String::as_str), Some("mod" | "lib" | "main")) {
            module.pop();
        }
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let code: Vec<&str> = text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
        // A crate may be both, a library and a program.
        self.0.entry(module).or_default().push_str(&code.join("\n"));
    }

    /// The circles among the children of every module, each child with all that is in it.
    pub(crate) fn circles(&self) -> Vec<String> {
        let mut circles = BTreeSet::new();
        for depth in 0..DEEPEST_MODULE {
            let rooms = self.rooms_at(depth);
            let reach: BTreeMap<&Module, BTreeSet<&Module>> =
                rooms.keys().map(|room| (room, reached(&rooms, room))).collect();
            for (room, reached) in &reach {
                let circle: Vec<String> = reached
                    .iter()
                    .filter(|other| reach.get(**other).is_some_and(|back| back.contains(room)))
                    .map(|m| m.join("::"))
                    .collect();
                if circle.len() > 1 {
                    circles.insert(circle.join(", "));
                }
            }
        }
        circles.into_iter().collect()
    }

    /// The modules right under the root, and which others of them each needs, whether itself or in its children.
    pub(crate) fn rooms(&self) -> BTreeMap<String, BTreeSet<String>> {
        let name = |room: &Module| room.concat();
        self.rooms_at(0)
            .iter()
            .map(|(room, needed)| (name(room), needed.iter().map(name).collect()))
            .collect()
    }

    /// The modules `depth` levels below the root, and which siblings each needs, whether itself or in its children.
    fn rooms_at(&self, depth: usize) -> BTreeMap<Module, BTreeSet<Module>> {
        let mut rooms: BTreeMap<Module, BTreeSet<Module>> = BTreeMap::new();
        for (module, needed) in self.needs() {
            let Some(room) = module.get(..=depth) else { continue };
            let siblings = needed
                .into_iter()
                .filter_map(|other| other.get(..=depth))
                .filter(|other| *other != room && other[..depth] == room[..depth]);
            rooms.entry(room.to_vec()).or_default().extend(siblings.map(<[String]>::to_vec));
        }
        rooms
    }
    /// The modules that take the type `name` from the crate `home`.
    pub(crate) fn users(&self, name: &str, home: &str) -> Vec<String> {
        let home = format!("{}::", home.replace('-', "_"));
        let takes = |tree: &str| expand(tree).iter().any(|path| path.iter().any(|segment| segment == name));
        let users =
            self.0.iter().filter(|(_, text)| text.match_indices(&home).any(|(at, _)| takes(&text[at..])));
        users.map(|(module, _)| module.join("::")).collect()
    }

    fn needs(&self) -> BTreeMap<&Module, BTreeSet<&Module>> {
        let reexports = self.reexports();
        let mut needs = BTreeMap::new();
        for (module, text) in &self.0 {
            let mut needed = BTreeSet::new();
            for path in paths(module, text) {
                let found = self.resolve(&reexports, &path, 0);
                let related = module.starts_with(found) || found.starts_with(module);
                if !related && let Some((found, _)) = self.0.get_key_value(found) {
                    needed.insert(found);
                }
            }
            needs.insert(module, needed);
        }
        needs
    }

    /// For each module, where a name comes from that it hands on.
    fn reexports(&self) -> BTreeMap<(&Module, String), Module> {
        let mut found = BTreeMap::new();
        for (module, text) in &self.0 {
            for visibility in ["pub use ", "pub(crate) use ", "pub(super) use "] {
                for tree in text.split(visibility).skip(1) {
                    let tree = tree.split(';').next().unwrap_or_default();
                    for mut path in expand(tree) {
                        let rooted = path.first().is_some_and(|first| is_anchor(first));
                        let is_child = path.first().is_some_and(|first| {
                            self.0.contains_key(&[module.as_slice(), std::slice::from_ref(first)].concat())
                        });
                        if !rooted && is_child {
                            path.insert(0, "self".to_owned());
                        } else if !rooted {
                            continue;
                        }
                        if let (Some(name), Some(path)) = (path.last().cloned(), absolute(module, &path)) {
                            found.insert((module, name), path);
                        }
                    }
                }
            }
        }
        found
    }

    /// The module that a path leads to.
    fn resolve<'a>(
        &'a self,
        reexports: &'a BTreeMap<(&Module, String), Module>,
        path: &'a [String],
        depth: usize,
    ) -> &'a [String] {
        const DEEPEST: usize = 8;
        let length = (0..=path.len()).rev().find(|length| self.0.contains_key(&path[..*length])).unwrap_or(0);
        let (module, rest) = path.split_at(length);
        let handed_on = self
            .0
            .get_key_value(module)
            .and_then(|(module, _)| Some(reexports.get(&(module, rest.first()?.clone()))?.as_slice()));
        match handed_on {
            Some(origin) if depth < DEEPEST => self.resolve(reexports, origin, depth + 1),
            Some(_) | None => module,
        }
    }
}

fn reached<'a>(rooms: &'a BTreeMap<Module, BTreeSet<Module>>, from: &Module) -> BTreeSet<&'a Module> {
    let mut reached = BTreeSet::new();
    let mut next: Vec<&Module> = rooms[from].iter().collect();
    while let Some(room) = next.pop() {
        if reached.insert(room) {
            next.extend(rooms.get(room).into_iter().flatten());
        }
    }
    reached
}

fn is_anchor(segment: &str) -> bool {
    matches!(segment, "crate" | "super" | "self")
}

/// What a module's text names in its own crate, from the crate's root on.
fn paths(module: &Module, text: &str) -> Vec<Module> {
    let mut found = Vec::new();
    for anchor in ["crate::", "super::", "self::"] {
        let mut rest = text;
        while let Some(at) = rest.find(anchor) {
            let before = rest[..at].chars().next_back();
            let tree = &rest[at..];
            rest = &rest[at + anchor.len()..];
            // Not the rest of another name, nor the middle of a path.
            if before.is_some_and(|before| before.is_alphanumeric() || matches!(before, '_' | ':' | '$')) {
                continue;
            }
            found.extend(expand(tree).iter().filter_map(|path| absolute(module, path)));
        }
    }
    found
}

fn absolute(module: &Module, path: &[String]) -> Option<Module> {
    let (anchor, mut rest) = path.split_first()?;
    let mut base = match anchor.as_str() {
        "crate" => Vec::new(),
        "self" => module.clone(),
        "super" => module.split_last()?.1.to_vec(),
        _ => return None,
    };
    while let [first, others @ ..] = rest
        && first == "super"
    {
        base.pop()?;
        rest = others;
    }
    base.extend(rest.iter().cloned());
    Some(base)
}

/// The paths of a use tree at the beginning of `text`, which may go on behind it.
fn expand(text: &str) -> Vec<Module> {
    let text = text.trim_start();
    let end = text.find(|c: char| !c.is_alphanumeric() && !matches!(c, '_' | ':')).unwrap_or(text.len());
    let (prefix, rest) = text.split_at(end);
    let prefix: Module =
        prefix.split("::").filter(|segment| !segment.is_empty()).map(str::to_owned).collect();
    let branches = rest.strip_prefix('{').filter(|_| text[..end].ends_with("::") || end == 0);
    let Some(branches) = branches else { return vec![prefix] };
    let mut found = Vec::new();
    let (mut depth, mut start) = (0, 0);
    for (at, c) in branches.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' if depth > 0 => {}
            ',' | '}' => {
                let branch = expand(&branches[start..at]);
                let branch = branch.into_iter().filter(|branch| !branch.is_empty());
                found.extend(branch.map(|mut branch| {
                    if branch[0] == "self" {
                        branch.remove(0);
                    }
                    [prefix.as_slice(), &branch].concat()
                }));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circles(files: &[(&str, &str)]) -> Vec<String> {
        let mut sources = Sources::default();
        for (path, text) in files {
            sources.add(path, text);
        }
        sources.circles()
    }

    #[test]
    fn trees_are_expanded() {
        let paths: Vec<String> =
            expand("crate::a::{self, B, c::{D, E}, f};\nrest").iter().map(|path| path.join("::")).collect();
        assert_eq!(paths, ["crate::a", "crate::a::B", "crate::a::c::D", "crate::a::c::E", "crate::a::f"]);
        assert_eq!(expand("super::x::y(1)"), [["super", "x", "y"]]);
    }

    #[test]
    fn circles_are_found_and_families_left_alone() {
        let one = ("src/a.rs", "use crate::b::B;\nfn f() {}\n#[cfg(test)]\nmod tests { use crate::d; }");
        let two = ("src/b.rs", "// crate::d\nfn g() { crate::c::h(); }");
        assert!(circles(&[one, two, ("src/c.rs", ""), ("src/d.rs", "use crate::a;")]).is_empty());
        assert_eq!(circles(&[one, two, ("src/c.rs", "use super::a::{A};")]), ["a, b, c"]);
        // Not one file of two rooms needs another in a circle, but the rooms do.
        let far = [("src/m/a.rs", "use crate::n::a;"), ("src/n/b.rs", "use crate::m::b;")];
        assert_eq!(circles(&[far[0], far[1], ("src/n/a.rs", ""), ("src/m/b.rs", "")]), ["m, n"]);
        let parent = ("src/p/mod.rs", "mod q;\nuse self::q::Q;");
        assert!(circles(&[parent, ("src/p/q.rs", "use super::P;")]).is_empty());
        assert_eq!(
            circles(&[parent, ("src/p/q.rs", "use crate::r::R;"), ("src/r.rs", "use crate::p::q::Q;")]),
            ["p, r"]
        );
    }

    #[test]
    fn rooms_need_what_their_children_need() {
        let mut sources = Sources::default();
        sources.add("src/lib.rs", "mod a;");
        sources.add("src/a/mod.rs", "");
        sources.add("src/a/x.rs", "use crate::b::B;\nuse core_crate::{Kept, one::Other};");
        sources.add("src/b.rs", "");
        let rooms = sources.rooms();
        assert_eq!(rooms.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert!(rooms["a"].contains("b") && rooms["b"].is_empty());
        assert_eq!(sources.users("Other", "core-crate"), ["a::x"]);
        assert!(sources.users("Another", "core-crate").is_empty());
    }

    #[test]
    fn a_name_that_is_handed_on_counts_where_it_comes_from() {
        let root = ("src/lib.rs", "mod a;\nmod b;\npub use a::A;\npub use b::{B, C};");
        assert_eq!(circles(&[root, ("src/a.rs", "use crate::B;"), ("src/b.rs", "use crate::A;")]), ["a, b"]);
        assert!(circles(&[root, ("src/a.rs", "use crate::B;"), ("src/b.rs", "use crate::X;")]).is_empty());
    }
}
