"""Prunes model folders of every layout and loads the results with the loaders that people use.

    python -m venv loaders && loaders/bin/pip install -r tests/python/loaders.txt
    loaders/bin/python tests/python/loaders.py target/debug/onnx-prune WORK [NAME...]

Models are exported by Optimum from small configurations with random weights: what is tried here is
whether the folder fits its loader, and whether the loader gives what the bare file gives. WORK keeps
the exports; NAME is one of the functions below without `try_`. transformers.js is looked for in
WORK/node_modules (`npm install --ignore-scripts @huggingface/transformers` there) and skipped
with a message where it is not.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import onnxruntime as ort
import torch

TEXTS = [
    "a gorgeous , witty , seductive movie .",
    "the film is strictly routine .",
    "it 's a charming and often affecting journey",
    "unflinchingly bleak and desperate",
]
PROGRAM = ""
WORK = Path()


def corpus():
    path = WORK / "texts.txt"
    words = " ".join(TEXTS).split()
    draw = np.random.default_rng(0)
    lines = [" ".join(draw.choice(words, draw.integers(4, 20))) for _ in range(96)]
    path.write_text("\n".join(TEXTS + lines) + "\n")
    return path


def tokenizer():
    """A WordPiece tokenizer of the corpus, as transformers saves it."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    lines = corpus().read_text().splitlines() + ["other words that no text of the corpus has, zebra quartz"]
    made.train_from_iterator(lines, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special))
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", bos_token="[CLS]", eos_token="[SEP]", model_max_length=64,
    )


def exported(name, kind, config, task):
    """The folder that Optimum exports."""
    from optimum.exporters.onnx import main_export

    source, target = WORK / f"{name}-source", WORK / name
    if not target.exists():
        torch.manual_seed(0)
        model = kind(config).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.1)
        model.save_pretrained(source)
        tokenizer().save_pretrained(source)
        main_export(str(source), str(target), task=task, do_validation=False)
    return target


def pruned(folder, *options):
    out = folder.with_name(folder.name + "-pruned")
    shutil.rmtree(out, ignore_errors=True)
    before = snapshot(folder)
    command = [PROGRAM, folder, out, "--flops", "0.6", "--data", corpus(), "--samples", "64", "--no-timing", "-q"]
    subprocess.run([*map(str, command), *options], check=True)
    assert snapshot(folder) == before, "the input folder changed"
    reports = json.loads((out / "pruning.json").read_text())
    assert all(r["budget"]["got"] <= 0.6 for r in reports), [r["budget"] for r in reports]
    warnings = [w for r in reports for w in r["warnings"] if w["name"] != "local-fits"]
    assert not warnings, warnings
    return out, reports


