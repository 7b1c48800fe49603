//! What each input of a graph is for, read from its name, type and axes: which
//! axis is the batch, which are token positions, what stands for padding.

use super::spec::{InputDim, InputSpec};
use crate::tensor::Elem;

/// What an input is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InputRole {
    /// Indices of tokens.
    TokenIds,
    /// Indices of segments.
    TokenTypes,
    /// Indices of positions.
    Positions,
    /// A mask that is 1 where something is real or kept.
    Mask,
    /// A mask that is 1 where something is left out.
    InverseMask,
    /// Keys and values of earlier tokens.
    Past,
    /// A scalar switch.
    Flag,
    /// Pixels.
    Image,
    /// A waveform.
    Audio,
    /// Other floats.
    Floats,
    /// Other integers or booleans.
    Integers,
}

/// Which sequence of tokens an input belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum StreamKind {
    /// The only one, or what is not named otherwise.
    Main,
    /// What a decoder attends to.
    Encoder,
    /// What a decoder of an encoder-decoder model writes.
    Decoder,
}

impl StreamKind {
    pub(crate) const ALL: [StreamKind; 3] = [StreamKind::Main, StreamKind::Encoder, StreamKind::Decoder];
}

/// What an axis counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InputAxis {
    /// Samples.
    Batch,
    /// Token positions.
    Tokens(StreamKind),
    /// Earlier tokens and those of [`StreamKind::Main`].
    Total,
    /// Earlier tokens.
    Past,
    /// Something whose size the graph leaves open.
    Free,
    /// Something whose size the graph says.
    Fixed,
}

/// One input with its meaning.
#[derive(Debug, Clone)]
pub(crate) struct LayoutInput {
    pub(crate) spec: InputSpec,
    pub(crate) role: InputRole,
    pub(crate) stream: StreamKind,
    pub(crate) axes: Vec<InputAxis>,
}

impl LayoutInput {
    /// The axis that counts samples.
    pub(crate) fn batch_axis(&self) -> Option<usize> {
        self.axes.iter().position(|a| *a == InputAxis::Batch)
    }
}

/// All inputs with their meaning.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) inputs: Vec<LayoutInput>,
    /// The number of samples a run takes, where the graph says it.
    pub(crate) fixed_batch: Option<usize>,
}

impl Layout {
    /// Reads the meaning of `specs`.
    pub(crate) fn new(specs: &[InputSpec]) -> Self {
        let mut inputs: Vec<LayoutInput> = specs
            .iter()
            .map(|spec| LayoutInput {
                spec: spec.clone(),
                role: role(spec),
                stream: StreamKind::Main,
                axes: spec
                    .dims
                    .iter()
                    .map(|d| {
                        if d.fixed().is_some() {
                            InputAxis::Fixed
                        } else {
                            InputAxis::Free
                        }
                    })
                    .collect(),
            })
            .collect();
        name_nameless_ids(&mut inputs);
        name_streams(&mut inputs);
        let fixed_batch = mark_batch(&mut inputs);
        for stream in StreamKind::ALL {
            mark_tokens(&mut inputs, stream);
        }
        for input in inputs.iter_mut().filter(|i| i.role == InputRole::Past) {
            let last = input.axes.len().saturating_sub(1);
            for (at, (axis, dim)) in input.axes.iter_mut().zip(&input.spec.dims).enumerate() {
                // The last of four axes is the size of a head, whatever the graph says of it.
                let size = at == last && last >= 3 && !dim.symbol().is_some_and(names_past);
                if *axis == InputAxis::Free && !size {
                    *axis = InputAxis::Past;
                }
            }
        }
        Self { inputs, fixed_batch }
    }

    /// The first input of `stream` with token ids.
    pub(crate) fn ids(&self, stream: StreamKind) -> Option<&LayoutInput> {
        self.inputs
            .iter()
            .find(|i| i.role == InputRole::TokenIds && i.stream == stream)
    }

