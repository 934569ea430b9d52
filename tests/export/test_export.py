"""Exports: what llama.cpp, transformers and ONNX Runtime make of the files, and what is refused."""

import dataclasses
import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from ant_hf.data.tokenizer import save_tokenizer, train_bpe
from ant_hf.errors import AntError
from ant_hf.export import exporting, gguf, llama_cpp, onnx, verification
from ant_hf.export.exporting import export
from ant_hf.export.gguf import Origin, write_gguf
from ant_hf.export.llama_cpp import Answers, Questions, ask
from ant_hf.export.questions import check_texts, greedy_prompts, greedy_starts, one_line, scored_ids
from ant_hf.export.verification import read_back, run_in_llama_cpp
from ant_hf.export.vocabulary import read_vocabulary
from ant_hf.recipe import TokenizerRecipe
from ant_hf.utils.files import read_sealed

REPO = "GODELEV/Ant-10M"


@pytest.fixture(scope="module")
def final(tiny_run, tmp_path_factory):
    """A copy of the tiny model, so that exports land beside it."""
    folder = tmp_path_factory.mktemp("export") / "run" / "final"
    shutil.copytree(tiny_run / "final", folder)
    return folder


@pytest.fixture(scope="module")
def exported(final):
    """Folder and record of three types, verified in both programs."""
    return export(str(final), "gguf", ("f32", "q8_0", "q4_0"), None, REPO, "apache-2.0")


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(
        folder
    )


def write(path, folder, kind="f32"):
    model, tokenizer = load(folder)
    write_gguf(path, model, read_vocabulary(model, tokenizer), kind, Origin("tiny"))
    return model, tokenizer


def test_the_check_texts_are_many_unusual_and_always_the_same():
    texts = check_texts()
    assert len(texts) >= 1000
    assert texts == check_texts()
    joined = "".join(texts)
    for piece in (
        "2026",
        "\U0001f600",
        "return",
        "\n\n",
        "   ",
        "\u4e16",
        "e\u0301",
        "'ll",
        "\ufffd",
        "<|endoftext|>",
    ):
        assert piece in joined


def test_types_are_verified_and_said_so(final, exported):
    folder, record = exported
    assert folder == final.parent / "gguf"
    files = record["files"]
    kinds = {f"Ant-10M-{kind}.gguf" for kind in ("F32", "Q8_0", "Q4_0")}
    assert set(files) == kinds | {"Modelfile", "params", "template"}
    assert record == read_sealed(folder / "verified.json", "record", "")
    assert record["notes"] == []
    for name in kinds:
        run = files[name]["verified"]["llama_cpp"]
        assert run["texts_with_equal_tokens"] == run["texts"] >= 1000
        assert run["prompts"] == 20
        assert abs(run["bits_per_byte_difference"]) < 0.05 * run["bits_per_byte"]
        assert run["bits_per_byte_difference_stderr"] >= 0
    exact = files["Ant-10M-F32.gguf"]["verified"]
    assert exact["transformers"]["largest_logit_difference"] == 0
    assert exact["llama_cpp"]["prompts_with_equal_output"] == 20
    sizes = [files[f"Ant-10M-{kind}.gguf"]["bytes"] for kind in ("F32", "Q8_0", "Q4_0")]
    assert sizes == sorted(sizes, reverse=True)
    assert not list(final.parent.glob(".*"))


def test_a_stranger_loads_the_file_with_equal_logits(final, exported):
    folder, _ = exported
    model, tokenizer = load(final)
    ids = torch.tensor([tokenizer("In the beginning God created the heavens")["input_ids"]])
    other = AutoModelForCausalLM.from_pretrained(folder, gguf_file="Ant-10M-F32.gguf", dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, other(ids).logits)
    assert other.config.tie_word_embeddings


