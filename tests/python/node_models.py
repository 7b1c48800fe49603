"""Writes the models of the ONNX package's node tests into a folder: one file per test."""
import contextlib
import io
import pathlib
import sys
import warnings

warnings.filterwarnings("ignore")
folder = pathlib.Path(sys.argv[1])
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    from onnx.backend.test.case.node import collect_testcases

    cases = [case for case in collect_testcases(None) if case.model is not None]
for case in cases:
    (folder / f"{case.name}.onnx").write_bytes(case.model.SerializeToString())
print(len(cases))
