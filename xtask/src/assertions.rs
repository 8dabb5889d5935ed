//! How much the pure crates assert: their handlers say what they believe.

/// The crates that decide.
pub(crate) const CRATES: &[&str] =
    &["backoff", "consensus-core", "fair-queue", "gateway-core", "group-core", "keyspace", "shard-map"];
/// Assertions for 1,000 lines of code that each of them has at least.
const DENSITY_MIN: usize = 25;
/// What counts as one. An `expect` says why it cannot fail; the first three are also the `debug_` ones.
const ASSERTIONS: [&str; 5] = ["assert!(", "assert_eq!(", "assert_ne!(", "unreachable!(", ".expect("];

/// Of one crate.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    /// Lines of code, without tests, comments and blank lines.
    lines: usize,
    assertions: usize,
}

impl Count {
    /// Takes in a file of the crate.
    pub(crate) fn add(&mut self, file: &str, text: &str) {
        if !file.starts_with("src/") || file.ends_with("/tests.rs") || file.contains("/tests/") {
            return;
        }
        for line in code(text) {
            self.lines += 1;
            self.assertions += ASSERTIONS.iter().map(|word| line.matches(word).count()).sum::<usize>();
        }
    }

    /// What is wrong, if too little is asserted.
    pub(crate) fn finding(&self) -> Option<String> {
        let Count { lines, assertions } = self;
        let least = (lines * DENSITY_MIN).div_ceil(1000);
        (*assertions < least).then(|| {
            format!(
                "{assertions} assertions in {lines} lines of code, and {least} are asked for: \
                 say what the handlers believe"
            )
        })
    }
}

/// The lines of code, without tests, comments and blank lines.
fn code(text: &str) -> impl Iterator<Item = &str> {
    // The indentation of the test module or item that is being skipped.
    let mut test: Option<usize> = None;
    text.lines().filter(move |line| {
        let code = line.trim_start();
        let indentation = line.len() - code.len();
        if let Some(begun) = test {
            // Formatted code ends an item where it began, or on its first line.
            if indentation == begun && !code.starts_with('#') && code.ends_with(['}', ';']) {
                test = None;
            }
            return false;
        }
        if code.starts_with("#[cfg(test)]") {
            test = Some(indentation);
            return false;
        }
        !code.is_empty() && !code.starts_with("//")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(text: &str) -> Count {
        let mut count = Count::default();
        count.add("src/part/mod.rs", text);
        count
    }

    #[test]
    fn code_is_counted_and_tests_are_not() {
        let code =
            "//! What.\n\nfn f(a: u8) {\n    // Why.\n    assert!(a > 0);\n    debug_assert_eq!(a, 1);\n}\n";
        assert_eq!(count(code), Count { lines: 4, assertions: 2 });
        let tests = "#[cfg(test)]\nuse x::y;\n#[cfg(test)]\n#[path = \"t.rs\"]\nmod t;\n#[cfg(test)]\nmod tests {\n    fn f() {\n        assert!(true);\n    }\n}\n";
        assert_eq!(count(&format!("{code}{tests}")), Count { lines: 4, assertions: 2 });
        let after = "fn g() {\n    h().expect(\"it is there\");\n}\n";
        assert_eq!(count(&format!("{tests}{after}")), Count { lines: 3, assertions: 1 });
        let mut none = Count::default();
        none.add("src/part/tests.rs", code);
        none.add("tests/f.rs", code);
        assert_eq!(none, Count::default());
    }

    #[test]
    fn a_crate_that_asserts_too_little_is_found() {
        assert_eq!(Count { lines: 1000, assertions: DENSITY_MIN }.finding(), None);
        assert!(Count { lines: 1001, assertions: DENSITY_MIN }.finding().is_some());
        assert!(Count { lines: 20, assertions: 0 }.finding().is_some());
        assert_eq!(Count::default().finding(), None);
    }
}
