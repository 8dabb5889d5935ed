//! The Dockerfile, read as far as can be without an engine: that what it copies is there, is all that the build needs, and is
//! not kept from it by .dockerignore, that the program it takes is what its build makes, and that the image runs it as nobody in particular.

use std::path::Path;

use super::read;
use crate::run::Failure;
use crate::tidy::members;

const DOCKERFILE: &str = "Dockerfile";
const IGNORE: &str = ".dockerignore";
/// Of the base image, and of the pods that the chart describes.
const USER: &str = "65532:65532";

pub(crate) fn check() -> Result<(), Failure> {
    let (dockerfile, ignore) = (read(Path::new(DOCKERFILE))?, read(Path::new(IGNORE))?);
    let manifest = read(Path::new("Cargo.toml"))?;
    let mut needed = members(&manifest);
    // Crates of others that are built from here, too.
    if manifest.contains("[patch.crates-io]") {
        needed.push("third_party");
    }
    let mistakes = mistakes(&dockerfile, &ignore, &needed, |path| Path::new(path).exists());
    for mistake in &mistakes {
        eprintln!("{DOCKERFILE}: {mistake}");
    }
    if mistakes.is_empty() {
        Ok(())
    } else {
        Err(Failure::new(format!("{DOCKERFILE}: {} mistakes", mistakes.len())))
    }
}

/// An instruction: its word, and what follows.
type Instruction = (String, String);

fn instructions(text: &str) -> Vec<Instruction> {
    let mut joined = String::new();
    let mut all = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match line.strip_suffix('\\') {
            Some(part) => joined.push_str(part),
            None => {
                joined.push_str(line);
                let (word, rest) = joined.split_once(' ').unwrap_or((&joined, ""));
                all.push((word.to_uppercase(), rest.trim().to_owned()));
                joined.clear();
            }
        }
    }
    all
}

fn mistakes(dockerfile: &str, ignore: &str, needed: &[&str], exists: impl Fn(&str) -> bool) -> Vec<String> {
    let mut mistakes = Vec::new();
    let all = instructions(dockerfile);
    let ignored: Vec<&str> =
        ignore.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let builds = all.iter().any(|(word, rest)| {
        word == "RUN"
            && rest.contains("cargo build")
            && rest.contains("--package gateway")
            && rest.contains("--locked")
    });
    if !builds {
        mistakes.push("does not build the package `gateway`, --locked".to_owned());
    }
    let last_stage = all.iter().rposition(|(word, _)| word == "FROM").unwrap_or(0);
    let mut from_build = 0;
    let mut missing: Vec<&str> = needed.to_vec();
    for (index, (word, rest)) in all.iter().enumerate() {
        if word == "ADD" {
            mistakes.push("ADD fetches and unpacks: use COPY".to_owned());
        }
        if word != "COPY" {
            continue;
        }
        let (flags, paths): (Vec<&str>, Vec<&str>) =
            rest.split_whitespace().partition(|part| part.starts_with("--"));
        let Some((_, sources)) = paths.split_last() else { continue };
        if flags.iter().any(|flag| flag.starts_with("--from=")) {
            from_build += 1;
            if index < last_stage || sources != ["/gaios"] {
                mistakes.push(format!("takes {sources:?} from the build, and not the binary alone"));
            }
            continue;
        }
        if index > last_stage {
            mistakes.push(format!("the image holds {sources:?} of the source"));
        }
        for source in sources {
            missing.retain(|needed| needed != source);
            if !exists(source) {
                mistakes.push(format!("copies {source}, which is not there"));
            }
            if !allowed(source, &ignored) {
                mistakes.push(format!("copies {source}, which {IGNORE} keeps from it"));
            }
        }
    }
    if !missing.is_empty() {
        mistakes.push(format!("the build lacks {missing:?}"));
    }
    if from_build != 1 {
        mistakes
            .push(format!("the image takes {from_build} things from the build, and not the binary alone"));
    }
    let last = |word: &str| {
        all[last_stage..].iter().rev().find(|(found, _)| found == word).map(|(_, rest)| rest.as_str())
    };
    if last("USER") != Some(USER) {
        mistakes.push(format!("the image does not run as {USER}"));
    }
    if last("ENTRYPOINT") != Some(r#"["/gaios"]"#) {
        mistakes.push("the image does not start /gaios, without a shell".to_owned());
    }
    mistakes
}

/// Whether a path passes a file that keeps everything out (`*`) but what it names (`!path`).
fn allowed(path: &str, ignored: &[&str]) -> bool {
    let path = path.trim_end_matches('/');
    ignored.first() == Some(&"*")
        && ignored.iter().filter_map(|line| line.strip_prefix('!')).any(|kept| kept == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "FROM rust AS build\nCOPY Cargo.toml api ./\nRUN cargo build --locked \\\n  --package gateway\n\
                        FROM static\nCOPY --from=build /gaios /gaios\nUSER 65532:65532\nENTRYPOINT [\"/gaios\"]\n";

    fn check(dockerfile: &str, expected: &[&str]) {
        let ignore = "# all but\n*\n!Cargo.toml\n!api\n";
        let found = mistakes(dockerfile, ignore, &["api"], |path| path != "gone");
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.contains(expected), "{found}");
        }
    }

    #[test]
    fn each_mistake_is_told() {
        check(GOOD, &[]);
        check(&GOOD.replace("api", "gone"), &["is not there", "keeps from it", "lacks [\"api\"]"]);
        check(&GOOD.replace("--locked", ""), &["does not build"]);
        check(&GOOD.replace("65532:65532", "0"), &["does not run as"]);
        check(&GOOD.replace("[\"/gaios\"]", "/gaios"), &["without a shell"]);
        check(&GOOD.replace("/gaios /gaios", "/usr /usr"), &["not the binary alone"]);
        check(&GOOD.replace("USER", "COPY api /api\nUSER"), &["of the source"]);
    }
}
