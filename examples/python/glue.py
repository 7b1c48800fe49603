#!/usr/bin/env python3
"""GLUE with and without pruning: every method at every budget, one table.

For whoever has fine-tuned checkpoints (the publication's table is BERT-base at 0.6 of the FLOPs with `--methods kcm`):

    pip install onnx-prune[ort] optimum-onnx[onnxruntime] tokenizers datasets
    python glue.py --task sst2 --checkpoint textattack/bert-base-uncased-SST-2 --methods obs kcm --budgets 0.8 0.6

With files in place of the hub: --onnx MODEL.onnx --tokenizer tokenizer.json --train train.tsv --test dev.tsv
(columns named as in the task; the labels of --train are not read).

Tried with transformers 4.57.6, optimum 2.1.0 and optimum-onnx 0.1.0.
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile
from typing import NamedTuple

import evaluation
import onnx_prune
from optimum_pipeline import export


class Task(NamedTuple):
    columns: tuple[str, ...]
    metric: str
    validation: str = "validation"


TASKS = {
    "sst2": Task(("sentence",), "accuracy"),
    "cola": Task(("sentence",), "matthews"),
    "mrpc": Task(("sentence1", "sentence2"), "f1"),
    "qqp": Task(("question1", "question2"), "f1"),
    "stsb": Task(("sentence1", "sentence2"), "spearman"),
    "mnli": Task(("premise", "hypothesis"), "accuracy", "validation_matched"),
    "qnli": Task(("question", "sentence"), "accuracy"),
    "rte": Task(("sentence1", "sentence2"), "accuracy"),
}


def from_hub(name: str, task: Task, folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Training texts and the validation set as files with a header."""
    from datasets import load_dataset

    loaded = load_dataset("nyu-mll/glue", name)
    paths = []
    for split, columns in [("train", task.columns), (task.validation, (*task.columns, "label"))]:
        path = folder / f"{split}.tsv"
        with path.open("w", encoding="utf-8") as file:
            print(*columns, sep="\t", file=file)
            for row in loaded[split]:
                print(*(" ".join(str(row[c]).split()) for c in columns), sep="\t", file=file)
        paths.append(path)
    return paths[0], paths[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, required=True)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", help="a name on the Hugging Face hub, or a folder")
    source.add_argument("--onnx", type=pathlib.Path)
    parser.add_argument("--tokenizer", type=pathlib.Path)
    parser.add_argument("--train", type=pathlib.Path)
    parser.add_argument("--test", type=pathlib.Path)
    parser.add_argument("--methods", nargs="+", default=["obs", "kcm"])
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.8, 0.7, 0.6, 0.5])
    parser.add_argument("--samples", type=int, default=2048, help="as published; the default of onnx-prune is 512")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    task = TASKS[arguments.task]

    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        dense = arguments.onnx or export(arguments.checkpoint, folder / "dense", "text-classification")
        tokenizer = arguments.tokenizer or dense.parent
        if arguments.train and arguments.test:
            train, test = arguments.train, arguments.test
        else:
            train, test = from_hub(arguments.task, task, folder)
        texts, labels = evaluation.read_table(test, task.columns, "label")
        tokens = evaluation.Tokens(tokenizer, arguments.max_length)
        inputs = [i.name for i in evaluation.session(dense).get_inputs()]

        def score(model: pathlib.Path) -> str:
            logits = evaluation.answers(model, tokens.batches(texts, inputs), len(texts))
            return f"{100 * evaluation.METRICS[task.metric](logits, labels):.2f}"

        rows = [["dense", "1.0", "1.0000", score(dense)]]
        for method in arguments.methods:
            for budget in arguments.budgets:
                try:
                    report = onnx_prune.prune(
                        dense, folder / "small.onnx", flops=budget, method=method, data=train, tokenizer=tokenizer,
                        text_column=task.columns, samples=arguments.samples, max_length=arguments.max_length,
                        seed=arguments.seed,
                    )  # fmt: skip
                    rows.append([method, str(budget), f"{report.budget.got:.4f}", score(folder / "small.onnx")])
                except onnx_prune.UnmetError:
                    # kcm leaves attention alone, so it cannot reach every budget.
                    rows.append([method, str(budget), "-", "-"])
        print(evaluation.table(["method", "FLOPs asked", "got", f"{arguments.task} {task.metric} x 100"], rows))


if __name__ == "__main__":
    main()