def snapshot(folder):
    return {p: (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()}


def bare(file, tokenizer, texts):
    """What the file gives without any loader."""
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    inputs = tokenizer(texts, return_tensors="np", padding=True)
    wanted = [i.name for i in session.get_inputs()]
    feeds = {name: inputs[name].astype(np.int64) for name in wanted if name in inputs}
    if "token_type_ids" in wanted and "token_type_ids" not in feeds:
        feeds["token_type_ids"] = np.zeros_like(feeds["input_ids"])
    return session.run(None, feeds), inputs


def close(a, b, what):
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape, (what, a.shape, b.shape)
    assert np.allclose(a, b, atol=1e-4), (what, np.abs(a - b).max())


def bert(**more):
    from transformers import BertConfig

    return BertConfig(
        vocab_size=len(tokenizer()), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, **more
    )


def encoder(name, kind, loader, task, *options, **config):
    from transformers import AutoTokenizer

    out, _ = pruned(exported(name, kind, bert(**config), task), *options)
    cut = AutoTokenizer.from_pretrained(out)
    model = loader.from_pretrained(out)
    given, inputs = bare(out / "model.onnx", cut, TEXTS)
    loaded = model(**{k: torch.tensor(v) for k, v in inputs.items()})
    for expected, actual in zip(given, loaded.to_tuple()):
        close(expected, actual, name)
    return out, model


def try_classification():
    from optimum.onnxruntime import ORTModelForSequenceClassification
    from transformers import BertForSequenceClassification

    encoder("classification", BertForSequenceClassification, ORTModelForSequenceClassification, "text-classification", num_labels=3)


def try_features():
    from optimum.onnxruntime import ORTModelForFeatureExtraction
    from transformers import BertModel

    encoder("features", BertModel, ORTModelForFeatureExtraction, "feature-extraction")


def try_answers():
    from optimum.onnxruntime import ORTModelForQuestionAnswering
    from transformers import BertForQuestionAnswering

    encoder("answers", BertForQuestionAnswering, ORTModelForQuestionAnswering, "question-answering")


def try_vocabulary():
    """Fewer tokens: the configuration says so, and the texts give what they gave."""
    from optimum.onnxruntime import ORTModelForFeatureExtraction
    from transformers import AutoTokenizer, BertModel

    folder = exported("features", BertModel, bert(), "feature-extraction")
    out, _ = pruned(folder, "--vocab", "data", "--vocab-keep", "0")
    old, new = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(out)
    assert len(new) < len(old), (len(new), len(old))
    config = json.loads((out / "config.json").read_text())
    assert config["vocab_size"] == len(new), (config["vocab_size"], len(new))
    for text in TEXTS:
        assert old.tokenize(text) == new.tokenize(text), text
    given, inputs = bare(out / "model.onnx", new, TEXTS)
    model = ORTModelForFeatureExtraction.from_pretrained(out)
    close(given[0], model(**{k: torch.tensor(v) for k, v in inputs.items()})[0], "vocabulary")


def generated(model, cut, **more):
    inputs = cut(TEXTS[0], return_tensors="pt")
    inputs.pop("token_type_ids", None)
    return model.generate(**inputs, do_sample=False, max_new_tokens=24, min_new_tokens=24, **more)[0].tolist()


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    tokens = len(tokenizer())
    config = LlamaConfig(
        vocab_size=tokens, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=160, bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )
    return exported("llama", LlamaForCausalLM, config, "text-generation-with-past")


def causal(out):
    """Generates with the cache, and again by running the file over all tokens each time."""
    from optimum.onnxruntime import ORTModelForCausalLM
    from transformers import AutoTokenizer

    cut = AutoTokenizer.from_pretrained(out)
    with_cache = generated(ORTModelForCausalLM.from_pretrained(out), cut)
    session = ort.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    ids = cut(TEXTS[0])["input_ids"]
    while len(ids) < len(with_cache):
        feeds = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
        for value in session.get_inputs():
            if value.name == "position_ids":
                feeds[value.name] = np.arange(len(ids))[None]
            elif value.name.startswith("past"):
                feeds[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
        ids.append(int(session.run(["logits"], feeds)[0][0, -1].argmax()))
    assert ids == with_cache, (ids, with_cache)


def try_causal():
    from transformers import GPT2Config, GPT2LMHeadModel

    causal(pruned(llama())[0])
    config = GPT2Config(
        vocab_size=len(tokenizer()), n_embd=64, n_layer=3, n_head=4, bos_token_id=2, eos_token_id=3, pad_token_id=0
    )
    causal(pruned(exported("gpt2", GPT2LMHeadModel, config, "text-generation-with-past"))[0])


def try_smaller_caches():
    """The cache loses heads in all layers alike, and the configuration says so."""
    out, _ = pruned(llama(), "--change-interface", "--targets", "heads")
    config = json.loads((out / "config.json").read_text())
    assert config["num_key_value_heads"] == 1, config["num_key_value_heads"]
    causal(out)


def seq2seq(folder, *options):
    from optimum.onnxruntime import ORTModelForSeq2SeqLM
    from transformers import AutoTokenizer

    out, reports = pruned(folder, *options)
    notes = [n for r in reports for n in r["notes"]]
    assert any("what the dense model writes" in n for n in notes), notes
    cut = AutoTokenizer.from_pretrained(out)
    merged = generated(ORTModelForSeq2SeqLM.from_pretrained(out, use_merged=True), cut)
    pair = generated(ORTModelForSeq2SeqLM.from_pretrained(out, use_merged=False), cut)
    plain = generated(ORTModelForSeq2SeqLM.from_pretrained(out, use_merged=False, use_cache=False), cut)
    assert merged == pair == plain, (merged, pair, plain)


def t5():
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=len(tokenizer()), d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, decoder_start_token_id=0,
        eos_token_id=3, pad_token_id=0,
    )
    return exported("t5", T5ForConditionalGeneration, config, "text2text-generation-with-past")


def try_seq2seq():
    from transformers import BartConfig, BartForConditionalGeneration

    seq2seq(t5())
    config = BartConfig(
        vocab_size=len(tokenizer()), d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=128, bos_token_id=2, eos_token_id=3,
        pad_token_id=0, decoder_start_token_id=3, forced_eos_token_id=3, max_position_embeddings=128,
    )
    seq2seq(exported("bart", BartForConditionalGeneration, config, "text2text-generation-with-past"))


def try_seq2seq_vocabulary():
    seq2seq(t5(), "--vocab", "data")


def try_sentences():
    """sentence-transformers, with a quantised variant that has the same heads and neurons."""
    from onnxruntime.quantization import quantize_dynamic
    from sentence_transformers import SentenceTransformer, models
    from transformers import AutoTokenizer, BertModel

    exported_to = exported("features", BertModel, bert(), "feature-extraction")
    folder = WORK / "sentences"
    if not folder.exists():
        transformer = models.Transformer(str(WORK / "features-source"))
        SentenceTransformer(modules=[transformer, models.Pooling(64)], device="cpu").save(str(folder))
        (folder / "onnx").mkdir()
        shutil.copy(exported_to / "model.onnx", folder / "onnx" / "model.onnx")
        quantize_dynamic(folder / "onnx" / "model.onnx", folder / "onnx" / "model_qint8_avx512.onnx")
    out, reports = pruned(folder)
    first, second = ([(g["place"], g["kept"]) for g in r["groups"]] for r in reports)
    kept = {str(place): len(units) for place, units in second}
    assert all(len(units) <= kept.get(str(place), 0) or place is None for place, units in first), (first, second)
    for name in ["model.onnx", "model_qint8_avx512.onnx"]:
        model = SentenceTransformer(str(out), backend="onnx", model_kwargs={"file_name": name}, device="cpu")
        vectors = model.encode(TEXTS)
        given, inputs = bare(out / "onnx" / name, AutoTokenizer.from_pretrained(out), TEXTS)
        mask = inputs["attention_mask"][..., None]
        close((given[0] * mask).sum(1) / mask.sum(1), vectors, name)


def try_javascript():
    """transformers.js, in Node, from a folder with two precisions."""
    from onnxruntime.quantization import quantize_dynamic
    from transformers import AutoTokenizer, BertModel

    if not (WORK / "node_modules" / "@huggingface" / "transformers").exists() or not shutil.which("node"):
        print("skipped: no transformers.js in WORK/node_modules")
        return
    exported_to = exported("features", BertModel, bert(), "feature-extraction")
    folder = WORK / "javascript"
    if not folder.exists():
        shutil.copytree(exported_to, folder, ignore=shutil.ignore_patterns("model.onnx"))
        (folder / "onnx").mkdir()
        shutil.copy(exported_to / "model.onnx", folder / "onnx" / "model.onnx")
        quantize_dynamic(folder / "onnx" / "model.onnx", folder / "onnx" / "model_quantized.onnx")
    out, _ = pruned(folder)
    script = WORK / "features.mjs"
    script.write_text(
        """import { env, pipeline } from '@huggingface/transformers';
env.allowRemoteModels = false; env.localModelPath = process.argv[2];
const found = {};
for (const dtype of ['fp32', 'q8']) {
  const extract = await pipeline('feature-extraction', process.argv[3], { dtype, device: 'cpu' });
  const made = await extract(process.argv[4], { pooling: 'none' });
  found[dtype] = [made.dims, Array.from(made.data)];
}
console.log(JSON.stringify(found));
"""
    )
    command = ["node", script, f"{out.parent}/", out.name, TEXTS[0]]
    told = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, cwd=WORK).stdout
    found = json.loads(told.strip().splitlines()[-1])
    for dtype, name in [("fp32", "model.onnx"), ("q8", "model_quantized.onnx")]:
        shape, values = found[dtype]
        given, _ = bare(out / "onnx" / name, AutoTokenizer.from_pretrained(out), [TEXTS[0]])
        # Kernels for bytes differ between the two runtimes.
        if dtype == "fp32":
            close(given[0], np.reshape(values, shape), name)
        else:
            assert list(given[0].shape) == shape


