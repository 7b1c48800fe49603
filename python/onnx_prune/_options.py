"""The options of `prune`. Made from the program's own declarations by a test; do not edit."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict, Union

Path = Union[str, "os.PathLike[str]"]


class PruneOptions(TypedDict, total=False):
    """Every option of the command line."""

    flops: float
    """Fraction of the prunable blocks' multiply-accumulates to keep (0.6 when no budget is given). The prunable blocks are the attention and feed-forward sublayers: what would vanish if every group were empty."""
    params: float
    """Fraction of the prunable blocks' parameters to keep. When several budgets are given, all must hold."""
    size: Union[str, int]
    """Maximum size of the written file, such as 25MB or 24MiB."""
    latency: Union[str, float]
    """Maximum latency at --batch and --seq: a fraction of the dense model's, or a time such as 12ms. Measured with the chosen engine, device and threads."""
    speedup: Union[str, float]
    """The same limit as a speed-up: 2x halves the latency."""
    max_drop: float
    """Instead of a budget: the smallest model whose divergence from the dense one on held-out samples stays within this (KL in nats for classes, 1 - cosine for embeddings, else the relative squared error)."""
    eval: str
    """A shell command that prints a score for a candidate file ({} is its path), used in place of the divergence. Lower is better; --max-drop is the highest score accepted."""
    mask: Path
    """Instead of a ranking: apply a mask made elsewhere. A .json file, a .npz or .npy with head_mask and neuron_mask of layers x units, or the .onnx that an earlier run wrote."""
    align: Union[str, int]
    """Keep neurons, and the channels of heads, in multiples of N (or all of them); heads=8,neurons=64 tells them apart. Default: neurons 8 on a CPU, 64 on CUDA, fewer in small groups; channels 4, on CUDA 8."""
    method: Literal["obs", "kcm", "wanda", "magnitude"]
    """How units are ranked. obs: second-order elimination on calibration statistics; kcm: kernelized convex masking (Nova et al., ICML 2023), neurons only; wanda: row norms times activation norms; magnitude: row norms, no data."""
    reconstruct: Literal["auto", "none", "local", "sequential", "rescale"]
    """How the remaining weights are re-fitted. auto: sequential for obs, rescale for kcm, none for the others."""
    targets: Union[Literal["heads", "neurons", "queries"], Sequence[Literal["heads", "neurons", "queries"]]]
    """What may be pruned. queries, instead of heads: query heads within each key/value group; all groups stay."""
    exclude: Union[str, Sequence[str]]
    """Do not prune groups whose name or place matches (a regular expression, as 'block 3 attention$'; `inspect` lists both)."""
    min_units: int
    """Every group keeps at least N units. With 0, whole sublayers may be removed."""
    narrow: bool
    """Keep all channels inside attention heads. Otherwise heads lose value channels and query/key channels where that does less harm than losing units."""
    lossless: bool
    """Skip the lossless rewrites, which remove work for positions that no output reads, and dead branches."""
    fold_constant: bool
    """Also remove units that are constant on all calibration inputs. What they contribute is added to a bias."""
    outputs: Union[str, Sequence[str]]
    """Graph outputs that count when damage is measured. Default: all."""
    change_interface: bool
    """Let inputs and outputs shrink too, such as the caches of a decoder. Without it, the output file is a drop-in replacement."""
    uniform_kv: bool
    """Keep the same number of key/value heads in every layer, for runtimes with one cache size. Each layer chooses its own."""
    effort: Literal["normal", "high"]
    """How much time measuring may take. high: eight times the samples."""
    tokenizer: Path
    """For texts: tokenizer.json, or the folder that holds it."""
    text_column: Union[str, Sequence[str]]
    """One or two columns with text, by name or number from 0."""
    max_length: int
    """Truncate texts to N tokens."""
    vocab: Union[Path, Sequence[Path]]
    """Keep only the tokens that occur in these texts (.txt, .jsonl, .tsv, .csv; `data` for those of --data), or those of a smaller tokenizer.json, besides special tokens and single characters. The tables of the model shrink, and the tokenizer that belongs to it is written beside the output as NAME.tokenizer.json."""
    vocab_keep: int
    """With --vocab: keep N tokens that do not occur, those whose embeddings are most like the embeddings of those that do. Default: a third as many as occur."""
    vocab_languages: Union[str, Sequence[str]]
    """Keep the tokens that these scripts write, by their names in Unicode (latin, cyrillic, han, ...), alone or besides those of --vocab."""
    vocab_drop_in: bool
    """With --vocab: the model takes and gives ids as before and its tokenizer stays. A table inside leads tokens that are gone to the longest pieces that they begin with, or to the unknown one."""
    samples: int
    """Number of samples to use. Default: 512, and of texts with few tokens as many more as have 32,768 together, at most 2,048."""
    seed: int
    """Seed for sampling and for synthetic inputs."""
    join: bool
    """Use texts as they are. Otherwise two thirds of them are joined with one or two others, up to --max-length tokens, and of few texts more are made, of the beginning of one and the end of another."""
    shapes: Mapping[str, Sequence[int]]
    """Shape of an input whose axes the graph leaves open, such as pixel_values=1,3,224,224."""
    batch: int
    """Batch size for which costs are computed."""
    seq: int
    """Sequence length for which costs are computed, and the length of the longest synthetic sequence. Default: that of the data if all samples have the same, else 128."""
    stats: Union[Path, Sequence[Path]]
    """Instead of calibrating: statistics of this model, written by `calibrate` or `merge` (with --out-dir, one file per model). Give --data too, preferably other inputs: damage is then measured and layers are re-fitted in order as usual. Without it local errors stand in, which is much worse."""
    engine: Literal["auto", "ort", "tract"]
    """Inference engine. auto: onnxruntime if it is found, else the built-in tract."""
    device: Literal["auto", "cpu", "cuda"]
    """Device. cuda fails if CUDA is not actually used."""
    threads: int
    """Number of computing threads, in the engine and elsewhere. Default: one per core."""
    ort_lib: Path
    """The onnxruntime library, or the folder that holds it."""
    ort_custom_ops: Union[str, Sequence[str]]
    """A library of operators to register with ONNX Runtime (repeatable). onnxruntime-extensions is found by itself where it is installed beside onnxruntime."""
    dry_run: bool
    """Show what would be done; write nothing."""
    strict: bool
    """Turn every warning into an error (exit code 6)."""
    external_data: bool
    """Store tensors in a side file beside the model."""
    export_mask: Path
    """Write the mask (.json or .npz). Heads then keep all their channels, which a mask cannot express."""
    timing: bool
    """Do not time the result against the dense model."""
    latency_cache: Path
    """File that caches tables of measured latencies."""
    damp: float
    """Ridge for obs and re-fitting, as a fraction of the mean variance."""
    probe: int
    """Number of samples on which damage is measured. Default: as many as take a few dense passes over all samples, 8 to 128."""
    refit_sinks_only: bool
    """Re-fit only the layers that lose inputs, not the ones between them."""
    kcm_sigma: float
    """kcm: width of the Gaussian kernel."""
    kcm_alpha: float
    """kcm: stop when the coefficients change by less than this fraction."""
    kcm_iterations: int
    """kcm: most iterations."""
    kcm_normalise: Literal["none", "minmax", "max", "sum"]
    """kcm: how the two scores are made comparable."""


