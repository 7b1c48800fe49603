"""Calibration on a Ray cluster, and pruning on one of its nodes.

    pip install onnx-prune[ray,ort]

    import onnx_prune.distributed
    report = onnx_prune.distributed.prune("model.onnx", "small.onnx", data=shards, flops=0.6, address="auto")

Every shard is a task. Statistics stay in the object store and are added up there as a tree, in an order that is
fixed; the driver holds none of them. They carry samples, on which one more task measures damage and re-fits layers. A
task whose worker or node dies is run again.
"""

from __future__ import annotations

import json
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Optional, Union

from . import _api, _report
from ._data import Path, as_paths
from ._errors import Error, InputError
from ._options import PruneOptions
from ._program import Progress

if TYPE_CHECKING:
    from typing_extensions import Unpack

#: Options that the statistics depend on; the others are for pruning alone.
_CALIBRATION = {
    "tokenizer", "text_column", "max_length", "samples", "seed", "join", "shapes", "batch", "change_interface", "uniform_kv",
    "engine", "device", "ort_custom_ops",
}  # fmt: skip

#: Files by name: a model and what lies beside it.
_Files = dict[str, bytes]


def prune(
    model: Path,
    output: Path,
    *,
    data: Union[Sequence[Path], Any],
    address: Optional[str] = None,
    num_workers: Optional[int] = None,
    num_gpus: float = 0,
    keep_samples: int = 288,
    skip_broken: int = 0,
    progress: Optional[Progress] = None,
    **options: Unpack[PruneOptions],
) -> _report.PruneReport:
    """Prunes ``model`` into ``output``, calibrated on a Ray cluster.

    ``data`` are files, one shard each, or a ``ray.data.Dataset`` whose columns are the inputs of the graph, which is
    split into ``num_workers`` shards. Each task takes ``threads`` CPUs (1 where nothing is said) and ``num_gpus`` GPUs. ``keep_samples`` of each
    shard stay for measuring. ``skip_broken`` shards may fail, and are told in the report's notes. ``progress`` is
    called as shards are done. ``address`` is that of the cluster, or ``None`` for one on this machine. The other
    arguments are those of :func:`onnx_prune.prune`.
    """
    import ray

    threads = options.get("threads") or 1
    if not ray.is_initialized():
        ray.init(address=address, log_to_driver=False)
    _fits(ray, threads, num_gpus)
    files = _with_side_files(pathlib.Path(model))
    name = pathlib.Path(model).name
    shared = ray.put(files)
    needs = {"num_cpus": threads, "num_gpus": num_gpus, "max_retries": 4}
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    if num_gpus:
        given.setdefault("device", "cuda")
    given["threads"] = threads
    own = {key: value for key, value in given.items() if key in _CALIBRATION | {"threads"}}
    own["keep_samples"] = keep_samples
    # The files that options name go along.
    beside = ray.put(_named_files(given))
    calibrate = ray.remote(_calibrate)
    waiting: dict[Any, int] = {}
    shards = list(_shards(data, num_workers, ray))
    for at, (shard, told) in enumerate(shards):
        task = calibrate.options(**needs, name=f"calibrate {told}")
        waiting[task.remote(shared, name, shard, beside, own)] = at
    try:
        done = _gathered(ray, waiting, [told for _, told in shards], skip_broken, progress)
        parts = [done[at] for at in sorted(done)]
        merge = ray.remote(_merge).options(num_cpus=threads, max_retries=4, name="merge")
        while len(parts) > 1:
            pairs = [parts[at : at + 2] for at in range(0, len(parts), 2)]
            parts = [merge.remote(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
        last = ray.remote(_prune).options(**needs, name="prune")
        made, raw, said = ray.get(last.remote(shared, name, parts[0], beside, given, pathlib.Path(output).name))
    except ray.exceptions.RayTaskError as error:
        raise _cause(error) from None
    except BaseException:
        for task in waiting:
            ray.cancel(task, force=True)
        raise
    _write(pathlib.Path(output), made)
    skipped = sorted(set(range(len(shards))) - set(done))
    raw["output"] = os.fspath(output)
    raw["notes"] += [f"the shard {shards[at][1]} was left out: it could not be calibrated on" for at in skipped]
    return _report.prune_report(raw, said)


def _fits(ray: Any, threads: int, num_gpus: float) -> None:
    """A task that fits on no node would wait for ever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(n.get("CPU", 0) >= threads and n.get("GPU", 0) >= num_gpus for n in nodes):
        raise InputError(f"no node of the cluster has {threads} CPUs and {num_gpus:g} GPUs: give fewer with threads= and num_gpus=")


def _shards(data: Any, num_workers: Optional[int], ray: Any) -> Iterator[tuple[Any, str]]:
    """Each shard, in the object store, and its name."""
    if hasattr(data, "iter_batches"):
        count = num_workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        parts = data.repartition(count).materialize().split(count)
        parts = [part for part in parts if part.count() > 0]
        if not parts:
            raise InputError("the dataset is empty")
        for at, part in enumerate(parts):
            yield part, f"{at} of the dataset"
        return
    paths = [data] if isinstance(data, (str, os.PathLike)) else list(data)
    if not paths:
        raise InputError("there are no shards in data")
    for path in paths:
        file = pathlib.Path(path)
        try:
            yield ray.put({file.name: file.read_bytes()}), os.fspath(path)
        except OSError as error:
            raise InputError(f"the shard {os.fspath(path)} cannot be read: {error.strerror}") from None


def _gathered(
    ray: Any, waiting: Mapping[Any, int], names: Sequence[str], skip_broken: int, progress: Optional[Progress]
) -> dict[int, Any]:
    """References to the statistics of the shards by their number."""
    done: dict[int, Any] = {}
    broken: list[str] = []
    open_tasks = list(waiting)
    while open_tasks:
        ready, open_tasks = ray.wait(open_tasks, num_returns=1, fetch_local=False)
        for task in ready:
            at = waiting[task]
            error = _failure(ray, task)
            if error is None:
                done[at] = task
            else:
                broken.append(names[at])
                if len(broken) > skip_broken:
                    raise type(error)(f"the shard {names[at]}: {error}")
        if progress is not None:
            progress("calibrating shards", len(waiting) - len(open_tasks), len(waiting))
    if not done:
        raise InputError(f"no shard could be calibrated on; the last one was {broken[-1]}")
    return done


def _failure(ray: Any, task: Any) -> Optional[Error]:
    """Why a task failed, without its result on this machine."""
    check = ray.remote(_is_there).options(num_cpus=0)
    try:
        ray.get(check.remote(task))
    except ray.exceptions.RayTaskError as error:
        return _cause(error)
    except ray.exceptions.RayError as error:
        return Error(str(error))
    return None


def _is_there(statistics: bytes) -> bool:
    return len(statistics) > 0


def _cause(error: Any) -> Error:
    """The package's own error behind one of Ray's."""
    cause = error
    while not isinstance(cause, Error) and getattr(cause, "cause", None) is not None:
        cause = cause.cause
    return cause if isinstance(cause, Error) else Error(str(error))


def _with_side_files(model: pathlib.Path) -> _Files:
    """A model with the files that hold its weights, which are called after it."""
    if not model.is_file():
        raise InputError(f"there is no file {model}")
    beside = [path for path in sorted(model.parent.iterdir()) if path.is_file() and _is_side_file(model.name, path.name)]
    return {path.name: path.read_bytes() for path in [model, *beside]}


def _is_side_file(model: str, name: str) -> bool:
    stem = model.removesuffix(".onnx")
    return name != model and (name.startswith((f"{model}.", f"{model}_")) or name in (f"{stem}.data", f"{stem}.bin"))


def _named_files(options: Mapping[str, Any]) -> dict[str, _Files]:
    """The files that options name, by option."""
    found: dict[str, _Files] = {}
    for option in ("tokenizer",):
        value = options.get(option)
        if value is not None:
            path = pathlib.Path(value)
            path = path / "tokenizer.json" if path.is_dir() else path
            if not path.is_file():
                raise InputError(f"there is no file {path}")
            found[option] = {path.name: path.read_bytes()}
    return found


def _placed(folder: pathlib.Path, files: _Files) -> list[pathlib.Path]:
    paths = []
    for name, content in files.items():
        path = folder / name
        path.write_bytes(content)
        paths.append(path)
    return paths


def _local(folder: pathlib.Path, options: Mapping[str, Any], beside: Mapping[str, _Files]) -> dict[str, Any]:
    """Options whose files are here."""
    here = dict(options)
    for option, files in beside.items():
        here[option] = _placed(folder, files)[0]
    return here


def _model(folder: pathlib.Path, files: _Files, name: str) -> pathlib.Path:
    here = folder / "model"
    here.mkdir()
    _placed(here, files)
    return here / name


def _calibrate(files: _Files, name: str, shard: Any, beside: dict[str, _Files], options: dict[str, Any]) -> bytes:
    """The statistics of a shard."""
    with tempfile.TemporaryDirectory(prefix="onnx-prune-") as scratch:
        folder = pathlib.Path(scratch)
        out = folder / "statistics.safetensors"
        data: Any = shard
        if isinstance(shard, dict):
            data = _placed(folder, shard)
        elif hasattr(shard, "iter_batches"):
            data = list(shard.iter_batches(batch_size=256, batch_format="numpy"))
        with as_paths(data, options.get("tokenizer")) as paths:
            _api.calibrate(_model(folder, files, name), out, data=paths, **_local(folder, options, beside))
        return out.read_bytes()


def _merge(*parts: bytes) -> bytes:
    with tempfile.TemporaryDirectory(prefix="onnx-prune-") as scratch:
        folder = pathlib.Path(scratch)
        paths = _placed(folder, {f"{at}.safetensors": part for at, part in enumerate(parts)})
        out = folder / "sum.safetensors"
        _api.merge(paths, out)
        return out.read_bytes()


def _prune(
    files: _Files, name: str, statistics: bytes, beside: dict[str, _Files], options: dict[str, Any], output: str
) -> tuple[_Files, dict[str, Any], str]:
    """The files of the result, its report, and what was said."""
    with tempfile.TemporaryDirectory(prefix="onnx-prune-") as scratch:
        folder = pathlib.Path(scratch)
        total = folder / "all.safetensors"
        total.write_bytes(statistics)
        made = folder / "made"
        made.mkdir()
        report = _api.prune(_model(folder, files, name), made / output, stats=total, **_local(folder, options, beside))
        raw = json.loads(json.dumps(report.raw))
        return {path.name: path.read_bytes() for path in made.iterdir()}, raw, str(report)


def _write(output: pathlib.Path, files: _Files) -> None:
    """Each file appears whole, the model last."""
    for name in sorted(files, key=lambda name: name == output.name):
        with tempfile.NamedTemporaryFile(dir=output.parent, prefix=".onnx-prune-", delete=False) as file:
            file.write(files[name])
        os.chmod(file.name, 0o644)
        os.replace(file.name, output.parent / name)
