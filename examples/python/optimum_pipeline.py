#!/usr/bin/env python3
"""From Hugging Face to a pruned and quantised model, with the accuracy at each step.

    pip install onnx-prune[ort] optimum-onnx[onnxruntime] onnx tokenizers datasets
    python optimum_pipeline.py --checkpoint distilbert-base-uncased-finetuned-sst-2-english --flops 0.6 \
        --data train.tsv --text-column sentence --test dev.tsv --label label

A model that is exported already is taken with --onnx MODEL.onnx (and --tokenizer for texts); data may be .npz files,
arrays by the names of the inputs, with an array of labels in the test set.

Tried with transformers 4.57.6, optimum 2.1.0 and optimum-onnx 0.1.0.
"""

from __future__ import annotations

import argparse
import pathlib

import numpy as np

import evaluation
import onnx_prune


def export(checkpoint: str, folder: pathlib.Path, task: str) -> pathlib.Path:
    """The ONNX file of a checkpoint, with its tokenizer.json beside it. Of a folder Optimum cannot tell the task."""
    from optimum.exporters.onnx import main_export

    main_export(checkpoint, output=folder, task=task)
    return folder / "model.onnx"


def quantise(model: pathlib.Path, out: pathlib.Path) -> None:
    """Weights to 8 bits; activations are quantised as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(str(model), str(out), weight_type=QuantType.QInt8)


class Judge:
    """Accuracy on a labelled test set."""

    def __init__(self, arguments: argparse.Namespace, tokenizer: pathlib.Path | None) -> None:
        if arguments.test.suffix == ".npz":
            arrays = dict(np.load(arguments.test))
            self.labels = arrays.pop(arguments.label)
            self.batches = lambda _: evaluation.array_batches(arrays)
        else:
            if tokenizer is None:
                raise SystemExit("texts need --tokenizer")
            columns = arguments.text_column or ["sentence"]
            texts, self.labels = evaluation.read_table(arguments.test, columns, arguments.label)
            tokens = evaluation.Tokens(tokenizer, arguments.max_length)
            self.batches = lambda inputs: tokens.batches(texts, inputs)

    def accuracy(self, model: pathlib.Path) -> float:
        inputs = [i.name for i in evaluation.session(model).get_inputs()]
        logits = evaluation.answers(model, self.batches(inputs), len(self.labels))
        return evaluation.accuracy(logits, self.labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", help="a name on the Hugging Face hub, or a folder")
    source.add_argument("--onnx", type=pathlib.Path, help="a model that is exported already")
    parser.add_argument("--tokenizer", type=pathlib.Path, help="tokenizer.json; beside the exported model by itself")
    parser.add_argument("--data", type=pathlib.Path, required=True, help="calibration inputs; labels are not read")
    parser.add_argument("--test", type=pathlib.Path, required=True, help="labelled: .tsv, .csv or .npz")
    parser.add_argument("--label", default="label", help="the column or array with labels")
    parser.add_argument("--text-column", action="append")
    parser.add_argument("--task", default="text-classification", help="what Optimum exports the checkpoint for")
    parser.add_argument("--flops", type=float, default=0.6)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("pipeline"))
    arguments = parser.parse_args()

    arguments.out.mkdir(parents=True, exist_ok=True)
    dense = arguments.onnx or export(arguments.checkpoint, arguments.out / "dense", arguments.task)
    tokenizer = arguments.tokenizer or (dense.parent if arguments.checkpoint else None)
    judge = Judge(arguments, tokenizer)
    pruned, small = arguments.out / "pruned.onnx", arguments.out / "pruned-int8.onnx"

    # Prune first: weights are re-fitted best before they are rounded.
    report = onnx_prune.prune(
        dense,
        pruned,
        flops=arguments.flops,
        data=arguments.data,
        tokenizer=tokenizer if arguments.data.suffix != ".npz" else None,
        text_column=arguments.text_column,
        samples=arguments.samples,
        max_length=arguments.max_length,
        report=arguments.out / "report.html",
        progress=lambda stage, done, total: print(f"\r{stage} {done}/{total}   ", end="", flush=True),
    )
    print("\r" + str(report))
    quantise(pruned, small)

    rows = []
    for name, model in [("dense", dense), ("pruned", pruned), ("pruned, int8", small)]:
        side = model.with_name(model.name + ".data")
        size = model.stat().st_size + (side.stat().st_size if side.exists() else 0)
        rows.append([name, f"{100 * judge.accuracy(model):.2f}", f"{size / 1e6:.2f}"])
    print(evaluation.table(["model", "accuracy %", "MB"], rows))


if __name__ == "__main__":
    main()
