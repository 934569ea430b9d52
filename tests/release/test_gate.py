"""The gate lets a true export through and stops each way in which a release has been or could be broken."""

import json
import random
import shutil

import pytest
import torch
from commands import run_here
from conftest import tiny_values
from records import write_results
from safetensors.torch import load_file, save_file

from ant_hf.errors import AntError, RunStopped
from ant_hf.recipe import Recipe
from ant_hf.release import gate
from ant_hf.release.build import make_release
from ant_hf.release.files import file_problems
from ant_hf.release.verify import HeldOut, Job, verify
from ant_hf.train.pretrain import pretrain
from ant_hf.utils.files import file_sha256, read_sealed, write_sealed
from ant_hf.utils.provenance import without_paths


@pytest.fixture
def run(trained_run, tmp_path):
    shutil.copytree(trained_run, tmp_path / "run")
    return tmp_path / "run"


def release(run):
    return make_release(run / "final", "GODELEV/Ant-10M")


def checks(report):
    return {check["name"]: check for check in report["checks"]}


def test_a_true_export_passes_every_check(released):
    report = json.loads((released / "release" / "gate.json").read_text())
    assert report["verdict"] == "passed"
    assert {name for name, check in checks(report).items() if check["passed"] is not True} == set()
    loss = checks(report)["held-out loss, float32"]["numbers"]
    recorded = json.loads((released / "run.json").read_text())["final"]["loss_in_training"]
    assert loss["loss"] == pytest.approx(recorded, rel=1e-5)


def test_line_separators_do_not_end_a_held_out_text(released, tmp_path):
    text = "In the beginning\u2028God created\u2029the heavens\u0085and the earth."
    file = tmp_path / "held_out.jsonl"
    file.write_text(json.dumps({"text": text}, ensure_ascii=False) + "\n", "utf-8")
    held_out = HeldOut(text=file, loss=5.0, byte_perplexity=11.0, tokens=2000, context_tokens=64)
    job = Job(folder=released / "final", held_out=held_out)
    found = {check.name: check for check in gate.run_checks(job)}
    assert found["held-out loss, float32"].numbers["tokens"] > 20


def test_float16_is_scored_in_part_also_where_the_weights_are_stored_in_it(released, tmp_path, monkeypatch):
    final = shutil.copytree(released / "final", tmp_path / "final")
    weights = {name: tensor.half() for name, tensor in load_file(final / "model.safetensors").items()}
    save_file(weights, final / "model.safetensors", {"format": "pt"})
    text = tmp_path / "held_out.jsonl"
    text.write_text(
        json.dumps({"text": "In the beginning God created the heavens and the earth. " * 40}) + "\n"
    )
    held_out = HeldOut(text=text, loss=5.0, byte_perplexity=11.0, tokens=600, context_tokens=64)
    monkeypatch.setattr(gate, "_HALF_TOKENS", 128)
    loaded, _ = gate.load(final, torch.float32)
    scored = {
        check.name: check.numbers["tokens"]
        for check in gate._held_out(final, loaded, held_out)
        if "tokens" in check.numbers
    }
    assert len(scored) == 2
    assert [tokens <= 128 for tokens in scored.values()] == ["float16" in name for name in scored]


def test_tokens_that_are_not_there_are_named(released, tmp_path):
    with pytest.raises(AntError, match=r"packed tokens not found: .*nowhere"):
        verify(released / "final", tmp_path / "nowhere")


def shuffle_tokenizer(final):
    """The same entries and merges under other ids: what the public release most likely was."""
    path = final / "tokenizer.json"
    values = json.loads(path.read_text())
    vocabulary = values["model"]["vocab"]
    special = {token["content"] for token in values["added_tokens"]}
    entries = [entry for entry in vocabulary if entry not in special]
    ids = [vocabulary[entry] for entry in entries]
    random.Random(0).shuffle(ids)
    vocabulary.update(zip(entries, ids, strict=True))
    path.write_text(json.dumps(values))


