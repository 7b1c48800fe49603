"""What the program tells, as typed objects that print as tables and show as HTML in a notebook."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Sequence
from typing import Any, Optional


@dataclasses.dataclass(frozen=True)
class Budget:
    """Asked and got, as fractions of the prunable blocks' multiply-adds."""

    asked: float
    got: float
    #: Multiply-adds of the prunable blocks, dense.
    prunable: int
    #: Multiply-adds of the whole model.
    whole_before: int
    whole_after: int
    #: The least fraction that the method can reach.
    floor: float


@dataclasses.dataclass(frozen=True)
class Size:
    """Parameters and bytes; no bytes after a dry run."""

    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: Optional[int]


@dataclasses.dataclass(frozen=True)
class Group:
    """What stays of one group of units."""

    name: str
    #: ``"heads"`` or ``"neurons"``.
    kind: str
    units: int
    #: Indices of the units that stay.
    kept: tuple[int, ...]
    #: Damage that the method expects.
    damage: float
    #: Where in the network it is: ``"block 3 attention"``.
    place: Optional[str] = None


@dataclasses.dataclass(frozen=True)
class OutputDifference:
    """How one output differs."""

    name: str
    max: float
    relative_max: float
    relative_squared: float
    #: Share of rows with the same largest entry, where the output looks like classes.
    agreement: Optional[float]
    #: Kullback-Leibler divergence in nats, where the output looks like classes.
    kl: Optional[float]
    #: Mean cosine of the rows, where they look like embeddings.
    cosine: Optional[float]
    #: What ``divergence`` is: "KL", "1 - cosine" or "relative squared error".
    measure: str
    #: How far the output is from the dense model's by that measure.
    divergence: Optional[float]


@dataclasses.dataclass(frozen=True)
class Warning:
    """Something that a run could not do. It made a model all the same."""

    #: For programs: ``refit-local``, ``timing``, ...
    name: str
    #: What happened, and what it costs.
    text: str


@dataclasses.dataclass(frozen=True)
class Spread:
    """The middle of some measurements and their quartiles."""

    lower: float
    median: float
    upper: float
    least: float


class _Shown:
    """Prints as text, shows as a table."""

    def _rows(self) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        raise NotImplementedError

    def _title(self) -> str:
        return ""

    def __str__(self) -> str:
        head, rows = self._rows()
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

        def line(cells: Sequence[str]) -> str:
            first, *others = [(cell, width) for cell, width in zip(cells, widths)]
            return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]).rstrip()

        title = self._title()
        return "\n".join([*([title] if title else []), line(head), *map(line, rows)])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        head, rows = self._rows()

        def cells(tag: str, row: Sequence[str]) -> str:
            parts = [
                f'<{tag} style="text-align:{"left" if at == 0 else "right"}">{html.escape(cell)}</{tag}>'
                for at, cell in enumerate(row)
            ]
            return f"<tr>{''.join(parts)}</tr>"

        title = self._title()
        caption = f"<p><b>{html.escape(title)}</b></p>" if title else ""
        body = "".join(cells("td", row) for row in rows)
        return f"<div>{caption}<table><thead>{cells('th', head)}</thead><tbody>{body}</tbody></table></div>"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _number(value: Optional[float], form: str = ".4g") -> str:
    return "-" if value is None else format(value, form)


@dataclasses.dataclass(frozen=True, repr=False)
class Comparison(_Shown):
    """How far two models are apart."""

    outputs: tuple[OutputDifference, ...]
    samples: int

    def _title(self) -> str:
        return f"{self.samples} samples"

    def _rows(self) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        head = ("output", "same answer", "KL", "cosine", "relative squared error", "largest difference")
        rows = [
            (
                o.name,
                "-" if o.agreement is None else _percent(o.agreement),
                _number(o.kl),
                _number(o.cosine),
                _number(o.relative_squared),
                _number(o.max),
            )
            for o in self.outputs
        ]
        return head, rows


@dataclasses.dataclass(frozen=True, repr=False)
class PruneReport(_Shown):
    """What a run did. ``raw`` holds everything that ``--json`` writes."""

    input: str
    #: Nothing after a dry run.
    output: Optional[str]
    #: The command line that does the same again.
    command: str
    budget: Budget
    size: Size
    groups: tuple[Group, ...]
    #: Pruned against dense on samples that were kept apart.
    held_out: Optional[Comparison]
    #: Times as fast as the dense model, if it was measured.
    speedup: Optional[Spread]
    notes: tuple[str, ...]
    #: What the run could not do, and what that costs.
    warnings: tuple[Warning, ...]
    #: What the program prints on a terminal.
    summary: str = dataclasses.field(compare=False)
    raw: dict[str, Any] = dataclasses.field(compare=False)

    def __str__(self) -> str:
        return self.summary.rstrip("\n") or super().__str__()

    def _title(self) -> str:
        return f"{self.input} -> {self.output or '(nothing written)'}"

    def _rows(self) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        def row(name: str, before: int, after: int) -> tuple[str, str, str, str]:
            return name, f"{before:,}", f"{after:,}", _percent(after / max(before, 1))

        b, s = self.budget, self.size
        rows: list[Sequence[str]] = [
            ("asked of the blocks", "", "", _percent(b.asked)),
            row("multiply-adds, blocks", b.prunable, round(b.got * b.prunable)),
            row("multiply-adds, whole model", b.whole_before, b.whole_after),
            row("parameters", s.parameters_before, s.parameters_after),
        ]
        if s.bytes_after is not None:
            rows.append(row("bytes", s.bytes_before, s.bytes_after))
        if self.speedup is not None:
            rows.append(("speed", "", "", f"{self.speedup.median:.2f}x"))
        for o in self.held_out.outputs if self.held_out else ():
            if o.agreement is not None:
                rows.append((f"same answer, {o.name}", "", "", _percent(o.agreement)))
            rows.append((f"relative error, {o.name}", "", "", _number(o.relative_squared)))
        for g in self.groups:
            rows.append((f"{g.kind} of {g.name}", str(g.units), str(len(g.kept)), _percent(len(g.kept) / max(g.units, 1))))
        return ("", "dense", "pruned", "kept"), rows


