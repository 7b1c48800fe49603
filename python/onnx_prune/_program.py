"""Where the program is, and running it."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, Optional

from ._errors import Error, of_exit_code

#: Told the stage, how many of its steps are done, and how many there are.
Progress = Callable[[str, int, int], None]

_NAME = "onnx-prune" + (sysconfig.get_config_var("EXE") or "")


def find_program() -> str:
    """The path of the program ``onnx-prune``.

    It is looked for beside the interpreter's other programs, then in those of the user, then on ``PATH``;
    ``ONNX_PRUNE`` names another one.
    """
    own = os.environ.get("ONNX_PRUNE")
    if own:
        return own
    folders = [sysconfig.get_path("scripts")]
    user = sysconfig.get_preferred_scheme("user")
    if user in sysconfig.get_scheme_names():
        folders.append(sysconfig.get_path("scripts", scheme=user))
    # pip install --target puts programs into bin/ beside the package.
    folders.append(str(pathlib.Path(__file__).resolve().parent.parent / "bin"))
    for folder in folders:
        path = pathlib.Path(folder) / _NAME
        if path.is_file():
            return str(path)
    found = shutil.which("onnx-prune")
    if found is None:
        raise Error(f"the program onnx-prune is in none of {', '.join(folders)} nor on PATH: install the package again")
    return found


def environment() -> dict[str, str]:
    """The environment of the program: ONNX Runtime is the one that this interpreter would import."""
    env = dict(os.environ)
    if "ORT_DYLIB_PATH" not in env:
        spec = importlib.util.find_spec("onnxruntime")
        for folder in (spec.submodule_search_locations or []) if spec else []:
            capi = pathlib.Path(folder) / "capi"
            if capi.is_dir():
                env["ORT_DYLIB_PATH"] = str(capi)
    return env


def run(arguments: Sequence[str], progress: Optional[Progress] = None) -> tuple[Any, str]:
    """Runs the program; returns the JSON that it printed and what it said besides.

    An interrupt is handed on to the program, which leaves nothing half-written, and raised again.
    """
    # The program has its own group, so that one Ctrl-C is one interrupt for it.
    separate: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        separate = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [find_program(), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env=environment(),
            **separate,
        )
        said: list[str] = []
        try:
            assert process.stderr is not None
            for line in process.stderr:
                step = _step(line)
                if step is None:
                    said.append(line)
                elif progress is not None:
                    progress(*step)
            code = process.wait()
        except BaseException:
            _stop(process)
            raise
        text = "".join(said)
        if code == 130:
            raise KeyboardInterrupt
        if code != 0:
            raise of_exit_code(code, _message(text))
        output.seek(0)
        content = output.read()
    return (json.loads(content) if content.strip() else None), text


def _step(line: str) -> Optional[tuple[str, int, int]]:
    """A line of progress, or nothing."""
    if not line.startswith('{"'):
        return None
    try:
        found = json.loads(line)
        return str(found["stage"]), int(found["done"]), int(found["total"])
    except (ValueError, KeyError, TypeError):
        return None


def _message(text: str) -> str:
    """What follows ``error: ``."""
    lines = text.strip().splitlines()
    for at, line in enumerate(lines):
        if line.startswith("error: "):
            return "\n".join([line[len("error: ") :], *lines[at + 1 :]])
    return text.strip()


def _stop(process: subprocess.Popen[str]) -> None:
    """Asks the program to stop, and makes it stop when it does not."""
    if process.poll() is None:
        if sys.platform == "win32":
            process.send_signal(signal.CTRL_BREAK_EVENT)
        else:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
