"""The options of `prune`. Made from the program's own declarations by a test; do not edit."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict, Union

Path = Union[str, "os.PathLike[str]"]


class PruneOptions(TypedDict, total=False):
    """Every option of the command line."""

    flops: float
    """Fraction of the prunable blocks' multiply-accumulates to keep (0.6 when nothing else is asked for). The prunable blocks are what vanishes when all groups are empty: attention and feed-forward sublayers."""
    params: float
    """Fraction of the prunable blocks' parameters to keep. Several budgets together: all must hold."""
    size: Union[str, int]
    """Most bytes of the written file, as in 25MB or 24MiB."""
    latency: Union[str, float]
    """Most latency at --batch and --seq: a fraction of the dense model's, or a time as in 12ms. Measured with the chosen engine, device and threads."""
    speedup: Union[str, float]
    """The same as a speed-up: 2x is half of the latency."""
    max_drop: float
    """Instead of a budget: the smallest model whose divergence from the dense one on held-out samples stays within this (KL in nats for classes, 1 - cosine for embeddings, else the relative squared error)."""
    eval: str
    """A shell command that prints a number for a candidate file ({} is its path), in place of the divergence. Less is better; --max-drop is the most."""
    mask: Path
    """Instead of a ranking: a mask from elsewhere. A .json, a .npz or .npy with head_mask and neuron_mask of layers x units, or the .onnx that an earlier run wrote."""
    align: int
    """Keep neurons in multiples of this (or all of a group). Without it: of 8 on a CPU, of 64 on CUDA, of less where a group has few."""
    method: Literal["obs", "kcm", "wanda", "magnitude"]
    """How units are ranked. obs: second-order elimination on calibration statistics; kcm: kernelized convex masking (Nova et al., ICML 2023), neurons only; wanda: row norms times activation norms; magnitude: row norms, no data."""
    reconstruct: Literal["auto", "none", "local", "sequential", "rescale"]
    """How the remaining weights are re-fitted. auto: sequential for obs, rescale for kcm, none for the others."""
    targets: Union[Literal["heads", "neurons", "queries"], Sequence[Literal["heads", "neurons", "queries"]]]
    """What may be pruned. queries: query heads within each key/value group, which all stay; instead of heads."""
    exclude: Union[str, Sequence[str]]
    """Leave groups alone whose name matches (regular expression; see `inspect`)."""
    min_units: int
    """Every group keeps at least this many units. With 0, whole sublayers may go."""
    narrow: bool
    """Keep all channels inside attention heads. Otherwise heads lose some, of values and of queries with their keys, where that does less harm than the loss of units."""
    lossless: bool
    """Leave out the lossless rewrites: work for positions that no output reads, dead branches."""
    fold_constant: bool
    """Also remove units that are constant on all calibration inputs. A bias takes up what they add."""
    outputs: Union[str, Sequence[str]]
    """Graph outputs that count when damage is measured; all when not given."""
    change_interface: bool
    """Let inputs and outputs shrink too (the caches of a decoder). Without it, the output file is a drop-in replacement."""
    uniform_kv: bool
    """Keep the same number of key/value heads in every layer, as runtimes with one cache size want. Which ones is up to each layer."""
    effort: Literal["normal", "high"]
    """How much time measurements may take. high: eight times the samples."""
    tokenizer: Path
    """tokenizer.json (or the folder with it), for texts."""
    text_column: Union[str, Sequence[str]]
    """One or two columns with text, by name or number from 0."""
    max_length: int
    """Texts are cut to this many tokens."""
    samples: int
    """How many samples to take."""
    seed: int
    """Seed of sampling and of synthetic inputs."""
    join: bool
    """Leave texts as they are. Otherwise two thirds of them are joined with one or two others, where all together have at most --max-length tokens."""
    shapes: Mapping[str, Sequence[int]]
    """Shape of an input whose axes the graph leaves open, as in pixel_values=1,3,224,224."""
    batch: int
    """Batch size that costs are computed for."""
    seq: int
    """Sequence length that costs are computed for, and the longest synthetic sequence."""
    stats: Union[Path, Sequence[Path]]
    """Instead of calibrating: statistics of this model that `calibrate` or `merge` wrote (with --out-dir, one file per model). With --data too (best other inputs than those), damage is measured and weights are re-fitted layer after layer as ever; without, local errors stand in, which is much worse."""
    engine: Literal["auto", "ort", "tract"]
    """Which engine: onnxruntime where it is found, else the built-in tract."""
    device: Literal["auto", "cpu", "cuda"]
    """Where it runs; cuda is an error where CUDA does not really work."""
    threads: int
    """Threads that compute, in the engine and elsewhere; one per core when not given."""
    ort_lib: Path
    """The onnxruntime library, or a folder that holds it."""
    dry_run: bool
    """Tell what would be done; write nothing."""
    strict: bool
    """Make every warning an error (exit code 6)."""
    external_data: bool
    """Put tensors into a side file beside the model."""
    export_mask: Path
    """Write the mask (.json, .npz). Heads then keep all their channels, of which a mask says nothing."""
    timing: bool
    """Do not time the result against the dense model."""
    latency_cache: Path
    """The file that keeps tables of measured latencies."""
    damp: float
    """Ridge of obs and re-fitting, as a fraction of the mean variance."""
    probe: int
    """Samples that damage is measured on. Without it: as many as take a few dense passes over all samples, 8 to 128."""
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
