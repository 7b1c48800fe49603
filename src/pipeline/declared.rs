//! Every option, said once.
//!
//! One declaration gives the command line, the library's builder, the Python function, the
//! command that a report records and the entry in a model's metadata, all with the same
//! words, default and conflicts.

use std::ffi::OsString;
use std::path::PathBuf;

use super::options::Options;
use crate::budget::Demand;

/// What follows an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// Nothing: it is a switch.
    Nothing,
    /// One value of this name.
    One(&'static str),
    /// A value of this name each time that it is given.
    Each(&'static str),
    /// Values of this name, one or more after it.
    Several(&'static str),
    /// Values of this name with commas between.
    List(&'static str),
}

/// What an option is about; the sections of the help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    /// What the result may cost.
    Budget,
    /// What may be pruned, and how.
    Pruning,
    /// Calibration inputs.
    Data,
    /// What runs the model.
    Engine,
    /// What is written.
    Output,
    /// Rarely needed.
    Tuning,
}

impl Topic {
    /// Its title.
    pub fn title(self) -> &'static str {
        match self {
            Topic::Budget => "Budget",
            Topic::Pruning => "What is pruned, and how",
            Topic::Data => "Calibration data",
            Topic::Engine => "Engine",
            Topic::Output => "Output",
            Topic::Tuning => "Fine tuning",
        }
    }
}

/// An option.
#[derive(Debug)]
pub struct Declared {
    /// On the command line, without the dashes.
    pub name: &'static str,
    /// What follows it.
    pub takes: Takes,
    /// What it is about.
    pub topic: Topic,
    /// Options that it cannot stand with.
    pub conflicts: &'static [&'static str],
    /// The values that it takes, where there are few.
    pub words: &'static [&'static str],
    /// What it does; the first sentence stands for all where space is short.
    pub help: &'static str,
    /// Takes its words.
    pub read: fn(&mut Options, &[OsString]) -> Result<(), String>,
    /// Its words as the options stand; none where it is not given.
    pub tell: fn(&Options) -> Vec<OsString>,
}

impl Declared {
    /// Whether it differs from its default.
    pub fn is_given(&self, options: &Options) -> bool {
        (self.tell)(options) != (self.tell)(&Options::default())
    }

    /// Whether it goes into the metadata of a result: what can change the result does.
    pub fn is_recorded(&self) -> bool {
        let elsewhere = [
            "latency-cache",
            "strict",
            "dry-run",
            "no-timing",
            "ort-lib",
            "threads",
            "data",
            "tokenizer",
            "stats",
            "export-mask",
        ];
        !elsewhere.contains(&self.name)
    }

    /// Whether it and another cannot stand together.
    pub fn excludes(&self, other: &Declared) -> bool {
        self.conflicts.contains(&other.name) || other.conflicts.contains(&self.name)
    }

    /// The words of a command line that give it as the options have it; none where that is
    /// the default.
    pub fn words(&self, options: &Options) -> Vec<OsString> {
        if !self.is_given(options) {
            return Vec::new();
        }
        let flag = OsString::from(format!("--{}", self.name));
        let values = (self.tell)(options);
        match self.takes {
            Takes::Nothing => vec![flag],
            Takes::Each(_) => values.into_iter().flat_map(|v| [flag.clone(), v]).collect(),
            _ => std::iter::once(flag).chain(values).collect(),
        }
    }

    /// The option of this name.
    pub fn find(name: &str) -> Option<&'static Declared> {
        DECLARED.iter().find(|option| option.name == name)
    }
}

/// A value as a word of the command line.
pub trait Word {
    /// The word.
    fn word(&self) -> OsString;
}

macro_rules! displayed {
    ($($type:ty),+ $(,)?) => { $(
        impl Word for $type {
            fn word(&self) -> OsString {
                self.to_string().into()
            }
        }
    )+ };
}

displayed!(
    f64,
    crate::budget::Multiples,
    i32,
    usize,
    u64,
    str,
    String,
    regex::Regex,
    crate::rank::Method,
    crate::rank::Effort,
    crate::refit::Reconstruct,
    crate::sites::UnitKind,
    crate::engine::EngineChoice,
    crate::engine::Device,
    crate::numerics::score::kcm::Normalise,
);

impl Word for PathBuf {
    fn word(&self) -> OsString {
        self.clone().into_os_string()
    }
}