def try_olive():
    """Olive, by its own runner: files and a data configuration, before a pass of its own."""
    from olive.workflows import run
    from transformers import BertModel

    sys.path.insert(0, str(Path(__file__).parents[2] / "python"))
    from onnx_prune.olive import package_config

    os.environ["ONNX_PRUNE"] = PROGRAM
    folder = exported("features", BertModel, bert(), "feature-extraction")
    tokens = tokenizer()
    rows = [tokens(text, return_tensors="np") for text in corpus().read_text().splitlines()]
    np.savez(WORK / "olive.npz", input_ids=np.stack([np.resize(r["input_ids"][0], 16) for r in rows]))
    script = WORK / "olive_data.py"
    script.write_text(
        f"""import numpy, torch
from olive.data.registry import Registry

class Rows(torch.utils.data.Dataset):
    ids = numpy.load({str(WORK / "olive.npz")!r})["input_ids"]
    def __len__(self): return len(self.ids)
    def __getitem__(self, at): return {{"input_ids": self.ids[at], "attention_mask": numpy.ones_like(self.ids[at])}}, 0

@Registry.register_dataset()
def rows(**_): return Rows()
"""
    )
    for name, given in [
        ("config", {"data_config": "rows"}),
        ("files", {"data": str(WORK / "texts.txt"), "tokenizer": str(folder / "tokenizer.json")}),
    ]:
        out = WORK / f"olive-{name}"
        shutil.rmtree(out, ignore_errors=True)
        config = {
            "input_model": {"type": "ONNXModel", "model_path": str(folder / "model.onnx")},
            "data_configs": [
                {
                    "name": "rows",
                    "type": "DataContainer",
                    "user_script": str(script),
                    "load_dataset_config": {"type": "rows"},
                    "pre_process_data_config": {"type": "skip_pre_process"},
                    "post_process_data_config": {"type": "skip_post_process"},
                    "dataloader_config": {"batch_size": 4},
                }
            ],
            "passes": {
                "prune": {"type": "OnnxPrune", "flops": 0.6, "timing": False, **given},
                "quantise": {"type": "OnnxDynamicQuantization"},
            },
            "output_dir": str(out),
            "cache_dir": str(WORK / f"olive-cache-{name}"),
            "no_artifacts": True,
        }
        shutil.rmtree(config["cache_dir"], ignore_errors=True)
        run(config, package_config=package_config())
        found = [p for p in out.rglob("*.onnx")]
        assert len(found) == 1, found
        ort.InferenceSession(str(found[0]), providers=["CPUExecutionProvider"])
        assert found[0].stat().st_size < 0.6 * (folder / "model.onnx").stat().st_size