def test_a_shuffled_tokenizer_is_refused_with_its_numbers(run, quick_gate):
    shuffle_tokenizer(run / "final")
    with pytest.raises(AntError) as caught:
        release(run)
    message = str(caught.value)
    report = checks(json.loads((run / "gate.json").read_text()))
    # It loads without a word and round-trips every text: only the loss can tell.
    assert report["loading"]["passed"]
    assert report["tokenizer round trip"]["passed"]
    loss = report["held-out loss, float32"]["numbers"]
    assert loss["loss"] > 1.3 * loss["expected"]
    assert f"{loss['loss']:.4f} nats per token" in message
    assert f"expected {loss['expected']:.4f}" in message
    english = report["plain English against a uniform guess"]["numbers"]
    assert english["byte_perplexity"] > 0.9 * english["uniform"]
    assert "plain English against a uniform guess" in message
    assert not (run / "release").exists()


def break_weights(final):
    tensors = load_file(final / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 3
    save_file(tensors, final / "model.safetensors", metadata={"format": "pt"})


def add_head(final):
    tensors = load_file(final / "model.safetensors")
    tensors["unknown.weight"] = torch.zeros(3)
    save_file(tensors, final / "model.safetensors", metadata={"format": "pt"})


def drop_tensor(final):
    tensors = load_file(final / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, final / "model.safetensors", metadata={"format": "pt"})


def change_config(**values):
    def change(final):
        path = final / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def lossy_tokenizer(final):
    path = final / "tokenizer.json"
    values = json.loads(path.read_text())
    values["normalizer"] = {"type": "Lowercase"}
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("breakage", "check"),
    [
        (break_weights, "held-out loss, float32"),
        (add_head, "loading"),
        (drop_tensor, "loading"),
        (change_config(auto_map={"AutoModelForCausalLM": "code.Model"}), "loading"),
        (change_config(tie_word_embeddings=False), "loading"),
        (change_config(num_hidden_layers=1), "loading"),
        (change_config(_name_or_path="/home/someone/models/x"), "files"),
        (lossy_tokenizer, "tokenizer round trip"),
    ],
    ids=["weights", "extra tensor", "missing tensor", "auto_map", "untied", "layers", "path", "lossy"],
)
def test_verify_names_what_is_broken(released, tmp_path, quick_gate, breakage, check):
    final = tmp_path / "run" / "final"
    shutil.copytree(released / "final", final)
    shutil.copy(released / "run.json", tmp_path / "run")
    breakage(final)
    # The record names the whole weights; a broken copy is to be verified as the same run.
    record = read_sealed(tmp_path / "run" / "run.json", "run record", "")
    record["final"]["weights_sha256"] = file_sha256(final / "model.safetensors")
    write_sealed(tmp_path / "run" / "run.json", record)
    report = verify(final, released / "tokens")
    assert report["verdict"] == "refused"
    assert checks(report)[check]["passed"] is False, report


def test_a_model_from_outside_is_checked_without_its_records(released, tmp_path, quick_gate):
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "theirs").mkdir(exist_ok=True)
        shutil.copy(released / "final" / name, tmp_path / "theirs")
    report = verify(tmp_path / "theirs")
    assert report["verdict"] == "passed"
    assert checks(report)["held-out loss"]["passed"] is None
    assert checks(report)["generation"]["passed"] is None
    (tmp_path / "theirs" / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    report = verify(tmp_path / "theirs")
    assert checks(report)["loading"]["passed"] is False


def test_a_release_folder_is_verified_by_its_hashes(released, tmp_path, quick_gate):
    shutil.copytree(released / "release", tmp_path / "release")
    assert verify(tmp_path / "release")["verdict"] == "passed"
    with (tmp_path / "release" / "README.md").open("a") as card:
        card.write("typed by hand")
    report = verify(tmp_path / "release")
    assert checks(report)["hashes"]["passed"] is False
    assert "README.md" in checks(report)["hashes"]["seen"]


def test_parameters_are_counted_as_they_are(trained_run, tmp_path):
    """Old files hold rotary frequencies, which are none, and a tied projection may lie there twice."""
    final = shutil.copytree(trained_run / "final", tmp_path / "model")
    tensors = load_file(final / "model.safetensors")
    stored = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "lm_head.weight": tensors["model.embed_tokens.weight"].clone(),
    }
    save_file(tensors | stored, final / "model.safetensors", metadata={"format": "pt"})
    found = {check.name: check for check in gate.run_checks(Job(folder=final))}
    assert found["parameters"].passed, found["parameters"].seen


