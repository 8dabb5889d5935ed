//! The fields of a role as a JSON Schema, for whatever writes configuration files: the chart's values mirror them.

use std::fmt::Write;

use crate::schema::{Gateway, Replica};
use crate::table::{FieldDoc, Presence, Read, SectionDoc, Type};
use crate::value::Role;

/// The schema of a role's section, without the fields `without`: those that are not for the user to give. Fields that a file must
/// have are not required here, since what writes the file may add them.
#[must_use]
pub fn json_schema(role: Role, without: &[&str]) -> String {
    let r#type = match role {
        Role::Replica => Replica::TYPE,
        Role::Gateway => Gateway::TYPE,
    };
    let mut text = String::new();
    match r#type {
        Type::Section(doc) => section(&mut text, doc, without),
        Type::Scalar(_) | Type::List(_) => unreachable!("a role is a section"),
    }
    text
}

fn section(text: &mut String, doc: &SectionDoc, without: &[&str]) {
    text.push_str("{\"type\": \"object\", \"additionalProperties\": false, \"properties\": {");
    let fields = doc.fields.iter().filter(|field| !without.contains(&field.name));
    for (index, field) in fields.enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        write!(text, "{comma}{}: ", quoted(field.name)).expect(INFALLIBLE);
        property(text, field);
    }
    text.push_str("}}");
}

fn property(text: &mut String, field: &FieldDoc) {
    let before = text.len();
    schema(text, &field.r#type, field.range);
    // What is told of the field goes first in its object.
    let help = field.help.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
    let mut told = format!("{{\"description\": {}, ", quoted(&help));
    if let (Presence::Default(default), Type::Scalar(kind)) = (field.presence, field.r#type)
        && !is_bare(kind)
    {
        write!(told, "\"default\": {}, ", quoted(default)).expect(INFALLIBLE);
    }
    text.replace_range(before..=before, &told);
}

fn schema(text: &mut String, r#type: &Type, range: Option<(&str, &str)>) {
    match r#type {
        Type::Section(doc) => section(text, doc, &[]),
        Type::List(item) => {
            text.push_str("{\"type\": \"array\", \"items\": ");
            schema(text, item, None);
            text.push('}');
        }
        Type::Scalar(kind) => scalar(text, kind, range),
    }
}

fn scalar(text: &mut String, kind: &str, range: Option<(&str, &str)>) {
    let written = if kind.starts_with("a whole number") {
        let (low, high) = range.unwrap_or(("0", "4294967295"));
        // Beyond it, numbers of JSON are no longer whole.
        let high = high.parse().unwrap_or(u64::MAX).min(1 << 53);
        format!("{{\"type\": \"integer\", \"minimum\": {low}, \"maximum\": {high}}}")
    } else if kind.starts_with("`true`") {
        "{\"type\": \"boolean\"}".to_owned()
    } else if kind.starts_with('`') {
        let words: Vec<_> = kind.split('`').skip(1).step_by(2).map(quoted).collect();
        format!("{{\"enum\": [{}]}}", words.join(", "))
    } else if kind.starts_with("a duration") {
        pattern("^([0-9]+(ns|us|ms|s|m|h))+$")
    } else if kind.starts_with("a size") {
        pattern("^[0-9]+(\\.[0-9]+)? ?([KMGT]i)?B$")
    } else {
        "{\"type\": \"string\", \"minLength\": 1}".to_owned()
    };
    text.push_str(&written);
}

/// Written without quotes in a file.
fn is_bare(kind: &str) -> bool {
    kind.starts_with("a whole number") || kind.starts_with("`true`")
}

fn pattern(pattern: &str) -> String {
    format!("{{\"type\": \"string\", \"pattern\": {}}}", quoted(pattern))
}

fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            control if control.is_control() => {
                write!(quoted, "\\u{:04x}", u32::from(control)).expect(INFALLIBLE);
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

const INFALLIBLE: &str = "writing to a string cannot fail";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_there_with_their_ranges_and_those_of_others_are_not() {
        let text = json_schema(Role::Replica, &["role", "cluster"]);
        assert!(text.starts_with("{\"type\": \"object\", \"additionalProperties\": false"));
        assert!(text.contains("\"type\": \"integer\", \"minimum\": 1, \"maximum\": 1024"), "{text}");
        assert!(text.contains("\"enum\": [\"error\", \"warn\", \"info\", \"debug\", \"trace\"]"), "{text}");
        assert!(
            text.contains("\"quota_bytes\": {\"description\": ") && text.contains("\"default\": \"2GiB\"")
        );
        assert!(!text.contains("\"cluster\"") && !text.contains("\"role\""), "{text}");
        let gateway = json_schema(Role::Gateway, &[]);
        assert!(gateway.contains("\"cluster\"") && gateway.contains("\"max_txn_ops\""));
    }

    #[test]
    fn text_is_quoted() {
        assert_eq!(quoted("a \"b\" \\ \n"), r#""a \"b\" \\ \u000a""#);
    }
}