#: How each option is written on the command line: its flag and what follows it.
FLAGS: dict[str, tuple[str, str]] = {
    "flops": ("--flops", "one"),
    "params": ("--params", "one"),
    "size": ("--size", "one"),
    "latency": ("--latency", "one"),
    "speedup": ("--speedup", "one"),
    "max_drop": ("--max-drop", "one"),
    "eval": ("--eval", "one"),
    "mask": ("--mask", "one"),
    "align": ("--align", "one"),
    "method": ("--method", "one"),
    "reconstruct": ("--reconstruct", "one"),
    "targets": ("--targets", "list"),
    "exclude": ("--exclude", "each"),
    "min_units": ("--min-units", "one"),
    "narrow": ("--no-narrow", "unless"),
    "lossless": ("--no-lossless", "unless"),
    "fold_constant": ("--fold-constant", "switch"),
    "outputs": ("--outputs", "list"),
    "change_interface": ("--change-interface", "switch"),
    "uniform_kv": ("--uniform-kv", "switch"),
    "effort": ("--effort", "one"),
    "tokenizer": ("--tokenizer", "one"),
    "text_column": ("--text-column", "list"),
    "max_length": ("--max-length", "one"),
    "vocab": ("--vocab", "each"),
    "vocab_keep": ("--vocab-keep", "one"),
    "vocab_languages": ("--vocab-languages", "list"),
    "vocab_drop_in": ("--vocab-drop-in", "switch"),
    "samples": ("--samples", "one"),
    "seed": ("--seed", "one"),
    "join": ("--no-join", "unless"),
    "shapes": ("--shape", "shapes"),
    "batch": ("--batch", "one"),
    "seq": ("--seq", "one"),
    "stats": ("--stats", "each"),
    "engine": ("--engine", "one"),
    "device": ("--device", "one"),
    "threads": ("--threads", "one"),
    "ort_lib": ("--ort-lib", "one"),
    "ort_custom_ops": ("--ort-custom-ops", "each"),
    "dry_run": ("--dry-run", "switch"),
    "strict": ("--strict", "switch"),
    "external_data": ("--external-data", "switch"),
    "export_mask": ("--export-mask", "one"),
    "timing": ("--no-timing", "unless"),
    "latency_cache": ("--latency-cache", "one"),
    "damp": ("--damp", "one"),
    "probe": ("--probe", "one"),
    "refit_sinks_only": ("--refit-sinks-only", "switch"),
    "kcm_sigma": ("--kcm-sigma", "one"),
    "kcm_alpha": ("--kcm-alpha", "one"),
    "kcm_iterations": ("--kcm-iterations", "one"),
    "kcm_normalise": ("--kcm-normalise", "one"),
}

