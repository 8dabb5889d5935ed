//! Stage two: from what was written to checked values, by tables of fields.
//!
//! [`section!`] declares a section: each field has, in one place, its help, name, type, default and range. From that come
//! the struct, its reader, its comparison with another by field, and its rows in `docs/configuration.md`. Reading goes on
//! after a mistake, so that one run tells all mistakes of a file.

use crate::document::{Content, Key, Node};
use crate::problem::{Place, Problem};
use crate::value::Scalar;

/// How a type is written, for the reference.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Type {
    /// A single value.
    Scalar(&'static str),
    /// A list of something.
    List(&'static Type),
    /// Nested fields.
    Section(&'static SectionDoc),
}

/// A section for the reference.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SectionDoc {
    pub(crate) about: &'static [&'static str],
    pub(crate) fields: &'static [FieldDoc],
}

/// A field for the reference.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FieldDoc {
    pub(crate) name: &'static str,
    pub(crate) help: &'static [&'static str],
    pub(crate) r#type: Type,
    pub(crate) presence: Presence,
    /// Smallest and largest value, inclusive.
    pub(crate) range: Option<(&'static str, &'static str)>,
}

/// What happens when a field is not written.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Presence {
    /// It is a mistake.
    Required,
    /// The value is `None`.
    Optional,
    /// The value is this text, read as YAML.
    Default(&'static str),
}

/// Something a field can hold.
pub(crate) trait Read: Sized {
    const TYPE: Type;

    /// The value of `node`, which stands at the field `path`; `None` when a problem was noted.
    fn read(node: &Node, path: &str, problems: &mut Vec<Problem>) -> Option<Self>;

    /// Adds the names of the fields in which `self`, which stands at `path`, differs from `other`. A list is one field.
    fn compare(&self, other: &Self, path: &str, changed: &mut Vec<String>);
}

/// As [`Read::compare`], where there is nothing below `path`.
fn compare_whole<T: PartialEq>(one: &T, other: &T, path: &str, changed: &mut Vec<String>) {
    if one != other {
        changed.push(path.to_owned());
    }
}

/// As [`Read::compare`], of a field that may be left out.
pub(crate) fn compare_optional<T: Read>(
    one: Option<&T>,
    other: Option<&T>,
    path: &str,
    changed: &mut Vec<String>,
) {
    match (one, other) {
        (Some(one), Some(other)) => one.compare(other, path, changed),
        (None, None) => {}
        (Some(_), None) | (None, Some(_)) => changed.push(path.to_owned()),
    }
}

/// The path of the field `name` in the section at `path`.
pub(crate) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

impl<T: Scalar + PartialEq> Read for T {
    const TYPE: Type = Type::Scalar(T::KIND);

    fn read(node: &Node, path: &str, problems: &mut Vec<Problem>) -> Option<Self> {
        let problem = match &node.content {
            Content::Scalar(text) => match T::parse(text) {
                Ok(value) => return Some(value),
                Err(message) => message,
            },
            Content::Empty => "has no value; without the line it is as if unset".to_owned(),
            Content::List(_) | Content::Map(_) => format!("is {}, but should be {}", node.kind(), T::KIND),
        };
        problems.push(Problem::at(node.place, path, problem));
        None
    }

    fn compare(&self, other: &Self, path: &str, changed: &mut Vec<String>) {
        compare_whole(self, other, path, changed);
    }
}

impl<T: Read + PartialEq> Read for Vec<T> {
    const TYPE: Type = Type::List(&T::TYPE);

    fn read(node: &Node, path: &str, problems: &mut Vec<Problem>) -> Option<Self> {
        match &node.content {
            Content::Empty => Some(Self::new()),
            Content::List(items) => {
                // Every item is read, also after one that is wrong.
                let read: Self = items
                    .iter()
                    .enumerate()
                    .filter_map(|(index, item)| T::read(item, &format!("{path}[{index}]"), problems))
                    .collect();
                (read.len() == items.len()).then_some(read)
            }
            Content::Scalar(_) | Content::Map(_) => {
                problems.push(Problem::at(
                    node.place,
                    path,
                    format!("is {}, but should be a list", node.kind()),
                ));
                None
            }
        }
    }

    fn compare(&self, other: &Self, path: &str, changed: &mut Vec<String>) {
        compare_whole(self, other, path, changed);
    }
}

/// The written fields of one section, each with the table row that it belongs to.
pub(crate) struct Fields<'a> {
    place: Place,
    path: &'a str,
    written: &'a [(Key, Node)],
}