impl Word for std::path::Path {
    fn word(&self) -> OsString {
        self.as_os_str().to_owned()
    }
}

impl<T: Word + ?Sized> Word for &T {
    fn word(&self) -> OsString {
        (**self).word()
    }
}

/// The only word as text.
fn text(words: &[OsString]) -> Result<&str, String> {
    let [word] = words else {
        return Err("it takes one value".into());
    };
    word.to_str()
        .ok_or_else(|| format!("'{}' is not UTF-8", word.to_string_lossy()))
}

/// All words as text, split at commas.
fn texts(words: &[OsString]) -> Result<Vec<String>, String> {
    let mut all = Vec::new();
    for word in words {
        let text = text(std::slice::from_ref(word))?;
        all.extend(
            text.split(',')
                .map(str::trim)
                .filter(|t| !t.is_empty())
                .map(str::to_owned),
        );
    }
    Ok(all)
}

fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(words: &[OsString]) -> Result<T, String> {
    let text = text(words)?;
    text.trim().parse().map_err(|e| format!("'{text}': {e}"))
}

fn all_parsed<T: std::str::FromStr<Err: std::fmt::Display>>(words: &[OsString]) -> Result<Vec<T>, String> {
    let one = |text: &String| text.parse().map_err(|e| format!("'{text}': {e}"));
    texts(words)?.iter().map(one).collect()
}

fn path(words: &[OsString]) -> Result<PathBuf, String> {
    match words {
        [word] => Ok(word.into()),
        _ => Err("it takes one path".into()),
    }
}

fn paths(words: &[OsString]) -> Vec<PathBuf> {
    words.iter().map(PathBuf::from).collect()
}

fn one(value: impl Word) -> Vec<OsString> {
    vec![value.word()]
}

fn maybe<T: Word>(value: &Option<T>) -> Vec<OsString> {
    value.iter().map(Word::word).collect()
}

fn each<T: Word>(values: &[T]) -> Vec<OsString> {
    values.iter().map(Word::word).collect()
}

/// Values with commas between.
fn joined<T: Word>(values: &[T]) -> Vec<OsString> {
    if values.is_empty() {
        return Vec::new();
    }
    let words: Vec<String> = each(values)
        .iter()
        .map(|w| w.to_string_lossy().into_owned())
        .collect();
    vec![words.join(",").into()]
}

/// A switch that is on.
fn on(set: bool) -> Vec<OsString> {
    match set {
        true => vec![OsString::new()],
        false => Vec::new(),
    }
}

/// Puts a demand in place of one of its kind.
fn demand(options: &mut Options, new: Demand) {
    options.demands.retain(|d| d.option() != new.option());
    options.demands.push(new);
}

/// A demand of this name as it is written.
fn demanded(options: &Options, name: &str) -> Vec<OsString> {
    let own = options.demands.iter().find(|d| d.option() == name);
    own.map(|d| match d {
        // What is shown is rounded.
        Demand::Size(bytes) => bytes.to_string().into(),
        Demand::Flops(v) | Demand::Parameters(v) | Demand::LatencyFraction(v) => v.to_string().into(),
        Demand::Latency(ms) => format!("{ms}ms").into(),
        Demand::Speedup(times) => format!("{times}x").into(),
    })
    .into_iter()
    .collect()
}

/// `0.6` or `60%`.
fn fraction(text: &str) -> Result<f64, String> {
    let (number, per) = match text.trim().strip_suffix('%') {
        Some(number) => (number, 100.0),
        None => (text.trim(), 1.0),
    };
    let number: f64 = number.trim().parse().map_err(|e| format!("'{text}': {e}"))?;
    Ok(number / per)
}

/// Adds patterns of names.
fn exclude(options: &mut Options, words: &[OsString]) -> Result<(), String> {
    for word in words {
        let text = text(std::slice::from_ref(word))?;
        let pattern = regex::Regex::new(text).map_err(|e| format!("'{text}': {e}"))?;
        options.selection.exclude.push(pattern);
    }
    Ok(())
}

/// Adds shapes of inputs.
fn shapes(options: &mut Options, words: &[OsString]) -> Result<(), String> {
    for word in words {
        let shape = shape(text(std::slice::from_ref(word))?)?;
        options.data.shapes.push(shape);
    }
    Ok(())
}

fn told_shape((name, dims): &(String, Vec<usize>)) -> OsString {
    let dims: Vec<String> = dims.iter().map(usize::to_string).collect();
    format!("{name}={}", dims.join(",")).into()
}

