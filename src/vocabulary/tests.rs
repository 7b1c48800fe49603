use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use super::*;
use crate::tensor::{Data, Tensor};

/// A model of nothing but a table of so many rows: the row of a token begins with its id.
fn table(rows: usize) -> proto::ModelProto {
    let values = (0..rows).flat_map(|at| [at as f32, 1.0 + (at % 7) as f32]);
    let node = proto::NodeProto {
        op_type: Some("Gather".into()),
        input: vec!["table".into(), "input_ids".into()],
        output: vec!["rows".into()],
        ..Default::default()
    };
    let info = |name: &str| proto::ValueInfoProto {
        name: Some(name.into()),
        ..Default::default()
    };
    proto::ModelProto {
        graph: Some(proto::GraphProto {
            node: vec![node],
            initializer: vec![crate::onnx::tensor_proto(
                "table",
                &Tensor::f32(vec![rows, 2], values.collect::<Vec<_>>()),
            )],
            input: vec![info("input_ids")],
            output: vec![info("rows")],
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn words(random: &mut StdRng, count: usize) -> String {
    let word = |random: &mut StdRng| -> String {
        (0..random.random_range(1..7))
            .map(|_| ['a', 'b', 'c', 'd'][random.random_range(0..4)])
            .collect()
    };
    (0..count).map(|_| word(random)).collect::<Vec<_>>().join(" ")
}

fn pieces(random: &mut StdRng, count: usize) -> BTreeSet<String> {
    let letters = ["a", "b", "c", "d"].map(String::from);
    let mut found: BTreeSet<String> = letters.into_iter().collect();
    while found.len() < count {
        let word = words(random, 1);
        found.insert(word);
    }
    found
}

const SPECIAL: [&str; 4] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"];

fn file(model: Value, split: &str) -> Value {
    let special = SPECIAL.iter().enumerate().map(|(id, content)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    });
    let around = |name: &str, id: u32| json!({"id": name, "ids": [id], "tokens": [name]});
    json!({
        "version": "1.0",
        "added_tokens": special.collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": {"type": split},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                       {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"[CLS]": around("[CLS]", 2), "[SEP]": around("[SEP]", 3)}
        },
        "decoder": null,
        "model": model
    })
}

/// Special tokens and `tokens`, with their ids.
fn numbered(tokens: impl Iterator<Item = String>) -> serde_json::Map<String, Value> {
    let all = SPECIAL.iter().map(|s| (*s).to_string()).chain(tokens);
    all.zip(0u32..).map(|(token, id)| (token, id.into())).collect()
}

fn word_piece(random: &mut StdRng) -> Value {
    let own = pieces(random, 60);
    let tokens = own.iter().cloned().chain(own.iter().map(|p| format!("##{p}")));
    file(
        json!({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
               "max_input_chars_per_word": 100, "vocab": numbered(tokens)}),
        "Whitespace",
    )
}

fn merges(random: &mut StdRng) -> Value {
    let mut tokens: Vec<String> = ["a", "b", "c", "d"].map(String::from).into();
    let mut pairs: Vec<Value> = Vec::new();
    while tokens.len() < 80 {
        let pick = |random: &mut StdRng| tokens[random.random_range(0..tokens.len())].clone();
        let (a, b) = (pick(random), pick(random));
        let made = format!("{a}{b}");
        if a.len() + b.len() > 6 {
            continue;
        }
        // Some tokens have two merges that make them.
        if pairs.iter().any(|p| *p == json!([a, b])) {
            continue;
        }
        pairs.push(json!([a, b]));
        if !tokens.contains(&made) {
            tokens.push(made);
        }
    }
    file(
        json!({"type": "BPE", "unk_token": "[UNK]", "continuing_subword_prefix": null, "end_of_word_suffix": null,
               "fuse_unk": false, "byte_fallback": false, "vocab": numbered(tokens.into_iter()), "merges": pairs}),
        "Whitespace",
    )
}

fn scores(random: &mut StdRng) -> Value {
    let special = SPECIAL.iter().map(|s| json!([s, 0.0]));
    let own = pieces(random, 80);
    let scored: Vec<Value> = own
        .iter()
        .map(|p| json!([p, -random.random_range(1.0..12.0f64)]))
        .collect();
    file(
        json!({"type": "Unigram", "unk_id": 1, "byte_fallback": false, "vocab": special.chain(scored).collect::<Vec<_>>()}),
        "Whitespace",
    )
}

struct TempPlace(tempfile::TempDir);

impl TempPlace {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn trim(&self, tokenizer: &Value, texts: &[String], keep: usize) -> Result<TrimmedVocabulary> {
        let tokenizer = self.file("tokenizer.json", &tokenizer.to_string());
        let options = VocabularyOptions {
            sources: vec![self.file("texts.txt", &texts.join("\n"))],
            keep: Some(keep),
            ..Default::default()
        };
        trim(&table(200), Path::new(&tokenizer), &options, &[])
    }
}

fn cut(tokenizer: &[u8], texts: &[String]) -> Vec<Vec<String>> {
    let tokenizer = tokenizers::Tokenizer::from_bytes(tokenizer).unwrap();
    let of = |text: &String| {
        tokenizer
            .encode(text.as_str(), true)
            .unwrap()
            .get_tokens()
            .to_vec()
    };
    texts.iter().map(of).collect()
}

#[test]
fn texts_are_cut_as_before_and_others_lose_nothing() {
    let kinds: [fn(&mut StdRng) -> Value; 3] = [word_piece, merges, scores];
    for (kind, make) in kinds.iter().enumerate() {
        for seed in 0..40 {
            let mut random = StdRng::seed_from_u64(seed);
            let tokenizer = make(&mut random);
            let texts: Vec<String> = (0..8).map(|_| words(&mut random, 5)).collect();
            let trimmed = TempPlace::new().trim(&tokenizer, &texts, 3).unwrap();
            let old = tokenizer.to_string().into_bytes();
            assert_eq!(
                cut(&old, &texts),
                cut(&trimmed.tokenizer, &texts),
                "{kind} {seed}"
            );
            let others: Vec<String> = (0..30).map(|_| words(&mut random, 5)).collect();
            let joined = |tokens: Vec<Vec<String>>| -> Vec<String> {
                tokens.iter().map(|t| t.concat().replace("##", "")).collect()
            };
            let (was, is) = (
                joined(cut(&old, &others)),
                joined(cut(&trimmed.tokenizer, &others)),
            );
            assert_eq!(was, is, "{kind} {seed}");
            assert!(trimmed.told.after < trimmed.told.before, "{kind} {seed}");
            // Each token has the row that it had.
            let graph = trimmed.model.graph.as_ref().unwrap();
            let rows = crate::onnx::tensor(&graph.initializer[0]).unwrap();
            let Data::F32(rows) = &rows.data else { panic!() };
            let firsts: Vec<u32> = rows.chunks(2).map(|row| row[0] as u32).collect();
            assert_eq!(firsts, trimmed.tokens.kept, "{kind} {seed}");
        }
    }
}

#[test]
fn a_smaller_tokenizer_says_which_tokens_stay() {
    let place = TempPlace::new();
    let mut random = StdRng::seed_from_u64(1);
    let whole = word_piece(&mut random);
    let texts = vec![words(&mut random, 4)];
    let first = place.trim(&whole, &texts, 0).unwrap();
    let other = TempPlace::new();
    let smaller = other.file("smaller.json", std::str::from_utf8(&first.tokenizer).unwrap());
    let options = VocabularyOptions {
        sources: vec![smaller],
        ..Default::default()
    };
    let tokenizer = place.file("tokenizer.json", &whole.to_string());
    let again = trim(&table(200), &tokenizer, &options, &[]).unwrap();
    assert_eq!(again.tokens.kept, first.tokens.kept);
    assert_eq!(again.tokenizer, first.tokenizer);
}

/// A language model reads a file as one text: what stands between lines has tokens too.
#[test]
fn ends_of_lines_occur() {
    let own = ["a", "b", "\n", "\n\n", "aa"].map(String::from);
    let mut tokenizer = file(
        json!({"type": "BPE", "unk_token": "[UNK]", "continuing_subword_prefix": null, "end_of_word_suffix": null,
               "fuse_unk": false, "byte_fallback": false, "vocab": numbered(own.into_iter()),
               "merges": [["\n", "\n"], ["a", "a"]]}),
        "Whitespace",
    );
    let kept = |tokenizer: &Value, lines: [&str; 3]| {
        let texts = lines.map(String::from);
        TempPlace::new().trim(tokenizer, &texts, 0).unwrap().tokens.kept
    };
    let (both, pair) = (7, 8);
    // Where whitespace is cut away, it is no token.
    assert!(!kept(&tokenizer, ["a", "", "b"]).contains(&both));
    tokenizer["pre_tokenizer"] = Value::Null;
    assert!(kept(&tokenizer, ["a", "", "b"]).contains(&both));
    let same = kept(&tokenizer, ["a", "b", "a"]);
    assert!(!same.contains(&both) && !same.contains(&pair), "{same:?}");
}

#[test]
fn what_occurs_once_tells_what_others_miss() {
    let texts = [vec![0, 5, 6, 7], vec![0, 5, 8, 9]];
    // 6, 7 and 8; 9 stays in any case.
    assert_eq!(unseen(&texts, &[0, 9].into()), Some(3.0 / 8.0));
    assert_eq!(unseen(&[], &BTreeSet::new()), None);
}

#[test]
fn a_longest_piece_stands_for_a_token_that_is_gone() {
    let own = ["a", "##a", "ab", "##ab", "abab", "##abab", "cab", "##cab", "b"].map(String::from);
    let tokenizer = file(
        json!({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
               "max_input_chars_per_word": 100, "vocab": numbered(own.into_iter())}),
        "Whitespace",
    );
    let vocabulary = tokenizer::Vocabulary::of(&tokenizer).unwrap();
    let id = |token: &str| tokenizer["model"]["vocab"][token].as_u64().unwrap() as u32;
    let kept = ["a", "##a", "ab", "b"].map(id).into();
    let found = vocabulary.beginnings(&kept);
    let of = |token: &str| found.get(&id(token)).copied();
    assert_eq!(of("abab"), Some(id("ab")));
    // Inside of a word there are other pieces, and none that is the mark alone.
    assert_eq!(of("##abab"), Some(id("##a")));
    assert_eq!(of("##ab"), Some(id("##a")));
    assert_eq!((of("cab"), of("##cab")), (None, None));
    assert_eq!(of("ab"), None);
}

#[test]
fn tokens_that_are_named_stay() {
    let place = TempPlace::new();
    let whole = word_piece(&mut StdRng::seed_from_u64(1));
    let tokenizer = place.file("tokenizer.json", &whole.to_string());
    let last = whole["model"]["vocab"].as_object().unwrap().len() as u32 - 1;
    let kept = |named: Vec<u32>| {
        let options = VocabularyOptions {
            sources: vec![place.file("texts.txt", "a")],
            keep: Some(0),
            named,
            ..Default::default()
        };
        trim(&table(200), &tokenizer, &options, &[]).unwrap().tokens.kept
    };
    assert!(!kept(Vec::new()).contains(&last));
    // What no tokenizer has is passed over.
    assert!(kept(vec![last, 9999]).contains(&last));
}

#[test]
fn hostile_tokenizers_are_errors() {
    let mut random = StdRng::seed_from_u64(1);
    let texts = vec!["ab cd".to_string()];
    let refused = |tokenizer: Value| {
        TempPlace::new()
            .trim(&tokenizer, &texts, 0)
            .err()
            .map(|e| e.chain())
    };
    let whole = merges(&mut random);
    let changed = |at: &str, value: Value| {
        let mut changed = whole.clone();
        *changed.pointer_mut(at).unwrap() = value;
        changed
    };
    for bad in [
        json!({}),
        json!([1, 2]),
        json!({"model": {"vocab": 3}}),
        changed("/model/vocab", json!({"a": -1})),
        changed("/model/vocab", json!({"a": 1, "b": 1})),
        changed("/model/vocab", json!({"a": u64::MAX})),
        changed("/model/merges", json!([["a"]])),
        changed("/model/merges", json!([["missing", "pieces"]])),
        changed("/added_tokens", json!([{"content": "x"}])),
    ] {
        assert!(refused(bad.clone()).is_some(), "{bad}");
    }
    // What is merged of itself comes to an end.
    let mut cyclic = whole.clone();
    let model = cyclic.pointer_mut("/model").unwrap();
    let pairs = model["merges"].as_array_mut().unwrap();
    pairs.insert(0, json!(["a", "b"]));
    let _ = refused(cyclic);
    // A table that has no row for each token belongs to another tokenizer.
    let place = TempPlace::new();
    let tokenizer = place.file("tokenizer.json", &whole.to_string());
    let options = VocabularyOptions {
        sources: vec![place.file("texts.txt", "ab")],
        ..Default::default()
    };
    let error = trim(&table(10), &tokenizer, &options, &[]).err().unwrap();
    assert!(
        error.chain().contains("does it belong to this model?"),
        "{}",
        error.chain()
    );
}

/// The table, and another of as many rows and a comparison behind its ids.
fn with(more: proto::NodeProto, constant: (&str, Tensor)) -> proto::ModelProto {
    let mut model = table(60);
    let graph = model.graph.as_mut().unwrap();
    graph.output.push(proto::ValueInfoProto {
        name: more.output.first().cloned(),
        ..Default::default()
    });
    for input in more
        .input
        .iter()
        .filter(|name| name.ends_with("ids") && *name != "input_ids")
    {
        graph.input.push(proto::ValueInfoProto {
            name: Some(input.clone()),
            ..Default::default()
        });
    }
    graph.node.push(more);
    graph
        .initializer
        .push(crate::onnx::tensor_proto(constant.0, &constant.1));
    model
}

#[test]
fn what_only_looks_like_a_table_of_tokens_stays_or_is_refused() {
    let node = |op: &str, inputs: [&str; 2]| proto::NodeProto {
        op_type: Some(op.into()),
        input: inputs.map(String::from).into(),
        output: vec!["other".into()],
        ..Default::default()
    };
    // A table of positions is about as large.
    let positions = with(
        node("Gather", ["positions", "position_ids"]),
        ("positions", Tensor::f32(vec![64, 2], vec![0.5; 128])),
    );
    let kept = [0u32, 1, 2, 3, 7, 9];
    let trimmed = tables::trim(&positions, (55, None), &kept).unwrap();
    assert_eq!(trimmed.tables, ["table"]);
    // A head that is read in a way that is not known.
    let head = with(
        node("Conv", ["rows", "head"]),
        ("head", Tensor::f32(vec![60, 2], vec![0.5; 120])),
    );
    let error = tables::trim(&head, (55, None), &kept).err().unwrap();
    assert!(
        error.chain().contains("'head' has an entry for each token"),
        "{}",
        error.chain()
    );
    // Token 3 is still token 3, token 7 is not.
    for (number, fine) in [(3, true), (-100, true), (7, false), (40, false)] {
        let compared = with(
            node("Equal", ["input_ids", "pad"]),
            ("pad", Tensor::i64([1], vec![number])),
        );
        let found = tables::trim(&compared, (55, None), &kept).err();
        assert_eq!(found.is_none(), fine, "{number}");
        assert!(found.is_none_or(|e| e.chain().contains("compares token ids")));
    }
}

#[test]
fn a_head_alone_goes_with_the_table_of_another_model() {
    let info = |name: &str| proto::ValueInfoProto {
        name: Some(name.into()),
        ..Default::default()
    };
    let node = |op: &str, inputs: &[&str], output: &str| proto::NodeProto {
        op_type: Some(op.into()),
        input: inputs.iter().map(|i| (*i).into()).collect(),
        output: vec![output.into()],
        ..Default::default()
    };
    let model = proto::ModelProto {
        graph: Some(proto::GraphProto {
            node: vec![
                node("MatMul", &["inputs_embeds", "head"], "logits"),
                node("Softmax", &["logits"], "likely"),
                node("Log", &["likely"], "log"),
                node("LogSoftmax", &["logits"], "directly"),
            ],
            initializer: vec![crate::onnx::tensor_proto(
                "head",
                &Tensor::f32(vec![2, 64], (0..128).map(|i| i as f32).collect::<Vec<_>>()),
            )],
            input: vec![info("inputs_embeds")],
            output: ["logits", "likely", "log", "directly"].map(info).into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let kept = [0, 7, 50];
    // By itself it has no tokens; of another size it is something else.
    assert!(!tables::is_there(&model, (60, None)));
    assert!(!tables::is_there(&model, (60, Some(60))));
    assert!(tables::is_there(&model, (60, Some(64))));
    let trimmed = tables::trim(&model, (60, Some(64)), &kept).unwrap();
    let graph = trimmed.model.graph.unwrap();
    assert_eq!(graph.initializer[0].dims, [2, 3]);
    use TokenOutput::{LogProbabilities, Logits, Probabilities};
    let kinds = [
        ("directly", LogProbabilities),
        ("likely", Probabilities),
        ("log", LogProbabilities),
        ("logits", Logits),
    ];
    let told: Vec<(&str, TokenOutput)> = trimmed.outputs.iter().map(|(n, k)| (n.as_str(), *k)).collect();
    assert_eq!(told, kinds);
}

#[test]
fn tables_and_heads_in_blocks_lose_whole_rows() {
    let node = |op: &str, input: &[&str], output: &str, attributes: &[(&str, i64)]| proto::NodeProto {
        op_type: Some(op.into()),
        domain: Some("com.microsoft".into()),
        input: input.iter().map(|i| (*i).into()).collect(),
        output: vec![output.into()],
        attribute: attributes
            .iter()
            .map(|(name, value)| proto::AttributeProto {
                name: Some((*name).into()),
                i: Some(*value),
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    };
    // 200 tokens of 64 numbers of four bits, in blocks of 32.
    let bytes = |name: &str, shape: &[usize]| {
        let count = shape.iter().product::<usize>();
        let values: Vec<u8> = (0..count).map(|at| (at / (count / 200)) as u8).collect();
        crate::onnx::tensor_proto(name, &Tensor::new(shape.to_vec(), Data::U8(values)))
    };
    let floats = |name: &str, shape: &[usize]| {
        let count = shape.iter().product::<usize>();
        let values: Vec<f32> = (0..count).map(|at| (at / (count / 200)) as f32).collect();
        crate::onnx::tensor_proto(name, &Tensor::f32(shape.to_vec(), values))
    };
    let info = |name: &str| proto::ValueInfoProto {
        name: Some(name.into()),
        ..Default::default()
    };
    let model = proto::ModelProto {
        graph: Some(proto::GraphProto {
            node: vec![
                node(
                    "GatherBlockQuantized",
                    &["table", "input_ids", "scales", "zeros"],
                    "rows",
                    &[("block_size", 32), ("gather_axis", 0), ("quantize_axis", 1)],
                ),
                node(
                    "MatMulNBits",
                    &["rows", "head", "head_scales", "head_zeros"],
                    "logits",
                    &[("K", 64), ("N", 200), ("bits", 4), ("block_size", 32)],
                ),
            ],
            initializer: vec![
                bytes("table", &[200, 32]),
                floats("scales", &[200, 2]),
                bytes("zeros", &[200, 1]),
                bytes("head", &[200, 2, 16]),
                floats("head_scales", &[400]),
                bytes("head_zeros", &[200]),
            ],
            input: vec![info("input_ids")],
            output: vec![info("logits")],
            ..Default::default()
        }),
        ..Default::default()
    };
    let kept = [0, 7, 150];
    let trimmed = tables::trim(&model, (200, None), &kept).unwrap();
    let graph = trimmed.model.graph.unwrap();
    let shapes: Vec<&[i64]> = graph.initializer.iter().map(|t| &t.dims[..]).collect();
    assert_eq!(
        shapes,
        [&[3i64, 32][..], &[3, 2], &[3, 1], &[3, 2, 16], &[6], &[3]]
    );
    for tensor in &graph.initializer {
        let values = crate::onnx::tensor(tensor).unwrap().to_f32();
        let each = values.len() / kept.len();
        let rows: Vec<f32> = kept.iter().flat_map(|row| vec![*row as f32; each]).collect();
        assert_eq!(values, rows, "{}", tensor.name());
    }
    let columns = graph.node[1].attribute.iter().find(|a| a.name() == "N").unwrap();
    assert_eq!(columns.i(), 3);
    assert!(tables::embedding(&model, 200).unwrap().is_none());
}
