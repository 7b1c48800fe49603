//! The names that exporters give to a model in other precisions and optimised forms:
//! transformers.js (`_fp16`, `_q4f16`, ...), Optimum (`_quantized`, `_optimized`) and
//! sentence-transformers (`_O2`, `_qint8_avx512`).

/// What follows the name of a model, in the order in which they stand in for one that has
/// no file without it.
const PRECISIONS: [&str; 13] = [
    "_fp32",
    "_float32",
    "_optimized",
    "_fp16",
    "_float16",
    "_bf16",
    "_quantized",
    "_int8",
    "_uint8",
    "_q8",
    "_q4",
    "_q4f16",
    "_bnb4",
];

/// The same, with more after it that names a processor or a level.
const FAMILIES: [&str; 3] = ["_O", "_qint8", "_quint8"];

/// The name without what tells a precision.
pub(super) fn base(stem: &str) -> &str {
    for precision in PRECISIONS {
        if let Some(base) = stem.strip_suffix(precision).filter(|base| !base.is_empty()) {
            return base;
        }
    }
    for family in FAMILIES {
        if let Some((base, more)) = stem.rsplit_once(family)
            && !base.is_empty()
            && is_detail(family, more)
        {
            return base;
        }
    }
    stem
}

fn is_detail(family: &str, more: &str) -> bool {
    match family {
        "_O" => more.len() == 1 && more.chars().all(|c| ('1'..='4').contains(&c)),
        _ => more.is_empty() || more.starts_with('_'),
    }
}

/// The place of a file among those of its model: the first is the one that is measured.
pub(super) fn rank(stem: &str, base: &str) -> usize {
    match stem.strip_prefix(base) {
        None | Some("") => 0,
        Some(more) if more.starts_with("_O") => 1,
        Some(more) => {
            let at = PRECISIONS.iter().position(|p| *p == more);
            2 + at.unwrap_or(PRECISIONS.len())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precisions_are_cut_off() {
        for (stem, is) in [
            ("model", "model"),
            ("model_quantized", "model"),
            ("model_q4f16", "model"),
            ("model_O4", "model"),
            ("model_O9", "model_O9"),
            ("model_qint8_avx512_vnni", "model"),
            ("decoder_model_merged_fp16", "decoder_model_merged"),
            ("decoder_with_past_model", "decoder_with_past_model"),
            ("_q4", "_q4"),
            ("my_Onnx", "my_Onnx"),
        ] {
            assert_eq!(base(stem), is, "{stem}");
        }
        assert!(rank("model", "model") < rank("model_O1", "model"));
        assert!(rank("model_fp16", "model") < rank("model_q4", "model"));
    }
}