def test_metadata_is_complete(final, exported):
    library = pytest.importorskip("gguf")
    reader = library.GGUFReader(exported[0] / "Ant-10M-Q8_0.gguf")
    config = json.loads((final / "config.json").read_text())
    expected = {
        "general.architecture": "llama", "general.name": "Ant-10M", "general.license": "apache-2.0",
        "general.source.repo_url": f"https://huggingface.co/{REPO}", "general.file_type": 7,
        "llama.context_length": config["max_position_embeddings"], "llama.vocab_size": config["vocab_size"],
        "llama.embedding_length": 32, "llama.block_count": 2, "llama.feed_forward_length": 64,
        "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2, "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": 8, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.padding_token_id": 1,
        "tokenizer.ggml.add_bos_token": False,
    }  # fmt: skip
    seen = {name: reader.get_field(name).contents() for name in expected}
    assert seen == expected
    assert reader.get_field("llama.attention.layer_norm_rms_epsilon").contents() == pytest.approx(
        config["rms_norm_eps"]
    )
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert "output.weight" not in types
    assert {kind for name, kind in types.items() if "norm" in name} == {"F32"}
    assert {kind for name, kind in types.items() if "norm" not in name} == {"Q8_0"}


def test_below_8_bits_the_embeddings_stay_finer(exported):
    reader = pytest.importorskip("gguf").GGUFReader(exported[0] / "Ant-10M-Q4_0.gguf")
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types.pop("token_embd.weight") == "Q8_0"
    assert {kind for name, kind in types.items() if "norm" not in name} == {"Q4_0"}


def test_every_type_has_a_name_and_a_default_set():
    assert exporting._checked_types("gguf", ()) == gguf.DEFAULT_TYPES
    assert exporting._checked_types("gguf", ("all",)) == tuple(gguf.TYPES)
    assert [gguf.suggested(kinds) for kinds in (gguf.TYPES, ("f16", "q4_0"), ("q4_0", "q5_1"))] == [
        "q8_0", "f16", "q5_1",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["q5_1", "q5_0", "q4_1"])
def test_the_other_types_are_read_back_bit_for_bit(final, tmp_path, kind):
    model, tokenizer = write(tmp_path / "x.gguf", final, kind)
    _, figures = read_back(tmp_path / "x.gguf", model, tokenizer, kind)
    assert figures["bits_per_byte_difference"] != 0


def test_ollama_gets_the_cards_sampling_and_no_chat(exported):
    """`params` and `template` on the Hub, the same in a Modelfile; a line end would be part of a prompt."""
    text = (exported[0] / "Modelfile").read_text()
    assert text.startswith("FROM ./Ant-10M-Q8_0.gguf\n")
    params = json.loads((exported[0] / "params").read_text())
    for name, value in params.items():
        assert f"PARAMETER {name} {value}\n" in text
    wanted = {"temperature": 0.7, "top_p": 0.9, "repeat_penalty": 1.5, "repeat_last_n": -1, "num_ctx": 64}
    assert wanted.items() <= params.items()
    assert (exported[0] / "template").read_text() == "{{ .Prompt }}"
    assert "TEMPLATE {{ .Prompt }}\n" in text


def test_ends_that_gguf_has_no_room_for_are_stops_in_ollama(final):
    model, tokenizer = load(final)
    vocabulary = dataclasses.replace(read_vocabulary(model, tokenizer), other_ends=[0])
    found = gguf.ollama_files("x.gguf", model, vocabulary, None)
    assert json.loads(found["params"])["stop"] == [tokenizer.eos_token]
    assert f'PARAMETER stop "{tokenizer.eos_token}"\n' in found["Modelfile"]


def test_the_same_export_again_is_reused_and_a_damaged_one_made_anew(final, tmp_path, monkeypatch):
    monkeypatch.setattr(llama_cpp, "is_installed", lambda: False)
    job = (str(final), "gguf", ("f16",), tmp_path / "out", REPO)
    first = export(*job)
    assert export(*job) == first
    file = first[0] / "Ant-10M-F16.gguf"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert export(*job)[1]["made"] >= first[1]["made"]
    assert file.read_bytes() == whole


