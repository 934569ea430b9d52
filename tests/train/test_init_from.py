"""A training that continues from a model: what comes from it, what is refused, and what is told of both."""

import json
import shutil

import pytest
import torch
import yaml
from commands import run_here
from conftest import TINY_CONFIG, tiny_values
from hub.metadata_rules import problems
from records import write_results
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from ant_hf.errors import AntError
from ant_hf.model.base import Base, architecture_of
from ant_hf.recipe import load_recipe
from ant_hf.release.build import make_release
from ant_hf.release.verify import verify
from ant_hf.train.before_after import general_text
from ant_hf.train.pretrain import dry_run, pretrain
from ant_hf.train.run_folder import RunRecord
from ant_hf.train.trainer import AntTrainer
from ant_hf.utils.files import write_sealed
from ant_hf.utils.metrics import read_metrics


@pytest.fixture
def finetune(shared, trained_run, tmp_path, monkeypatch):
    """A function that loads a recipe of few steps from a model, with changed keys."""
    monkeypatch.setattr("ant_hf.train.pretrain.plot_run", lambda *_: [])
    monkeypatch.setattr("ant_hf.utils.plots.plot_fragmentation", lambda *_: [])
    monkeypatch.setattr("ant_hf.train.before_after._DOCUMENTS", 2)

    def make(base=trained_run / "final", name="run", corpus=None, **training):
        values = tiny_values(shared, tmp_path / name, **({"init_from": str(base)} | training))
        del values["architecture"], values["tokenizer"]
        values["corpus"] |= corpus or {}
        values["training"] |= {"load_best_model_at_end": True} if "save_steps" not in training else {}
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(values))
        return load_recipe(file)

    return make


