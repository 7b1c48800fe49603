#!/usr/bin/env python3
"""SHA-256 of what a program writes, over fixtures, zoos and goals: to compare two builds of it.

usage: hashes.py PROGRAM OUT.json [--only SUBSTRING] [--against EARLIER.json]

Every run is deterministic: one thread, a fixed seed, no timing. A report is hashed without what
differs from run to run (seconds, versions, paths). `--against` prints the cases that differ and
exits with 1 where there are some.
"""
import argparse, hashlib, json, os, pathlib, subprocess, sys, tempfile, time

import onnx

root = pathlib.Path(__file__).resolve().parents[2]
shared = root.parent / "shared"
GOALS = {
    "flops-0.6": ["--flops", "0.6"],
    "flops-0.3": ["--flops", "0.3"],
    "params": ["--params", "0.5"],
    "size": ["--size", "{half}"],
    "two": ["--params", "0.6", "--flops", "0.5"],
    "loose": ["--flops", "0.5", "--size", "1000MB"],
    "max-drop": ["--max-drop", "0.02"],
    "sweep": ["--sweep", "0.8,0.5"],
    "align": ["--flops", "0.6", "--align", "1"],
    "fold": ["--flops", "0.6", "--fold-constant"],
    "mask": ["--mask", "{mask}"],
    "whole-heads": ["--flops", "0.5", "--no-narrow"],
    "local": ["--flops", "0.5", "--reconstruct", "local"],
    "kcm": ["--flops", "0.8", "--method", "kcm"],
    "wanda": ["--flops", "0.6", "--method", "wanda"],
    "magnitude": ["--flops", "0.6", "--method", "magnitude"],
    "stats": ["--flops", "0.6", "--stats", "{stats}"],
    "queries": ["--flops", "0.8", "--targets", "queries,neurons"],
}
FEW = ["flops-0.6", "magnitude"]


def cases(work):
    text = root / "fixtures/text-language"
    yield "digits-vit", root / "fixtures/digits-vit/model.onnx", ["--data", root / "fixtures/digits-vit/calibration.npz"], list(GOALS)
    yield "text-language", text / "model.onnx", ["--data", text / "calibration.txt", "--tokenizer", text / "tokenizer.json"], list(GOALS)
    for zoo in (root / "fixtures/zoo", shared / "zoo"):
        for model in sorted(zoo.glob("*/model.onnx")):
            yield f"{zoo.parent.name}/{model.parent.name}", model, ["--samples", "64"], FEW
    minilm = shared / "models/minilm-sst2"
    if minilm.is_dir():
        subprocess.run([sys.executable, shared / "models/assemble.py", minilm, work / "minilm"], check=True, stdout=subprocess.DEVNULL)
        model = sorted((work / "minilm").glob("*torchscript17*.onnx"))[0]
        data = ["--data", shared / "data/sst2/train.tsv", "--tokenizer", minilm / "tokenizer.json", "--text-column", "sentence"]
        yield "minilm", model, data, ["flops-0.6", "flops-0.3", "loose", "params", "whole-heads", "kcm", "wanda"]


def digest(path):
    """Without what the file says about itself: the words for options may change."""
    data = path.read_bytes()
    if path.suffix == ".onnx":
        model = onnx.load(path, load_external_data=False)
        del model.metadata_props[:]
        data = model.SerializeToString(deterministic=True)
    return hashlib.sha256(data).hexdigest()[:16]


def run(program, model, data, goal, work):
    with tempfile.TemporaryDirectory(dir=work) as folder:
        folder = pathlib.Path(folder)
        base = ["--threads", "1"]
        fill = {"half": str(model.stat().st_size * 3 // 4)}
        if "{stats}" in GOALS[goal]:
            fill["stats"] = str(folder / "s.safetensors")
            subprocess.run([program, "calibrate", model, "-o", fill["stats"], *base, *data], check=True, capture_output=True)
        if "{mask}" in GOALS[goal]:
            fill["mask"] = str(folder / "mask.json")
            subprocess.run([program, model, folder / "m.onnx", "--export-mask", fill["mask"], "--no-timing", *base, *data], check=True, capture_output=True)
            (folder / "m.onnx").unlink()
        options = [o.format(**fill) for o in GOALS[goal]]
        started = time.time()
        done = subprocess.run([program, model, folder / "out.onnx", "--json", folder / "report.json", "--no-timing", *base, *options, *data], capture_output=True, text=True)
        result = {"exit": done.returncode, "took": round(time.time() - started, 2)}
        if done.returncode:
            return result | {"error": done.stderr.strip()[-300:]}
        report = json.loads((folder / "report.json").read_text())
        one = report[-1] if isinstance(report, list) else report
        held = one["held_out"]["outputs"][:1] if one.get("held_out") else []
        result |= {"files": {p.name: digest(p) for p in sorted(folder.glob("out*"))}}
        result |= {"kept": hashlib.sha256(json.dumps([g["kept"] for g in one["groups"]]).encode()).hexdigest()[:16]}
        result |= {"got": one["budget"]["got"], "held": held[0].get("kl") or held[0]["relative_squared"] if held else None}
        result |= {"sequential": sum(f["ridge"] is not None for f in one["fitted"]), "channels": len(one.get("narrowed", one.get("channels", [])))}
        result |= {"notes": one["notes"] + [w["text"] for w in one.get("warnings", [])]}
        return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program"), parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--only", default=""), parser.add_argument("--against", type=pathlib.Path)
    args = parser.parse_args()
    os.environ.setdefault("VIRTUAL_ENV", sys.prefix)
    found = {}
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        for name, model, data, goals in cases(work):
            for goal in goals:
                if args.only in f"{name} {goal}":
                    found[f"{name} {goal}"] = run(args.program, model, data, goal, work)
                    args.out.write_text(json.dumps(found, indent=1))
    if args.against:
        earlier = json.loads(args.against.read_text())
        same = 0
        for key, new in found.items():
            old = earlier.get(key, {})
            parts = [p for p in ("exit", "files", "kept") if old.get(p) != new.get(p)]
            same += not parts
            if parts:
                shown = {p: (old.get(p), new.get(p)) for p in ("exit", "held", "sequential", "channels", "error") if old.get(p) != new.get(p)}
                print(f"{key}: {', '.join(parts)} differ: {shown}")
        print(f"{same} of {len(found)} are the same")
        sys.exit(same < len(found))


main()
