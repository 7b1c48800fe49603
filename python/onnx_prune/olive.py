"""A pass for Olive: ``"type": "OnnxPrune"``.

Olive knows the passes of a package configuration. ``python -m onnx_prune.olive`` prints Olive's own with this one added:

    python -m onnx_prune.olive > olive-packages.json
    olive run --config run.json --package-config olive-packages.json

In ``run.json`` the pass takes every option of :func:`onnx_prune.prune` but those that name files to write, and a
``data_config`` as Olive's own passes that calibrate do:

    "passes": {"prune": {"type": "OnnxPrune", "flops": 0.6, "data_config": "texts"}}
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import Any, Optional, Union

from olive.hardware.accelerator import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.passes import Pass
from olive.passes.pass_config import BasePassConfig, ParamCategory, PassConfigParam

from ._api import prune
from ._options import FLAGS, HELP

#: Written beside a model or instead of it, which is for Olive to do.
_NOT_HERE = {"export_mask", "dry_run"}


class OnnxPrune(Pass):
    """Removes the heads, channels and neurons of a transformer that matter least for its outputs."""

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        from olive.data.config import DataConfig

        config = {
            "data": PassConfigParam(
                type_=Optional[Union[str, list[str]]],
                default_value=None,
                category=ParamCategory.DATA,
                description="Files of inputs: .npz by input name, or texts.",
            ),
            "data_config": PassConfigParam(
                type_=Optional[Union[DataConfig, dict]],
                default_value=None,
                description="The inputs as Olive's data configuration.",
            ),
        }
        for name in FLAGS:
            if name not in _NOT_HERE:
                config[name] = PassConfigParam(type_=Any, default_value=None, description=HELP[name])
        return config

    def _run_for_config(
        self, model: ONNXModelHandler, config: type[BasePassConfig], output_model_path: str
    ) -> ONNXModelHandler:
        options = {name: getattr(config, name) for name in FLAGS if name not in _NOT_HERE}
        options = {name: value for name, value in options.items() if value is not None}
        if self.accelerator_spec.accelerator_type == "gpu":
            options.setdefault("device", "cuda")
        data = config.data
        if config.data_config is not None:
            data = _feeds(config.data_config, model)
        output = pathlib.Path(resolve_onnx_path(output_model_path))
        output.parent.mkdir(parents=True, exist_ok=True)
        report = prune(model.model_path, output, data=data, **options)
        # A model with a side file is a folder and a name to Olive.
        beside = [path for path in output.parent.iterdir() if path != output]
        attributes = dict(model.model_attributes or {})
        attributes["onnx_prune"] = {"flops": report.budget.got, "warnings": [w.name for w in report.warnings]}
        return ONNXModelHandler(
            model_path=str(output.parent) if beside else str(output),
            onnx_file_name=output.name if beside else None,
            model_attributes=attributes,
        )


def _feeds(data_config: Any, model: ONNXModelHandler) -> Iterator[dict[str, Any]]:
    """What the loader of a data configuration yields, by the names of the model's inputs."""
    from olive.common.config_utils import validate_config
    from olive.data.config import DataConfig

    container = validate_config(data_config, DataConfig).to_data_container()
    names = model.io_config["input_names"]
    for item in container.create_dataloader():
        inputs = item[0] if isinstance(item, (tuple, list)) else item
        if not hasattr(inputs, "items"):
            inputs = {names[0]: inputs}
        yield {name: value for name, value in inputs.items() if name in names}


def package_config() -> dict[str, Any]:
    """Olive's own package configuration with this pass."""
    from olive.package_config import OlivePackageConfig

    with pathlib.Path(OlivePackageConfig.get_default_config_path()).open() as file:
        packages: dict[str, Any] = json.load(file)
    packages["passes"]["OnnxPrune"] = {
        "module_path": "onnx_prune.olive.OnnxPrune",
        "supported_providers": ["*"],
        "supported_accelerators": ["*"],
        "supported_precisions": ["*"],
        "supported_algorithms": [],
        "supported_quantization_encodings": [],
        "dataset": "dataset_optional",
    }
    return packages


if __name__ == "__main__":
    print(json.dumps(package_config(), indent=4))