    /// The mask over the tokens of `stream` that marks padding: one number per
    /// sample and token.
    pub(crate) fn padding_mask(&self, stream: StreamKind) -> Option<&LayoutInput> {
        self.inputs.iter().find(|i| {
            i.role == InputRole::Mask
                && i.stream == stream
                && i.axes.iter().filter(|a| **a != InputAxis::Batch).count() == 1
                && (i.axes.contains(&InputAxis::Tokens(stream)) || i.axes.contains(&InputAxis::Total))
                && marks_padding(&i.spec.name)
        })
    }

    /// The inputs, for messages.
    pub(crate) fn describe(&self) -> String {
        let specs: Vec<String> = self.inputs.iter().map(|i| i.spec.to_string()).collect();
        specs.join(", ")
    }
}

fn role(spec: &InputSpec) -> InputRole {
    let name = spec.name.to_lowercase();
    let has = |parts: &[&str]| parts.iter().any(|p| name.contains(p));
    let rank = spec.dims.len();
    if has(&["past", "cache"]) && spec.elem.is_float() {
        InputRole::Past
    } else if has(&["padding_mask", "pad_mask", "masked", "global_attention_mask"]) {
        InputRole::InverseMask
    } else if has(&["mask"]) {
        InputRole::Mask
    } else if spec.elem == Elem::Bool && rank <= 1 {
        InputRole::Flag
    } else if spec.elem.is_float() {
        if has(&["embed", "hidden"]) {
            InputRole::Floats
        } else if rank == 4 {
            InputRole::Image
        } else if rank == 2 && has(&["input_values", "audio", "wave", "speech"]) {
            InputRole::Audio
        } else {
            InputRole::Floats
        }
    } else if has(&["token_type", "segment", "type_id"]) {
        InputRole::TokenTypes
    } else if has(&["position"]) {
        InputRole::Positions
    } else if rank >= 1 && has(&["input_ids", "token", "input_word", "word_ids"]) {
        InputRole::TokenIds
    } else {
        InputRole::Integers
    }
}

/// Masks of other things than padding share the word.
fn marks_padding(name: &str) -> bool {
    let name = name.to_lowercase();
    ![
        "special",
        "head",
        "causal",
        "lm_",
        "token_type",
        "pixel",
        "perm",
        "label",
    ]
    .iter()
    .any(|other| name.contains(other))
}

/// Where no name says what the token ids are, the first matrix of integers is taken.
fn name_nameless_ids(inputs: &mut [LayoutInput]) {
    if inputs.iter().any(|i| i.role == InputRole::TokenIds) {
        return;
    }
    let candidate = |i: &&mut LayoutInput| {
        i.role == InputRole::Integers
            && i.spec.dims.len() == 2
            && matches!(i.spec.elem, Elem::I32 | Elem::I64)
    };
    if let Some(input) = inputs.iter_mut().find(candidate) {
        input.role = InputRole::TokenIds;
    }
}

fn name_streams(inputs: &mut [LayoutInput]) {
    for input in inputs {
        let name = input.spec.name.to_lowercase();
        input.stream = if name.contains("decoder") {
            StreamKind::Decoder
        } else if name.contains("encoder") {
            StreamKind::Encoder
        } else {
            StreamKind::Main
        };
    }
}

fn names_batch(symbol: &str) -> bool {
    let symbol = symbol.to_lowercase();
    symbol.contains("batch") || matches!(symbol.as_str(), "n" | "b" | "bs" | "bsz")
}

fn names_past(symbol: &str) -> bool {
    let symbol = symbol.to_lowercase();
    ["past", "seq", "len"].iter().any(|word| symbol.contains(word))
}