impl<'a> Fields<'a> {
    /// Opens `node` as a section; notes unknown and repeated fields.
    pub(crate) fn open(
        node: &'a Node,
        path: &'a str,
        known: &'static [FieldDoc],
        problems: &mut Vec<Problem>,
    ) -> Option<Self> {
        let written: &[(Key, Node)] = match &node.content {
            Content::Map(fields) => fields,
            Content::Empty => &[],
            Content::Scalar(_) | Content::List(_) => {
                let names = known.iter().map(|field| field.name).collect::<Vec<_>>().join(", ");
                let message = format!("is {}, but should be a section with the fields {names}", node.kind());
                problems.push(Problem::at(node.place, path, message));
                return None;
            }
        };
        let fields = Self { place: node.place, path, written };
        for (index, (key, _)) in written.iter().enumerate() {
            let field = fields.path_of(&key.name);
            if !known.iter().any(|field| field.name == key.name) {
                problems.push(Problem::at(key.place, field, unknown_field(&key.name, known)));
            } else if let Some((first, _)) =
                written.iter().take(index).find(|(other, _)| other.name == key.name)
            {
                let message = format!("is written a second time; the first is on line {}", first.place.line);
                problems.push(Problem::at(key.place, field, message));
            }
        }
        Some(fields)
    }

    /// Where to report something about the field `name`: its value, or the section when it was not written.
    pub(crate) fn place_of(&self, name: &str) -> Place {
        self.find(name).map_or(self.place, |node| node.place)
    }

    /// Path of the field `name` from the top of the file.
    pub(crate) fn path_of(&self, name: &str) -> String {
        join(self.path, name)
    }

    /// Notes a problem with the field `name`.
    pub(crate) fn note(&self, name: &str, message: impl Into<String>, problems: &mut Vec<Problem>) {
        problems.push(Problem::at(self.place_of(name), self.path_of(name), message));
    }

    /// A field that must be written.
    pub(crate) fn required<T: Read>(
        &self,
        name: &'static str,
        in_range: Option<Range<T>>,
        problems: &mut Vec<Problem>,
    ) -> Option<T> {
        let value = self.optional(name, in_range, problems)?;
        if value.is_none() {
            self.note(name, "is missing", problems);
        }
        value
    }

    /// A field that may be left out. `None` stands for a problem, `Some(None)` for unset.
    #[expect(clippy::option_option, reason = "two different absences")]
    pub(crate) fn optional<T: Read>(
        &self,
        name: &'static str,
        in_range: Option<Range<T>>,
        problems: &mut Vec<Problem>,
    ) -> Option<Option<T>> {
        let Some(node) = self.find(name) else { return Some(None) };
        let value = T::read(node, &self.path_of(name), problems)?;
        if let Some(range) = in_range
            && !(range.holds)(&value)
        {
            self.note(name, format!("must be from {} to {}", range.low, range.high), problems);
            return None;
        }
        Some(Some(value))
    }

    /// A field that has a default.
    pub(crate) fn or_default<T: Read>(
        &self,
        name: &'static str,
        default: &'static str,
        in_range: Option<Range<T>>,
        problems: &mut Vec<Problem>,
    ) -> Option<T> {
        if let Some(written) = self.optional(name, in_range, problems)? {
            return Some(written);
        }
        let node =
            crate::document::parse(default).expect("a default is YAML, as a test of every table checks");
        // A section's default may lack required fields; they are then missed where the section would stand.
        T::read(&Node { place: self.place, content: node.content }, &self.path_of(name), problems)
    }

    fn find(&self, name: &str) -> Option<&'a Node> {
        self.written.iter().find(|(key, _)| key.name == name).map(|(_, node)| node)
    }
}

/// The range of a field's values, inclusive.
pub(crate) struct Range<T> {
    pub(crate) low: &'static str,
    pub(crate) high: &'static str,
    pub(crate) holds: fn(&T) -> bool,
}

/// Whether `value` lies between two texts of its type.
pub(crate) fn lies_between<T: Scalar + PartialOrd>(value: &T, low: &str, high: &str) -> bool {
    let bound = |text| T::parse(text).expect("a bound is a value, as a test of every table checks");
    bound(low) <= *value && *value <= bound(high)
}

