#!/usr/bin/env python3
"""Runs the Python scripts of examples/ on small data. usage: try_examples.py FIXTURES FOLDER

Metrics are compared with values that were worked out by hand. The parts that take texts need the package tokenizers
and are skipped, with a message, without it.
"""
import contextlib
import importlib.util
import io
import json
import pathlib
import sys

import numpy as np

import evaluation
import glue
import optimum_pipeline
import squad

fixtures, folder = map(pathlib.Path, sys.argv[1:3])


def run(module, *arguments):
    sys.argv = [module.__name__, *map(str, arguments)]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        module.main()
    return out.getvalue()


def cells(text):
    """The rows of the table at the end, without its head."""
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")]
    return rows[2:]


def metrics():
    logits = np.array([[1, 0], [0, 1], [0, 1], [2, 3]])
    labels = [0, 1, 0, 1]
    assert evaluation.accuracy(logits, labels) == 0.75
    # Two true positives, one false one, none missed.
    assert abs(evaluation.f1(logits, labels) - 0.8) < 1e-12
    # (2*1 - 1*0) / sqrt(3*2*2*1)
    assert abs(evaluation.matthews(logits, labels) - 2 / 12**0.5) < 1e-12
    assert abs(evaluation.spearman(np.array([1.0, 2.0, 3.0, 3.0]), [10, 20, 40, 30]) - 0.9486832980505138) < 1e-12
    assert evaluation.exact_match("The  cat!", ["a cat", "dog"]) == 1 and evaluation.exact_match("cats", ["cat"]) == 0
    # One of two words of the answer, one of one of the truth: 2 * 0.5 * 1 / 1.5
    assert abs(evaluation.word_f1("black cat", ["the cat"]) - 2 / 3) < 1e-12
    start, end = np.array([9.0, 1, 0, 2]), np.array([9.0, 0, 3, 1])
    assert squad.best_span(start, end, [False, True, True, True], 30) == (4.0, (1, 2))
    assert squad.best_span(start, end, [False, True, True, True], 1) == (3.0, (2, 2))
    assert squad.best_span(start, end, [False] * 4, 30)[1] is None


def pipeline():
    digits = fixtures / "digits-vit"
    said = run(
        optimum_pipeline, "--onnx", digits / "model.onnx", "--data", digits / "calibration.npz",
        "--test", digits / "test.npz", "--label", "labels", "--flops", "0.4", "--samples", "128", "--out", folder / "p",
    )  # fmt: skip
    rows = cells(said)
    assert [r[0] for r in rows] == ["dense", "pruned", "pruned, int8"], said
    accuracy, size = ([float(r[i]) for r in rows] for i in (1, 2))
    assert abs(accuracy[0] - 98.49) < 0.01 and min(accuracy) > 95, said
    assert size[0] > 1.5 * size[1] > 1.5 * size[2], said
    assert (folder / "p/report.html").is_file()


def texts():
    text = fixtures / "text-language"
    # The fixture's columns are not GLUE's: the same rows with the names of a task.
    lines = (text / "test.tsv").read_text(encoding="utf-8").splitlines()[1:]
    test, train = folder / "dev.tsv", folder / "train.tsv"
    test.write_text("\n".join(["sentence\tlabel", *lines]) + "\n", encoding="utf-8")
    sentences = (text / "calibration.txt").read_text(encoding="utf-8").splitlines()
    train.write_text("\n".join(["sentence", *sentences]) + "\n", encoding="utf-8")
    said = run(
        glue, "--task", "sst2", "--onnx", text / "model.onnx", "--tokenizer", text / "tokenizer.json", "--train", train,
        "--test", test, "--methods", "obs", "kcm", "--budgets", "0.6", "0.05", "--samples", "64", "--max-length", "48",
    )  # fmt: skip
    rows = cells(said)
    assert rows[0][0] == "dense" and abs(float(rows[0][3]) - 88.33) < 0.2, said
    assert float(rows[1][3]) > 80 and rows[4] == ["kcm", "0.05", "-", "-"], said

    questions = [
        {"question": q, "answers": [{"text": "the tower", "answer_start": 0}], "id": str(i)}
        for i, q in enumerate(["Where is it?", "What is old?"])
    ]
    data = {"data": [{"title": "t", "paragraphs": [{"context": "the tower stands here and is old " * 3, "qas": questions}]}]}
    path = folder / "squad.json"
    path.write_text(json.dumps(data))
    assert [q.truths for q in squad.read(path)] == [("the tower",)] * 2
    model, tokenizer = fixtures / "zoo/bertqa-external-each/model.onnx", folder / "tokenizer.json"
    words(tokenizer, " ".join([data["data"][0]["paragraphs"][0]["context"], *(q["question"] for q in questions)]))
    said = run(
        squad, "--onnx", model, "--tokenizer", tokenizer, "--train", path, "--dev", path,
        "--methods", "obs", "--budgets", "0.7", "--samples", "2", "--max-length", "24", "--stride", "8",
    )  # fmt: skip
    rows = cells(said)
    assert [r[0] for r in rows] == ["dense", "obs"] and all(0 <= float(r[3]) <= 100 for r in rows), said


def words(path, text):
    """A tokenizer whose vocabulary is the words of a text: the model's is tiny."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted(set(text.replace("?", " ? ").split()))]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(known)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(path))


def distributed():
    import ray_calibrate

    digits = fixtures / "digits-vit"
    images = np.load(digits / "calibration.npz")["pixel_values"]
    model = (digits / "model.onnx").read_bytes()
    parts = []
    for at in range(2):
        shard = io.BytesIO()
        np.savez(shard, pixel_values=images[at::2])
        parts.append(ray_calibrate.calibrate(model, f"{at}.npz", shard.getvalue(), 1))
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        ray_calibrate.merge_and_prune(str(digits / "model.onnx"), str(folder / "d.onnx"), 0.5, parts)
    assert "256 samples" in out.getvalue() and (folder / "d.onnx").is_file(), out.getvalue()


metrics()
pipeline()
distributed()
if importlib.util.find_spec("tokenizers"):
    texts()
else:
    print("skipped: texts need the package tokenizers")
print("all is well")