def try_variants():
    """Precisions as transformers.js has them keep the same heads and neurons."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from transformers import BertModel

    import onnx

    exported_to = exported("features", BertModel, bert(), "feature-extraction")
    folder = WORK / "variants"
    if not folder.exists():
        (folder / "onnx").mkdir(parents=True)
        shutil.copy(exported_to / "tokenizer.json", folder)
        shutil.copy(exported_to / "config.json", folder)
        model = onnx.load(exported_to / "model.onnx")
        onnx.save(model, folder / "onnx" / "model.onnx", save_as_external_data=True, location="model.onnx_data")
        model = onnx.load(exported_to / "model.onnx")
        onnx.save(convert_float_to_float16(model, keep_io_types=True), folder / "onnx" / "model_fp16.onnx")
        quantizer = MatMulNBitsQuantizer(onnx.load(exported_to / "model.onnx"), block_size=32, is_symmetric=True)
        quantizer.process()
        quantizer.model.save_model_to_file(str(folder / "onnx" / "model_q4.onnx"))
        shutil.copy(exported_to / "model.onnx", folder / "model.onnx")
        shutil.copy(exported_to / "model.onnx", folder / "onnx" / "model_fp32.onnx")
    out, reports = pruned(folder)
    assert (out / "onnx" / "model.onnx_data").is_file() and not (out / "onnx" / "model.onnx.data").exists()
    by_name = {Path(r["output"]).relative_to(out).as_posix(): r for r in reports}
    kept = {name: [(g["place"], g["kept"]) for g in r["groups"] if g["place"]] for name, r in by_name.items()}
    assert kept["onnx/model_fp16.onnx"] == kept["onnx/model_q4.onnx"] == kept["onnx/model_fp32.onnx"], kept
    for path in out.rglob("*.onnx"):
        ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def try_genai():
    """onnxruntime-genai, from folders that its own builder makes: float32, and four bits with fewer tokens."""
    import onnxruntime_genai as genai

    llama()

    def built(name, precision):
        folder = WORK / name
        if not folder.exists():
            made = WORK / "genai-making"
            shutil.rmtree(made, ignore_errors=True)
            command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", WORK / "llama-source", "-o", made]
            subprocess.run([*map(str, command), "-p", precision, "-e", "cpu", "-c", str(WORK / "cache")], check=True)
            made.rename(folder)
        return folder

    def text(path):
        model = genai.Model(str(path))
        params = genai.GeneratorParams(model)
        params.set_search_options(max_length=32, min_length=32, do_sample=False)
        generator = genai.Generator(model, params)
        generator.append_tokens([2, 11, 12, 13])
        while not generator.is_done():
            generator.generate_next_token()
        return list(map(int, generator.get_sequence(0)))

    folder = built("genai", "fp32")
    dense = text(folder)
    assert len(dense) == 32, dense
    out, reports = pruned(built("genai-int4", "int4"), "--vocab", "data", "--vocab-keep", "0")
    assert len(text(out)) == 32
    config = json.loads((out / "genai_config.json").read_text())["model"]
    assert config["vocab_size"] == reports[0]["vocabulary"]["after"] < len(tokenizer()), config["vocab_size"]
    for options in [(), ("--change-interface", "--targets", "heads")]:
        out, _ = pruned(folder, *options)
        small = text(out)
        assert len(small) == 32, small
        if options:
            decoder = json.loads((out / "genai_config.json").read_text())["model"]["decoder"]
            assert decoder["num_key_value_heads"] == 1, decoder


def main():
    global PROGRAM, WORK
    PROGRAM, WORK = str(Path(sys.argv[1]).resolve()), Path(sys.argv[2]).resolve()
    WORK.mkdir(parents=True, exist_ok=True)
    names = sys.argv[3:] or [name[4:] for name in globals() if name.startswith("try_")]
    failed = []
    for name in names:
        try:
            globals()[f"try_{name}"]()
            print(f"{name}: good", flush=True)
        except Exception:
            import traceback

            traceback.print_exc()
            failed.append(name)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