#: What each option is, in one line.
HELP: dict[str, str] = {
    "flops": "Fraction of the prunable blocks' multiply-accumulates to keep (0.6 when no budget is given)",
    "params": "Fraction of the prunable blocks' parameters to keep",
    "size": "Maximum size of the written file, such as 25MB or 24MiB",
    "latency": "Maximum latency at --batch and --seq: a fraction of the dense model's, or a time such as 12ms",
    "speedup": "The same limit as a speed-up: 2x halves the latency",
    "max_drop": "Instead of a budget: the smallest model whose divergence from the dense one on held-out samples stays within this (KL in nats for classes, 1 - cosine for embeddings, else the relative squared error)",
    "eval": "A shell command that prints a score for a candidate file ({} is its path), used in place of the divergence",
    "mask": "Instead of a ranking: apply a mask made elsewhere",
    "align": "Keep neurons, and the channels of heads, in multiples of N (or all of them); heads=8,neurons=64 tells them apart",
    "method": "How units are ranked",
    "reconstruct": "How the remaining weights are re-fitted",
    "targets": "What may be pruned",
    "exclude": "Do not prune groups whose name or place matches (a regular expression, as 'block 3 attention$'; `inspect` lists both)",
    "min_units": "Every group keeps at least N units",
    "narrow": "False: Keep all channels inside attention heads",
    "lossless": "False: Skip the lossless rewrites, which remove work for positions that no output reads, and dead branches",
    "fold_constant": "Also remove units that are constant on all calibration inputs",
    "outputs": "Graph outputs that count when damage is measured",
    "change_interface": "Let inputs and outputs shrink too, such as the caches of a decoder",
    "uniform_kv": "Keep the same number of key/value heads in every layer, for runtimes with one cache size",
    "effort": "How much time measuring may take",
    "tokenizer": "For texts: tokenizer.json, or the folder that holds it",
    "text_column": "One or two columns with text, by name or number from 0",
    "max_length": "Truncate texts to N tokens",
    "vocab": "Keep only the tokens that occur in these texts (.txt, .jsonl, .tsv, .csv; `data` for those of --data), or those of a smaller tokenizer.json, besides special tokens and single characters",
    "vocab_keep": "With --vocab: keep N tokens that do not occur, those whose embeddings are most like the embeddings of those that do",
    "vocab_languages": "Keep the tokens that these scripts write, by their names in Unicode (latin, cyrillic, han, ...), alone or besides those of --vocab",
    "vocab_drop_in": "With --vocab: the model takes and gives ids as before and its tokenizer stays",
    "samples": "Number of samples to use",
    "seed": "Seed for sampling and for synthetic inputs",
    "join": "False: Use texts as they are",
    "shapes": "Shape of an input whose axes the graph leaves open, such as pixel_values=1,3,224,224",
    "batch": "Batch size for which costs are computed",
    "seq": "Sequence length for which costs are computed, and the length of the longest synthetic sequence",
    "stats": "Instead of calibrating: statistics of this model, written by `calibrate` or `merge` (with --out-dir, one file per model)",
    "engine": "Inference engine",
    "device": "Device",
    "threads": "Number of computing threads, in the engine and elsewhere",
    "ort_lib": "The onnxruntime library, or the folder that holds it",
    "ort_custom_ops": "A library of operators to register with ONNX Runtime (repeatable)",
    "dry_run": "Show what would be done; write nothing",
    "strict": "Turn every warning into an error (exit code 6)",
    "external_data": "Store tensors in a side file beside the model",
    "export_mask": "Write the mask (.json or .npz)",
    "timing": "False: Do not time the result against the dense model",
    "latency_cache": "File that caches tables of measured latencies",
    "damp": "Ridge for obs and re-fitting, as a fraction of the mean variance",
    "probe": "Number of samples on which damage is measured",
    "refit_sinks_only": "Re-fit only the layers that lose inputs, not the ones between them",
    "kcm_sigma": "kcm: width of the Gaussian kernel",
    "kcm_alpha": "kcm: stop when the coefficients change by less than this fraction",
    "kcm_iterations": "kcm: most iterations",
    "kcm_normalise": "kcm: how the two scores are made comparable",
}