def test_a_model_of_another_language_is_not_held_to_english(trained_run, tmp_path, quick_gate):
    run = shutil.copytree(trained_run, tmp_path / "run")
    record = read_sealed(run / "run.json", "run record", "")
    for language, expected in (("en", True), ("ru", None), (None, None)):
        record["recipe"]["corpus"]["language"] = language
        write_sealed(run / "run.json", record)
        found = checks(verify(run / "final", run / "tokens"))
        assert found["plain English against a uniform guess"]["passed"] is expected
    # A model from elsewhere says it on its card.
    theirs = shutil.copytree(run / "final", tmp_path / "theirs")
    for language, expected in (("en", True), ("[ru, en]", True), ("ru", None)):
        (theirs / "README.md").write_text(f"---\nlanguage: {language}\n---\nA model.\n")
        found = checks(verify(theirs))
        assert found["plain English against a uniform guess"]["passed"] is expected
    shuffle_tokenizer(theirs)
    assert verify(theirs)["verdict"] == "passed"
    said = run_here("ant-hf", "verify", str(theirs)).stdout
    assert "no better than noise" in said


def test_a_checkpoint_is_not_for_publishing(tiny_run):
    with pytest.raises(AntError, match=r"is a checkpoint.*Verify .*final"):
        verify(tiny_run / "checkpoint-8")


BAD_FILES = {
    "optimizer.pt": b"x",
    "pytorch_model.bin": b"x",
    "weights.dat": b"\x80\x04x",
    "archive": b"PK\x03\x04",
    "modeling.py": b"import os",
    "a.json": b'{"x": "/data/corpora/mine.txt"}',
    "b.md": b"see /home/jane/x",
    "c.txt": b"C:\\Users\\jane\\x",
    "d.json": b'{"x": "hf_' + b"abcdefghijklmnopqrstuvwxyz1234" + b'"}',
    "training_args.json": b"{}",
}


def test_files_that_must_not_be_published_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: "jdoe42")
    for name, content in BAD_FILES.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "e.md").write_text("made by jdoe42")
    (tmp_path / "good.md").write_text("a / b, https://x.org/home/page, 1/2 and runs/quickstart/final")
    found = {line.partition(":")[0] for line in file_problems(tmp_path)}
    assert found == {*BAD_FILES, "e.md"}
    assert not any("abcdefgh" in line for line in file_problems(tmp_path))
    assert not [line for line in file_problems(tmp_path, owner="jdoe42") if line.startswith("e.md")]


def test_paths_in_records_are_cut_down_to_names():
    values = {"a": "/home/x/text.txt", "b": ["D:\\x\\y.txt", "runs/q", "https://x.org/a"], "c": "/ or /"}
    assert without_paths(values) == {
        "a": "text.txt",
        "b": ["y.txt", "runs/q", "https://x.org/a"],
        "c": "/ or /",
    }


@pytest.mark.parametrize(
    ("key", "path", "name"),
    [
        ("output_dir", "/home/jo/My Runs/x", "x"),
        ("output_dir", r"C:\Users\Jo Doe\x", "x"),
        ("data_dir", r"\\server\Jo Doe\my data", "my data"),
        ("architecture", "/volume7/jo doe/my config.json", "my config.json"),
        ("path", "/volume7/my texts/*.txt", "*.txt"),
        ("decontaminate", "D:/my sets", "my sets"),
    ],
)
def test_places_with_spaces_are_cut_down_to_names(tmp_path, key, path, name):
    assert without_paths({"recipe": {key: path}}) == {"recipe": {key: name}}
    (tmp_path / "run.json").write_text(json.dumps({"recipe": {key: path}}))
    assert file_problems(tmp_path)
    # In any other text a space makes a sentence.
    assert without_paths({"text": f"{path} or so"}) == {"text": f"{path} or so"}