def test_greedy_outputs_are_those_of_generate(final, exported):
    model, tokenizer = load(final)
    prompts = greedy_prompts()
    answers = ask(exported[0] / "Ant-10M-F32.gguf", Questions(prompts=prompts, new_tokens=16, context=64))
    for prompt, theirs in zip(prompts, answers.greedy, strict=True):
        inputs = tokenizer(prompt, return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=16)[0, length:]
        assert theirs == ids.tolist()


def test_untied_models_keep_their_output_projection(final, tmp_path):
    model, tokenizer = load(final)
    config = model.config
    config.tie_word_embeddings = False
    torch.manual_seed(1)
    untied = AutoModelForCausalLM.from_config(config)
    untied.save_pretrained(tmp_path / "untied")
    tokenizer.save_pretrained(tmp_path / "untied")
    _, record = export(str(tmp_path / "untied"), "gguf", ("f32",), tmp_path / "out")
    (verified,) = [values["verified"] for values in record["files"].values() if "verified" in values]
    assert verified["transformers"]["largest_logit_difference"] == 0
    assert verified["llama_cpp"]["prompts_with_equal_output"] == 20


TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"


@pytest.fixture(scope="module")
def foreign(final, tmp_path_factory):
    """As others publish: bf16, a chat template under two names, four ends of a text, sampling. Untrained."""
    model, tokenizer = load(final)
    torch.manual_seed(0)
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, 0, 0.15)
    model.generation_config = GenerationConfig(
        eos_token_id=[0, 5, 6, 7], do_sample=True, temperature=0.6, no_repeat_ngram_size=3
    )
    tokenizer.chat_template = {"default": TEMPLATE, "tool_use": "tools"}
    folder = tmp_path_factory.mktemp("export") / "foreign"
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_chat_templates_ends_of_a_text_and_sampling_are_carried_or_named(foreign, tmp_path):
    folder, record = export(str(foreign), "gguf", ("f32", "q8_0"), tmp_path / "out")
    _, tokenizer = load(foreign)
    chat = [{"role": "user", "content": "Where is the river?"}]
    questions = Questions(endings=[0, 5, 6, 7, 8], conversation=chat, context=64)
    answers = ask(folder / "foreign-F32.gguf", questions)
    assert answers.ends == [0, 5, 6]
    assert answers.chat_template == TEMPLATE
    assert answers.conversation == tokenizer.apply_chat_template(chat, tokenize=False)
    reader = pytest.importorskip("gguf").GGUFReader(folder / "foreign-F32.gguf")
    assert reader.get_field("tokenizer.chat_template.tool_use").contents() == "tools"
    assert reader.get_field("general.sampling.temp").contents() == pytest.approx(0.6)
    ends, settings = record["notes"]
    assert tokenizer.convert_ids_to_tokens(7) in ends
    assert "no_repeat_ngram_size" in settings
    modelfile = (folder / "Modelfile").read_text()
    assert "TEMPLATE" not in modelfile
    assert not (folder / "template").exists()
    assert json.loads((folder / "params").read_text())["temperature"] == 0.6
    assert "PARAMETER temperature 0.6\n" in modelfile
    # Untrained models have logits that are near each other, and as near in F32 as anywhere.
    exact, rounded = (record["files"][f"foreign-{kind}.gguf"]["verified"] for kind in ("F32", "Q8_0"))
    assert exact["llama_cpp"]["prompts_with_equal_output"] == 20
    assert abs(exact["llama_cpp"]["bits_per_byte_difference"]) < 1e-4
    # One logit may be far off in Q8_0; what counts is the likelihood of a text, and it is stated.
    apart, spread = (
        rounded["transformers"][key] for key in ("largest_logit_difference", "logits_standard_deviation")
    )
    assert apart > 0.02 * spread
    for run in rounded.values():
        assert 0 < abs(run["bits_per_byte_difference"]) < 0.02 * run["bits_per_byte"]