@dataclasses.dataclass(frozen=True)
class GroupInfo:
    """A group of units that must go together."""

    name: str
    kind: str
    units: int
    parameters: int
    flops: int
    #: Share of the whole model's multiply-adds.
    flops_share: float
    #: Whether it is pruned when nothing is said.
    default: bool
    #: Where in the network it is: ``"block 3 attention"``.
    place: Optional[str] = None


@dataclasses.dataclass(frozen=True, repr=False)
class Inspection(_Shown):
    """What can be pruned in a model. ``raw`` holds everything, with what cannot and why."""

    input: str
    opset: int
    parameters: int
    flops: int
    groups: tuple[GroupInfo, ...]
    notes: tuple[str, ...]
    raw: dict[str, Any] = dataclasses.field(compare=False)

    def _title(self) -> str:
        return f"{self.input}: opset {self.opset}, {self.parameters:,} parameters, {self.flops:,} multiply-adds"

    def _rows(self) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        rows = [
            (g.name, g.kind, str(g.units), f"{g.parameters:,}", _percent(g.flops_share), "" if g.default else "off")
            for g in self.groups
        ]
        return ("group", "kind", "units", "parameters", "flops", ""), rows


@dataclasses.dataclass(frozen=True, repr=False)
class BenchReport(_Shown):
    """Milliseconds of one model, or of two in turns."""

    a: str
    b: Optional[str]
    engine: str
    a_ms: Spread
    b_ms: Optional[Spread]
    #: How many times as long the second takes as the first.
    speedup: Optional[Spread]
    raw: dict[str, Any] = dataclasses.field(compare=False)

    def _title(self) -> str:
        return self.engine

    def _rows(self) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        def row(name: str, s: Spread, unit: str) -> tuple[str, ...]:
            return (name, *(f"{v:.3f}{unit}" for v in (s.median, s.lower, s.upper, s.least)))

        rows = [row(self.a, self.a_ms, " ms")]
        if self.b is not None and self.b_ms is not None:
            rows.append(row(self.b, self.b_ms, " ms"))
        if self.speedup is not None:
            rows.append(row("speed-up", self.speedup, "x"))
        return ("model", "median", "lower quartile", "upper quartile", "least"), rows


def _known(kind: type[Any], raw: dict[str, Any]) -> dict[str, Any]:
    """The entries that the class has; later versions may tell more."""
    return {f.name: raw.get(f.name) for f in dataclasses.fields(kind)}


def spread(raw: Optional[dict[str, Any]]) -> Optional[Spread]:
    """From JSON."""
    return None if raw is None else Spread(**_known(Spread, raw))


def comparison(raw: Optional[dict[str, Any]]) -> Optional[Comparison]:
    """From JSON."""
    if raw is None:
        return None
    outputs = tuple(OutputDifference(**_known(OutputDifference, o)) for o in raw["outputs"])
    return Comparison(outputs, raw["samples"])


def prune_report(raw: dict[str, Any], summary: str) -> PruneReport:
    """From JSON."""
    latency = raw.get("latency")
    return PruneReport(
        input=raw["input"],
        output=raw["output"],
        command=raw["command"],
        budget=Budget(**_known(Budget, raw["budget"])),
        size=Size(**_known(Size, raw["size"])),
        groups=tuple(Group(**{**_known(Group, g), "kept": tuple(g["kept"])}) for g in raw["groups"]),
        held_out=comparison(raw["held_out"]),
        speedup=spread(latency["speedup"]) if latency else None,
        notes=tuple(raw["notes"]),
        warnings=tuple(Warning(**_known(Warning, w)) for w in raw["warnings"]),
        summary=summary,
        raw=raw,
    )


def inspection(raw: dict[str, Any]) -> Inspection:
    """From JSON."""
    return Inspection(
        input=raw["input"],
        opset=raw["opset"],
        parameters=raw["parameters"],
        flops=raw["flops"],
        groups=tuple(GroupInfo(**_known(GroupInfo, g)) for g in raw["groups"]),
        notes=tuple(raw["notes"]),
        raw=raw,
    )


def bench_report(raw: dict[str, Any]) -> BenchReport:
    """From JSON."""
    timing, engine = raw["timing"], raw["engine"]
    first = spread(timing["a"])
    assert first is not None
    return BenchReport(
        a=raw["a"],
        b=raw["b"],
        engine=f"{engine['name']} {engine['version']} on {engine['device']}, {engine['threads']} threads",
        a_ms=first,
        b_ms=spread(timing["b"]),
        speedup=spread(timing["speedup"]),
        raw=raw,
    )
