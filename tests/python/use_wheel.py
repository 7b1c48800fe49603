#!/usr/bin/env python3
"""What a user of the wheel does. usage: use_wheel.py FIXTURES FOLDER [arrays]

The first part needs nothing but the wheel; `arrays` adds what needs NumPy.
"""
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time
import os

import onnx_prune

fixtures, folder = map(pathlib.Path, sys.argv[1:3])
model, data = fixtures / "digits-vit/model.onnx", fixtures / "digits-vit/calibration.npz"
quick = dict(samples=48, engine="tract", threads=1)


def raises(kind, text, call):
    try:
        call()
    except kind as error:
        assert text in str(error), f"{text!r} is not in {error}"
        return error
    raise AssertionError(f"no {kind.__name__}")


def alone():
    found = onnx_prune.inspect(model)
    assert [g.units for g in found.groups if g.kind == "heads"] == [4] * 4, found
    assert "opset 18" in str(found) and "<table>" in found._repr_html_()

    steps = []
    out = folder / "small.onnx"
    report = onnx_prune.prune(
        model, out, flops=0.5, data=data, report=folder / "r.html", progress=lambda *s: steps.append(s), **quick
    )
    assert out.is_file() and report.budget.got <= 0.5 and report.output == str(out), report
    assert {"calibrating", "damage", "re-fitting"} <= {stage for stage, _, _ in steps}, steps
    assert all(0 <= done <= total for _, done, total in steps)
    assert "sliced = masked" in str(report) and '{"stage"' not in str(report)
    assert "multiply-adds" in report._repr_html_() and report.held_out.outputs[0].agreement > 0.9
    assert "<svg" in (folder / "r.html").read_text() and report.speedup is not None

    again = onnx_prune.prune(model, folder / "again.onnx", mask=out, reconstruct="none", data=[data], **quick)
    assert again.groups == tuple(a for a in again.groups) and [g.kept for g in again.groups] == [g.kept for g in report.groups]
    sweep = onnx_prune.sweep(model, folder / "s.onnx", [0.8, 0.4], data=data, method="wanda", **quick)
    assert [r.budget.asked for r in sweep] == [0.8, 0.4] and "parameters" in str(sweep[0])
    compared = onnx_prune.compare(out, model, data=data, **quick)
    assert compared.samples == 48 and "logits" in str(compared) and "logits" in compared._repr_html_()
    timed = onnx_prune.bench(out, model, runs=3, engine="tract", threads=1)
    assert timed.speedup and timed.a_ms.median > 0 and "speed-up" in str(timed)

    assert repr(timed) == str(timed) and onnx_prune.__version__[0].isdigit()
    assert any(g.place == "block 0 attention" for g in onnx_prune.inspect(model).groups)
    sums = [folder / f"{name}.safetensors" for name in ("s", "t", "sum")]
    for one in sums[:2]:
        onnx_prune.calibrate(model, one, data=data, engine="tract", threads=1, samples=16)
    assert onnx_prune.merge(sums[:2], sums[2]) and sums[2].exists()

    # The same text as on the command line, as an exception of the right kind.
    error = raises(onnx_prune.InputError, "--flops is 1.5", lambda: onnx_prune.prune(model, out, flops=1.5))
    shell = subprocess.run([onnx_prune.find_program(), model, out, "--flops", "1.5"], capture_output=True, text=True)
    assert shell.returncode == 2 == error.exit_code and shell.stderr == f"error: {error}\n", shell.stderr
    raises(onnx_prune.InputError, "nothing.onnx", lambda: onnx_prune.inspect(folder / "nothing.onnx"))
    raises(onnx_prune.NothingPrunableError, "nothing", lambda: onnx_prune.prune(model, out, exclude=".", **quick))
    raises(onnx_prune.UnmetError, "kcm", lambda: onnx_prune.prune(model, out, method="kcm", flops=0.05, **quick))
    raises(onnx_prune.EngineError, "no/such", lambda: onnx_prune.prune(model, out, engine="ort", ort_lib="/no/such.so"))
    raises(onnx_prune.InputError, "invalid value", lambda: onnx_prune.prune(model, out, method="best"))
    raises(TypeError, "int", lambda: onnx_prune.prune(model, out, data=[1]))

    # What goes wrong in the callback ends the program, and comes out.
    def fail(*_):
        raise RuntimeError("enough")

    raises(RuntimeError, "enough", lambda: onnx_prune.prune(model, folder / "x.onnx", data=data, progress=fail, **quick))

    # An interrupt in the middle leaves no file.
    sent = threading.Event()

    def interrupt(*_):
        if not sent.is_set():
            sent.set()
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)

    raises(KeyboardInterrupt, "", lambda: onnx_prune.prune(model, folder / "x.onnx", data=data, progress=interrupt, **quick))
    assert sent.is_set() and not (folder / "x.onnx").exists()

    for command in ([str(pathlib.Path(sys.executable).parent / "onnx-prune")], [sys.executable, "-m", "onnx_prune"]):
        told = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
        assert told.startswith("onnx-prune "), told


def arrays():
    import numpy

    images = numpy.load(data)["pixel_values"][:48]
    same = dict(flops=0.5, method="wanda", threads=1, dry_run=True)
    of_file = onnx_prune.prune(model, folder / "a.onnx", data=data, samples=48, **same)
    # ONNX Runtime is found beside the interpreter.
    assert of_file.raw["engine"]["name"] == "onnxruntime", of_file.raw["engine"]
    of_dict = onnx_prune.prune(model, folder / "a.onnx", data={"pixel_values": images}, **same)
    of_feeds = onnx_prune.prune(model, folder / "a.onnx", data=({"pixel_values": i[None]} for i in images), **same)
    assert of_dict.raw["calibration"]["samples"] == of_feeds.raw["calibration"]["samples"] > 40
    assert [g.kept for g in of_dict.groups] == [g.kept for g in of_feeds.groups]
    raises(ValueError, "empty", lambda: onnx_prune.prune(model, folder / "a.onnx", data=iter(())))

    # What a loader yields: rows with labels, rows without the axis of samples, arrays without a name.
    kept = [g.kept for g in of_dict.groups]
    for given in [
        [({"pixel_values": i[None]}, 1) for i in images],
        [{"pixel_values": i} for i in images],
        list(images),
        images,
    ]:
        found = onnx_prune.prune(model, folder / "a.onnx", data=given, **same)
        assert [g.kept for g in found.groups] == kept, type(given)
    wrong = lambda: onnx_prune.prune(model, folder / "a.onnx", data=[*images, images[..., :2]], **same)
    raises(onnx_prune.InputError, "item 48 of the data", wrong)


def folders():
    whole = folder / "whole"
    (whole / "onnx").mkdir(parents=True, exist_ok=True)
    shutil.copy(model, whole / "onnx" / "model.onnx")
    (whole / "config.json").write_text('{"model_type": "vit"}')
    reports = onnx_prune.prune_folder(whole, folder / "small", data=data, flops=0.5, threads=1, timing=False)
    assert len(reports) == 1 and reports[0].budget.got <= 0.5
    assert (folder / "small/onnx/model.onnx").is_file() and (folder / "small/config.json").is_file()
    assert json.loads((folder / "small/pruning.json").read_text())[0]["budget"]["got"] == reports[0].budget.got
    raises(onnx_prune.InputError, "no folder", lambda: onnx_prune.prune_folder(model, folder / "x"))
    assert "\n    refit_sinks_only: " in onnx_prune.prune.__doc__, onnx_prune.prune.__doc__


alone()
folders()
if "arrays" in sys.argv[3:]:
    arrays()
print("all is well")