def test_an_end_that_only_llama_cpp_knows_is_named(final):
    model, tokenizer = load(final)
    run = {"ends_left_out": [], "ends_of_llama_cpp_alone": ["<|im_end|>"], "chat_alike": False}
    ends, chat = verification.notes(model, read_vocabulary(model, tokenizer), run)
    assert "<|im_end|>" in ends
    assert "chat template" in chat


def test_a_model_without_an_end_of_a_text_is_refused(final):
    """llama.cpp would take token 11 for it, a letter or a comma."""
    model, tokenizer = load(final)
    model.generation_config.eos_token_id = tokenizer.eos_token = None
    with pytest.raises(AntError, match=r"end-of-text token.*generation_config\.json.*--to onnx"):
        read_vocabulary(model, tokenizer)
    model.generation_config.eos_token_id = [0, 9999]
    with pytest.raises(AntError, match="does not have; saw 9999"):
        read_vocabulary(model, tokenizer)


def test_another_chat_template_or_end_is_another_export(foreign, tmp_path, monkeypatch):
    monkeypatch.setattr(llama_cpp, "is_installed", lambda: False)
    shutil.copytree(foreign, tmp_path / "model")
    job = (str(tmp_path / "model"), "gguf", ("f16",), tmp_path / "out")
    first = export(*job)[1]
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ messages }}")
    assert export(*job)[1]["made_of"] != first["made_of"]
    assert b"{{ messages }}" in (tmp_path / "out" / "model-F16.gguf").read_bytes()


def quickly_written(file, graph, kind):
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(graph + kind.encode())


def test_onnx_has_the_tokenizer_with_its_chat_templates(foreign, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, "trace", lambda *_: b"graph")
    monkeypatch.setattr(onnx, "write_onnx", quickly_written)
    monkeypatch.setattr(onnx, "check_onnx", lambda *_: {})
    folder, record = export(str(foreign), "onnx", output=tmp_path / "out")
    graphs = {"onnx/model.onnx", "onnx/model_fp16.onnx", "onnx/model_quantized.onnx"}
    beside = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert graphs | beside < set(record["files"])
    assert [values["type"] for values in record["files"].values() if "type" in values] == list(onnx.TYPES)
    assert (folder / "config.json").read_bytes() == (foreign / "config.json").read_bytes()
    again = AutoTokenizer.from_pretrained(folder)
    assert again.chat_template == {"default": TEMPLATE, "tool_use": "tools"}
    run = record["files"]["onnx/model.onnx"]["verified"]["onnxruntime"]
    assert run["texts_with_equal_tokens"] == run["texts"] >= 1000
    monkeypatch.setattr(exporting, "_TOKENIZER_FILES", ("tokenizer.json", "tokenizer_config.json"))
    with pytest.raises(AntError, match="another chat template"):
        export(str(foreign), "onnx", output=tmp_path / "lost")
    assert not (tmp_path / "lost").exists()


@pytest.fixture
def mistral(final):
    """Weights and tokenizer of the tiny model as a Mistral with a window of a quarter of its context."""
    model, tokenizer = load(final)
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    kept += ("num_key_value_heads", "max_position_embeddings", "rope_parameters", "tie_word_embeddings")
    config = {key: getattr(model.config, key) for key in kept}
    other = MistralForCausalLM(MistralConfig(**config, sliding_window=16, eos_token_id=0))
    other.load_state_dict(model.state_dict())
    return other, tokenizer


@pytest.mark.parametrize("to", ["gguf", "onnx"])
def test_a_sliding_window_is_refused_before_anything_is_written(mistral, tmp_path, to):
    for part in mistral:
        part.save_pretrained(tmp_path / "model")
    with pytest.raises(AntError, match=r"sliding_window; saw 16; .*set max_position_embeddings to 16"):
        export(str(tmp_path / "model"), to, output=tmp_path / "deep" / "out")
    assert not (tmp_path / "deep").exists()


