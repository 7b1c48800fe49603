//! Tokens by the scripts that they are written in.

use regex::Regex;

use crate::{Error, Result};

/// Some scripts.
pub(super) struct Scripts(Regex);

impl Scripts {
    /// By their names in Unicode, such as `latin`; `None` where there are none.
    ///
    /// # Errors
    /// A name that Unicode does not have.
    pub(super) fn named(names: &[String]) -> Result<Option<Self>> {
        if names.is_empty() {
            return Ok(None);
        }
        let mut any = String::from(r"\p{sc=Common}|\p{sc=Inherited}");
        for name in names {
            let is_word = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphabetic() || c == '_');
            let class = format!(r"\p{{sc={name}}}");
            if !is_word || Regex::new(&class).is_err() {
                return Err(Error::input(format!(
                    "--vocab-languages: there is no script '{name}'; scripts have Unicode's names, such as latin, \
                     cyrillic, greek, arabic, hebrew, devanagari, han, hiragana, katakana, hangul, thai"
                )));
            }
            any += "|";
            any += &class;
        }
        let all = Regex::new(&format!("^(?:{any})*$"));
        let all = all.map_err(|e| Error::input(format!("--vocab-languages: {e}")))?;
        Ok(Some(Self(all)))
    }

    /// Whether all letters of a text are of these scripts.
    pub(super) fn write(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

/// The text of a token whose characters each stand for a byte, as byte-level tokenizers
/// have them; `None` where it ends inside of a character.
pub(super) fn of_bytes(token: &str) -> Option<String> {
    let bytes: Option<Vec<u8>> = token.chars().map(byte).collect();
    String::from_utf8(bytes?).ok()
}

/// Printable bytes stand for themselves, the others are numbered from 256 on.
fn byte(c: char) -> Option<u8> {
    let printable = |b: &u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let code = u32::from(c);
    match u8::try_from(code) {
        Ok(b) => printable(&b).then_some(b),
        Err(_) => (0..=255u8).filter(|b| !printable(b)).nth((code - 256) as usize),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_decide_and_marks_do_not() {
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let scripts = Scripts::named(&names(&["latin", "Greek"])).unwrap().unwrap();
        for (text, is) in [
            ("straße", true),
            ("λόγος", true),
            ("42!?", true),
            ("слово", false),
            ("aж", false),
            ("東", false),
        ] {
            assert_eq!(scripts.write(text), is, "{text}");
        }
        assert!(Scripts::named(&[]).unwrap().is_none());
        for wrong in ["klingon", "Latin}|.|\\p{L", ""] {
            assert!(Scripts::named(&names(&[wrong])).is_err(), "{wrong}");
        }
    }

    #[test]
    fn byte_level_tokens_are_read() {
        assert_eq!(of_bytes("Ġthe").as_deref(), Some(" the"));
        assert_eq!(of_bytes("Ð¶").as_deref(), Some("ж"));
        assert_eq!(of_bytes("Ð"), None);
        assert_eq!(of_bytes("▁the"), None);
    }
}
