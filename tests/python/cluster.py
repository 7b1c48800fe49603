"""Prunes on Ray's own cluster for tests: three nodes of one CPU on this machine, one of which dies.

    python tests/python/cluster.py target/debug/onnx-prune

Needs ray, numpy and onnxruntime. Not in the default run.
"""

import os
import pathlib
import sys
import tempfile
import threading
import time

root = pathlib.Path(__file__).resolve().parents[2]
os.environ["ONNX_PRUNE"] = str(pathlib.Path(sys.argv[1]).resolve())
os.environ["PYTHONPATH"] = str(root / "python")
sys.path.insert(0, str(root / "python"))

import numpy as np
import ray
from ray.cluster_utils import Cluster

import onnx_prune
import onnx_prune.distributed

MODEL = root / "fixtures/digits-vit/model.onnx"
images = np.load(root / "fixtures/digits-vit/calibration.npz")["pixel_values"]


def shards(folder, count):
    paths = []
    for at in range(count):
        paths.append(folder / f"{at}.npz")
        np.savez(paths[-1], pixel_values=images[at::count])
    return paths


def kept(report):
    return [group.kept for group in report.groups]


def main():
    folder = pathlib.Path(tempfile.mkdtemp())
    paths = shards(folder, 8)
    same = dict(flops=0.5, timing=False, seed=0)

    # One machine with the same shards in the same order.
    begun = time.time()
    for at, path in enumerate(paths):
        onnx_prune.calibrate(MODEL, folder / f"{at}.st", data=path, keep_samples=288, threads=1, seed=0)
    parts = [folder / f"{at}.st" for at in range(len(paths))]
    while len(parts) > 1:
        pairs = [parts[at : at + 2] for at in range(0, len(parts), 2)]
        merged = []
        for pair in pairs:
            merged.append(folder / f"{len(parts)}-{len(merged)}.st")
            onnx_prune.merge(pair, merged[-1])
        parts = merged
    alone = onnx_prune.prune(MODEL, folder / "alone.onnx", stats=parts[0], threads=1, **same)
    print(f"one machine: {time.time() - begun:.1f} s")

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    begun = time.time()
    steps = []
    report = onnx_prune.distributed.prune(
        MODEL, folder / "three.onnx", data=paths, progress=lambda *step: steps.append(step), **same
    )
    undisturbed = time.time() - begun
    print(f"three nodes: {undisturbed:.1f} s")
    assert kept(report) == kept(alone)
    assert (folder / "three.onnx").read_bytes() == (folder / "alone.onnx").read_bytes()
    assert steps[-1] == ("calibrating shards", 8, 8), steps
    assert report.output == str(folder / "three.onnx")

    # A node dies while shards are calibrated.
    begun = time.time()
    killer = threading.Timer(0.6, lambda: cluster.remove_node(nodes[0], allow_graceful=False))
    killer.start()
    report = onnx_prune.distributed.prune(MODEL, folder / "killed.onnx", data=paths, **same)
    killer.join()
    print(f"with a node that died: {time.time() - begun:.1f} s")
    assert (folder / "killed.onnx").read_bytes() == (folder / "alone.onnx").read_bytes()

    # A shard that is broken is named, or left out and told.
    (folder / "broken.npz").write_bytes(b"no archive")
    with_broken = [*paths, folder / "broken.npz"]
    try:
        onnx_prune.distributed.prune(MODEL, folder / "x.onnx", data=with_broken, **same)
        raise AssertionError("a broken shard was taken")
    except onnx_prune.Error as error:
        assert "broken.npz" in str(error), error
    report = onnx_prune.distributed.prune(MODEL, folder / "less.onnx", data=with_broken, skip_broken=1, **same)
    assert any("broken.npz was left out" in note for note in report.raw["notes"]), report.raw["notes"]
    assert (folder / "less.onnx").read_bytes() == (folder / "alone.onnx").read_bytes()

    # A dataset.
    data = ray.data.from_numpy(images).rename_columns({"data": "pixel_values"})
    report = onnx_prune.distributed.prune(MODEL, folder / "dataset.onnx", data=data, num_workers=2, **same)
    assert report.budget.got <= 0.5 and report.raw["calibration"]["samples"] == len(images)

    # What fits nowhere is told.
    try:
        onnx_prune.distributed.prune(MODEL, folder / "x.onnx", data=paths, threads=64, **same)
        raise AssertionError("64 CPUs were found")
    except onnx_prune.InputError as error:
        assert "no node" in str(error), error
    ray.shutdown()
    cluster.shutdown()
    print("all is well")


main()
