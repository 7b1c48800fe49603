//! Values of a JSON text by their place, so that one can be replaced and all else stays as
//! it was written.

use std::ops::Range;

/// The place of the value under some keys, one inside of the other; `None` where there is
/// none. The text must be valid JSON.
pub(super) fn span(text: &str, keys: &[&str]) -> Option<Range<usize>> {
    let bytes = text.as_bytes();
    let mut at = blank(bytes, 0);
    for key in keys {
        at = member(text, at, key)?;
    }
    Some(at..value(bytes, at)?)
}

/// Replaces the value under some keys; `false` where there is none.
pub(super) fn replace(text: &mut String, keys: &[&str], new: &str) -> bool {
    match span(text, keys) {
        Some(range) => {
            text.replace_range(range, new);
            true
        }
        None => false,
    }
}

fn blank(bytes: &[u8], mut at: usize) -> usize {
    while bytes.get(at).is_some_and(u8::is_ascii_whitespace) {
        at += 1;
    }
    at
}

/// Where the value of a member of the object at `at` begins.
fn member(text: &str, at: usize, key: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut at = blank(bytes, at);
    if bytes.get(at) != Some(&b'{') {
        return None;
    }
    at = blank(bytes, at + 1);
    while bytes.get(at) == Some(&b'"') {
        let end = string(bytes, at)?;
        let name: String = serde_json::from_str(&text[at..end]).ok()?;
        at = blank(bytes, end);
        if bytes.get(at) != Some(&b':') {
            return None;
        }
        at = blank(bytes, at + 1);
        if name == key {
            return Some(at);
        }
        at = blank(bytes, value(bytes, at)?);
        if bytes.get(at) != Some(&b',') {
            return None;
        }
        at = blank(bytes, at + 1);
    }
    None
}

/// The end of a string that begins at `at`.
fn string(bytes: &[u8], at: usize) -> Option<usize> {
    let mut at = at + 1;
    loop {
        match bytes.get(at)? {
            b'\\' => at += 2,
            b'"' => return Some(at + 1),
            _ => at += 1,
        }
    }
}

/// The end of a value that begins at `at`.
fn value(bytes: &[u8], at: usize) -> Option<usize> {
    let mut depth = 0usize;
    let mut at = at;
    loop {
        match bytes.get(at) {
            Some(b'"') => {
                at = string(bytes, at)?;
                if depth == 0 {
                    return Some(at);
                }
                continue;
            }
            Some(b'{' | b'[') => depth += 1,
            Some(b'}' | b']') => match depth {
                0 => return Some(at),
                1 => return Some(at + 1),
                _ => depth -= 1,
            },
            Some(b',') if depth == 0 => return Some(at),
            Some(c) if depth == 0 && c.is_ascii_whitespace() => return Some(at),
            Some(_) => {}
            None => return (depth == 0).then_some(at),
        }
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_value_changes() {
        let mut text = "{ \"a\": [1, {\"vocab_size\": 3}],\n  \"x\\\"y\": \"}\",\n  \"m\": {\"vocab_size\" : 30522 , \"n\": null} }".to_owned();
        assert!(replace(&mut text, &["m", "vocab_size"], "7"));
        assert!(!replace(&mut text, &["vocab_size"], "7"));
        assert!(!replace(&mut text, &["m", "n", "o"], "7"));
        assert!(replace(&mut text, &["x\"y"], "true"));
        assert_eq!(
            text,
            "{ \"a\": [1, {\"vocab_size\": 3}],\n  \"x\\\"y\": true,\n  \"m\": {\"vocab_size\" : 7 , \"n\": null} }"
        );
    }
}
