//! Keys and values as readable JSON strings: printable ASCII as it is, `\\` for a backslash, `\xNN` for the rest.
//! Arrays of numbers would make a saved history unreadable, and keys need not be UTF-8.

use serde::{Deserialize, Deserializer, Serializer, de::Error};

/// Writes `bytes` in the escaped form.
pub(crate) fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'\\' => text.push_str("\\\\"),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => text.push_str(&format!("\\x{byte:02x}")),
        }
    }
    text
}

/// Reads the escaped form back.
fn unescape(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first != b'\\' {
            bytes.push(first);
            continue;
        }
        match rest {
            [b'\\', after @ ..] => {
                bytes.push(b'\\');
                rest = after;
            }
            [b'x', high, low, after @ ..] => {
                let digit = |byte: u8| char::from(byte).to_digit(16).ok_or_else(|| bad_escape(text));
                // Two hexadecimal digits are at most 255.
                bytes.push((digit(*high)? * 16 + digit(*low)?) as u8);
                rest = after;
            }
            _ => return Err(bad_escape(text)),
        }
    }
    Ok(bytes)
}

fn bad_escape(text: &str) -> String {
    format!("bad escape in {text:?}: expected \\\\ or \\xNN")
}

pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&escape(bytes))
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    unescape(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

/// The same for a list of keys.
pub(crate) mod list {
    use super::{escape, unescape};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(keys: &[Vec<u8>], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(keys.iter().map(|key| escape(key)))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Vec<u8>>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        texts.iter().map(|text| unescape(text).map_err(D::Error::custom)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{escape, unescape};

    #[test]
    fn every_byte_survives() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(unescape(&escape(&bytes)).unwrap(), bytes);
        assert_eq!(escape(b"a\\b\0\xff"), "a\\\\b\\x00\\xff");
    }

    #[test]
    fn bad_escapes_are_errors() {
        for text in ["\\", "\\x", "\\x0", "\\xg0", "\\n"] {
            assert!(unescape(text).is_err(), "{text}");
        }
    }
}