/// Finds the batch axis of every input; returns the fixed size, if it is fixed.
fn mark_batch(inputs: &mut [LayoutInput]) -> Option<usize> {
    let named = |input: &LayoutInput| {
        input
            .spec
            .dims
            .iter()
            .position(|d| d.symbol().is_some_and(names_batch))
    };
    let any_named = inputs.iter().any(|i| named(i).is_some());

    let main = inputs
        .iter()
        .find(|i| i.role == InputRole::TokenIds)
        .or_else(|| inputs.iter().find(|i| i.spec.dims.len() >= 2))
        .map(|i| i.spec.clone());
    let Some(main) = main else {
        // Vectors and scalars only: a first axis of open size counts samples.
        for input in inputs.iter_mut() {
            if let Some(first @ InputAxis::Free) = input.axes.first_mut() {
                *first = InputAxis::Batch;
            }
        }
        return None;
    };
    let others: Vec<&str> = main.dims.iter().skip(1).filter_map(InputDim::symbol).collect();
    let fixed = match main.dims.first() {
        Some(InputDim::Fixed(size)) if !any_named && main.dims.len() >= 2 => Some(*size),
        _ => None,
    };
    for input in inputs.iter_mut() {
        let axis = if any_named {
            // An axis of which nothing is said may still be the batch.
            named(input).or_else(|| {
                let unknown = matches!(input.spec.dims.first(), Some(InputDim::Unknown));
                (unknown && input.spec.dims.len() >= 2).then_some(0)
            })
        } else {
            match input.spec.dims.first() {
                // A lone sequence axis is no batch.
                _ if main.dims.len() < 2 && input.spec.dims.len() < 2 => None,
                Some(InputDim::Fixed(size)) if fixed == Some(*size) => {
                    (input.spec.dims.len() >= 2).then_some(0)
                }
                Some(InputDim::Fixed(_)) | None => None,
                Some(InputDim::Symbol(s)) if others.contains(&s.as_str()) => None,
                Some(_) => Some(0),
            }
        };
        if let Some(axis) = axis.and_then(|a| input.axes.get_mut(a)) {
            *axis = InputAxis::Batch;
        }
    }
    fixed
}

fn last_but_batch(input: &LayoutInput) -> Option<usize> {
    input.axes.iter().rposition(|a| *a != InputAxis::Batch)
}

