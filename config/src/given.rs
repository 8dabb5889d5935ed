//! Fields that are given beside the file, by flags or by the environment, so that processes can share a file: what starts
//! many copies of one thing can tell each copy who it is, but not write a file for each.

use crate::document::{Content, Key, Node};
use crate::problem::{Place, Problem};

/// What stands in place of a file's own fields, as it was written. A text without letters counts as not given: an
/// environment names variables whose value it does not know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// For `node`.
    pub node: Option<String>,
    /// For `name`.
    pub name: Option<String>,
    /// For `zone`.
    pub zone: Option<String>,
}

impl Given {
    fn fields(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let all = [("node", &self.node), ("name", &self.name), ("zone", &self.zone)];
        all.into_iter()
            .filter_map(|(name, text)| Some((name, text.as_deref()?)))
            .filter(|(_, text)| !text.is_empty())
    }

    /// The document with these fields in it. What is no section is left as it is, for the reader to report.
    pub(crate) fn over(&self, root: Node) -> Node {
        let Node { place, content } = root;
        let mut written = match content {
            Content::Map(fields) => fields,
            Content::Empty => Vec::new(),
            Content::Scalar(_) | Content::List(_) => return Node { place, content },
        };
        for (name, text) in self.fields() {
            let value = |place| Node { place, content: Content::Scalar(text.to_owned()) };
            match written.iter_mut().find(|(key, _)| key.name == name) {
                Some((_, field)) => *field = value(field.place),
                None => written.push((Key { place: START, name: name.to_owned() }, value(START))),
            }
        }
        Node { place, content: Content::Map(written) }
    }

    /// Tells of the problems with these fields that it is not the file which has them.
    pub(crate) fn explain(&self, problems: &mut [Problem]) {
        for (name, _) in self.fields() {
            for problem in problems.iter_mut().filter(|problem| problem.field == name) {
                let variable = name.to_uppercase();
                problem.message.push_str(&format!(" (given by --{name} or GAIOS_{variable})"));
            }
        }
    }
}

const START: Place = Place { line: 1, column: 1 };