def foreign_model(folder, chapters, rows=0, **config):
    """An untied Llama; its tokenizer is byte-level, with other special tokens, and begins texts with one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(chapters[:9], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    values = TINY_CONFIG | {"vocab_size": rows or tokenizer.get_vocab_size(), "tie_word_embeddings": False}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**values | {"bos_token_id": 0, "eos_token_id": 1}))
    model.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | {"is_llama_config": True} | config))
    return folder


def test_weights_and_tokenizer_come_from_the_model(finetune, trained_run, capsys):
    recipe = finetune(learning_rate=1e-6, max_steps=4)
    pretrain(recipe)
    said = capsys.readouterr().out
    final = trained_run / "final"
    run = RunRecord.read(run_folder(recipe))
    # So small a rate leaves the weights where they were.
    then, now = (load_file(path / "model.safetensors") for path in (final, run_folder(recipe) / "final"))
    assert then.keys() == now.keys()
    assert all(torch.allclose(then[name], now[name], atol=1e-4) for name in then)
    assert (run_folder(recipe) / "final/tokenizer.json").read_bytes() == (
        final / "tokenizer.json"
    ).read_bytes()
    assert run.base["weights_sha256"] == run.sha256["base"]
    assert run.before["final"]["bits_per_byte"] == pytest.approx(run.final["bits_per_byte"], rel=1e-3)
    assert run.before["general"]["bytes"] == run.general["bytes"] > 1000
    for words in (
        "Bits per byte, before and after",
        "the text, held out",
        "World English Bible",
        "before  ",
        "best  ",
    ):
        assert words in said
    # Once more, it only shows it; with another base it is refused.
    pretrain(recipe)
    assert "exists already" in capsys.readouterr().out


def run_folder(recipe):
    return recipe.tokens_dir.parent


def test_anyones_llama_is_trained_packed_and_verified(finetune, tmp_path, chapters, quick_gate):
    # Its embedding has more rows than its tokenizer has entries.
    base = foreign_model(tmp_path / "base", chapters, rows=320)
    recipe = finetune(base, max_steps=30, eval_steps=10, save_steps=10, learning_rate=0.02)
    pretrain(recipe)
    final = run_folder(recipe) / "final"
    run = RunRecord.read(run_folder(recipe))
    assert run.final["bits_per_byte"] < run.before["final"]["bits_per_byte"] - 0.5
    assert "is_llama_config" not in json.loads((final / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(final)
    ids = tokenizer("In the beginning")["input_ids"]
    assert (ids[0], tokenizer.eos_token) == (0, "</s>")
    by_name = {check["name"]: check for check in verify(final)["checks"]}
    assert by_name["held-out loss, float32"]["passed"], by_name
    assert by_name["byte and token perplexity agree"]["passed"]
    assert by_name["loading"]["passed"], by_name["loading"]


def sentencepiece_model(folder, chapters, metaspace=False, tokenizer_class="PreTrainedTokenizerFast"):
    """A Llama whose vocabulary has one sign for the space, which begins every text too, and single bytes.

    The sign is put there by a normalizer, as in Llama 2's tokenizer.json, or by the pre-tokenizer Metaspace.
    """
    space = "\u2581"
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.Metaspace()
    learnt.train_from_iterator(chapters[:9], trainers.BpeTrainer(vocab_size=150, show_progress=False))
    values = json.loads(learnt.to_str())["model"]
    entries = {entry: index for index, entry in enumerate([*special, *values["vocab"]])}
    merges = [tuple(merge) for merge in values["merges"]]
    tokenizer = Tokenizer(models.BPE(entries, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        signs = [normalizers.Prepend(space), normalizers.Replace(" ", space)]
        tokenizer.normalizer = normalizers.Sequence(signs)
    steps = [
        decoders.Replace(space, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(special[:3])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": tokenizer_class}))
    config = TINY_CONFIG | {"vocab_size": len(entries), "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(**config)).save_pretrained(folder)
    return folder


def test_a_llama_with_a_sentencepiece_vocabulary_is_trained(finetune, tmp_path, chapters):
    recipe = finetune(sentencepiece_model(tmp_path / "base", chapters), max_steps=4, learning_rate=0.02)
    pretrain(recipe)
    run, final = RunRecord.read(run_folder(recipe)), run_folder(recipe) / "final"
    assert run.final["bits_per_byte"] < run.before["final"]["bits_per_byte"]
    tokenizer = AutoTokenizer.from_pretrained(final)
    for text in ("In the beginning", " two  spaces", "\u4f60\u597d \U0001f600\n"):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == 1
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_class_of_transformers_that_reads_the_file_in_another_way_is_refused(finetune, tmp_path, chapters):
    """Transformers 5 makes a Metaspace of every LlamaTokenizer; what the hint names is trained above."""
    base = sentencepiece_model(tmp_path / "base", chapters, tokenizer_class="LlamaTokenizer")
    with pytest.raises(AntError, match=r"differently than its tokenizer\.json.*PreTrainedTokenizerFast"):
        architecture_of(finetune(base))


def test_a_tokenizer_that_loses_the_first_space_of_a_text_is_refused(finetune, tmp_path, chapters):
    """Metaspace takes a space that is there for the one that it would put there."""
    with pytest.raises(
        AntError, match=r"changes texts when it encodes and decodes them.*a space at its beginning is lost"
    ):
        architecture_of(finetune(sentencepiece_model(tmp_path / "base", chapters, metaspace=True)))


def test_what_a_run_cannot_begin_with_is_one_message(finetune, tmp_path, chapters, shared):
    def refused(words, base, **training):
        with pytest.raises(AntError) as caught:
            architecture_of(finetune(base, **training))
        assert words in str(caught.value)

    refused("must be 'llama'", foreign_model(tmp_path / "a", chapters, model_type="mistral"))
    refused("longer than the context", foreign_model(tmp_path / "b", chapters), sequence_length=65)
    refused("has more entries than the model", foreign_model(tmp_path / "c", chapters, rows=290))
    refused("quantized", foreign_model(tmp_path / "d", chapters, quantization_config={"bits": 4}))
    lossy = foreign_model(tmp_path / "e", chapters)
    values = json.loads((lossy / "tokenizer.json").read_text())
    (lossy / "tokenizer.json").write_text(json.dumps(values | {"normalizer": {"type": "Lowercase"}}))
    refused("changes texts when it encodes and decodes them", lossy)
    settings = json.loads((lossy / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    (lossy / "tokenizer_config.json").write_text(json.dumps(settings))
    refused("does not name an end-of-text token", lossy)
    refused("model not found", tmp_path / "nothing")
    file = tmp_path / "both.yaml"
    file.write_text(yaml.safe_dump(tiny_values(shared, tmp_path / "x", init_from=str(lossy))))
    with pytest.raises(
        AntError, match=r"(?s)architecture and training.init_from are both set.*tokenizer and"
    ):
        load_recipe(file)
    with pytest.raises(AntError, match=r"(?s)architecture is missing.*tokenizer is missing"):
        load_recipe(file, ["training.init_from=null", "architecture=null", "tokenizer=null"])
    with pytest.raises(AntError, match="must be equal"):
        finetune(lossy, load_best_model_at_end=True, save_steps=8)


def test_the_best_checkpoint_is_kept_and_a_rising_loss_ends_the_run(finetune, capsys, monkeypatch):
    """Also after a kill at any of three moments: in the middle, before the end is said, and in the end."""
    evaluated = {2: 3.0, 4: 2.0, 6: 2.5, 8: 2.6, 10: 1.0}
    whole = AntTrainer.evaluate

    def told(trainer, *args, **kwargs):
        metrics = whole(trainer, *args, **kwargs)
        metrics["eval_loss"] = evaluated[trainer.state.global_step]
        return metrics

    monkeypatch.setattr(AntTrainer, "evaluate", told)
    steps = {"max_steps": 10, "eval_steps": 2, "save_steps": 2, "save_total_limit": 1}
    steps |= {"load_best_model_at_end": True, "early_stopping_patience": 2}
    pretrain(finetune(name="whole", **steps))
    said = capsys.readouterr().out
    assert "stopping    at step 8" in said
    assert "the model of step 4 of 8" in said
    recipe = finetune(name="killed", **steps)
    folder = run_folder(recipe)
    wanted = (run_folder(finetune(name="whole", **steps)) / "final/model.safetensors").read_bytes()
    assert {path.name for path in (folder.parent / "whole").glob("checkpoint-*")} == {
        "checkpoint-4", "checkpoint-8",
    }  # fmt: skip

    def dies(at):
        def step(trainer, *args, **kwargs):
            if trainer.state.global_step == at:
                raise KeyboardInterrupt
            return trained(trainer, *args, **kwargs)

        return step

    trained = AntTrainer.training_step
    with monkeypatch.context() as patch:
        patch.setattr(AntTrainer, "training_step", dies(6))
        with pytest.raises(KeyboardInterrupt):
            pretrain(recipe)
    with monkeypatch.context() as patch:
        # The run has ended by then, and not been finished.
        patch.setattr("ant_hf.train.pretrain._finish", dies(8))
        with pytest.raises(KeyboardInterrupt):
            pretrain(recipe)
    # Moved meanwhile, and now there is nothing left to train.
    shutil.move(folder, folder.with_name("moved"))
    moved = recipe.model_copy(update={"output_dir": str(folder.with_name("moved"))})
    with monkeypatch.context() as patch:
        patch.setattr(AntTrainer, "training_step", dies(8))
        pretrain(moved)
    assert (folder.with_name("moved") / "final/model.safetensors").read_bytes() == wanted
    whole_rows, rows = (read_metrics(folder.with_name(n) / "metrics.jsonl") for n in ("whole", "moved"))
    assert [row["step"] for row in rows] == [row["step"] for row in whole_rows]


def test_another_base_is_refused_when_going_on(finetune, tmp_path, chapters):
    base = foreign_model(tmp_path / "base", chapters)
    recipe = finetune(base, max_steps=4)
    pretrain(recipe)
    record = RunRecord.read(run_folder(recipe))
    record.status = "running"
    write_sealed(run_folder(recipe) / "run.json", {k: v for k, v in record if v is not None})
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    model.save_pretrained(base)
    with pytest.raises(AntError, match="different base"):
        pretrain(recipe)


@pytest.mark.parametrize(("text", "words"), [(None, "corpus not found"), (" \n", "general.txt has no text")])
def test_a_general_text_that_cannot_be_scored_is_refused_at_once(finetune, tmp_path, text, words):
    file = tmp_path / "general.txt"
    if text:
        file.write_text(text)
    recipe = finetune(corpus={"general": str(file)})
    with pytest.raises(AntError, match=words):
        pretrain(recipe)
    assert not run_folder(recipe).exists()


def test_what_is_trained_on_is_not_what_may_be_forgotten(finetune):
    name, texts = general_text(finetune())
    assert (name, len(texts)) == ("World English Bible", 2)
    assert general_text(finetune(corpus={"replay": {"source": "embedded", "share": 0.1}})) is None


def test_a_small_text_shortens_the_run_to_its_passes(finetune, capsys):
    steps = {"max_steps": 1000, "warmup_steps": 100, "eval_steps": 250, "save_steps": 250}
    recipe = finetune(num_train_epochs=0.5, load_best_model_at_end=True, **steps)
    dry_run(recipe)
    told = capsys.readouterr().out
    pretrain(recipe)
    run = RunRecord.read(run_folder(recipe))
    training = run.recipe["training"]
    blocks = json.loads((recipe.tokens_dir / "manifest.json").read_text())["splits"]["train"]["tokens"] / 64
    assert training["max_steps"] == pytest.approx(blocks / 2 / 8, abs=1)
    assert training["eval_steps"] == training["save_steps"] == pytest.approx(training["max_steps"] / 4, abs=1)
    assert f"{training['max_steps']} steps" in told
    # The same recipe finds its run, also where the tokens are not, which tell the length.
    shutil.rmtree(recipe.tokens_dir)
    pretrain(recipe)
    assert "exists already" in capsys.readouterr().out


def test_without_held_out_text_the_run_says_so(finetune, capsys, quick_gate):
    recipe = finetune(corpus={"validation_fraction": 0}, max_steps=4, save_steps=4)
    pretrain(recipe)
    said = capsys.readouterr().out
    assert "no text is held out" in said
    assert "training text byte perplexity" in said
    run = RunRecord.read(run_folder(recipe))
    assert run.final["split"] == "train"
    assert not any("eval_loss" in row for row in read_metrics(run_folder(recipe) / "metrics.jsonl"))
    checks = {check["name"]: check for check in verify(run_folder(recipe) / "final")["checks"]}
    assert checks["held-out loss, float32"]["passed"], checks


def test_the_command_takes_a_model(trained_run, shared, tmp_path):
    settings = ("training.max_steps=30", "training.sequence_length=64", "training.report_to=[]")
    sets = [word for setting in settings for word in ("--set", setting)]
    text = shared / "corpus.jsonl"
    result = run_here(
        "ant-hf", "train", "--data", text, "--from", trained_run / "final", "--dry-run", *sets, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert "the weights and the tokenizer of run/final" in result.stdout
    assert "Plan of corpus-finetuned" in result.stdout
    assert not list(tmp_path.iterdir())
    missing = run_here("ant-hf", "train", "--data", text, "--from", "no/such/model", cwd=tmp_path)
    assert (missing.returncode, "model not found" in missing.stderr) == (2, True)
    both = run_here("ant-hf", "train", "--data", text, "--from", "x", "--config", "quickstart", cwd=tmp_path)
    assert "--from and --config" in both.stderr


def test_the_card_names_the_base_its_licence_and_both_models_figures(
    finetune, trained_run, tmp_path, quick_gate, monkeypatch
):
    monkeypatch.setattr("ant_hf.release.build.plot_run", lambda *_: [])
    base = shutil.copytree(trained_run / "final", tmp_path / "base")
    (base / "README.md").write_text("---\nlicense: mit\ndatasets:\n- some/data\n---\n# Base\n")
    (base / "release.json").write_text(json.dumps({"repository": "someone/base"}))
    record = json.loads((trained_run / "run.json").read_text())
    record["recipe"]["corpus"]["sources"] = [{"name": "A text", "license": "CC0", "url": None}]
    (base / "run.json").write_text(json.dumps(record))
    recipe = finetune(base, max_steps=4)
    pretrain(recipe)
    final = run_folder(recipe) / "final"
    write_results(final)
    folder = make_release(final, "someone/tuned")
    card = (folder / "README.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    assert (head["license"], head["base_model"]) == ("mit", "someone/base")
    assert head["base_model_relation"] == "finetune"
    assert "fine-tuned" in head["tags"]
    for words in (
        "fine-tuned from base", "Before and after", "general: World English Bible", "some/data",
        "A text (of the base)", "base (measured before)",
    ):  # fmt: skip
        assert words in card, words
    assert problems(card) == []
    assert str(tmp_path) not in (folder / "run.json").read_text()
    # A model of one's own that was never released is the first stage of one training.
    (base / "release.json").unlink()
    shutil.copy(trained_run / "metrics.jsonl", base)
    # A model without held-out text is released with a warning.
    blind = finetune(base, "blind", corpus={"validation_fraction": 0}, max_steps=4, save_steps=4)
    pretrain(blind)
    write_results(run_folder(blind) / "final")
    folder = make_release(run_folder(blind) / "final", "someone/blind")
    card = (folder / "README.md").read_text()
    assert "Nothing was held out" in card
    seen = [read_metrics(log / "metrics.jsonl")[-1]["tokens_seen"] for log in (trained_run, folder)]
    assert f"in two stages: on {seen[0]:,} tokens as `base`, then on {seen[1]:,} tokens of" in card
    assert f"| Tokens seen before, as base | {seen[0]:,} |" in card
    assert "trained-from-scratch" in yaml.safe_load(card.split("---\n")[1])["tags"]


def test_a_base_passes_on_the_texts_that_it_read(tmp_path):
    mix = {"talk": {"path": "talk.jsonl", "license": "CC BY 4.0"}, "plays": {"name": "Old plays", "url": "u"}}
    before = {"sources": [{"name": "First text", "license": "CC0", "url": None}], "tokens": 7}
    record = {"recipe": {"corpus": {"sources": [], "mix": mix}}, "base": before}
    (tmp_path / "run.json").write_text(json.dumps(record))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "tokens_seen": 35}\n')
    described = Base("stage", tmp_path, tmp_path, "0").described()
    assert described["tokens"] == 42
    assert described["sources"] == [
        {"name": "talk", "license": "CC BY 4.0", "url": None},
        {"name": "Old plays", "license": "not recorded", "url": "u"},
        *before["sources"],
    ]
