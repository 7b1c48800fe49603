//! What each input of a graph is for, read from its name, type and axes: which
//! axis is the batch, which are token positions, what stands for padding.

use super::spec::{InputDim, InputSpec};
use crate::tensor::Elem;

/// What an input is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
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
pub(crate) enum Stream {
    /// The only one, or what is not named otherwise.
    Main,
    /// What a decoder attends to.
    Encoder,
    /// What a decoder of an encoder-decoder model writes.
    Decoder,
}

impl Stream {
    pub(crate) const ALL: [Stream; 3] = [Stream::Main, Stream::Encoder, Stream::Decoder];
}

/// What an axis counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Axis {
    /// Samples.
    Batch,
    /// Token positions.
    Tokens(Stream),
    /// Earlier tokens and those of [`Stream::Main`].
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
pub(crate) struct Input {
    pub(crate) spec: InputSpec,
    pub(crate) role: Role,
    pub(crate) stream: Stream,
    pub(crate) axes: Vec<Axis>,
}

impl Input {
    /// The axis that counts samples.
    pub(crate) fn batch_axis(&self) -> Option<usize> {
        self.axes.iter().position(|a| *a == Axis::Batch)
    }
}

/// All inputs with their meaning.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) inputs: Vec<Input>,
    /// The number of samples a run takes, where the graph says it.
    pub(crate) fixed_batch: Option<usize>,
}

impl Layout {
    /// Reads the meaning of `specs`.
    pub(crate) fn new(specs: &[InputSpec]) -> Self {
        let mut inputs: Vec<Input> = specs
            .iter()
            .map(|spec| Input {
                spec: spec.clone(),
                role: role(spec),
                stream: Stream::Main,
                axes: spec
                    .dims
                    .iter()
                    .map(|d| {
                        if d.fixed().is_some() {
                            Axis::Fixed
                        } else {
                            Axis::Free
                        }
                    })
                    .collect(),
            })
            .collect();
        name_nameless_ids(&mut inputs);
        name_streams(&mut inputs);
        let fixed_batch = mark_batch(&mut inputs);
        for stream in Stream::ALL {
            mark_tokens(&mut inputs, stream);
        }
        for input in inputs.iter_mut().filter(|i| i.role == Role::Past) {
            for axis in &mut input.axes {
                if *axis == Axis::Free {
                    *axis = Axis::Past;
                }
            }
        }
        Self { inputs, fixed_batch }
    }

    /// The first input of `stream` with token ids.
    pub(crate) fn ids(&self, stream: Stream) -> Option<&Input> {
        self.inputs
            .iter()
            .find(|i| i.role == Role::TokenIds && i.stream == stream)
    }

    /// The mask over the tokens of `stream` that marks padding: one number per
    /// sample and token.
    pub(crate) fn padding_mask(&self, stream: Stream) -> Option<&Input> {
        self.inputs.iter().find(|i| {
            i.role == Role::Mask
                && i.stream == stream
                && i.axes.iter().filter(|a| **a != Axis::Batch).count() == 1
                && (i.axes.contains(&Axis::Tokens(stream)) || i.axes.contains(&Axis::Total))
                && marks_padding(&i.spec.name)
        })
    }

    /// The inputs, for messages.
    pub(crate) fn describe(&self) -> String {
        let specs: Vec<String> = self.inputs.iter().map(|i| i.spec.to_string()).collect();
        specs.join(", ")
    }
}

