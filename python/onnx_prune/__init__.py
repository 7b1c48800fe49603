"""Prune a trained transformer in an ONNX file: no labels, no gradients, no training framework.

    import onnx_prune

    report = onnx_prune.prune("model.onnx", "small.onnx", flops=0.6, data="texts.tsv", tokenizer="tokenizer.json")
    print(report)

The module drives the program ``onnx-prune`` that the same package installs: every option of the one is an option of
the other, and errors have the same text.
"""

from importlib.metadata import PackageNotFoundError, version

from ._api import bench, calibrate, compare, inspect, merge, prune, prune_folder, sweep
from ._errors import (
    EngineError,
    Error,
    FileError,
    InputError,
    NothingPrunableError,
    StrictError,
    UnmetError,
)
from ._program import find_program
from ._report import (
    BenchReport,
    Budget,
    Comparison,
    Group,
    GroupInfo,
    Inspection,
    OutputDifference,
    PruneReport,
    Size,
    Spread,
    Warning,
)

try:
    __version__ = version("onnx-prune")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"

__all__ = [
    "__version__",
    "BenchReport",
    "Budget",
    "Comparison",
    "EngineError",
    "Error",
    "FileError",
    "Group",
    "GroupInfo",
    "InputError",
    "Inspection",
    "NothingPrunableError",
    "OutputDifference",
    "PruneReport",
    "Size",
    "Spread",
    "StrictError",
    "UnmetError",
    "Warning",
    "bench",
    "calibrate",
    "compare",
    "find_program",
    "inspect",
    "merge",
    "prune",
    "prune_folder",
    "sweep",
]