def test_of_a_place_that_changed_the_key_alone_is_public(tmp_path):
    moves = [
        "output_dir was '/home/jo/a', is '/home/jo/c'",
        "output_dir was 'runs/a', is '/volume7/jo/c'",
        'data_dir was None, is "/home/o\'neil/My Data"',
        r"architecture was 'C:\\Users\\Jo Doe\\x.json', is 'x.json'",
        "corpus.path was '/volume7/my texts/a', is '/volume7/my texts/b'",
    ]
    others = ["output_dir was 'runs/a', is 'runs/b'", "training.max_steps was 9, is 8"]
    record = {"changes": [{"step": 4, "what": [*moves, *others]}]}
    public = without_paths(record)
    keys = ["output_dir", "output_dir", "data_dir", "architecture", "corpus.path"]
    assert public == {"changes": [{"step": 4, "what": [*(f"{key} was changed" for key in keys), *others]}]}
    assert without_paths(public) == public
    (tmp_path / "run.json").write_text(json.dumps({"changes": [{"what": [moves[1]]}]}))
    assert "volume7" in file_problems(tmp_path)[0]


def test_a_run_in_a_folder_with_a_space_that_was_moved_is_released(shared, tmp_path, quick_gate, capsys):
    texts, first, second = (tmp_path / name for name in ("my texts", "my runs/first", "my runs/second"))
    shutil.copytree(shared, texts)
    values = tiny_values(texts, first, max_steps=60, eval_steps=60, save_steps=60, learning_rate=0.02)
    with pytest.raises(RunStopped):
        pretrain(Recipe.model_validate(values | {"training": values["training"] | {"max_hours": 1e-9}}))
    first.rename(second)
    pretrain(Recipe.model_validate(values | {"output_dir": str(second)}))
    # As it can be pasted.
    assert f"ant-hf generate '{second / 'final'}'" in capsys.readouterr().out
    write_results(second / "final")
    release(second)
    (own, public) = (
        read_sealed(path / "run.json", "run record", "") for path in (second, second / "release")
    )
    assert f"output_dir was '{first}', is '{second}'" in own["changes"][-1]["what"]
    assert "output_dir was changed" in public["changes"][-1]["what"]
    assert (public["recipe"]["output_dir"], public["recipe"]["architecture"]) == ("second", "config.json")
    written = [path.read_text() for path in (second / "release").glob("*.json*")]
    assert not [text for text in written if tmp_path.name in text or "my runs" in text or "my texts" in text]


def test_release_is_reused_until_something_it_is_made_of_changes(run, quick_gate):
    record = release(run) / "release.json"

    def written():
        # Not all of stat(): reading a file may change when it was read last.
        return record.stat().st_ino, record.stat().st_mtime_ns

    first = written()
    assert release(run) == record.parent
    assert written() == first
    make_release(run / "final", "GODELEV/Other")
    assert written() != first


@pytest.mark.parametrize(
    "missing", ["final/results.json", "run.json", "tokens/manifest.json", "final/config.json"]
)
def test_missing_records_are_named_and_nothing_is_left(run, quick_gate, missing):
    (run / missing).unlink()
    with pytest.raises(AntError) as caught:
        release(run)
    assert "not found" in str(caught.value)
    assert not (run / "release").exists()
    assert not list(run.glob(".release*"))


def test_results_of_other_weights_are_refused(run, quick_gate):
    path = run / "final" / "results.json"
    values = json.loads(path.read_text())
    values["model"]["weights_sha256"] = "0" * 64
    path.write_text(json.dumps(values))
    with pytest.raises(AntError, match=r"results\.json belongs to other weights"):
        release(run)


def test_of_several_texts_the_release_has_the_names_alone(run, quick_gate):
    record = read_sealed(run / "run.json", "run record", "")
    text = {"source": "files", "path": ["data one/a.txt", "/volume7/jo/data two/b.txt"]}
    corpus = record["recipe"]["corpus"] | text | {"replay": {"source": "files", "path": "my texts/c.txt"}}
    given = {"share": 0.5, "tokens": 9, "tokens_of_text": 3, "passes": 3.0}
    recipe = record["recipe"] | {"corpus": corpus}
    write_sealed(run / "run.json", record | {"recipe": recipe, "mix": {"text": given, "replay": given}})
    release(run)
    public = read_sealed(run / "release" / "run.json", "run record", "")["recipe"]["corpus"]
    assert public["path"] == ["a.txt", "b.txt"]
    assert public["replay"]["path"] == "c.txt"