def test_weights_that_training_destroyed_are_refused(final, tmp_path):
    model, tokenizer = load(final)
    model.model.norm.weight.data[3] = torch.nan
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    with pytest.raises(
        AntError, match=r"model\.norm\.weight contains NaN or infinity; saw '1 of 32 entries'"
    ):
        export(str(tmp_path / "model"), "gguf", output=tmp_path / "out")


def test_a_window_as_wide_as_the_context_is_none(mistral, tmp_path):
    model, _ = mistral
    model.config.sliding_window = model.config.max_position_embeddings
    for part in mistral:
        part.save_pretrained(tmp_path / "model")
    _, record = export(str(tmp_path / "model"), "gguf", ("f32",), tmp_path / "out")
    assert record["files"]["model-F32.gguf"]["verified"]["llama_cpp"]["prompts_with_equal_output"] == 20


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention_bias", True), ("mlp_bias", True), ("hidden_act", "gelu"), ("model_type", "qwen3"),
        ("rope_type", "llama3"), ("rope_type", "linear"), ("rope_type", "yarn"),
    ],
)  # fmt: skip
def test_what_gguf_cannot_hold_is_named_by_its_key(final, key, value):
    model, _ = load(final)
    if key == "rope_type":
        model.config.rope_parameters["rope_type"] = value
    else:
        setattr(model.config, key, value)
    with pytest.raises(
        AntError, match=rf"config\.json has another .*{key}; saw {value!r}; expected.*--to onnx"
    ):
        gguf.check_architecture(model, ["f32"])


def test_what_a_graph_cannot_hold_is_named_by_its_key(final):
    model, _ = load(final)
    onnx.check_architecture(model, onnx.TYPES)
    model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(AntError, match=r"layer_types; saw \['linear_attention'\]; expected full_attention"):
        onnx.check_architecture(model, [])
    model.config.rope_parameters["rope_type"] = "longrope"
    with pytest.raises(AntError, match="rope_type; saw 'longrope'; expected default"):
        onnx.check_architecture(model, [])


def test_what_an_onnx_file_has_no_room_for_is_refused(final, monkeypatch):
    model, _ = load(final)
    monkeypatch.setattr(model, "num_parameters", lambda: 600_000_000)
    onnx.check_architecture(model, ["fp16", "q8"])
    with pytest.raises(AntError, match=r"at most 2 GB.*600,000,000 param.*saw '2\.4 GB in fp32'.*--type"):
        onnx.check_architecture(model, onnx.TYPES)


def test_a_vocabulary_of_bytes_has_no_merges_and_loads(final, tmp_path):
    model, _ = load(final)
    values = json.loads((final / "tokenizer.json").read_text())
    values["model"]["merges"] = []
    backend = Tokenizer.from_str(json.dumps(values))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    file = tmp_path / "bytes.gguf"
    write_gguf(file, model, read_vocabulary(model, tokenizer), "f32", Origin("bytes"))
    texts = ["the river", "na\u00efve 42"]
    assert ask(file, Questions(texts=texts, context=64)).tokens == tokenizer(texts)["input_ids"]


def test_a_head_that_only_the_config_ties_is_kept(final, tmp_path):
    model, tokenizer = load(final)
    assert model.config.tie_word_embeddings
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight * 2)
    write_gguf(tmp_path / "x.gguf", model, read_vocabulary(model, tokenizer), "f32", Origin("tiny"))
    loaded, _ = read_back(tmp_path / "x.gguf", model, tokenizer, "f32")
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_prompts_fit_into_a_short_context(final):
    _, tokenizer = load(final)
    starts, new_tokens = greedy_starts(tokenizer, 8)
    assert max(map(len, starts)) == new_tokens == 4


