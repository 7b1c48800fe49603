//! A model whose vocabulary is made smaller before anything else is done with it, and the
//! check that nothing else changed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::options::Options;
use crate::data::{self, DataOptions, Sample, Samples};
use crate::engine::{Engine, SessionOptions};
use crate::onnx::proto;
use crate::rewrite;
use crate::tensor::{Tensor, ops};
use crate::vocabulary::{self, ChosenTokens, TokenOutput, TrimmedVocabulary, VocabularyOptions};
use crate::{Error, Result};

/// Texts that both models are run on.
const CHECKED: usize = 4;

/// Texts among which these are looked for.
const READ: usize = 256;

/// The largest relative difference of logits, which products of another width round in
/// another order.
const CLOSE: f32 = 1e-4;

/// The word for the texts of `--data`.
const DATA: &str = "data";

/// The model with the vocabulary that `options` ask for, or with the tokens that are `chosen`
/// already; `None` where they ask for all.
///
/// # Errors
/// As [`vocabulary::trim`]; arrays of ids, which are those of the whole vocabulary.
pub(super) fn trimmed(
    model: &proto::ModelProto,
    options: &Options,
    chosen: Option<&ChosenTokens>,
) -> Result<Option<TrimmedVocabulary>> {
    let asked = &options.vocabulary;
    if !asked.is_asked() {
        return match (asked.keep, asked.drop_in) {
            (None, false) => Ok(None),
            (Some(_), _) => Err(Error::input("--vocab-keep is for --vocab, which is not given")),
            (None, true) => Err(Error::input("--vocab-drop-in is for --vocab, which is not given")),
        };
    }
    let tokenizer = options.data.tokenizer.as_ref().ok_or_else(|| {
        Error::input("--vocab needs the tokenizer that belongs to the model: give it with --tokenizer")
    })?;
    if let Some(arrays) = options.data.data.iter().find(|path| !data::is_text(path)) {
        return Err(Error::input(format!(
            "--vocab: {} holds ids of the whole vocabulary; give texts with --data",
            arrays.display()
        )));
    }
    // Of the models of a folder some may read no tokens.
    if let Some(chosen) = &asked.chosen
        && !vocabulary::has_tokens(model, tokenizer, chosen.rows)?
    {
        return Ok(None);
    }
    let given = VocabularyOptions {
        sources: texts(options),
        scripts: asked.scripts.clone(),
        keep: asked.keep,
        drop_in: asked.drop_in,
        named: asked.named.clone(),
        chosen: match chosen {
            Some(chosen) => Some(Arc::new(chosen.clone())),
            None => asked.chosen.clone(),
        },
    };
    vocabulary::trim(model, tokenizer, &given, &options.data.text_columns).map(Some)
}

/// What there is to say where the texts were few: others have tokens that are gone.
pub(super) fn too_few(tokens: &ChosenTokens) -> Option<String> {
    const MUCH: f64 = 0.02;
    let unseen = tokens.unseen.filter(|unseen| *unseen > MUCH)?;
    Some(format!(
        "about {:.0}% of the tokens of other texts of this kind are gone (so many occur only once in the {} that were \
         counted), and the comparison below is with texts whose tokens all stay: give --vocab more texts, or keep \
         more with --vocab-keep",
        100.0 * unseen,
        tokens.texts
    ))
}

/// The sources, with the files of `--data` in place of that word.
fn texts(options: &Options) -> Vec<PathBuf> {
    let of = |source: &PathBuf| match source.as_path() == Path::new(DATA) && !source.exists() {
        true => options.data.data.clone(),
        false => vec![source.clone()],
    };
    options.vocabulary.sources.iter().flat_map(of).collect()
}

/// Runs both models on some of the texts; says why where that cannot be done.
///
/// # Errors
/// [`Error::Unmet`] where they differ.
pub(super) fn check(
    engine: &dyn Engine,
    trimmed: &TrimmedVocabulary,
    options: &Options,
) -> Result<Option<String>> {
    let (whole, less) = (&trimmed.whole, &trimmed.model);
    if let Some(given) = &options.data.given {
        let few = || given.samples.iter().take(CHECKED);
        let old: Option<Vec<Sample>> = match trimmed.drop_in {
            true => Some(few().cloned().collect()),
            false => {
                let inputs = data::token_inputs(less);
                let was = |id: i64| Some(i64::from(*trimmed.tokens.kept.get(usize::try_from(id).ok()?)?));
                few().map(|sample| renumbered(sample, &inputs, was)).collect()
            }
        };
        let of = |samples: Vec<Sample>| Samples {
            samples,
            ..Samples::of_feeds([])
        };
        return match old {
            Some(old) => compared(
                engine,
                [whole, less],
                [&of(old), &of(few().cloned().collect())],
                trimmed,
            ),
            None => Ok(Some(
                "ids of the samples that were given are no tokens of it".into(),
            )),
        };
    }
    let given = match options.vocabulary.sources.is_empty() {
        true => options.data.data.clone(),
        false => texts(options),
    };
    let files: Vec<PathBuf> = given.into_iter().filter(|path| data::is_text(path)).collect();
    if files.is_empty() {
        return Ok(Some("no texts are given to compare both models on".into()));
    }
    let of = |model: &proto::ModelProto, tokenizer: PathBuf| {
        let wanted = DataOptions {
            data: files.clone(),
            tokenizer: Some(tokenizer),
            samples: Some(READ),
            join: false,
            ..options.data.clone()
        };
        data::read_samples(model, &wanted)
    };
    let tokenizer = options.data.tokenizer.clone().unwrap_or_default();
    let smaller = match trimmed.drop_in {
        true => tokenizer.clone(),
        false => trimmed.tokenizer_path(),
    };
    let both = of(whole, tokenizer).and_then(|old| Ok((old, of(less, smaller)?)));
    let (mut old, mut new) = match both {
        Ok(both) => both,
        Err(error) => return Ok(Some(error.chain())),
    };
    let inputs = data::token_inputs(whole);
    let read = old.samples.len();
    let pairs = old.samples.into_iter().zip(new.samples);
    let stay = |(old, _): &(Sample, Sample)| renumbered(old, &inputs, |id| trimmed.holds(id)).is_some();
    (old.samples, new.samples) = pairs.filter(stay).take(CHECKED).unzip();
    if old.samples.is_empty() {
        return Ok(Some(format!(
            "none of {read} texts has only tokens that stay, so there is nothing to compare both models on"
        )));
    }
    compared(engine, [whole, less], [&old, &new], trimmed)
}

