#!/usr/bin/env python3
"""SQuAD with and without pruning: exact match and F1 as the official script computes them.

    pip install onnx-prune[ort] optimum-onnx[onnxruntime] tokenizers
    python squad.py --checkpoint csarron/bert-base-uncased-squad-v1 --train train-v1.1.json --dev dev-v1.1.json

or with a model that is exported already: --onnx MODEL.onnx --tokenizer tokenizer.json. Calibration takes questions and
contexts of --train, no answers.

Tried with transformers 4.57.6, optimum 2.1.0 and optimum-onnx 0.1.0.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

import evaluation
import onnx_prune


class Question(NamedTuple):
    question: str
    context: str
    truths: tuple[str, ...]


def read(path: pathlib.Path) -> list[Question]:
    """SQuAD v1.1's JSON."""
    articles = json.loads(path.read_text(encoding="utf-8"))["data"]
    return [
        Question(qa["question"].strip(), paragraph["context"], tuple(a["text"] for a in qa["answers"]))
        for article in articles
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]


class Reader:
    """Windows over long contexts, and the best span of all of them."""

    def __init__(self, tokenizer: pathlib.Path, max_length: int, stride: int, longest: int = 30) -> None:
        from tokenizers import Tokenizer

        path = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
        self.tokenizer = Tokenizer.from_file(str(path))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(max_length, stride=stride, strategy="only_second")
        self.longest = longest

    def answer(self, running: object, q: Question) -> str:
        first = self.tokenizer.encode(q.question, q.context)
        best, text = -np.inf, ""
        inputs = {i.name for i in running.get_inputs()}  # type: ignore[attr-defined]
        for window in [first, *first.overflowing]:
            whole = {"input_ids": window.ids, "attention_mask": window.attention_mask, "token_type_ids": window.type_ids}
            feeds = {n: np.array([v], dtype=np.int64) for n, v in whole.items() if n in inputs}
            start, end = (o[0] for o in running.run(["start_logits", "end_logits"], feeds))  # type: ignore[attr-defined]
            score, span = best_span(start, end, [s == 1 for s in window.sequence_ids], self.longest)
            if score > best and span:
                best = score
                text = q.context[window.offsets[span[0]][0] : window.offsets[span[1]][1]]
        return text


def best_span(start: np.ndarray, end: np.ndarray, inside: Sequence[bool], longest: int) -> tuple[float, tuple[int, int] | None]:
    """The span of tokens within the context with the greatest sum of both logits."""
    best, found = -np.inf, None
    for i in np.flatnonzero(inside):
        stop = min(i + longest, len(inside))
        ends = np.where(inside[i:stop], end[i:stop], -np.inf)
        j = int(ends.argmax())
        if start[i] + ends[j] > best:
            best, found = float(start[i] + ends[j]), (int(i), int(i) + j)
    return best, found


def calibration(questions: Sequence[Question], path: pathlib.Path) -> None:
    """Questions and contexts without answers, as pairs of texts."""
    with path.open("w", encoding="utf-8") as file:
        for q in questions:
            print(json.dumps({"question": q.question, "context": q.context}), file=file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint")
    source.add_argument("--onnx", type=pathlib.Path)
    parser.add_argument("--tokenizer", type=pathlib.Path)
    parser.add_argument("--train", type=pathlib.Path, required=True)
    parser.add_argument("--dev", type=pathlib.Path, required=True)
    parser.add_argument("--methods", nargs="+", default=["obs", "kcm"])
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.8, 0.7, 0.6])
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--max-length", type=int, default=384)
    parser.add_argument("--stride", type=int, default=128)
    parser.add_argument("--limit", type=int, help="so many questions of the dev set only")
    arguments = parser.parse_args()

    def told(model: pathlib.Path) -> Iterator[str]:
        running = evaluation.session(model)
        found = [(reader.answer(running, q), q.truths) for q in questions]
        for metric in (evaluation.exact_match, evaluation.word_f1):
            yield f"{100 * np.mean([metric(a, t) for a, t in found]):.2f}"

    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        if arguments.onnx:
            dense = arguments.onnx
        else:
            from optimum_pipeline import export

            dense = export(arguments.checkpoint, folder / "dense", "question-answering")
        tokenizer = arguments.tokenizer or dense.parent
        reader = Reader(tokenizer, arguments.max_length, arguments.stride)
        questions = read(arguments.dev)[: arguments.limit]
        data = folder / "train.jsonl"
        calibration(read(arguments.train), data)

        rows = [["dense", "1.0", *told(dense)]]
        for method in arguments.methods:
            for budget in arguments.budgets:
                small = folder / "small.onnx"
                try:
                    onnx_prune.prune(
                        dense, small, flops=budget, method=method, data=data, tokenizer=tokenizer,
                        text_column=["question", "context"], samples=arguments.samples, max_length=arguments.max_length,
                        join=False, seq=arguments.max_length,
                    )  # fmt: skip
                    rows.append([method, str(budget), *told(small)])
                except onnx_prune.UnmetError:
                    rows.append([method, str(budget), "-", "-"])
        print(evaluation.table(["method", "FLOPs", "exact match", "F1"], rows))


if __name__ == "__main__":
    main()