/// Finds the axes that count the tokens of `stream`.
fn mark_tokens(inputs: &mut [LayoutInput], stream: StreamKind) {
    let per_token = |i: &LayoutInput| {
        let role = matches!(
            i.role,
            InputRole::TokenIds
                | InputRole::TokenTypes
                | InputRole::Positions
                | InputRole::Mask
                | InputRole::InverseMask
        );
        let one_axis = i.axes.iter().filter(|a| **a != InputAxis::Batch).count() == 1;
        // Token ids may have further axes in front, such as choices.
        role && i.stream == stream
            && (one_axis || i.role != InputRole::Mask && i.role != InputRole::InverseMask)
    };
    let anchor = inputs
        .iter()
        .find(|i| i.role == InputRole::TokenIds && i.stream == stream)
        .or_else(|| inputs.iter().find(|i| per_token(i) && i.role == InputRole::Mask));
    let Some(anchor) = anchor else { return };
    let dim = last_but_batch(anchor)
        .and_then(|axis| anchor.spec.dims.get(axis))
        .cloned();
    let Some(dim) = dim else { return };
    let with_past = inputs.iter().any(|i| i.role == InputRole::Past);
    for input in inputs.iter_mut() {
        let last = last_but_batch(input);
        let per_token = per_token(input);
        let embeddings = input.role == InputRole::Floats
            && input.stream == stream
            && input.spec.name.to_lowercase().contains("inputs_embeds");
        for (axis, (meaning, own)) in input.axes.iter_mut().zip(&input.spec.dims).enumerate() {
            if *meaning == InputAxis::Batch {
                continue;
            }
            let same_symbol = matches!(own, InputDim::Symbol(_)) && *own == dim;
            if same_symbol || embeddings && axis == 1 {
                *meaning = InputAxis::Tokens(stream);
            } else if per_token && Some(axis) == last {
                let total = with_past && stream == StreamKind::Main && input.role == InputRole::Mask;
                *meaning = if total && *own != dim {
                    InputAxis::Total
                } else {
                    InputAxis::Tokens(stream)
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, elem: Elem, dims: &[&str]) -> InputSpec {
        let dims = dims
            .iter()
            .map(|d| match d.parse() {
                Ok(size) => InputDim::Fixed(size),
                Err(_) if *d == "?" => InputDim::Unknown,
                Err(_) => InputDim::Symbol((*d).to_owned()),
            })
            .collect();
        InputSpec {
            name: name.to_owned(),
            elem,
            dims,
        }
    }

    fn axes(layout: &Layout, input: usize) -> &[InputAxis] {
        &layout.inputs[input].axes
    }

    const MAIN: InputAxis = InputAxis::Tokens(StreamKind::Main);

    #[test]
    fn bert() {
        let layout = Layout::new(&[
            spec("input_ids", Elem::I64, &["batch", "sequence"]),
            spec("attention_mask", Elem::I64, &["batch", "sequence"]),
            spec("token_type_ids", Elem::I64, &["batch", "sequence"]),
        ]);
        assert_eq!(layout.fixed_batch, None);
        for input in 0..3 {
            assert_eq!(axes(&layout, input), [InputAxis::Batch, MAIN]);
        }
        assert_eq!(
            layout.padding_mask(StreamKind::Main).unwrap().spec.name,
            "attention_mask"
        );
    }

    #[test]
    fn fixed_and_anonymous() {
        let layout = Layout::new(&[
            spec("input_ids", Elem::I64, &["2", "10"]),
            spec("attention_mask", Elem::I64, &["2", "10"]),
        ]);
        assert_eq!(layout.fixed_batch, Some(2));
        assert_eq!(axes(&layout, 1), [InputAxis::Batch, MAIN]);
        let layout = Layout::new(&[
            spec("input.1", Elem::I64, &["unk__1", "unk__2"]),
            spec("attention_mask.1", Elem::I64, &["unk__3", "?"]),
        ]);
        assert_eq!(layout.inputs[0].role, InputRole::TokenIds);
        assert_eq!(axes(&layout, 1), [InputAxis::Batch, MAIN]);
    }

    #[test]
    fn past() {
        let layout = Layout::new(&[
            spec("input_ids", Elem::I64, &["batch", "sequence"]),
            spec("attention_mask", Elem::I64, &["batch", "total"]),
            spec("past_key_values.0.key", Elem::F32, &["batch", "4", "past", "12"]),
            spec("past_0", Elem::F32, &["2", "batch", "4", "past", "12"]),
        ]);
        assert_eq!(axes(&layout, 1), [InputAxis::Batch, InputAxis::Total]);
        assert_eq!(
            axes(&layout, 2),
            [
                InputAxis::Batch,
                InputAxis::Fixed,
                InputAxis::Past,
                InputAxis::Fixed
            ]
        );
        assert_eq!(layout.inputs[3].batch_axis(), Some(1));
    }

    #[test]
    fn decoder_with_encoder_states() {
        let layout = Layout::new(&[
            spec("input_ids", Elem::I64, &["batch_size", "decoder_sequence"]),
            spec(
                "encoder_hidden_states",
                Elem::F32,
                &["batch_size", "encoder_sequence", "512"],
            ),
            spec(
                "encoder_attention_mask",
                Elem::I64,
                &["batch_size", "encoder_sequence"],
            ),
        ]);
        let encoder = InputAxis::Tokens(StreamKind::Encoder);
        assert_eq!(axes(&layout, 0), [InputAxis::Batch, MAIN]);
        assert_eq!(axes(&layout, 1), [InputAxis::Batch, encoder, InputAxis::Fixed]);
        assert_eq!(axes(&layout, 2), [InputAxis::Batch, encoder]);
    }

    #[test]
    fn sequence_first_and_images() {
        let layout = Layout::new(&[spec("src", Elem::I64, &["seq", "batch"])]);
        assert_eq!(axes(&layout, 0), [MAIN, InputAxis::Batch]);
        let layout = Layout::new(&[spec("pixel_values", Elem::F32, &["batch", "3", "20", "20"])]);
        assert_eq!(layout.inputs[0].role, InputRole::Image);
        assert_eq!(axes(&layout, 0)[0], InputAxis::Batch);
    }
}