def test_halves_of_heads_left_as_they_are_do_not_pass(final, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "interleave", lambda weight, heads: weight)
    with pytest.raises(AntError, match=r"has another model\.layers\.0\.self_attn\.[qk]_proj\.weight"):
        export(str(final), "gguf", ("f32",), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    # llama.cpp alone would have found it too: what it says of the texts and prompts is no longer the model's.
    file = tmp_path / "wrong.gguf"
    model, tokenizer = write(file, final)
    # Eight steps of training leave attention nearly even, so it is sharpened here.
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.data *= 40
    vocabulary = read_vocabulary(model, tokenizer)
    write_gguf(file, model, vocabulary, "f32", Origin("tiny"))
    with pytest.raises(
        AntError, match=r"llama\.cpp with wrong\.gguf (continues|does not give plain English)"
    ):
        run_in_llama_cpp(file, model, model, tokenizer, vocabulary, "f32", 1)


def cut_alike(final, folder, texts, recipe, tmp_path):
    """How many check texts llama.cpp cuts as a tokenizer trained on these texts does, by pre-tokenizer."""
    save_tokenizer(train_bpe(texts, recipe), folder, 64)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = AutoConfig.from_pretrained(final)
    config.vocab_size = recipe.vocab_size + 7
    model = AutoModelForCausalLM.from_config(config)
    vocabulary = read_vocabulary(model, tokenizer)
    texts, alike = check_texts(), {}
    for name in ("smollm", "gpt-2"):
        file = tmp_path / f"{name}.gguf"
        write_gguf(file, model, dataclasses.replace(vocabulary, pre_tokenizer=name), "f32", Origin("tiny"))
        tokens = ask(file, Questions(texts=texts, context=64)).tokens
        alike[name] = sum(tokenizer(t)["input_ids"] == ids for t, ids in zip(texts, tokens, strict=True))
    return vocabulary.pre_tokenizer, alike


def test_single_digits_need_a_pre_tokenizer_that_cuts_them_out(final, tmp_path):
    """GPT-2's own leaves the last of several spaces to a digit after them."""
    texts = ["x = 1\n    y = 2\n        z  =  3\n"] * 50 + ["the  river   and    king"] * 50
    chosen, alike = cut_alike(final, tmp_path / "model", texts, TokenizerRecipe(vocab_size=280), tmp_path)
    assert chosen == "smollm"
    assert alike["smollm"] == 1299 > alike["gpt-2"]


def test_digits_kept_together_need_the_plain_one(final, tmp_path):
    texts = ["in 1999 and 2000 and 2026 there were 365 days"] * 50
    recipe = TokenizerRecipe(vocab_size=280, split_digits=False)
    chosen, alike = cut_alike(final, tmp_path / "model", texts, recipe, tmp_path)
    assert chosen == "gpt-2"
    assert alike["gpt-2"] == 1299 > alike["smollm"]


def test_texts_that_llama_cpp_cuts_otherwise_stop_the_export(final, tmp_path, monkeypatch):
    monkeypatch.setattr(verification, "ask", lambda *_: Answers(tokens=[[5]] * 1299))
    with pytest.raises(
        AntError, match=r"llama\.cpp turns 1299 of 1299 texts into other tokens with run-F32\.gguf"
    ):
        export(str(final), "gguf", ("f32",), tmp_path / "wrong")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(normalizer={"type": "NFKC"}), "it normalizes the text"),
        (lambda t: t.update(pre_tokenizer={"type": "Whitespace"}), "does not know its pre-tokenizer"),
        (lambda t: t["model"].update(ignore_merges=True), "its BPE has options"),
        (lambda t: t["added_tokens"][0].update(lstrip=True), "strips spaces around it"),
    ],
)
def test_a_tokenizer_that_llama_cpp_lacks_is_refused(final, change, message):
    model, _ = load(final)
    values = json.loads((final / "tokenizer.json").read_text())
    change(values)
    backend = SimpleNamespace(to_str=lambda: json.dumps(values))
    tokenizer = SimpleNamespace(backend_tokenizer=backend, eos_token_id=0)
    with pytest.raises(AntError, match=f"{message}.*--to onnx"):
        read_vocabulary(model, tokenizer)


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (("gguf", ("q4_k_m",)), "unknown GGUF type; saw 'q4_k_m'; expected f32, .* or all.*llama-quantize"),
        (("mlx", ()), "unknown format; saw 'mlx'; expected gguf or onnx"),
        (("onnx", ("f16",)), "unknown ONNX type; saw 'f16'; expected fp32, fp16, q8 or all"),
    ],
)
def test_unknown_formats_and_types_are_named(final, job, message):
    with pytest.raises(AntError, match=message):
        export(str(final), *job)