/// A sample with other ids; `None` where one of them has none.
fn renumbered(sample: &Sample, inputs: &[String], other: impl Fn(i64) -> Option<i64>) -> Option<Sample> {
    let mut sample = sample.clone();
    for (name, tensor) in &mut sample.feeds {
        if inputs.contains(name) {
            let ids: Option<Vec<i64>> = tensor.to_i64()?.iter().map(|id| other(*id)).collect();
            *tensor = ops::from_integers(tensor.elem(), tensor.shape.clone(), &ids?)?;
        }
    }
    Some(sample)
}

/// Runs both models on the same texts.
fn compared(
    engine: &dyn Engine,
    [whole, less]: [&proto::ModelProto; 2],
    [old, new]: [&Samples; 2],
    trimmed: &TrimmedVocabulary,
) -> Result<Option<String>> {
    let open = |model: &proto::ModelProto| engine.session(model, &SessionOptions::default());
    let specs = [data::input_specs(whole)?, data::input_specs(less)?];
    let (mut a, mut b) = (open(whole)?, open(less)?);
    let pairs = data::batches(old, &specs[0], 1)?.zip(data::batches(new, &specs[1], 1)?);
    for (old, new) in pairs {
        let (old, new) = (old?, new?);
        let names: Vec<String> = a.outputs().to_vec();
        let (x, y) = (a.run(&old.feeds)?, b.run(&new.feeds)?);
        for ((name, x), y) in names.iter().zip(&x).zip(&y) {
            same(name, x, y, trimmed)?;
        }
    }
    Ok(None)
}

fn same(name: &str, whole: &Tensor, less: &Tensor, trimmed: &TrimmedVocabulary) -> Result<()> {
    let kept = &trimmed.tokens.kept;
    let last = whole.shape.len().saturating_sub(1);
    let kind = (trimmed.outputs.get(name).copied()).filter(|_| whole.shape != less.shape || trimmed.drop_in);
    let of_kept = |tensor: &Tensor| match kind.is_some() && tensor.shape.get(last) != Some(&kept.len()) {
        true => rewrite::narrowed(
            name,
            tensor,
            &[(last, kept.iter().map(|at| *at as usize).collect())],
        ),
        false => Ok(tensor.clone()),
    };
    let (whole, less) = (of_kept(whole)?, of_kept(less)?);
    let (mut x, mut y) = (whole.to_f32(), less.to_f32());
    // Probabilities of fewer tokens are larger: they are compared among those that stay.
    for row in [&mut x, &mut y]
        .into_iter()
        .flat_map(|v| v.chunks_mut(kept.len().max(1)))
    {
        match kind {
            Some(TokenOutput::Probabilities) => {
                let sum: f32 = row.iter().sum();
                row.iter_mut().for_each(|v| *v /= sum);
            }
            Some(TokenOutput::LogProbabilities) => {
                let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let sum: f32 = row.iter().map(|v| (v - most).exp()).sum();
                row.iter_mut().for_each(|v| *v -= most + sum.ln());
            }
            Some(TokenOutput::Logits) | None => {}
        }
    }
    let most = x
        .iter()
        .filter(|v| v.is_finite())
        .fold(0.0f32, |m, v| m.max(v.abs()));
    let allowed = if kind.is_some() { CLOSE * most } else { 0.0 };
    let is_same = |(x, y): (&f32, &f32)| x.to_bits() == y.to_bits() || (x - y).abs() <= allowed;
    if whole.shape == less.shape && x.iter().zip(&y).all(is_same) {
        return Ok(());
    }
    let worst = x
        .iter()
        .zip(&y)
        .fold(0.0f32, |worst, (x, y)| worst.max((x - y).abs()));
    Err(Error::Unmet(format!(
        "--vocab: with fewer tokens the output '{name}' of shape {:?} differs by {worst:.1e} of {most:.1e} on a text \
         whose tokens all stay ({:?} then); no file is written. This is a defect: please report the model",
        whole.shape, less.shape
    )))
}
