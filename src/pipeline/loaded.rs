//! From a file to a network with the groups that may be pruned.

use std::path::{Path, PathBuf};

use super::branch;
use super::finite;
use super::form::Form;
use super::options::Options;
use super::vocabulary;
use crate::engine::{self, SessionOptions};
use crate::network::Network;
use crate::onnx::{self, proto};
use crate::rewrite::ends::{self, Ends};
use crate::rewrite::inner::{self, Inner};
use crate::sites::{self, PruneTarget};
use crate::vocabulary::{ChosenTokens, TrimmedVocabulary};
use crate::{Error, Result, ResultExt, axes, rewrite};

/// A model that was read and analysed.
pub struct Loaded {
    /// The file.
    pub file: onnx::Model,
    /// The network in it, without what no engine runs.
    pub network: Network,
    /// What was cut off at its ends.
    pub ends: Vec<Ends>,
    /// The node that it is inside of.
    pub inner: Option<Inner>,
    /// The vocabulary that is left, where some of it went.
    pub vocabulary: Option<TrimmedVocabulary>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// Reads and analyses a model.
///
/// # Errors
/// A file that cannot be read or is no valid model.
///
/// `data` are files that may tell which branch of an `If` they are for.
pub fn load(path: &Path, axes: axes::AnalysisOptions, data: &[PathBuf]) -> Result<Loaded> {
    load_trimmed(path, axes, data, |_, _| Ok(None))
}

/// The same, of what `trim` makes of the model.
fn load_trimmed(
    path: &Path,
    axes: axes::AnalysisOptions,
    data: &[PathBuf],
    trim: impl Fn(&proto::ModelProto, Option<&ChosenTokens>) -> Result<Option<TrimmedVocabulary>>,
) -> Result<Loaded> {
    let file = onnx::load(path)?;
    let place = || format!("{}", path.display());
    onnx::validate(&file.proto).context(place)?;
    let model = onnx::inline_functions(&file.proto).context(place)?;
    let mut notes = Vec::new();
    let (model, inner) = match inner::open(&model, |input| branch::taken(data, input)).context(place)? {
        Some((model, inner)) => {
            notes.push(format!(
                "the decoder is inside of a node: its subgraph '{}' is measured and pruned as a model of its own{}",
                inner.primary(),
                match inner.others.len() {
                    0 => "",
                    _ => ", and the other follows",
                }
            ));
            (model, Some(inner))
        }
        None => (model, None),
    };
    let (model, inner, vocabulary) = match trim(&model, None)? {
        Some(trimmed) => {
            let inner = inner
                .map(|inner| without_tokens(inner, &trimmed, &trim))
                .transpose()?;
            (trimmed.model.clone(), inner, Some(trimmed))
        }
        None => (model, inner, None),
    };
    let (model, ends) = match ends::without_strings(&model) {
        Some((model, front)) => {
            notes.push(format!(
                "the graph begins with {}, which reads strings: what is behind it is measured on token ids",
                front.operators.iter().cloned().collect::<Vec<_>>().join(", ")
            ));
            (model, vec![front])
        }
        None => (model, Vec::new()),
    };
    let network = Network::of(model, axes).context(place)?;
    if file.notes.unknown_bytes > 0 {
        notes.push(format!(
            "the file has {} bytes in protobuf fields that are not part of ONNX; they are not written",
            file.notes.unknown_bytes
        ));
    }
    Ok(Loaded {
        file,
        network,
        ends,
        inner,
        vocabulary,
        notes,
    })
}

/// The decoders that share a vocabulary without the tokens that the primary one lost.
fn without_tokens(
    mut inner: Inner,
    primary: &TrimmedVocabulary,
    trim: impl Fn(&proto::ModelProto, Option<&ChosenTokens>) -> Result<Option<TrimmedVocabulary>>,
) -> Result<Inner> {
    let mut others = Vec::new();
    for (attribute, model) in &inner.others {
        let less = trim(model, Some(&primary.tokens))?;
        others.push((
            attribute.clone(),
            less.map_or_else(|| model.clone(), |t| t.model.clone()),
        ));
    }
    inner.others = others;
    Ok(inner)
}

impl Loaded {
    /// A result with what it was taken out of: `others` are the decoders that share its
    /// weights.
    ///
    /// # Errors
    /// A model without a graph.
    pub(super) fn whole(
        &self,
        model: &proto::ModelProto,
        others: &[proto::ModelProto],
    ) -> Result<proto::ModelProto> {
        let mut whole = model.clone();
        for ends in self.ends.iter().rev() {
            whole = ends.attach(&whole)?;
        }
        match &self.inner {
            Some(inner) => inner.attach(&whole, others),
            None => Ok(whole),
        }
    }
}

impl Loaded {
    /// The model as it was given, but for the tokens that went.
    ///
    /// # Errors
    /// A model without a graph.
    pub(super) fn with_fewer_tokens(&self, trimmed: &TrimmedVocabulary) -> Result<proto::ModelProto> {
        match &self.inner {
            Some(inner) => {
                let others: Vec<proto::ModelProto> = inner.others.iter().map(|(_, m)| m.clone()).collect();
                inner.attach(&trimmed.model, &others)
            }
            None => Ok(trimmed.model.clone()),
        }
    }
}

/// A model with the groups that may be pruned.
pub(super) struct Opened {
    pub(super) loaded: Loaded,
    /// What to warn of where operators were cut off that the engine does not know.
    pub(super) unknown: Option<String>,
    /// How weights come in the file, where that is not how they are pruned.
    pub(super) form: Option<Form>,
    pub(super) targets: Vec<PruneTarget>,
}

/// Reads a model, with the vocabulary that is asked for.
pub(super) fn with_vocabulary(input: &Path, options: &Options) -> Result<Loaded> {
    load_trimmed(input, options.axes, &options.data.data, |model, chosen| {
        vocabulary::trimmed(model, options, chosen)
    })
}

/// Reads a model and chooses its groups.
pub(super) fn open(input: &Path, options: &Options) -> Result<Opened> {
    let mut loaded = with_vocabulary(input, options)?;
    finite::check(&loaded.network)?;
    let mut unknown = None;
    if ends::has_foreign(&loaded.network.proto) {
        let engine = engine::choose(&options.engine)?;
        let runs = engine.session(&loaded.network.proto, &SessionOptions::default());
        if let Err(error) = runs
            && let Some((model, behind)) = ends::without_foreign(&loaded.network.proto)
        {
            unknown = Some(format!(
                "the engine does not know {} ({}): the graph before it is measured and pruned; a library with \
                 it can be given with --ort-custom-ops",
                behind.operators.iter().cloned().collect::<Vec<_>>().join(", "),
                error.chain()
            ));
            loaded.network = Network::of(model, options.axes)?;
            loaded.ends.push(behind);
        }
    }
    if options.narrow
        && let Some(model) = rewrite::unpack(&loaded.network)
    {
        loaded.network = Network::of(model, options.axes)?;
    }
    let selection = &options.selection;
    let found = sites::choose(&loaded.network, selection);
    let other = |t: &PruneTarget| t.sites.iter().any(|s| s.weight.is_none());
    let opens = match &found {
        Ok(targets) => targets.iter().any(other),
        // Blocks of numbers freeze the axes that they lie along.
        Err(error) => matches!(error, Error::NothingPrunable(_)),
    };
    let mut form = None;
    if opens
        && loaded.inner.is_none()
        && let Some((opened, back)) =
            Form::open(&loaded.network, options.axes, || engine::choose(&options.engine))?
    {
        loaded.network = opened;
        loaded.notes.extend(back.notes());
        form = Some(back);
    }
    let mut targets = match form {
        Some(_) => sites::choose(&loaded.network, selection)?,
        None => found?,
    };
    // Another decoder reads the same biases by their names.
    if loaded.inner.is_none()
        && let Some(model) = sites::own_biases(&loaded.network, &targets)?
    {
        loaded.network = Network::of(model, options.axes)?;
        targets = sites::choose(&loaded.network, selection)?;
    }
    Ok(Opened {
        loaded,
        unknown,
        form,
        targets,
    })
}