def test_a_missing_package_is_named_with_its_extra(final, monkeypatch):
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AntError, match=r"not installed: gguf\. pip install .*\[gguf\]'"):
        export(str(final), "gguf")


def test_without_llama_cpp_it_says_so(final, tmp_path, monkeypatch):
    monkeypatch.setattr(llama_cpp, "is_installed", lambda: False)
    _, record = export(str(final), "gguf", ("f32",), tmp_path / "out")
    (line,) = record["notes"]
    assert "xllamacpp is not installed: pip install 'ant-hf[gguf]'" in line
    (verified,) = [values["verified"] for values in record["files"].values() if "verified" in values]
    assert verified["llama_cpp"] is None


def test_no_model_and_a_folder_of_other_things_are_refused(final, tmp_path):
    with pytest.raises(AntError, match="it has no config"):
        export(str(final.parent), "gguf")
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(AntError, match="is not an export"):
        export(str(final), "gguf", output=tmp_path)
    assert (tmp_path / "letter.txt").read_text() == "mine"


def test_widths_that_fill_no_blocks_are_refused_for_q8_0(final, tmp_path):
    model, tokenizer = load(final)
    values = model.config.to_dict() | {"intermediate_size": 72}
    AutoModelForCausalLM.from_config(type(model.config)(**values)).save_pretrained(tmp_path / "odd")
    tokenizer.save_pretrained(tmp_path / "odd")
    with pytest.raises(AntError, match=r"blocks of 32 numbers.*down_proj.*saw 72.*--type f32"):
        export(str(tmp_path / "odd"), "gguf", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# As the system says it, as NumPy says it, and as the writer of ONNX passes it on.
@pytest.mark.parametrize(
    "error",
    [
        OSError(28, os.strerror(28)), OSError("25600 requested and 8352 written"),
        RuntimeError("problem writing element 12288 to file"),
    ],
)  # fmt: skip
def test_a_full_disk_leaves_what_was_there(final, exported, tmp_path, monkeypatch, error):
    target = tmp_path / "gguf"
    shutil.copytree(exported[0], target)
    before = {path.name: path.stat().st_mtime_ns for path in target.iterdir()}

    def full(path, *arguments):
        path.write_bytes(b"half")
        with one_line("writing failed"):
            raise error

    monkeypatch.setattr(gguf, "write_gguf", full)
    with pytest.raises(AntError, match="no room for the export"):
        export(str(final), "gguf", ("f32",), target, REPO)
    assert {path.name: path.stat().st_mtime_ns for path in target.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["gguf"]


def test_two_exports_into_one_folder_are_told_apart(final, exported, tmp_path):
    target = tmp_path / "gguf"
    with exporting._alone(target), pytest.raises(AntError, match="another process is writing"):
        export(str(final), "gguf", ("f32",), target)
    shutil.copytree(exported[0], target)
    assert [path.name for path in tmp_path.iterdir()] == ["gguf"]


def test_a_file_that_llama_cpp_cannot_load_is_one_error(final, tmp_path):
    file = tmp_path / "cut.gguf"
    write(file, final)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(AntError, match=r"llama\.cpp failed on cut\.gguf"):
        ask(file, Questions(texts=["a"], context=64))


def test_f16_and_q8_0_are_rounded_and_nothing_else(final, tmp_path):
    for kind in ("f16", "q8_0"):
        file = tmp_path / f"{kind}.gguf"
        model, tokenizer = write(file, final, kind)
        loaded, figures = read_back(file, model, tokenizer, kind)
        assert 0 < figures["largest_logit_difference"] < figures["logits_standard_deviation"]
        if kind == "f16":
            for name, weight in loaded.state_dict().items():
                expected = model.state_dict()[name]
                assert torch.equal(weight, expected.half().float() if expected.ndim == 2 else expected)


def test_scored_text_is_long_enough_to_say_something(final):
    _, tokenizer = load(final)
    assert sum(map(len, scored_ids(tokenizer, 64))) > 100


def test_an_older_transformers_has_no_onnx_exporter(final, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers.exporters.exporter_onnx", None)
    with pytest.raises(AntError, match=r"saw 'transformers [\d.]+'; expected 5\.23 or newer"):
        export(str(final), "onnx", output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_onnx_gives_equal_logits_and_outputs_through_its_cache_and_without_it(exported_onnx):
    folder = exported_onnx / "onnx"
    record = read_sealed(folder / "verified.json", "record", "")
    runs = {
        values["type"]: values["verified"]["onnxruntime"]
        for values in record["files"].values()
        if "type" in values
    }
    assert list(runs) == ["fp32", "fp16", "q8"]
    exact = runs["fp32"]
    assert exact["largest_logit_difference"] < 1e-3
    for key in ("prompts_with_equal_output", "prompts_with_equal_output_without_cache"):
        assert exact[key] == exact["prompts"] == 20
    for kind, run in runs.items():
        assert abs(run["bits_per_byte_difference"]) <= onnx.TYPES[kind].loss * run["bits_per_byte"]
    model, _ = load(exported_onnx / "final")
    ids = np.arange(20, dtype=np.int64).reshape(4, 5)
    with torch.no_grad():
        wanted = model(torch.from_numpy(ids)).logits.numpy()
    assert np.abs(onnx.OnnxModel(folder / "onnx/model.onnx", 1)(ids)[0] - wanted).max() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("kind", onnx.TYPES)
def test_graphs_have_the_names_of_transformers_js_and_the_embeddings_once(exported_onnx, kind):
    library = pytest.importorskip("onnx")
    graph = library.load(exported_onnx / "onnx/onnx" / onnx.TYPES[kind].file).graph
    cache = [f"past_key_values.{layer}.{part}" for layer in range(2) for part in ("key", "value")]
    given, returned = (
        {
            value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in values
        }
        for values in (graph.input, graph.output)
    )
    assert list(given) == ["input_ids", "attention_mask", "position_ids", *cache]
    assert list(returned) == ["logits", *(name.replace("past_key_values", "present") for name in cache)]
    # transformers.js makes empty caches by these names.
    assert given["past_key_values.1.value"] == ["batch_size", 2, "past_sequence_length", 8]
    assert returned["present.1.value"] == ["batch_size", 2, "total_sequence_length", 8]
    assert [list(tensor.dims) for tensor in graph.initializer].count([384, 32]) == 1
    assert [32, 384] not in [list(tensor.dims) for tensor in graph.initializer]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda limit: dataclasses.replace(limit, difference=0), "gives different logits than the model"),
        (lambda limit: dataclasses.replace(limit, loss=0), "does not give plain English the same likelihood"),
    ],
)
def test_a_graph_that_differs_by_more_than_its_type_may_is_refused(
    exported_onnx, monkeypatch, change, message
):
    model, tokenizer = load(exported_onnx / "final")
    monkeypatch.setitem(onnx.TYPES, "q8", change(onnx.TYPES["q8"]))
    with pytest.raises(AntError, match=rf"model_quantized\.onnx {message}"):
        onnx.check_onnx(exported_onnx / "onnx/onnx/model_quantized.onnx", model, tokenizer, 64, 1, "q8")
