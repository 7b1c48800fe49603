"""What the evaluation scripts share: data, tokens, batches, metrics. Needs numpy and onnxruntime; texts need tokenizers."""

from __future__ import annotations

import collections
import csv
import math
import pathlib
import re
import string
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

Feeds = dict[str, np.ndarray]


# ---------------------------------------------------------------------------------------------------- data and tokens
def read_table(path: pathlib.Path, columns: Sequence[str], label: str | None) -> tuple[list[tuple[str, ...]], list[float]]:
    """Texts and labels of a .tsv or .csv file with a header; GLUE's files have no quoting."""
    delimiter = "\t" if path.suffix == ".tsv" else ","
    quoting = csv.QUOTE_NONE if path.suffix == ".tsv" else csv.QUOTE_MINIMAL
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter=delimiter, quoting=quoting))
    for name in [*columns, *([label] if label else [])]:
        if rows and name not in rows[0]:
            raise SystemExit(f"{path} has no column '{name}', it has {', '.join(rows[0])}")
    texts = [tuple(row[c] for c in columns) for row in rows]
    return texts, [float(row[label]) for row in rows] if label else []


class Tokens:
    """A fast tokenizer and the inputs that a model wants of it."""

    def __init__(self, path: pathlib.Path, max_length: int) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(path / "tokenizer.json" if path.is_dir() else path))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(max_length)

    def batches(self, texts: Sequence[tuple[str, ...]], inputs: Iterable[str], rows: int = 32) -> Iterator[tuple[list[int], Feeds]]:
        """Batches of texts of like length, with the index of each."""
        encoded = self.tokenizer.encode_batch([t if len(t) > 1 else t[0] for t in texts])
        order = sorted(range(len(texts)), key=lambda i: len(encoded[i].ids))
        parts = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
        wanted = [name for name in inputs if name in parts]
        for start in range(0, len(order), rows):
            at = order[start : start + rows]
            width = max(len(encoded[i].ids) for i in at)
            feeds = {
                name: np.array([pad(getattr(encoded[i], parts[name]), width) for i in at], dtype=np.int64) for name in wanted
            }
            yield at, feeds


def pad(values: Sequence[int], width: int) -> list[int]:
    return [*values, *[0] * (width - len(values))]


# ----------------------------------------------------------------------------------------------------------- answers
def session(model: pathlib.Path, threads: int = 0) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def answers(model: pathlib.Path, batches: Iterable[tuple[list[int], Feeds]], count: int) -> np.ndarray:
    """The first output for every sample, in their order."""
    running = session(model)
    out: list[np.ndarray | None] = [None] * count
    for at, feeds in batches:
        for i, row in zip(at, running.run(None, feeds)[0]):
            out[i] = row
    return np.array(out)


def array_batches(arrays: Feeds, rows: int = 64) -> Iterator[tuple[list[int], Feeds]]:
    """Batches of arrays that have one sample per row."""
    count = len(next(iter(arrays.values())))
    for start in range(0, count, rows):
        at = list(range(start, min(start + rows, count)))
        yield at, {name: array[at] for name, array in arrays.items()}


# ----------------------------------------------------------------------------------------------------------- metrics
def accuracy(logits: np.ndarray, labels: Sequence[float]) -> float:
    return float(np.mean(logits.argmax(-1) == np.asarray(labels)))


def f1(logits: np.ndarray, labels: Sequence[float]) -> float:
    """Of class 1, as GLUE does for MRPC and QQP."""
    found, true = logits.argmax(-1) == 1, np.asarray(labels) == 1
    both = int((found & true).sum())
    return 2 * both / max(int(found.sum() + true.sum()), 1)


def matthews(logits: np.ndarray, labels: Sequence[float]) -> float:
    """Matthews correlation of two classes, as GLUE does for CoLA."""
    found, true = logits.argmax(-1) == 1, np.asarray(labels) == 1
    tp, tn = float((found & true).sum()), float((~found & ~true).sum())
    fp, fn = float((found & ~true).sum()), float((~found & true).sum())
    below = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return (tp * tn - fp * fn) / below if below else 0.0


def spearman(logits: np.ndarray, labels: Sequence[float]) -> float:
    """Rank correlation with ties, as GLUE does for STS-B."""

    def ranks(values: np.ndarray) -> np.ndarray:
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        last = counts.cumsum()
        return ((last - counts + 1 + last) / 2)[place]

    return float(np.corrcoef(ranks(logits.reshape(len(labels))), ranks(np.asarray(labels)))[0, 1])


METRICS = {"accuracy": accuracy, "f1": f1, "matthews": matthews, "spearman": spearman}


# ------------------------------------------------------------------------------------------------- SQuAD's own metric
def normal(text: str) -> list[str]:
    """Words as SQuAD's official script compares them: no case, punctuation, articles."""
    plain = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def exact_match(answer: str, truths: Sequence[str]) -> float:
    return float(any(normal(answer) == normal(truth) for truth in truths))


def word_f1(answer: str, truths: Sequence[str]) -> float:
    def one(truth: str) -> float:
        a, b = normal(answer), normal(truth)
        common = sum((collections.Counter(a) & collections.Counter(b)).values())
        if not a or not b:
            return float(a == b)
        return 2 * common / (len(a) + len(b))

    return max(map(one, truths))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
