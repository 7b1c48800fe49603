"""The functions of the package: each runs the program once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Optional, Union

from . import _report
from ._data import Data, Path, as_model, as_paths
from ._errors import Error, InputError
from ._options import FLAGS, HELP, PruneOptions
from ._program import Progress, run

if TYPE_CHECKING:
    from typing_extensions import Unpack

#: A path, or an ``onnx.ModelProto`` in memory.
Model = Union[Path, Any]

Engine = Literal["auto", "ort", "tract"]
Device = Literal["auto", "cpu", "cuda"]

_Value = Union[str, float, "os.PathLike[str]", None]


class _Line:
    """A command line in the making."""

    def __init__(self, *words: Path) -> None:
        self.words = [os.fspath(word) for word in words]

    def values(self, **options: _Value) -> None:
        """``max_drop=0.1`` is ``--max-drop=0.1``; what is not given is left out."""
        for name, value in options.items():
            if value is not None:
                text = os.fspath(value) if isinstance(value, os.PathLike) else str(value)
                self.words.append(f"--{name.replace('_', '-')}={text}")

    def flags(self, **options: bool) -> None:
        self.words += [f"--{name.replace('_', '-')}" for name, on in options.items() if on]

    def options(self, given: Mapping[str, Any]) -> None:
        """The options of the command line by their names; what is ``None`` is left out."""
        for name, value in given.items():
            if name not in FLAGS:
                raise TypeError(f"there is no option '{name}'")
            flag, takes = FLAGS[name]
            if value is None:
                continue
            if takes in ("switch", "unless"):
                if bool(value) is (takes == "switch"):
                    self.words.append(flag)
            elif takes == "one":
                self.words.append(f"{flag}={os.fspath(value) if isinstance(value, os.PathLike) else value}")
            elif takes == "shapes":
                self.words += [f"{flag}={key}={','.join(map(str, shape))}" for key, shape in value.items()]
            else:
                several = [value] if isinstance(value, (str, os.PathLike)) else list(value)
                words = [os.fspath(one) if isinstance(one, os.PathLike) else str(one) for one in several]
                self.words += [f"{flag}={','.join(words)}"] if takes == "list" else [f"{flag}={w}" for w in words]

    def engine(self, engine: Optional[Engine], device: Optional[Device], threads: Optional[int], ort_lib: Optional[Path]) -> None:
        self.values(engine=engine, device=device, threads=threads, ort_lib=ort_lib)


def prune(
    input: Model,
    output: Path,
    *,
    data: Optional[Data] = None,
    report: Optional[Path] = None,
    progress: Optional[Progress] = None,
    **options: Unpack[PruneOptions],
) -> _report.PruneReport:
    """Prunes ``input`` into ``output``; every other argument is the option of the command line of that name.

    ``input`` is a path or an ``onnx.ModelProto``. ``data`` is a path or several; a list of texts, where ``tokenizer`` is
    given; a dictionary of NumPy arrays by the names of the graph's inputs (samples along the first axis), one array for
    a model of one input; or an iterable of such, alone or in tuples with labels, which are left alone. ``report`` is where an HTML report goes. ``progress`` is called
    with the stage, the steps done and the steps in all. The rest are below.

    Raises an :class:`Error` with the program's own words; :class:`KeyboardInterrupt` leaves no file behind.
    """
    with as_model(input) as path, as_paths(data, options.get("tokenizer")) as paths:
        line = _Line(path, output)
        line.values(report=report)
        line.options(options)
        line.words += [f"--data={path}" for path in paths]
        raw, said = run([*line.words, "--json=-", "--progress=json"], progress)
    return _report.prune_report(_object(raw), said)


prune.__doc__ = (prune.__doc__ or "") + "\n    Options:\n\n" + "".join(f"    {name}: {text}\n" for name, text in HELP.items())


def prune_folder(
    input: Path,
    output: Path,
    *,
    data: Optional[Data] = None,
    report: Optional[Path] = None,
    progress: Optional[Progress] = None,
    **options: Unpack[PruneOptions],
) -> list[_report.PruneReport]:
    """Prunes all models of a folder into a new folder that the same loader takes; a report for each file.

    The tokenizer is found in the folder; configurations are brought up to date, everything else is copied. The
    arguments are those of :func:`prune`.
    """
    if not os.path.isdir(input):
        raise InputError(f"there is no folder {os.fspath(input)}")
    with as_paths(data, options.get("tokenizer") or input) as paths:
        line = _Line(input, output)
        line.values(report=report)
        line.options(options)
        line.words += [f"--data={path}" for path in paths]
        raw, _ = run([*line.words, "--json=-", "--progress=json"], progress)
    if not isinstance(raw, list):
        raise Error("the program printed no list of reports")
    return [_report.prune_report(one, "") for one in raw]


def sweep(
    input: Path,
    output: Path,
    budgets: Sequence[float],
    *,
    data: Optional[Data] = None,
    report: Optional[Path] = None,
    progress: Optional[Progress] = None,
    **options: Unpack[PruneOptions],
) -> list[_report.PruneReport]:
    """Prunes to several budgets from one calibration; ``out.onnx`` becomes ``out-0.6.onnx`` and so on."""
    line = _Line(input, output)
    line.values(sweep=",".join(map(str, budgets)), report=report)
    line.options(options)
    with as_paths(data, options.get("tokenizer")) as paths:
        line.words += [f"--data={path}" for path in paths]
        raw, _ = run([*line.words, "--json=-", "--progress=json"], progress)
    if not isinstance(raw, list):
        raise Error("the program printed no list of reports")
    return [_report.prune_report(one, "") for one in raw]


def inspect(
    model: Path,
    *,
    change_interface: bool = False,
    uniform_kv: bool = False,
    batch: Optional[int] = None,
    seq: Optional[int] = None,
) -> _report.Inspection:
    """What can be pruned in a model, what cannot, and why."""
    line = _Line("inspect", model, "--json")
    line.flags(change_interface=change_interface, uniform_kv=uniform_kv)
    line.values(batch=batch, seq=seq)
    raw, _ = run(line.words)
    return _report.inspection(_object(raw))


def compare(
    a: Path,
    b: Path,
    *,
    data: Optional[Data] = None,
    **options: Unpack[PruneOptions],
) -> _report.Comparison:
    """Runs two models on the same inputs: how far is ``a`` from ``b``? Takes the options of inputs and engines."""
    line = _Line("compare", a, b, "--json")
    line.options(options)
    with as_paths(data, options.get("tokenizer")) as paths:
        line.words += [f"--data={path}" for path in paths]
        raw, _ = run(line.words)
    found = _report.comparison(_object(raw))
    assert found is not None
    return found


def bench(
    a: Path,
    b: Optional[Path] = None,
    *,
    batch: Optional[int] = None,
    seq: Optional[int] = None,
    runs: Optional[int] = None,
    shapes: Optional[Mapping[str, Sequence[int]]] = None,
    engine: Optional[Engine] = None,
    device: Optional[Device] = None,
    threads: Optional[int] = None,
    ort_lib: Optional[Path] = None,
) -> _report.BenchReport:
    """Latency of a model, or of two in turns."""
    line = _Line("bench", a, *([] if b is None else [b]), "--json")
    line.values(batch=batch, seq=seq, runs=runs)
    for name, shape in (shapes or {}).items():
        line.words.append(f"--shape={name}={','.join(map(str, shape))}")
    line.engine(engine, device, threads, ort_lib)
    raw, _ = run(line.words)
    return _report.bench_report(_object(raw))


def calibrate(
    model: Path,
    output: Path,
    *,
    data: Optional[Data] = None,
    keep_samples: Optional[int] = None,
    progress: Optional[Progress] = None,
    **options: Unpack[PruneOptions],
) -> dict[str, object]:
    """Writes the statistics of a model on some inputs to a file, for ``prune(..., stats=[...])``.

    ``keep_samples`` of them go into the file, on which damage is measured later. Takes the options of inputs and
    engines. A run that was stopped resumes when it is started again.
    """
    line = _Line("calibrate", model, "--json")
    line.words += ["-o", os.fspath(output)]
    line.values(keep_samples=keep_samples)
    line.options(options)
    with as_paths(data, options.get("tokenizer")) as paths:
        line.words += [f"--data={path}" for path in paths]
        raw, _ = run([*line.words, "--progress=json"], progress)
    return _object(raw)


def merge(inputs: Sequence[Path], output: Path) -> dict[str, object]:
    """Adds up statistics files of one model."""
    line = _Line("merge", *inputs, "--json")
    line.words += ["-o", os.fspath(output)]
    raw, _ = run(line.words)
    return _object(raw)


def _object(raw: object) -> dict[str, object]:
    if not isinstance(raw, dict):
        raise Error("the program printed no report")
    return raw
