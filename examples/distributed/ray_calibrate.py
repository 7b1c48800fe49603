#!/usr/bin/env python3
"""Calibrates shards with Ray and prunes.

    pip install ray onnx-prune[ort]
    python ray_calibrate.py model.onnx small.onnx 0.6 shards/*.npz

The model goes to every node through Ray's object store, the statistics come back the same way: no folder is shared.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile


def calibrate(model: bytes, name: str, shard: bytes, threads: int) -> bytes:
    """The statistics of one shard; runs on any node."""
    import onnx_prune

    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        (folder / "model.onnx").write_bytes(model)
        (folder / name).write_bytes(shard)
        subprocess.run(
            [
                onnx_prune.find_program(), "calibrate", folder / "model.onnx", "--data", folder / name,
                "--threads", str(threads), "--quiet", "--output", folder / "out.safetensors",
            ],
            check=True,
        )  # fmt: skip
        return (folder / "out.safetensors").read_bytes()


def merge_and_prune(model: str, output: str, flops: float, parts: list[bytes]) -> None:
    import onnx_prune

    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        paths = [folder / f"{at}.safetensors" for at in range(len(parts))]
        for path, part in zip(paths, parts):
            path.write_bytes(part)
        total = folder / "all.safetensors"
        onnx_prune.merge(paths, total)
        print(onnx_prune.prune(model, output, flops=flops, stats=total))


def main() -> None:
    import ray

    model, output, flops, *shards = sys.argv[1:]
    ray.init()
    # No more than the smallest node has: a task that fits nowhere waits for ever.
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    threads = min([4, *(cpus for cpus in nodes if cpus > 0)])
    # A model with side files would need those, too.
    shared = ray.put(pathlib.Path(model).read_bytes())
    remote = ray.remote(num_cpus=threads)(calibrate)
    waiting = [remote.remote(shared, pathlib.Path(s).name, pathlib.Path(s).read_bytes(), threads) for s in shards]
    merge_and_prune(model, output, float(flops), ray.get(waiting))


if __name__ == "__main__":
    main()
