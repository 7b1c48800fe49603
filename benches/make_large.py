"""Makes large models with random weights, for measuring time and memory: nothing of their
numbers matters but the shapes.

    python benches/make_large.py bert-base OUT.onnx
    python benches/make_large.py llama OUT.onnx [--layers 22]

`bert-base` has 12 layers of 768 (12 heads, 3072 neurons). `llama` is a decoder of 1.1 B parameters
(hidden 2048, 32 heads on 4 KV groups, 5632 gated neurons, RMSNorm, rotary positions), its weights
in a side file. Needs numpy and onnx.
"""

import argparse
import pathlib

import numpy as np
import onnx
from onnx import TensorProto, helper


class Graph:
    def __init__(self, path, seed=0):
        self.nodes, self.initializers, self.count = [], [], 0
        self.random = np.random.default_rng(seed)
        self.side = pathlib.Path(str(path) + ".data")
        self.file = self.side.open("wb")

    def weight(self, name, *shape, scale=None, value=None):
        """A float32 constant whose bytes go to the side file."""
        if value is None:
            scale = shape[0] ** -0.5 if scale is None else scale
            value = self.random.standard_normal(shape, dtype=np.float32) * np.float32(scale)
        value = np.ascontiguousarray(value, dtype=np.float32)
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=value.shape)
        tensor.data_location = TensorProto.EXTERNAL
        entries = {"location": self.side.name, "offset": self.file.tell(), "length": value.nbytes}
        for key, entry in entries.items():
            tensor.external_data.add(key=key, value=str(entry))
        self.file.write(value.tobytes())
        self.initializers.append(tensor)
        return name

    def ints(self, *values):
        return self.constant(np.array(values, dtype=np.int64))

    def constant(self, value):
        self.count += 1
        name = f"constant_{self.count}"
        self.initializers.append(onnx.numpy_helper.from_array(value, name))
        return name

    def op(self, kind, *inputs, name=None, outputs=1, **attributes):
        self.count += 1
        name = name or f"{kind}_{self.count}"
        out = [f"{name}_out{i}" if outputs > 1 else f"{name}_out" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), out, name=name, **attributes))
        return out[0] if outputs == 1 else out

    def save(self, path, inputs, output, shape, opset):
        self.file.close()
        graph = helper.make_graph(
            self.nodes,
            "large",
            [helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "sequence"]) for n in inputs],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
            self.initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
        pathlib.Path(path).write_bytes(model.SerializeToString())


