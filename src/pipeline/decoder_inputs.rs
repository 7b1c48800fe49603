//! Inputs for the decoders of a model that reads one sequence and writes another: what its
//! encoder makes of the texts, and what the dense decoder writes to that by itself.

use std::path::Path;

use super::options::Options;
use crate::data::{self, Samples, split};
use crate::engine::{Ctx, Session, SessionOptions};
use crate::onnx::{self, proto};
use crate::tensor::{Feeds, Tensor, ops};
use crate::{Error, Result, ResultExt};

/// Tokens that are written to a text at most.
pub(super) const WRITTEN: usize = 24;
/// Rows of a run.
const ROWS: usize = 16;

/// Names by which exports call what the encoder has made, and the tokens of the decoder.
const HIDDEN: [&str; 2] = ["encoder_hidden_states", "encoder_outputs"];
const ENCODER_MASK: &str = "encoder_attention_mask";
pub(super) const IDS: [&str; 2] = ["decoder_input_ids", "input_ids"];

/// The tokens that begin and end what a decoder writes.
#[derive(Debug, Clone, Copy)]
pub(super) struct WriterEnds {
    pub(super) start: i64,
    pub(super) end: Option<i64>,
}

/// A decoder that reads what an encoder has made.
pub(super) struct Writer<'a> {
    pub(super) encoder: &'a Path,
    /// The one without a cache.
    pub(super) decoder: &'a Path,
    pub(super) ends: WriterEnds,
}

/// What is known of each text: the encoder's result and the tokens that the decoder writes.
pub(super) struct WrittenTexts {
    /// Feeds of the decoder without a cache.
    pub(super) whole: Vec<Feeds>,
    /// Those of a decoder that reads one more token: with what came before as its cache.
    pub(super) cached: Vec<Feeds>,
}

/// Whether a model reads what an encoder has made.
pub(super) fn reads_encoder(model: &proto::ModelProto) -> bool {
    let inputs = model.graph.iter().flat_map(|g| &g.input);
    inputs
        .map(|i| i.name())
        .any(|name| HIDDEN.contains(&name) || name == ENCODER_MASK)
}

/// Whether it reads a cache.
pub(super) fn reads_cache(model: &proto::ModelProto) -> bool {
    let inputs = model.graph.iter().flat_map(|g| &g.input);
    inputs.map(|i| i.name()).any(|name| name.starts_with("past"))
}

/// Texts that a decoder writes to, where their number is not given.
const WRITTEN_TEXTS: usize = 512;

impl Writer<'_> {
    /// Runs the encoder on all texts and lets the decoder write.
    ///
    /// # Errors
    /// The engine's; a decoder that wants other inputs.
    pub(super) fn write(&self, ctx: Ctx, options: &Options) -> Result<WrittenTexts> {
        let encoder = onnx::load(self.encoder)?.proto;
        let decoder = onnx::load(self.decoder)?.proto;
        let place = || format!("making inputs for {}", self.decoder.display());
        let mut wanted = split::with_held_out(&options.data);
        // Writing is slow, a token at a time.
        wanted.samples = wanted.samples.or(Some(WRITTEN_TEXTS));
        let read = data::read_samples(&encoder, &wanted)?;
        let mut session = ctx.engine.session(&encoder, &SessionOptions::default())?;
        let mut texts = encoded(ctx, &encoder, session.as_mut(), &read).context(place)?;
        drop(session);
        let session = ctx.engine.session(&decoder, &SessionOptions::default());
        let mut session = session.context(place)?;
        let mut decoder = DecoderRun {
            ctx,
            model: &decoder,
            session: session.as_mut(),
            options,
        };
        decoder.write(&mut texts, self.ends).context(place)?;
        let cached = decoder.caches(&texts).context(place)?;
        Ok(WrittenTexts {
            whole: texts.iter().map(EncodedText::feeds).collect(),
            cached,
        })
    }
}

/// A text that went through the encoder.
struct EncodedText {
    hidden: Tensor,
    mask: Tensor,
    /// What the decoder has written.
    ids: Vec<i64>,
    done: bool,
}

impl EncodedText {
    fn feeds(&self) -> Feeds {
        self.with(&self.ids)
    }

    fn with(&self, ids: &[i64]) -> Feeds {
        let mut feeds = Feeds::new();
        for name in HIDDEN {
            feeds.insert(name.into(), self.hidden.clone());
        }
        feeds.insert(ENCODER_MASK.into(), self.mask.clone());
        for name in IDS {
            feeds.insert(name.into(), Tensor::i64([1, ids.len()], ids.to_vec()));
        }
        feeds
    }
}