fn role(spec: &InputSpec) -> Role {
    let name = spec.name.to_lowercase();
    let has = |parts: &[&str]| parts.iter().any(|p| name.contains(p));
    let rank = spec.dims.len();
    if has(&["past", "cache"]) && spec.elem.is_float() {
        Role::Past
    } else if has(&["padding_mask", "pad_mask", "masked", "global_attention_mask"]) {
        Role::InverseMask
    } else if has(&["mask"]) {
        Role::Mask
    } else if spec.elem == Elem::Bool && rank <= 1 {
        Role::Flag
    } else if spec.elem.is_float() {
        if has(&["embed", "hidden"]) {
            Role::Floats
        } else if rank == 4 {
            Role::Image
        } else if rank == 2 && has(&["input_values", "audio", "wave", "speech"]) {
            Role::Audio
        } else {
            Role::Floats
        }
    } else if has(&["token_type", "segment", "type_id"]) {
        Role::TokenTypes
    } else if has(&["position"]) {
        Role::Positions
    } else if rank >= 1 && has(&["input_ids", "token", "input_word", "word_ids"]) {
        Role::TokenIds
    } else {
        Role::Integers
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
fn name_nameless_ids(inputs: &mut [Input]) {
    if inputs.iter().any(|i| i.role == Role::TokenIds) {
        return;
    }
    let candidate = |i: &&mut Input| {
        i.role == Role::Integers && i.spec.dims.len() == 2 && matches!(i.spec.elem, Elem::I32 | Elem::I64)
    };
    if let Some(input) = inputs.iter_mut().find(candidate) {
        input.role = Role::TokenIds;
    }
}

fn name_streams(inputs: &mut [Input]) {
    for input in inputs {
        let name = input.spec.name.to_lowercase();
        input.stream = if name.contains("decoder") {
            Stream::Decoder
        } else if name.contains("encoder") {
            Stream::Encoder
        } else {
            Stream::Main
        };
    }
}

fn names_batch(symbol: &str) -> bool {
    let symbol = symbol.to_lowercase();
    symbol.contains("batch") || matches!(symbol.as_str(), "n" | "b" | "bs" | "bsz")
}

/// Finds the batch axis of every input; returns the fixed size, if it is fixed.
fn mark_batch(inputs: &mut [Input]) -> Option<usize> {
    let named = |input: &Input| {
        input
            .spec
            .dims
            .iter()
            .position(|d| d.symbol().is_some_and(names_batch))
    };
    let any_named = inputs.iter().any(|i| named(i).is_some());

    let main = inputs
        .iter()
        .find(|i| i.role == Role::TokenIds)
        .or_else(|| inputs.iter().find(|i| i.spec.dims.len() >= 2))
        .map(|i| i.spec.clone());
    let Some(main) = main else {
        // Vectors and scalars only: a first axis of open size counts samples.
        for input in inputs.iter_mut() {
            if let Some(first @ Axis::Free) = input.axes.first_mut() {
                *first = Axis::Batch;
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
            *axis = Axis::Batch;
        }
    }
    fixed
}

fn last_but_batch(input: &Input) -> Option<usize> {
    input.axes.iter().rposition(|a| *a != Axis::Batch)
}

/// Finds the axes that count the tokens of `stream`.
fn mark_tokens(inputs: &mut [Input], stream: Stream) {
    let per_token = |i: &Input| {
        let role = matches!(
            i.role,
            Role::TokenIds | Role::TokenTypes | Role::Positions | Role::Mask | Role::InverseMask
        );
        let one_axis = i.axes.iter().filter(|a| **a != Axis::Batch).count() == 1;
        // Token ids may have further axes in front, such as choices.
        role && i.stream == stream && (one_axis || i.role != Role::Mask && i.role != Role::InverseMask)
    };
    let anchor = inputs
        .iter()
        .find(|i| i.role == Role::TokenIds && i.stream == stream)
        .or_else(|| inputs.iter().find(|i| per_token(i) && i.role == Role::Mask));
    let Some(anchor) = anchor else { return };
    let dim = last_but_batch(anchor)
        .and_then(|axis| anchor.spec.dims.get(axis))
        .cloned();
    let Some(dim) = dim else { return };
    let with_past = inputs.iter().any(|i| i.role == Role::Past);
    for input in inputs.iter_mut() {
        let last = last_but_batch(input);
        let per_token = per_token(input);
        let embeddings = input.role == Role::Floats
            && input.stream == stream
            && input.spec.name.to_lowercase().contains("inputs_embeds");
        for (axis, (meaning, own)) in input.axes.iter_mut().zip(&input.spec.dims).enumerate() {
            if *meaning == Axis::Batch {
                continue;
            }
            let same_symbol = matches!(own, InputDim::Symbol(_)) && *own == dim;
            if same_symbol || embeddings && axis == 1 {
                *meaning = Axis::Tokens(stream);
            } else if per_token && Some(axis) == last {
                let total = with_past && stream == Stream::Main && input.role == Role::Mask;
                *meaning = if total && *own != dim {
                    Axis::Total
                } else {
                    Axis::Tokens(stream)
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

    fn axes(layout: &Layout, input: usize) -> &[Axis] {
        &layout.inputs[input].axes
    }

    const MAIN: Axis = Axis::Tokens(Stream::Main);

    #[test]
    fn bert() {
        let layout = Layout::new(&[
            spec("input_ids", Elem::I64, &["batch", "sequence"]),
            spec("attention_mask", Elem::I64, &["batch", "sequence"]),
            spec("token_type_ids", Elem::I64, &["batch", "sequence"]),
        ]);
        assert_eq!(layout.fixed_batch, None);
        for input in 0..3 {
            assert_eq!(axes(&layout, input), [Axis::Batch, MAIN]);
        }
        assert_eq!(
            layout.padding_mask(Stream::Main).unwrap().spec.name,
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
        assert_eq!(axes(&layout, 1), [Axis::Batch, MAIN]);
        let layout = Layout::new(&[
            spec("input.1", Elem::I64, &["unk__1", "unk__2"]),
            spec("attention_mask.1", Elem::I64, &["unk__3", "?"]),
        ]);
        assert_eq!(layout.inputs[0].role, Role::TokenIds);
        assert_eq!(axes(&layout, 1), [Axis::Batch, MAIN]);
    }

    #[test]
    fn past() {
        let layout = Layout::new(&[
            spec("input_ids", Elem::I64, &["batch", "sequence"]),
            spec("attention_mask", Elem::I64, &["batch", "total"]),
            spec("past_key_values.0.key", Elem::F32, &["batch", "4", "past", "12"]),
            spec("past_0", Elem::F32, &["2", "batch", "4", "past", "12"]),
        ]);
        assert_eq!(axes(&layout, 1), [Axis::Batch, Axis::Total]);
        assert_eq!(
            axes(&layout, 2),
            [Axis::Batch, Axis::Fixed, Axis::Past, Axis::Fixed]
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
        let encoder = Axis::Tokens(Stream::Encoder);
        assert_eq!(axes(&layout, 0), [Axis::Batch, MAIN]);
        assert_eq!(axes(&layout, 1), [Axis::Batch, encoder, Axis::Fixed]);
        assert_eq!(axes(&layout, 2), [Axis::Batch, encoder]);
    }

    #[test]
    fn sequence_first_and_images() {
        let layout = Layout::new(&[spec("src", Elem::I64, &["seq", "batch"])]);
        assert_eq!(axes(&layout, 0), [MAIN, Axis::Batch]);
        let layout = Layout::new(&[spec("pixel_values", Elem::F32, &["batch", "3", "20", "20"])]);
        assert_eq!(layout.inputs[0].role, Role::Image);
        assert_eq!(axes(&layout, 0)[0], Axis::Batch);
    }
}