def bert(path, layers=12, hidden=768, heads=12, neurons=3072, vocabulary=30522):
    g = Graph(path)

    def norm(x, name):
        ones = g.weight(f"{name}.weight", value=np.ones(hidden))
        return g.op("LayerNormalization", x, ones, g.weight(f"{name}.bias", value=np.zeros(hidden)), name=name, axis=-1)

    def linear(x, name, n, d):
        y = g.op("MatMul", x, g.weight(f"{name}.weight", n, d), name=f"{name}/MatMul")
        return g.op("Add", y, g.weight(f"{name}.bias", d, scale=0.1), name=f"{name}/Add")

    shape = g.op("Shape", "input_ids")
    length = g.op("Gather", shape, g.constant(np.array(1)), axis=0)
    positions = g.op("Slice", g.constant(np.arange(512)), g.ints(0), g.op("Unsqueeze", length, g.ints(0)))
    x = g.op("Gather", g.weight("embeddings", vocabulary, hidden, scale=0.05), "input_ids")
    x = norm(g.op("Add", x, g.op("Gather", g.weight("positions", 512, hidden, scale=0.05), positions)), "norm")
    mask = g.op("Unsqueeze", g.op("Cast", "attention_mask", to=TensorProto.FLOAT), g.ints(1, 2))
    mask = g.op("Mul", g.op("Sub", g.constant(np.float32(1)), mask), g.constant(np.float32(-1e4)))
    split = g.ints(0, 0, heads, hidden // heads)
    for i in range(layers):
        at = f"layer.{i}"

        def project(which, perm):
            y = g.op("Reshape", linear(x, f"{at}/attention/{which}", hidden, hidden), split)
            return g.op("Transpose", y, perm=perm)

        scores = g.op("MatMul", project("query", [0, 2, 1, 3]), project("key", [0, 2, 3, 1]))
        scores = g.op("Div", scores, g.constant(np.float32((hidden // heads) ** 0.5)))
        weights = g.op("Softmax", g.op("Add", scores, mask), axis=-1)
        y = g.op("Transpose", g.op("MatMul", weights, project("value", [0, 2, 1, 3])), perm=[0, 2, 1, 3])
        y = linear(g.op("Reshape", y, g.ints(0, 0, hidden)), f"{at}/attention/output", hidden, hidden)
        x = norm(g.op("Add", y, x), f"{at}/attention/norm")
        y = linear(x, f"{at}/intermediate", hidden, neurons)
        erf = g.op("Erf", g.op("Div", y, g.constant(np.float32(2**0.5))))
        y = g.op("Mul", g.op("Mul", y, g.op("Add", erf, g.constant(np.float32(1)))), g.constant(np.float32(0.5)))
        x = norm(g.op("Add", linear(y, f"{at}/output", neurons, hidden), x), f"{at}/norm")
    first = g.op("Gather", x, g.constant(np.array(0)), axis=1)
    pooled = g.op("Tanh", g.op("Gemm", first, g.weight("pooler", hidden, hidden)))
    logits = g.op("Gemm", pooled, g.weight("classifier", hidden, 2), name="logits")
    g.save(path, ["input_ids", "attention_mask"], logits, ["batch", 2], 17)


def llama(path, layers=22, hidden=2048, heads=32, groups=4, neurons=5632, vocabulary=32000):
    g = Graph(path)
    dim = hidden // heads

    def norm(x, name):
        square = g.op("ReduceMean", g.op("Mul", x, x), axes=[-1])
        root = g.op("Sqrt", g.op("Add", square, g.constant(np.float32(1e-5))))
        return g.op("Mul", g.op("Div", x, root), g.weight(f"{name}.weight", value=np.ones(hidden)))

    shape = g.op("Shape", "input_ids")
    length = g.op("Unsqueeze", g.op("Gather", shape, g.constant(np.array(1)), axis=0), g.ints(0))
    angles = np.outer(np.arange(2048), 10000.0 ** (-np.arange(0, dim, 2) / dim))
    angles = np.concatenate([angles, angles], axis=1).astype(np.float32)
    cos = g.op("Slice", g.constant(np.cos(angles)), g.ints(0), length, g.ints(0))
    sin = g.op("Slice", g.constant(np.sin(angles)), g.ints(0), length, g.ints(0))
    future = g.constant(np.triu(np.full((2048, 2048), -1e9, dtype=np.float32), 1))
    future = g.op("Slice", g.op("Slice", future, g.ints(0), length, g.ints(0)), g.ints(0), length, g.ints(1))

    def rotate(x):
        low = g.op("Slice", x, g.ints(0), g.ints(dim // 2), g.ints(3))
        high = g.op("Slice", x, g.ints(dim // 2), g.ints(dim), g.ints(3))
        turned = g.op("Concat", g.op("Neg", high), low, axis=-1)
        return g.op("Add", g.op("Mul", x, cos), g.op("Mul", turned, sin))

    def repeat(x):
        times = heads // groups
        x = g.op("Unsqueeze", x, g.ints(2))
        x = g.op("Expand", x, g.ints(1, 1, times, 1, 1))
        return g.op("Reshape", x, g.ints(0, heads, -1, dim))

    x = g.op("Gather", g.weight("embeddings", vocabulary, hidden, scale=0.02), "input_ids")
    for i in range(layers):
        at = f"layers.{i}"

        def project(source, which, n):
            y = g.op("MatMul", source, g.weight(f"{at}.{which}", hidden, n * dim), name=f"/{at}/attn/{which}/MatMul")
            return g.op("Transpose", g.op("Reshape", y, g.ints(0, 0, n, dim)), perm=[0, 2, 1, 3])

        y = norm(x, f"{at}.input_norm")
        query, key = rotate(project(y, "q_proj", heads)), rotate(project(y, "k_proj", groups))
        scores = g.op("MatMul", query, g.op("Transpose", repeat(key), perm=[0, 1, 3, 2]))
        scores = g.op("Add", g.op("Mul", scores, g.constant(np.float32(dim**-0.5))), future)
        y = g.op("MatMul", g.op("Softmax", scores, axis=-1), repeat(project(y, "v_proj", groups)))
        y = g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 1, 3]), g.ints(0, 0, hidden))
        y = g.op("MatMul", y, g.weight(f"{at}.o_proj", hidden, hidden), name=f"/{at}/attn/o_proj/MatMul")
        x = g.op("Add", x, y)
        y = norm(x, f"{at}.post_norm")
        gate = g.op("MatMul", y, g.weight(f"{at}.gate", hidden, neurons), name=f"/{at}/mlp/gate/MatMul")
        gate = g.op("Mul", gate, g.op("Sigmoid", gate))
        y = g.op("Mul", gate, g.op("MatMul", y, g.weight(f"{at}.up", hidden, neurons), name=f"/{at}/mlp/up/MatMul"))
        y = g.op("MatMul", y, g.weight(f"{at}.down", neurons, hidden), name=f"/{at}/mlp/down/MatMul")
        x = g.op("Add", x, y)
    logits = g.op("MatMul", norm(x, "norm"), g.weight("lm_head", hidden, vocabulary), name="logits")
    g.save(path, ["input_ids"], logits, ["batch", "sequence", vocabulary], 17)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("which", choices=["bert-base", "llama"])
    arguments.add_argument("out")
    arguments.add_argument("--layers", type=int)
    given = arguments.parse_args()
    sizes = {} if given.layers is None else {"layers": given.layers}
    {"bert-base": bert, "llama": llama}[given.which](given.out, **sizes)
