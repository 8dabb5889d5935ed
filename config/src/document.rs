//! Stage one: what was written. A YAML document as a tree in which every key and value knows its line and column.
//!
//! Built straight from the parser's events, with no recursion: depth is bounded by [`MAX_DEPTH`], and the tree holds no
//! more nodes than the text has bytes. Aliases are refused, since a few lines of them can stand for gigabytes. Tags are
//! refused too: the type of a field is ours to know.

use granit_parser::{Event, Parser, ScalarStyle, Span};

use crate::problem::{Place, Problem};

/// Deeper nesting than any field has; a bound for whoever walks the tree by recursion.
pub(crate) const MAX_DEPTH: usize = 16;

/// A value as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Nothing, `~` or `null`.
    Empty,
    Scalar(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// The name of a field as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) place: Place,
    pub(crate) name: String,
}

impl Node {
    /// For messages: "a list".
    pub(crate) fn kind(&self) -> &'static str {
        match self.content {
            Content::Empty => "nothing",
            Content::Scalar(_) => "a single value",
            Content::List(_) => "a list",
            Content::Map(_) => "a section of fields",
        }
    }
}

impl Node {
    /// Where the field with this path stands, such as `client_tls.key_file`, or the nearest section round it.
    pub(crate) fn place_of(&self, path: &str) -> Place {
        let mut node = self;
        for name in path.split('.') {
            let Content::Map(fields) = &node.content else { break };
            let Some((_, value)) = fields.iter().find(|(key, _)| key.name == name) else { break };
            node = value;
        }
        node.place
    }
}

/// A collection whose end has not been read.
enum Open {
    List(Place, Vec<Node>),
    Map { place: Place, fields: Vec<(Key, Node)>, key: Option<Key> },
}

/// Reads the one document in `text`. A text without any content is an empty document.
pub(crate) fn parse(text: &str) -> Result<Node, Problem> {
    let mut open: Vec<Open> = Vec::new();
    let mut root: Option<Node> = None;
    for next in Parser::new_from_str(text) {
        let (event, span) = next.map_err(|error| {
            let mark = error.marker();
            Problem::at(
                Place { line: mark.line(), column: mark.col() + 1 },
                "",
                format!("not YAML: {}", error.info()),
            )
        })?;
        let place = place(&span);
        if event.tag().is_some() {
            return Err(Problem::at(place, "", "tags (`!name`) are not supported"));
        }
        let finished = match event {
            Event::Scalar(value, style, _, _) => Node { place, content: scalar(&value, style) },
            Event::SequenceStart(..) => {
                push(&mut open, Open::List(place, Vec::new()), place)?;
                continue;
            }
            Event::MappingStart(..) => {
                push(&mut open, Open::Map { place, fields: Vec::new(), key: None }, place)?;
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open::List(place, items)) => Node { place, content: Content::List(items) },
                Some(Open::Map { place, fields, key: _ }) => Node { place, content: Content::Map(fields) },
                None => return Err(Problem::at(place, "", "not YAML: an end without a beginning")),
            },
            Event::Alias(_) | Event::UnresolvedAlias(_) => {
                return Err(Problem::at(
                    place,
                    "",
                    "aliases (`*name`) are not supported: write the value out",
                ));
            }
            Event::DocumentStart(..) if root.is_some() => {
                return Err(Problem::at(place, "", "a second document: one file holds one configuration"));
            }
            Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(..)
            | Event::DocumentEnd
            | Event::Anchor(..) => continue,
            // The parser may learn new events (it has one for comments); what is not a node holds no field.
            _ => continue,
        };
        match open.last_mut() {
            None => root = Some(finished),
            Some(Open::List(_, items)) => items.push(finished),
            Some(Open::Map { fields, key, .. }) => match key.take() {
                Some(key) => fields.push((key, finished)),
                None => match finished.content {
                    Content::Scalar(name) => *key = Some(Key { place: finished.place, name }),
                    Content::Empty | Content::List(_) | Content::Map(_) => {
                        return Err(Problem::at(finished.place, "", "a field's name must be a word"));
                    }
                },
            },
        }
    }
    Ok(root.unwrap_or(Node { place: Place { line: 1, column: 1 }, content: Content::Empty }))
}

fn push(open: &mut Vec<Open>, collection: Open, place: Place) -> Result<(), Problem> {
    if open.len() == MAX_DEPTH {
        return Err(Problem::at(place, "", format!("nested more than {MAX_DEPTH} levels deep")));
    }
    open.push(collection);
    Ok(())
}

fn scalar(value: &str, style: ScalarStyle) -> Content {
    match style {
        ScalarStyle::Plain if matches!(value, "" | "~" | "null" | "Null" | "NULL") => Content::Empty,
        ScalarStyle::Plain
        | ScalarStyle::SingleQuoted
        | ScalarStyle::DoubleQuoted
        | ScalarStyle::Literal
        | ScalarStyle::Folded => Content::Scalar(value.to_owned()),
    }
}

fn place(span: &Span) -> Place {
    Place { line: span.start.line(), column: span.start.col() + 1 }
}
