"""The functions of the package: each runs the program once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Literal, Optional, Union

from . import _report
from ._data import Data, Path, as_paths
from ._errors import Error
from ._program import Progress, run

Method = Literal["obs", "kcm", "wanda", "magnitude"]
Reconstruct = Literal["auto", "none", "local", "sequential", "rescale"]
Target = Literal["heads", "neurons", "queries"]
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

    def each(self, name: str, values: Union[str, Sequence[str], None]) -> None:
        for value in [values] if isinstance(values, str) else values or []:
            self.words.append(f"--{name}={value}")

    def engine(self, engine: Optional[Engine], device: Optional[Device], threads: Optional[int], ort_lib: Optional[Path]) -> None:
        self.values(engine=engine, device=device, threads=threads, ort_lib=ort_lib)

    def data(
        self,
        paths: Sequence[str],
        tokenizer: Optional[Path],
        text_column: Union[str, Sequence[str], None],
        samples: Optional[int],
        max_length: Optional[int],
        seed: Optional[int],
        shapes: Optional[Mapping[str, Sequence[int]]],
        batch: Optional[int],
        seq: Optional[int],
    ) -> None:
        for path in paths:
            self.words += [f"--data={path}"]
        self.each("text-column", text_column)
        for name, shape in (shapes or {}).items():
            self.words.append(f"--shape={name}={','.join(map(str, shape))}")
        self.values(tokenizer=tokenizer, samples=samples, max_length=max_length, seed=seed, batch=batch, seq=seq)


def prune(
    input: Path,
    output: Path,
    *,
    flops: Optional[float] = None,
    params: Optional[float] = None,
    size: Union[str, int, None] = None,
    latency: Union[str, float, None] = None,
    speedup: Union[str, float, None] = None,
    max_drop: Optional[float] = None,
    eval: Optional[str] = None,
    align: Optional[int] = None,
    data: Optional[Data] = None,
    tokenizer: Optional[Path] = None,
    text_column: Union[str, Sequence[str], None] = None,
    samples: Optional[int] = None,
    max_length: Optional[int] = None,
    join: bool = True,
    seed: Optional[int] = None,
    shapes: Optional[Mapping[str, Sequence[int]]] = None,
    batch: Optional[int] = None,
    seq: Optional[int] = None,
    stats: Optional[Path] = None,
    mask: Optional[Path] = None,
    export_mask: Optional[Path] = None,
    method: Optional[Method] = None,
    reconstruct: Optional[Reconstruct] = None,
    effort: Optional[Literal["normal", "high"]] = None,
    targets: Union[Target, Sequence[Target], None] = None,
    exclude: Union[str, Sequence[str], None] = None,
    min_units: Optional[int] = None,
    outputs: Union[str, Sequence[str], None] = None,
    change_interface: bool = False,
    uniform_kv: bool = False,
    engine: Optional[Engine] = None,
    device: Optional[Device] = None,
    threads: Optional[int] = None,
    ort_lib: Optional[Path] = None,
    external_data: bool = False,
    lossless: bool = True,
    narrow: bool = True,
    fold_constant: bool = False,
    dry_run: bool = False,
    timing: bool = True,
    report: Optional[Path] = None,
    progress: Optional[Progress] = None,
) -> _report.PruneReport:
    """Prunes ``input`` into ``output``; every argument is the option of the command line of that name.

    ``data`` is a path or several, a dictionary of NumPy arrays by the names of the graph's inputs (samples along the
    first axis), or an iterable of such dictionaries. ``report`` is where an HTML report goes. ``progress`` is called
    with the stage, the steps done and the steps in all.

    Raises an :class:`Error` with the program's own words; :class:`KeyboardInterrupt` leaves no file behind.
    """
    line = _Line(input, output)
    line.values(flops=flops, params=params, size=size, latency=latency, speedup=speedup)
    line.values(max_drop=max_drop, eval=eval, align=align, stats=stats, mask=mask, export_mask=export_mask)
    line.values(method=method, reconstruct=reconstruct, effort=effort, min_units=min_units, report=report)
    line.each("targets", targets)
    line.each("exclude", exclude)
    line.each("outputs", outputs)
    line.flags(change_interface=change_interface, uniform_kv=uniform_kv, external_data=external_data)
    line.flags(no_lossless=not lossless, no_narrow=not narrow, fold_constant=fold_constant)
    line.flags(dry_run=dry_run, no_timing=not timing, no_join=not join)
    line.engine(engine, device, threads, ort_lib)
    with as_paths(data) as paths:
        line.data(paths, tokenizer, text_column, samples, max_length, seed, shapes, batch, seq)
        raw, said = run([*line.words, "--json=-", "--progress=json"], progress)
    return _report.prune_report(_object(raw), said)


def sweep(
    input: Path,
    output: Path,
    budgets: Sequence[float],
    *,
    data: Optional[Data] = None,
    tokenizer: Optional[Path] = None,
    text_column: Union[str, Sequence[str], None] = None,
    samples: Optional[int] = None,
    max_length: Optional[int] = None,
    seed: Optional[int] = None,
    shapes: Optional[Mapping[str, Sequence[int]]] = None,
    batch: Optional[int] = None,
    seq: Optional[int] = None,
    method: Optional[Method] = None,
    reconstruct: Optional[Reconstruct] = None,
    exclude: Union[str, Sequence[str], None] = None,
    engine: Optional[Engine] = None,
    device: Optional[Device] = None,
    threads: Optional[int] = None,
    report: Optional[Path] = None,
    progress: Optional[Progress] = None,
) -> list[_report.PruneReport]:
    """Prunes to several budgets from one calibration; ``out.onnx`` becomes ``out-0.6.onnx`` and so on."""
    line = _Line(input, output)
    line.values(sweep=",".join(map(str, budgets)), method=method, reconstruct=reconstruct, report=report)
    line.each("exclude", exclude)
    line.engine(engine, device, threads, None)
    with as_paths(data) as paths:
        line.data(paths, tokenizer, text_column, samples, max_length, seed, shapes, batch, seq)
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
    tokenizer: Optional[Path] = None,
    text_column: Union[str, Sequence[str], None] = None,
    samples: Optional[int] = None,
    max_length: Optional[int] = None,
    seed: Optional[int] = None,
    shapes: Optional[Mapping[str, Sequence[int]]] = None,
    engine: Optional[Engine] = None,
    device: Optional[Device] = None,
    threads: Optional[int] = None,
    ort_lib: Optional[Path] = None,
) -> _report.Comparison:
    """Runs two models on the same inputs: how far is ``a`` from ``b``?"""
    line = _Line("compare", a, b, "--json")
    line.engine(engine, device, threads, ort_lib)
    with as_paths(data) as paths:
        line.data(paths, tokenizer, text_column, samples, max_length, seed, shapes, None, None)
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


def _object(raw: object) -> dict[str, object]:
    if not isinstance(raw, dict):
        raise Error("the program printed no report")
    return raw
