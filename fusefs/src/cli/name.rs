//! **PURE.** Names are bytes: how they are shown to people, to programs and in JSON.
//!
//! Invariant: what is printed to a terminal holds no control character; JSON says whether a name was
//! shown exactly.

use std::fmt::Write as _;

use serde::Serialize;

/// A name or path as JSON carries it.
///
/// Shape: `text` is exact if `hex` is absent; else the bytes are not UTF-8, `text` shows them with
///        U+FFFD, and `hex` is all of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JsonName {
    /// As text.
    #[serde(rename = "name")]
    pub text: String,
    /// All bytes in hex, only if they are not UTF-8.
    #[serde(rename = "name_hex", skip_serializing_if = "Option::is_none")]
    pub hex: Option<String>,
}

impl JsonName {
    /// Of these bytes.
    pub fn new(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self { text: text.to_owned(), hex: None },
            Err(_) => Self { text: String::from_utf8_lossy(bytes).into_owned(), hex: Some(hex(bytes)) },
        }
    }
}

/// Bytes as lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// For a terminal or a message: control characters, backslashes and bytes that are not UTF-8 become
/// `\n`, `\t`, `\\` or `\xHH`.
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for piece in bytes.utf8_chunks() {
        for character in piece.valid().chars() {
            match character {
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                '\\' => text.push_str("\\\\"),
                // Beside ASCII's controls also those that turn the direction of a line around.
                c if c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') => {
                    let mut utf8 = [0; 4];
                    for byte in c.encode_utf8(&mut utf8).bytes() {
                        let _ = write!(text, "\\x{byte:02x}");
                    }
                }
                c => text.push(c),
            }
        }
        for byte in piece.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn unescape(text: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut rest = text.as_bytes();
        while let Some((first, tail)) = rest.split_first() {
            rest = tail;
            if *first != b'\\' {
                bytes.push(*first);
                continue;
            }
            let used = match tail[0] {
                b'n' => (b'\n', 1),
                b'r' => (b'\r', 1),
                b't' => (b'\t', 1),
                b'\\' => (b'\\', 1),
                _ => (u8::from_str_radix(std::str::from_utf8(&tail[1..3]).unwrap(), 16).unwrap(), 3),
            };
            bytes.push(used.0);
            rest = &tail[used.1..];
        }
        bytes
    }

    proptest! {
        #[test]
        fn an_escaped_name_is_harmless_and_says_every_byte(name: Vec<u8>) {
            let text = escape(&name);
            prop_assert!(!text.chars().any(char::is_control));
            prop_assert_eq!(unescape(&text), name);
        }
    }

    #[test]
    fn json_is_exact_or_says_that_it_is_not() {
        let plain = serde_json::to_value(JsonName::new("über\n".as_bytes())).unwrap();
        assert_eq!(plain, serde_json::json!({ "name": "über\n" }));
        let odd = serde_json::to_value(JsonName::new(b"a\xffb")).unwrap();
        assert_eq!(odd, serde_json::json!({ "name": "a\u{fffd}b", "name_hex": "61ff62" }));
    }

    #[test]
    fn a_terminal_cannot_be_driven_by_a_name() {
        assert_eq!(escape(b"\x1b[2Jx\n\xff"), "\\x1b[2Jx\\n\\xff");
    }
}