fn unknown_field(name: &str, known: &[FieldDoc]) -> String {
    let near = known.iter().map(|field| (distance(name, field.name), field.name)).min();
    // A third of the letters wrong is still a slip; more is another word.
    match near {
        Some((distance, near)) if distance <= near.len().div_ceil(3) => {
            format!("is not a known field; did you mean `{near}`?")
        }
        Some(_) | None => {
            let names = known.iter().map(|field| field.name).collect::<Vec<_>>().join(", ");
            format!("is not a known field; known here are {names}")
        }
    }
}

/// Edits (insert, delete, replace, swap of neighbours) between two words; a name longer than any field counts as far.
fn distance(written: &str, known: &str) -> usize {
    const LONGEST: usize = 64;
    let a: Vec<char> = written.chars().take(LONGEST).collect();
    let b: Vec<char> = known.chars().collect();
    // rows[i][j]: edits from the first i letters of `a` to the first j of `b`.
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replace.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

/// Declares a section. A field reads
/// `/// help` `name: Type = required | optional | default("text")`, then perhaps `["low" to "high"]`, then `;`.
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        pub struct $name:ident $(, checked by $check:path)? {
            $(
                $(#[doc = $help:literal])+
                $field:ident : $type:ty = $presence:ident $(($default:literal))? $([$low:literal to $high:literal])? ;
            )+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name {
            $( $(#[doc = $help])+ pub $field: section!(@type $presence $type), )+
        }

        impl $name {
            const FIELDS: &'static [$crate::table::FieldDoc] = &[
                $($crate::table::FieldDoc {
                    name: stringify!($field),
                    help: &[$($help),+],
                    r#type: <$type as $crate::table::Read>::TYPE,
                    presence: section!(@presence $presence $($default)?),
                    range: section!(@bounds $($low $high)?),
                },)+
            ];
        }

        impl $crate::table::Read for $name {
            const TYPE: $crate::table::Type = $crate::table::Type::Section(&$crate::table::SectionDoc {
                about: &[$($about),+],
                fields: Self::FIELDS,
            });

            fn read(
                node: &$crate::document::Node,
                path: &str,
                problems: &mut Vec<$crate::problem::Problem>,
            ) -> Option<Self> {
                let fields = $crate::table::Fields::open(node, path, Self::FIELDS, problems)?;
                // Read every field before giving up on any.
                $(
                    let $field: Option<section!(@type $presence $type)> =
                        section!(@read $presence fields $field ($($default)?) (section!(@range $type, $($low $high)?)) problems);
                )+
                let section = Self { $($field: $field?,)+ };
                $( $check(&section, &fields, problems)?; )?
                Some(section)
            }

            fn compare(&self, other: &Self, path: &str, changed: &mut Vec<String>) {
                $(
                    let field = $crate::table::join(path, stringify!($field));
                    section!(@compare $presence self.$field, other.$field, field, changed);
                )+
            }
        }
    };

    (@type required $type:ty) => { $type };
    (@type default $type:ty) => { $type };
    (@type optional $type:ty) => { Option<$type> };

    (@compare required $one:expr, $other:expr, $path:ident, $changed:ident) => {
        $crate::table::Read::compare(&$one, &$other, &$path, $changed)
    };
    (@compare default $one:expr, $other:expr, $path:ident, $changed:ident) => {
        $crate::table::Read::compare(&$one, &$other, &$path, $changed)
    };
    (@compare optional $one:expr, $other:expr, $path:ident, $changed:ident) => {
        $crate::table::compare_optional($one.as_ref(), $other.as_ref(), &$path, $changed)
    };

    (@presence required) => { $crate::table::Presence::Required };
    (@presence optional) => { $crate::table::Presence::Optional };
    (@presence default $default:literal) => { $crate::table::Presence::Default($default) };

    (@bounds) => { None };
    (@bounds $low:literal $high:literal) => { Some(($low, $high)) };

    (@range $type:ty,) => { None };
    (@range $type:ty, $low:literal $high:literal) => {
        Some($crate::table::Range::<$type> {
            low: $low,
            high: $high,
            holds: |value| $crate::table::lies_between(value, $low, $high),
        })
    };

    (@read required $fields:ident $field:ident () ($range:expr) $problems:ident) => {
        $fields.required(stringify!($field), $range, $problems)
    };
    (@read optional $fields:ident $field:ident () ($range:expr) $problems:ident) => {
        $fields.optional(stringify!($field), $range, $problems)
    };
    (@read default $fields:ident $field:ident ($default:literal) ($range:expr) $problems:ident) => {
        $fields.or_default(stringify!($field), $default, $range, $problems)
    };
}
pub(crate) use section;