fn encoded(
    ctx: Ctx,
    model: &proto::ModelProto,
    session: &mut dyn Session,
    read: &Samples,
) -> Result<Vec<EncodedText>> {
    let specs = data::input_specs(model)?;
    let mut found: Vec<Option<EncodedText>> = read.samples.iter().map(|_| None).collect();
    for batch in data::batches(read, &specs, ROWS)? {
        ctx.check()?;
        let batch = batch?;
        let hidden = session.run(&batch.feeds)?.into_iter().next();
        let hidden = hidden.filter(|t| t.shape.len() == 3);
        let hidden = hidden.ok_or_else(|| Error::input("the encoder gives no sequence of vectors"))?;
        for (row, sample) in batch.rows.iter().enumerate() {
            let own = ops::slice(&hidden, 0, row..row + 1);
            let given = &read.samples[*sample].feeds;
            let tokens = own.shape[1];
            let length = given.values().filter_map(|t| t.shape.get(1)).min().copied();
            // What was filled up to share a batch goes again.
            let length = length.unwrap_or(tokens).min(tokens);
            found[*sample] = Some(EncodedText {
                hidden: ops::slice(&own, 1, 0..length),
                mask: Tensor::i64([1, length], vec![1; length]),
                ids: Vec::new(),
                done: false,
            });
        }
    }
    Ok(found.into_iter().flatten().collect())
}

/// A decoder without a cache.
struct DecoderRun<'a> {
    ctx: Ctx<'a>,
    model: &'a proto::ModelProto,
    session: &'a mut dyn Session,
    options: &'a Options,
}

impl DecoderRun<'_> {
    /// Runs all feeds and hands each row of the outputs on, with the sample that it is of.
    fn each(&mut self, feeds: Vec<Feeds>, mut take: impl FnMut(usize, &[String], &[Tensor])) -> Result<()> {
        let specs = data::input_specs(self.model)?;
        let samples = data::completed(self.model, feeds, &self.options.data)?;
        let names = self.session.outputs().to_vec();
        for batch in data::batches(&samples, &specs, ROWS)? {
            self.ctx.check()?;
            let batch = batch?;
            let outputs = self.session.run(&batch.feeds)?;
            for (row, sample) in batch.rows.iter().enumerate() {
                let own = outputs.iter().map(|t| match t.shape.first() {
                    Some(rows) if *rows == batch.size => ops::slice(t, 0, row..row + 1),
                    _ => t.clone(),
                });
                take(*sample, &names, &own.collect::<Vec<_>>());
            }
        }
        Ok(())
    }

    /// The most probable token after what is written, until all have ended.
    fn write(&mut self, texts: &mut [EncodedText], ends: WriterEnds) -> Result<()> {
        for text in texts.iter_mut() {
            text.ids.push(ends.start);
        }
        for _ in 0..WRITTEN {
            let open: Vec<usize> = (0..texts.len()).filter(|at| !texts[*at].done).collect();
            if open.is_empty() {
                break;
            }
            let feeds = open.iter().map(|at| texts[*at].feeds()).collect();
            let mut next: Vec<Option<i64>> = vec![None; open.len()];
            self.each(feeds, |sample, names, outputs| {
                let logits = names.iter().position(|n| n == "logits").unwrap_or(0);
                next[sample] = outputs.get(logits).and_then(likeliest);
            })?;
            for (at, next) in open.into_iter().zip(next) {
                let next = next.ok_or_else(|| Error::input("the decoder gives no logits"))?;
                let text = &mut texts[at];
                text.done = Some(next) == ends.end;
                // A decoder with a cache needs something before what it reads.
                if !text.done || text.ids.len() == 1 {
                    text.ids.push(next);
                }
            }
        }
        Ok(())
    }

    /// The last token of each text, with all before it as a cache.
    fn caches(&mut self, texts: &[EncodedText]) -> Result<Vec<Feeds>> {
        let long: Vec<&EncodedText> = texts.iter().filter(|t| t.ids.len() > 1).collect();
        let feeds = long.iter().map(|t| t.with(&t.ids[..t.ids.len() - 1])).collect();
        let mut found: Vec<Feeds> = long.iter().map(|t| t.with(&t.ids[t.ids.len() - 1..])).collect();
        self.each(feeds, |sample, names, outputs| {
            for (name, tensor) in names.iter().zip(outputs) {
                if let Some(rest) = name.strip_prefix("present") {
                    found[sample].insert(format!("past_key_values{rest}"), tensor.clone());
                }
            }
        })?;
        Ok(found)
    }
}

/// The token of the largest of the last logits.
fn likeliest(logits: &Tensor) -> Option<i64> {
    let tokens = *logits.shape.last()?;
    let values = logits.to_f32();
    let last = values.get(values.len().checked_sub(tokens)?..)?;
    let best = (0..last.len()).max_by(|a, b| last[*a].total_cmp(&last[*b]))?;
    i64::try_from(best).ok()
}