fn shape(text: &str) -> Result<(String, Vec<usize>), String> {
    let bad = || format!("'{text}': expected NAME=D,D,... as in pixel_values=1,3,224,224");
    let (name, dims) = text.split_once('=').ok_or_else(bad)?;
    let dims: Result<Vec<usize>, _> = dims.split([',', 'x']).map(|d| d.trim().parse()).collect();
    Ok((name.to_string(), dims.map_err(|_| bad())?))
}

/// Hands all declarations to a macro.
macro_rules! declarations {
    ($then:ident) => {
        $then! {
            Budget flops One("FRACTION") "flops" ["max-drop", "mask"] { &[] }
              "Fraction of the prunable blocks' multiply-accumulates to keep (0.6 when no budget is given). The prunable blocks are the attention and feed-forward sublayers: what would vanish if every group were empty."
              { |o, w| { demand(o, Demand::Flops(fraction(text(w)?)?)); Ok(()) } } { |o| demanded(o, "flops") };
            Budget params One("FRACTION") "params" ["max-drop", "mask"] { &[] }
              "Fraction of the prunable blocks' parameters to keep. When several budgets are given, all must hold."
              { |o, w| { demand(o, Demand::parameters(text(w)?)?); Ok(()) } } { |o| demanded(o, "params") };
            Budget size One("BYTES") "size" ["max-drop", "mask"] { &[] }
              "Maximum size of the written file, such as 25MB or 24MiB."
              { |o, w| { demand(o, Demand::size(text(w)?)?); Ok(()) } } { |o| demanded(o, "size") };
            Budget latency One("FRACTION|TIME") "latency" ["max-drop", "mask", "speedup"] { &[] }
              "Maximum latency at --batch and --seq: a fraction of the dense model's, or a time such as 12ms. Measured with the chosen engine, device and threads."
              { |o, w| { demand(o, Demand::latency(text(w)?)?); Ok(()) } } { |o| demanded(o, "latency") };
            Budget speedup One("TIMES") "speedup" ["max-drop", "mask"] { &[] }
              "The same limit as a speed-up: 2x halves the latency."
              { |o, w| { demand(o, Demand::speedup(text(w)?)?); Ok(()) } } { |o| demanded(o, "speedup") };
            Budget max_drop One("X") "max-drop" ["mask"] { &[] }
              "Instead of a budget: the smallest model whose divergence from the dense one on held-out samples stays within this (KL in nats for classes, 1 - cosine for embeddings, else the relative squared error)."
              { |o, w| { o.max_drop = Some(parsed(w)?); Ok(()) } } { |o| maybe(&o.max_drop) };
            Budget eval One("COMMAND") "eval" [] { &[] }
              "A shell command that prints a score for a candidate file ({} is its path), used in place of the divergence. Lower is better; --max-drop is the highest score accepted."
              { |o, w| { o.eval = Some(text(w)?.to_owned()); Ok(()) } } { |o| maybe(&o.eval) };
            Budget mask One("FILE") "mask" [] { &[] }
              "Instead of a ranking: apply a mask made elsewhere. A .json file, a .npz or .npy with head_mask and neuron_mask of layers x units, or the .onnx that an earlier run wrote."
              { |o, w| { o.mask = Some(path(w)?); Ok(()) } } { |o| maybe(&o.mask) };
            Budget align One("N|KIND=N") "align" ["mask"] { &[] }
              "Keep neurons, and the channels of heads, in multiples of N (or all of them); heads=8,neurons=64 tells them apart. Default: neurons 8 on a CPU, 64 on CUDA, fewer in small groups; channels 4, on CUDA 8."
              { |o, w| { o.align = Some(text(w)?.parse()?); Ok(()) } } { |o| maybe(&o.align) };
            Pruning method One("METHOD") "method" [] { crate::rank::Method::WORDS }
              "How units are ranked. obs: second-order elimination on calibration statistics; kcm: kernelized convex masking (Nova et al., ICML 2023), neurons only; wanda: row norms times activation norms; magnitude: row norms, no data."
              { |o, w| { o.rank.method = parsed(w)?; Ok(()) } } { |o| one(o.rank.method) };
            Pruning reconstruct One("HOW") "reconstruct" [] { crate::refit::Reconstruct::WORDS }
              "How the remaining weights are re-fitted. auto: sequential for obs, rescale for kcm, none for the others."
              { |o, w| { o.refit.reconstruct = parsed(w)?; Ok(()) } } { |o| one(o.refit.reconstruct) };
            Pruning targets List("KIND") "targets" [] { crate::sites::UnitKind::WORDS }
              "What may be pruned. queries, instead of heads: query heads within each key/value group; all groups stay."
              { |o, w| { o.selection.targets = all_parsed(w)?; Ok(()) } } { |o| joined(&o.selection.targets) };
            Pruning exclude Each("REGEX") "exclude" [] { &[] }
              "Do not prune groups whose name or place matches (a regular expression, as 'block 3 attention$'; `inspect` lists both)."
              { |o, w| exclude(o, w) } { |o| each(&o.selection.exclude) };
            Pruning min_units One("N") "min-units" [] { &[] }
              "Every group keeps at least N units. With 0, whole sublayers may be removed."
              { |o, w| { o.selection.min_units = parsed(w)?; Ok(()) } } { |o| one(o.selection.min_units) };
            Pruning no_narrow Nothing "no-narrow" ["mask"] { &[] }
              "Keep all channels inside attention heads. Otherwise heads lose value channels and query/key channels where that does less harm than losing units."
              { |o, _| { o.narrow = false; Ok(()) } } { |o| on(!o.narrow) };
            Pruning no_lossless Nothing "no-lossless" [] { &[] }
              "Skip the lossless rewrites, which remove work for positions that no output reads, and dead branches."
              { |o, _| { o.lossless = false; Ok(()) } } { |o| on(!o.lossless) };
            Pruning fold_constant Nothing "fold-constant" ["mask"] { &[] }
              "Also remove units that are constant on all calibration inputs. What they contribute is added to a bias."
              { |o, _| { o.fold_constant = true; Ok(()) } } { |o| on(o.fold_constant) };
            Pruning outputs List("NAME") "outputs" [] { &[] }
              "Graph outputs that count when damage is measured. Default: all."
              { |o, w| { o.outputs = texts(w)?; Ok(()) } } { |o| joined(&o.outputs) };
            Pruning change_interface Nothing "change-interface" [] { &[] }
              "Let inputs and outputs shrink too, such as the caches of a decoder. Without it, the output file is a drop-in replacement."
              { |o, _| { o.axes.change_interface = true; Ok(()) } } { |o| on(o.axes.change_interface) };
            Pruning uniform_kv Nothing "uniform-kv" [] { &[] }
              "Keep the same number of key/value heads in every layer, for runtimes with one cache size. Each layer chooses its own."
              { |o, _| { o.axes.uniform_kv = true; Ok(()) } } { |o| on(o.axes.uniform_kv) };
            Pruning effort One("EFFORT") "effort" [] { crate::rank::Effort::WORDS }
              "How much time measuring may take. high: eight times the samples."
              { |o, w| { o.effort = parsed(w)?; Ok(()) } } { |o| one(o.effort) };
            Data data Several("PATH") "data" [] { &[] }
              "Inputs without labels: .npz files (arrays by input name), a folder of them, ONNX test data sets, or texts (.txt, .jsonl, .tsv, .csv) with --tokenizer. Default: synthetic inputs."
              { |o, w| { o.data.data.extend(paths(w)); Ok(()) } } { |o| each(&o.data.data) };
            Data tokenizer One("PATH") "tokenizer" [] { &[] }
              "For texts: tokenizer.json, or the folder that holds it."
              { |o, w| { o.data.tokenizer = Some(path(w)?); Ok(()) } } { |o| maybe(&o.data.tokenizer) };
            Data text_column List("NAME") "text-column" [] { &[] }
              "One or two columns with text, by name or number from 0."
              { |o, w| { o.data.text_columns = texts(w)?; Ok(()) } } { |o| joined(&o.data.text_columns) };
            Data max_length One("N") "max-length" [] { &[] }
              "Truncate texts to N tokens."
              { |o, w| { o.data.max_length = parsed(w)?; Ok(()) } } { |o| one(o.data.max_length) };
            Pruning vocab Several("PATH") "vocab" [] { &[] }
              "Keep only the tokens that occur in these texts (.txt, .jsonl, .tsv, .csv; `data` for those of --data), or those of a smaller tokenizer.json, besides special tokens and single characters. The tables of the model shrink, and the tokenizer that belongs to it is written beside the output as NAME.tokenizer.json."
              { |o, w| { o.vocabulary.sources.extend(paths(w)); Ok(()) } } { |o| each(&o.vocabulary.sources) };
            Pruning vocab_keep One("N") "vocab-keep" [] { &[] }
              "With --vocab: keep N tokens that do not occur, those whose embeddings are most like the embeddings of those that do. Default: a third as many as occur."
              { |o, w| { o.vocabulary.keep = Some(parsed(w)?); Ok(()) } } { |o| maybe(&o.vocabulary.keep) };
            Pruning vocab_languages List("SCRIPT") "vocab-languages" [] { &[] }
              "Keep the tokens that these scripts write, by their names in Unicode (latin, cyrillic, han, ...), alone or besides those of --vocab."
              { |o, w| { o.vocabulary.scripts = texts(w)?; Ok(()) } } { |o| joined(&o.vocabulary.scripts) };
            Pruning vocab_drop_in Nothing "vocab-drop-in" [] { &[] }
              "With --vocab: the model takes and gives ids as before and its tokenizer stays. A table inside leads tokens that are gone to the longest pieces that they begin with, or to the unknown one."
              { |o, _| { o.vocabulary.drop_in = true; Ok(()) } } { |o| on(o.vocabulary.drop_in) };
            Data sample_count One("N") "samples" [] { &[] }
              "Number of samples to use. Default: 512, and of texts with few tokens as many more as have 32,768 together, at most 2,048."
              { |o, w| { o.data.samples = Some(parsed(w)?); Ok(()) } } { |o| maybe(&o.data.samples) };
            Data seed One("N") "seed" [] { &[] }
              "Seed for sampling and for synthetic inputs."
              { |o, w| { o.data.seed = parsed(w)?; Ok(()) } } { |o| one(o.data.seed) };
            Data no_join Nothing "no-join" [] { &[] }
              "Use texts as they are. Otherwise two thirds of them are joined with one or two others, up to --max-length tokens, and of few texts more are made, of the beginning of one and the end of another."
              { |o, _| { o.data.join = false; Ok(()) } } { |o| on(!o.data.join) };
            Data shape Each("NAME=DIMS") "shape" [] { &[] }
              "Shape of an input whose axes the graph leaves open, such as pixel_values=1,3,224,224."
              { |o, w| shapes(o, w) } { |o| o.data.shapes.iter().map(told_shape).collect() };
            Data batch One("N") "batch" [] { &[] }
              "Batch size for which costs are computed."
              { |o, w| { o.data.batch = parsed(w)?; Ok(()) } } { |o| one(o.data.batch) };
            Data seq One("N") "seq" [] { &[] }
              "Sequence length for which costs are computed, and the length of the longest synthetic sequence. Default: that of the data if all samples have the same, else 128."
              { |o, w| { o.data.seq = Some(parsed(w)?); Ok(()) } } { |o| maybe(&o.data.seq) };
            Data stats Several("FILE.safetensors") "stats" [] { &[] }
              "Instead of calibrating: statistics of this model, written by `calibrate` or `merge` (with --out-dir, one file per model). Give --data too, preferably other inputs: damage is then measured and layers are re-fitted in order as usual. Without it local errors stand in, which is much worse."
              { |o, w| { o.stats.extend(paths(w)); Ok(()) } } { |o| each(&o.stats) };
            Engine engine One("ENGINE") "engine" [] { crate::engine::EngineChoice::WORDS }
              "Inference engine. auto: onnxruntime if it is found, else the built-in tract."
              { |o, w| { o.engine.engine = parsed(w)?; Ok(()) } } { |o| one(o.engine.engine) };
            Engine device One("DEVICE") "device" [] { crate::engine::Device::WORDS }
              "Device. cuda fails if CUDA is not actually used."
              { |o, w| { o.engine.device = parsed(w)?; Ok(()) } } { |o| one(o.engine.device) };
            Engine threads One("N") "threads" [] { &[] }
              "Number of computing threads, in the engine and elsewhere. Default: one per core."
              { |o, w| { o.engine.threads = Some(parsed(w)?); Ok(()) } } { |o| maybe(&o.engine.threads) };
            Engine ort_lib One("PATH") "ort-lib" [] { &[] }
              "The onnxruntime library, or the folder that holds it."
              { |o, w| { o.engine.ort_lib = Some(path(w)?); Ok(()) } } { |o| maybe(&o.engine.ort_lib) };
            Engine ort_custom_ops Each("LIB") "ort-custom-ops" [] { &[] }
              "A library of operators to register with ONNX Runtime (repeatable). onnxruntime-extensions is found by itself where it is installed beside onnxruntime."
              { |o, w| { o.engine.custom_ops = w.iter().map(PathBuf::from).collect(); Ok(()) } } { |o| o.engine.custom_ops.iter().map(|p| p.into()).collect() };
            Output dry_run Nothing "dry-run" [] { &[] }
              "Show what would be done; write nothing."
              { |o, _| { o.dry_run = true; Ok(()) } } { |o| on(o.dry_run) };
            Output strict Nothing "strict" [] { &[] }
              "Turn every warning into an error (exit code 6)."
              { |o, _| { o.strict = true; Ok(()) } } { |o| on(o.strict) };
            Output external_data Nothing "external-data" [] { &[] }
              "Store tensors in a side file beside the model."
              { |o, _| { o.external_data = true; Ok(()) } } { |o| on(o.external_data) };
            Output export_mask One("FILE") "export-mask" [] { &[] }
              "Write the mask (.json or .npz). Heads then keep all their channels, which a mask cannot express."
              { |o, w| { o.export_mask = Some(path(w)?); Ok(()) } } { |o| maybe(&o.export_mask) };
            Output no_timing Nothing "no-timing" [] { &[] }
              "Do not time the result against the dense model."
              { |o, _| { o.timing = false; Ok(()) } } { |o| on(!o.timing) };
            Tuning latency_cache One("FILE") "latency-cache" [] { &[] }
              "File that caches tables of measured latencies."
              { |o, w| { o.latency_cache = Some(path(w)?); Ok(()) } } { |o| maybe(&o.latency_cache) };
            Tuning damp One("X") "damp" [] { &[] }
              "Ridge for obs and re-fitting, as a fraction of the mean variance."
              { |o, w| { o.rank.damp = parsed(w)?; Ok(()) } } { |o| one(o.rank.damp) };
            Tuning probe One("N") "probe" [] { &[] }
              "Number of samples on which damage is measured. Default: as many as take a few dense passes over all samples, 8 to 128."
              { |o, w| { o.probe = Some(parsed(w)?); Ok(()) } } { |o| maybe(&o.probe) };
            Tuning refit_sinks_only Nothing "refit-sinks-only" [] { &[] }
              "Re-fit only the layers that lose inputs, not the ones between them."
              { |o, _| { o.refit.others = false; Ok(()) } } { |o| on(!o.refit.others) };
            Tuning kcm_sigma One("X") "kcm-sigma" [] { &[] }
              "kcm: width of the Gaussian kernel."
              { |o, w| { o.rank.kcm.sigma = parsed(w)?; Ok(()) } } { |o| one(o.rank.kcm.sigma) };
            Tuning kcm_alpha One("X") "kcm-alpha" [] { &[] }
              "kcm: stop when the coefficients change by less than this fraction."
              { |o, w| { o.rank.kcm.alpha = parsed(w)?; Ok(()) } } { |o| one(o.rank.kcm.alpha) };
            Tuning kcm_iterations One("N") "kcm-iterations" [] { &[] }
              "kcm: most iterations."
              { |o, w| { o.rank.kcm.max_iterations = parsed(w)?; Ok(()) } } { |o| one(o.rank.kcm.max_iterations) };
            Tuning kcm_normalise One("HOW") "kcm-normalise" [] { crate::numerics::score::kcm::Normalise::WORDS }
              "kcm: how the two scores are made comparable."
              { |o, w| { o.rank.kcm.normalise = parsed(w)?; Ok(()) } } { |o| one(o.rank.kcm.normalise) };
        }
    };
}
pub(crate) use declarations;

macro_rules! table {
    ($($topic:ident $method:ident $takes:ident $(($value:literal))? $name:literal [$($conflict:literal),*]
        { $words:expr } $help:literal { $read:expr } { $tell:expr };)*) => {
        /// All options, in the order in which they are listed.
        pub static DECLARED: &[Declared] = &[$(Declared {
            name: $name,
            takes: Takes::$takes $(($value))?,
            topic: Topic::$topic,
            conflicts: &[$($conflict),*],
            words: $words,
            help: $help,
            read: $read,
            tell: $tell,
        }),*];
    };
}

declarations!(table);
