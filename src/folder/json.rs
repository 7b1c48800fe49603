//! Values of a JSON text by their place, so that some can be replaced and all else stays as
//! it was written.

/// The text with other values: `new` gets the keys that lead to a value, through objects
/// only, and the text of the value, and gives another text for it or `None` for one that
/// stays and whose members are looked at. The text must be valid JSON, as [`standard`] is.
pub(super) fn edited(text: &str, new: &mut dyn FnMut(&[String], &str) -> Option<String>) -> String {
    let mut edits = Edits {
        text,
        keys: Vec::new(),
        made: String::with_capacity(text.len()),
        copied: 0,
    };
    let _end = edits.value(blank(text.as_bytes(), 0), new);
    edits.made + &text[edits.copied..]
}

/// The text with `null` for the numbers that Python writes and JSON does not have.
pub(super) fn standard(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut made = String::with_capacity(text.len());
    let (mut at, mut copied) = (0, 0);
    while at < bytes.len() {
        if bytes[at] == b'"' {
            at = string(bytes, at).unwrap_or(bytes.len());
            continue;
        }
        let word = ["NaN", "-Infinity", "Infinity"]
            .into_iter()
            .find(|word| bytes[at..].starts_with(word.as_bytes()));
        match word {
            Some(word) => {
                made.push_str(&text[copied..at]);
                made.push_str("null");
                at += word.len();
                copied = at;
            }
            None => at += 1,
        }
    }
    made + &text[copied.min(text.len())..]
}

struct Edits<'t> {
    text: &'t str,
    /// Those that lead to where it is.
    keys: Vec<String>,
    made: String,
    /// Up to where the text is in `made`.
    copied: usize,
}

impl Edits<'_> {
    /// Goes through the value at `at`; its end comes back.
    fn value(&mut self, at: usize, new: &mut dyn FnMut(&[String], &str) -> Option<String>) -> Option<usize> {
        let bytes = self.text.as_bytes();
        let end = value(bytes, at)?;
        if let Some(other) = new(&self.keys, &self.text[at..end]) {
            self.made.push_str(&self.text[self.copied..at]);
            self.made.push_str(&other);
            self.copied = end;
            return Some(end);
        }
        if bytes.get(at) != Some(&b'{') {
            return Some(end);
        }
        let mut at = blank(bytes, at + 1);
        while bytes.get(at) == Some(&b'"') {
            let close = string(bytes, at)?;
            self.keys.push(serde_json::from_str(&self.text[at..close]).ok()?);
            at = blank(bytes, blank(bytes, close) + 1);
            at = blank(bytes, self.value(at, new)?);
            self.keys.pop();
            if bytes.get(at) != Some(&b',') {
                break;
            }
            at = blank(bytes, at + 1);
        }
        Some(end)
    }
}

fn blank(bytes: &[u8], mut at: usize) -> usize {
    while bytes.get(at).is_some_and(u8::is_ascii_whitespace) {
        at += 1;
    }
    at
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
    fn only_some_values_change() {
        let text = "{ \"a\": [1, {\"size\": 3}],\n  \"x\\\"y\": \"}\",\n  \"m\": {\"size\" : 30522 , \"n\": null}, \"m\": {\"size\": 1} }";
        let made = edited(text, &mut |keys, value| match keys {
            [m, size] if m == "m" && size == "size" => Some(format!("<{value}>")),
            [x] if x == "x\"y" => Some("true".into()),
            _ => None,
        });
        // Of members with one name each is changed: readers differ in which one counts.
        assert_eq!(
            made,
            "{ \"a\": [1, {\"size\": 3}],\n  \"x\\\"y\": true,\n  \"m\": {\"size\" : <30522> , \"n\": null}, \"m\": {\"size\": <1>} }"
        );
        assert_eq!(
            edited("[{\"a\": 1}]", &mut |keys, _| keys.first().cloned()),
            "[{\"a\": 1}]"
        );
        assert_eq!(edited(" 7 ", &mut |_, _| Some("8".into())), " 8 ");
    }

    /// Any JSON stays the same but for what is replaced, and is JSON then.
    #[test]
    fn random_texts_stay_valid() {
        use rand::rngs::StdRng;
        use rand::{RngExt as _, SeedableRng as _};
        use serde_json::{Map, Value, json};

        fn random_value(random: &mut StdRng, depth: usize) -> Value {
            let text = |random: &mut StdRng| -> String {
                let all = [
                    'a',
                    '"',
                    '\\',
                    '{',
                    '}',
                    '[',
                    ',',
                    ':',
                    '\n',
                    ' ',
                    'é',
                    '\u{1F600}',
                ];
                (0..random.random_range(0..4))
                    .map(|_| all[random.random_range(0..all.len())])
                    .collect()
            };
            match random.random_range(0..if depth == 0 { 4 } else { 7 }) {
                0 => Value::Null,
                1 => json!(random.random_range(-9..99)),
                2 => json!(f64::from(random.random_range(0..64)) / 8.0 + 0.5),
                3 => json!(text(random)),
                4 => (0..random.random_range(0..4))
                    .map(|_| random_value(random, depth - 1))
                    .collect(),
                _ => {
                    let members = (0..random.random_range(0..5)).map(|_| {
                        let key = text(random);
                        (key, random_value(random, depth - 1))
                    });
                    Value::Object(members.collect::<Map<_, _>>())
                }
            }
        }
        fn replaced(value: &Value) -> Value {
            match value {
                Value::Object(all) => all
                    .iter()
                    .map(|(key, v)| (key.clone(), if v.is_i64() { json!("new") } else { replaced(v) }))
                    .collect::<Map<_, _>>()
                    .into(),
                other => other.clone(),
            }
        }
        for seed in 0..2000 {
            let mut random = StdRng::seed_from_u64(seed);
            let value = random_value(&mut random, 4);
            for text in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
                assert_eq!(edited(&text, &mut |_, _| None), text);
                let made = edited(&text, &mut |keys, value| {
                    (!keys.is_empty() && value.parse::<i64>().is_ok()).then(|| "\"new\"".into())
                });
                let made: Value = serde_json::from_str(&made).unwrap();
                assert_eq!(made, replaced(&value), "{text}");
            }
        }
    }

    #[test]
    fn members_take_time_in_proportion() {
        let members: Vec<String> = (0..100_000).map(|i| format!("\"k{i}\": {i}")).collect();
        let text = format!("{{{}}}", members.join(", "));
        let mut seen = 0;
        let made = edited(&text, &mut |keys, _| {
            seen += keys.len();
            None
        });
        assert_eq!((made == text, seen), (true, 100_000));
    }

    #[test]
    fn numbers_of_python_are_taken() {
        let text = r#"{"a": NaN, "b": [-Infinity, Infinity], "c": "NaN"}"#;
        assert_eq!(standard(text), r#"{"a": null, "b": [null, null], "c": "NaN"}"#);
        assert_eq!(standard("{}"), "{}");
        assert_eq!(standard("\"open"), "\"open");
    }
}
