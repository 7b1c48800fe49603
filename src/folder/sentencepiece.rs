//! A sentencepiece model without some of its pieces, at the level of its bytes: field 1 of
//! the message holds a piece, whose field 1 is its text and field 3 its type; all other
//! fields stay as they are.

/// Types of pieces that are no words: unknown, control, user-defined, byte.
const SPECIAL: [u64; 4] = [2, 3, 4, 6];

/// The model with the pieces that `keep` names and the special ones; `None` where this is
/// no such model.
pub(super) fn without(bytes: &[u8], keep: impl Fn(&str) -> bool) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut pieces = 0usize;
    let mut at = 0;
    while at < bytes.len() {
        let field = Field::read(bytes, at)?;
        let stays = match (field.number, field.content) {
            (1, Some((from, to))) => {
                pieces += 1;
                let piece = bytes.get(from..to)?;
                let (text, kind) = text_and_kind(piece)?;
                SPECIAL.contains(&kind) || keep(text)
            }
            _ => true,
        };
        if stays {
            out.extend_from_slice(bytes.get(at..field.end)?);
        }
        at = field.end;
    }
    (pieces > 0).then_some(out)
}

fn text_and_kind(piece: &[u8]) -> Option<(&str, u64)> {
    let (mut text, mut kind, mut at) = ("", 1, 0);
    while at < piece.len() {
        let field = Field::read(piece, at)?;
        match (field.number, field.content) {
            (1, Some((from, to))) => text = std::str::from_utf8(piece.get(from..to)?).ok()?,
            (3, None) => kind = field.value,
            _ => {}
        }
        at = field.end;
    }
    Some((text, kind))
}

/// A field of a protobuf message.
struct Field {
    number: u64,
    /// Its value, if it is a number of variable length.
    value: u64,
    /// Where its content is, if it has a length.
    content: Option<(usize, usize)>,
    end: usize,
}

impl Field {
    fn read(bytes: &[u8], at: usize) -> Option<Self> {
        let (key, at) = varint(bytes, at)?;
        let (value, content, end) = match key & 7 {
            0 => {
                let (value, end) = varint(bytes, at)?;
                (value, None, end)
            }
            1 => (0, None, at + 8),
            5 => (0, None, at + 4),
            2 => {
                let (length, from) = varint(bytes, at)?;
                let to = from.checked_add(usize::try_from(length).ok()?)?;
                (0, Some((from, to)), to)
            }
            _ => return None,
        };
        (end <= bytes.len()).then_some(Self {
            number: key >> 3,
            value,
            content,
            end,
        })
    }
}

fn varint(bytes: &[u8], mut at: usize) -> Option<(u64, usize)> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(at)?;
        at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some((value, at));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(text: &str, kind: Option<u8>) -> Vec<u8> {
        let mut own = vec![0x0a, text.len() as u8];
        own.extend(text.as_bytes());
        own.extend([0x15, 0, 0, 0x80, 0xbf]);
        own.extend(kind.into_iter().flat_map(|kind| [0x18, kind]));
        let mut out = vec![0x0a, own.len() as u8];
        out.extend(own);
        out
    }

    #[test]
    fn pieces_go_and_the_rest_stays() {
        let rest = [0x12, 2, 7, 7];
        let all = [
            piece("<unk>", Some(2)),
            piece("a", None),
            piece("bc", None),
            rest.to_vec(),
        ]
        .concat();
        let less = without(&all, |piece| piece == "bc").unwrap();
        assert_eq!(
            less,
            [piece("<unk>", Some(2)), piece("bc", None), rest.to_vec()].concat()
        );
        assert_eq!(without(b"not a model", |_| true), None);
        assert_eq!(without(&[], |_| true), None);
        for end in 0..all.len() {
            let _ = without(&all[..end], |_| false);
        }
    }
}
