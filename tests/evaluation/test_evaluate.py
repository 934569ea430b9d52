"""`ant-hf evaluate` as its users meet it: the files it writes, resumption, and what it refuses."""

import json
import math
import os
import shutil

import lm_eval
import pytest
import torch
from benchmark_data import arc, word, write_benchmarks, write_jsonl
from commands import PLAIN, ROOT, in_a_process
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file, save_file

from ant_hf.cli.tables import incomplete_line, perplexity_lines
from ant_hf.errors import AntError
from ant_hf.evaluation.benchmarks import choose_benchmarks, known_benchmarks
from ant_hf.evaluation.evaluate import evaluate
from ant_hf.evaluation.language_model import LikelihoodStore
from ant_hf.evaluation.tasks import load_tasks, write_definitions
from ant_hf.train.checkpoints import damage
from ant_hf.utils.files import file_sha256

QUICK = ("arc_easy", "boolq")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_benchmarks(tmp_path_factory.mktemp("benchmarks"))


@pytest.fixture
def model(tiny_run, tmp_path):
    return shutil.copytree(tiny_run / "final", tmp_path / "model")


def measure(model, data_dir, tasks=QUICK, **more):
    return evaluate(model, tasks, data_dir=data_dir, device="cpu", **more)


@pytest.fixture(scope="module")
def whole(tiny_run, data_dir, tmp_path_factory):
    """One evaluation of everything through the command line: its output and its folder."""
    folder = shutil.copytree(tiny_run / "final", tmp_path_factory.mktemp("whole") / "final")
    # In a process of its own: the libraries read at import what silences them.
    command = ("ant-hf", "evaluate", folder, "--data-dir", data_dir, "--limit", 4)
    result = in_a_process(*command, env=os.environ | PLAIN | {"COLUMNS": "80"})
    assert result.returncode == 0, result.stderr
    return result, folder


def test_everything_is_measured_and_written_next_to_the_model(whole):
    result, folder = whole
    assert result.stderr == ""
    values = json.loads((folder / "results.json").read_text())
    assert list(values["tasks"]) == [
        "arc_challenge", "arc_easy", "piqa", "winogrande", "mmlu", "sciq", "boolq", "hellaswag",
        "arithmark_generated", "blimp", "lambada_openai",
    ]  # fmt: skip
    for record in values["tasks"].values():
        assert 0 <= record["value"] <= 1
        assert record["stderr"] >= 0
        assert len(record["data_sha256"]) == 64
        assert record["complete"] is False
    assert values["tasks"]["mmlu"]["n"] == 6
    assert values["tasks"]["arithmark_generated"]["slices"]["1 operator"]["n"] == 4
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    arc_samples = [sample for sample in samples if sample["task"] == "arc_easy"]
    assert len(arc_samples) == 4
    assert arc_samples[0]["prompt"] == "Question: Which of these is a river?\nAnswer:"
    assert len(arc_samples[0]["choices"]) == len(arc_samples[0]["log_likelihoods"]) == 3
    assert sum(sample["task"] == "degeneration" for sample in samples) == 8


def test_results_carry_their_conditions(whole, tiny_run):
    values = json.loads((whole[1] / "results.json").read_text())
    conditions = values["conditions"]
    assert conditions["dtype"] == "float32"
    assert conditions["context_length"] == 64
    assert conditions["bos_policy"] == (
        "nothing added to a prompt; <|endoftext|> before an empty one and before the first token of a text"
    )
    assert conditions["versions"]["lm-eval"] >= "0.4.13"
    assert conditions["data"] == "local files"
    assert conditions["wall_time_seconds"] > 0
    run = json.loads((tiny_run / "run.json").read_text())
    assert values["model"]["weights_sha256"] in json.dumps(run)
    assert values["model"]["name"] == "whole0/final"


def test_perplexities_are_one_quantity(whole):
    values = json.loads((whole[1] / "results.json").read_text())["perplexity"]["wikitext"]
    nats = values["nats"]
    assert values["bytes"] * math.log(values["byte_perplexity"]) == pytest.approx(nats)
    assert values["bytes"] * math.log(2) * values["bits_per_byte"] == pytest.approx(nats)
    assert values["tokens"] * math.log(values["token_perplexity"]) == pytest.approx(nats)
    assert values["words"] * math.log(values["word_perplexity"]) == pytest.approx(nats)
    assert values["uniform_guess_byte_perplexity"] == pytest.approx(
        384 ** (values["tokens"] / values["bytes"])
    )


def test_the_table_names_what_was_published_and_what_is_incomplete(whole):
    text = whole[0].stdout
    assert max(map(len, text.split("Accuracies in %")[0].splitlines())) <= 80
    for part in (
        "publ.",
        "Ant-10M",
        "27.47",
        "30.62",
        "Arithmark generated*",
        "Loops, greedy",
        "WikiText-2*",
    ):
        assert part in text
    assert "ARC-Easy 4 of 2,376" in text
    assert "Guessing every token alike scores" in text


def test_lm_evals_own_file_is_what_leaderboards_read_and_holds_no_path(whole, data_dir):
    text = (whole[1] / "lm_eval_results.json").read_text()
    values = json.loads(text)
    assert {"results", "configs", "versions", "n-shot", "n-samples", "config", "task_hashes"} <= set(values)
    assert (
        values["results"]["arc_easy"]["acc_norm,none"]
        == (json.loads((whole[1] / "results.json").read_text())["tasks"]["arc_easy"]["value"])
    )
    for path in (str(data_dir), str(whole[1]), str(ROOT), "/tmp"):
        assert path not in text
        assert path not in (whole[1] / "results.json").read_text()


def test_blimp_is_scored_as_by_plain_lm_eval(model, tmp_path):
    """Paradigms of different sizes and lengths, by the group's own task files: every pair and total."""
    terms = {
        "causative": "argument_structure",
        "npi_present_1": "npi_licensing",
        "principle_A_c_command": "binding",
    }
    pairs = [
        {
            "sentence_good": f"{word(i)} {'saw the ' * (i + n)}{word(i + 1)}.",
            "UID": paradigm,
            "linguistics_term": term,
        }
        for n, (paradigm, term) in enumerate(terms.items())
        for i in range(2 + 2 * n)
    ]
    for pair in pairs:
        pair["sentence_bad"] = " ".join(reversed(pair["sentence_good"].split()))
    write_jsonl(tmp_path / "blimp.jsonl", pairs)
    results, _ = measure(model, tmp_path, ["blimp"])
    record = results["tasks"]["blimp"]

    chosen, _ = choose_benchmarks(["blimp"], known_benchmarks(), tmp_path)
    write_definitions(chosen, tmp_path / "definitions")
    plain = HFLM(pretrained=str(model), dtype="float32", batch_size=1, device="cpu")
    expected = lm_eval.evaluator.evaluate(plain, load_tasks(chosen, tmp_path / "definitions")["blimp"])
    assert record["value"] == expected["results"]["blimp"]["acc,none"]
    assert record["stderr"] == pytest.approx(expected["results"]["blimp"]["acc_stderr,none"])
    assert {name: part["n"] for name, part in record["slices"].items()} == {
        "NPI licensing": 4, "argument structure": 2, "binding": 6
    }  # fmt: skip
    for paradigm, term in terms.items():
        part = record["slices"][chosen[0].slice_of({"linguistics_term": term})]
        assert part["value"] == expected["results"][f"blimp_{paradigm}"]["acc,none"]
    found = {
        (line["task"], line["doc_id"]): line["log_likelihoods"]
        for line in map(json.loads, (model / "samples.jsonl").read_text().splitlines())
    }
    for task, samples in expected["samples"].items():
        for sample in samples:
            nats = [nats for nats, _ in sample["filtered_resps"]]
            assert found.pop((task, sample["doc_id"])) == pytest.approx(nats, abs=1e-4)
    assert found == {}


def test_measured_sets_are_kept_and_new_ones_added(model, data_dir, capsys):
    first, path = measure(model, data_dir)
    again, _ = measure(model, data_dir, ("boolq", "piqa"))
    assert "BoolQ: measured before on these weights" in capsys.readouterr().out
    assert list(again["tasks"]) == ["arc_easy", "piqa", "boolq"]
    assert again["tasks"]["arc_easy"] == first["tasks"]["arc_easy"]
    lines = (model / "samples.jsonl").read_text().splitlines()
    assert {json.loads(line)["task"] for line in lines} == {"arc_easy", "piqa", "boolq"}
    assert set(json.loads((model / "lm_eval_results.json").read_text())["results"]) == set(again["tasks"])
    before = path.read_bytes()
    measure(model, data_dir)
    assert path.read_bytes() == before


def test_an_interrupted_evaluation_goes_on(model, data_dir, monkeypatch, capsys):
    expected, _ = measure(model, data_dir, output_dir=model / "whole")
    add, batches = LikelihoodStore.add, []

    def interrupted(self, values):
        add(self, values)
        batches.append(1)
        if len(batches) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(LikelihoodStore, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure(model, data_dir, batch_size=1)
    assert not (model / "results.json").exists()
    monkeypatch.undo()
    found, _ = measure(model, data_dir, batch_size=1)
    assert "requests are scored already" in capsys.readouterr().out
    for name in QUICK:
        assert found["tasks"][name]["value"] == expected["tasks"][name]["value"]
    assert not list(model.glob(".evaluation*"))


def change_weights(model):
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"] *= 1.01
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def test_another_model_in_place_is_refused(model, data_dir, monkeypatch):
    monkeypatch.setattr(LikelihoodStore, "remove", lambda self: None)
    measure(model, data_dir)
    change_weights(model)
    with pytest.raises(AntError, match=r"results\.json was measured with another weights sha256.*--fresh"):
        measure(model, data_dir, ("piqa",))
    (model / "results.json").unlink()
    with pytest.raises(AntError, match="interrupted evaluation with another weights sha256"):
        measure(model, data_dir, ("piqa",))
    measure(model, data_dir, ("piqa",), fresh=True)


def test_other_conditions_are_refused(model, data_dir):
    measure(model, data_dir)
    with pytest.raises(AntError, match="another limit; saw 'none'; expected 2"):
        measure(model, data_dir, limit=2)
    (model / "results.json").write_text("{}")
    with pytest.raises(AntError, match="changed after it was written"):
        measure(model, data_dir)


def test_changed_documents_are_measured_again(model, tmp_path):
    own = write_benchmarks(tmp_path / "own")
    first, _ = measure(model, own, ("arc_easy",))
    write_jsonl(own / "arc_easy.jsonl", [arc(9)])
    again, _ = measure(model, own, ("arc_easy",))
    assert (first["tasks"]["arc_easy"]["n"], again["tasks"]["arc_easy"]["n"]) == (6, 1)


def test_fresh_measures_some_sets_again_and_keeps_the_others(model, data_dir):
    first, _ = measure(model, data_dir)
    again, path = measure(model, data_dir, ("arc_easy",), fresh=True)
    assert again["tasks"]["boolq"] == first["tasks"]["boolq"]
    assert again["tasks"]["arc_easy"]["value"] == first["tasks"]["arc_easy"]["value"]
    samples = [json.loads(line)["set"] for line in (path.parent / "samples.jsonl").read_text().splitlines()]
    assert sorted(samples) == ["arc_easy"] * 6 + ["boolq"] * 6


def test_two_commands_at_once_keep_the_results_of_both(model, data_dir, monkeypatch):
    from ant_hf.evaluation import evaluate as module

    own, times = module._measure, ["begun"]

    def beside_another(*arguments):
        monkeypatch.setattr(module, "_measure", own)
        measure(model, data_dir, ("piqa",))
        times.append("ended")
        return own(*arguments)

    monkeypatch.setattr(module, "_measure", beside_another)
    monkeypatch.setattr(module, "now", lambda: times[-1])
    values, path = measure(model, data_dir, ("boolq",))
    assert list(values["tasks"]) == ["piqa", "boolq"]
    assert values["conditions"]["finished"] == "ended"
    assert '"piqa"' in (path.parent / "samples.jsonl").read_text()


def test_fewer_subjects_leave_no_lines_of_those_before(model, tmp_path):
    own = write_benchmarks(tmp_path / "own")
    _, path = measure(model, own, ("mmlu",))
    (row, *_) = (own / "mmlu.jsonl").read_text().splitlines()
    (own / "mmlu.jsonl").write_text(row)
    values, _ = measure(model, own, ("mmlu",))
    assert values["tasks"]["mmlu"]["n"] == 1
    assert len((path.parent / "samples.jsonl").read_text().splitlines()) == 1


def test_names_are_names(tiny_run, tmp_path):
    """Folders of data, results and models may be called as a pattern would be."""
    model = shutil.copytree(tiny_run / "final", tmp_path / "model [1]*")
    own, other = write_benchmarks(tmp_path / "sets [12]"), write_benchmarks(tmp_path / "sets 1")
    write_jsonl(other / "arc_easy.jsonl", [arc(9)])
    values, path = measure(model, own, ("arc_easy", "mmlu"), output_dir=tmp_path / "out ?")
    assert path.parent == tmp_path / "out ?"
    record = values["tasks"]["arc_easy"]
    assert (record["n"], record["file_sha256"]) == (6, file_sha256(own / "arc_easy.jsonl"))


def test_a_home_folder_is_found(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_benchmarks(tmp_path / "sets")
    shutil.copytree(tiny_run / "final", tmp_path / "model")
    _, path = measure("~/model", "~/sets", ("boolq",), output_dir="~/out")
    assert path == tmp_path / "out" / "results.json"


def test_one_wrong_document_is_refused_before_any_is_scored(model, tmp_path):
    own = write_benchmarks(tmp_path / "own")
    rows = [arc(i) for i in range(4)]
    write_jsonl(own / "arc_easy.jsonl", [*rows, arc(4) | {"answerKey": "?"}])
    with pytest.raises(AntError, match=r"arc_easy.jsonl, line 5"):
        measure(model, own, ("boolq", "piqa", "arc_easy"))
    (partial,) = model.glob(".evaluation*")
    assert len(partial.read_text().splitlines()) == 1
    assert not (model / "results.json").exists()


def test_a_checkpoint_is_measured_and_stays_as_it_is(tiny_run, data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(tiny_run, tmp_path / "run")
    values, path = measure(run / "checkpoint-8", data_dir)
    assert path.parts[0] == "evaluations"
    assert damage(run / "checkpoint-8") is None
    # The last one is the exported model.
    final, _ = measure(run / "final", data_dir)
    for name in QUICK:
        assert values["tasks"][name]["metrics"] == final["tasks"][name]["metrics"]


def test_a_context_too_short_for_degeneration(model, data_dir, tmp_path, capsys):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 12}))
    with pytest.raises(
        AntError, match=r"degeneration, because its prompts have up to .* context is 12.*--tasks"
    ):
        measure(model, data_dir, ("boolq", "degeneration"))
    only = tmp_path / "only"
    only.mkdir()
    shutil.copy(data_dir / "boolq.jsonl", only)
    values, _ = measure(model, only, (), limit=2)
    assert "left out    degeneration" in capsys.readouterr().out
    assert list(values["tasks"]) == ["boolq", "arithmark_generated"]
    assert "degeneration" not in values
    assert values["conditions"]["context_length"] == 12


def test_a_tokenizer_without_special_tokens(model, data_dir):
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        values = json.loads((model / name).read_text())
        (model / name).write_text(
            json.dumps({key: None if key[:4] in ("bos_", "eos_", "pad_") else values[key] for key in values})
        )
    values, _ = measure(model, data_dir, ("boolq", "degeneration"), limit=3)
    assert values["degeneration"]["greedy"]["outputs"] == 3
    with pytest.raises(AntError, match=r"wikitext2.jsonl, line 1: the text needs a token before it"):
        measure(model, data_dir, ("wikitext",), limit=3)


def test_an_untrained_model_is_called_broken(model, data_dir, tmp_path):
    weights = load_file(model / "model.safetensors")
    save_file(
        {name: torch.zeros_like(value) for name, value in weights.items()},
        model / "model.safetensors",
        metadata={"format": "pt"},
    )
    values, _ = measure(model, data_dir, ("wikitext",))
    record = values["perplexity"]["wikitext"]
    assert record["byte_perplexity"] == pytest.approx(record["uniform_guess_byte_perplexity"])
    assert any(line.strip().startswith("BROKEN") for line in perplexity_lines(values))
    assert "3 of 62" in incomplete_line(values)


def test_weights_that_are_no_numbers_do_not_loop(model, data_dir):
    weights = load_file(model / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"].fill_(math.nan)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AntError, match="the model's scores are not numbers"):
        measure(model, data_dir, ("degeneration",), limit=2)
    assert not (model / "results.json").exists()


def test_bfloat16_and_degeneration_alone(model, data_dir):
    values, _ = measure(model, data_dir, ("degeneration",), dtype="bfloat16", limit=3)
    assert values["tasks"] == {}
    assert values["degeneration"]["sampled"]["outputs"] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "nowhere/at/all"}, "model not found: nowhere/at/all"),
        ({"model": "user/name"}, "user/name is not a folder here and cannot be fetched from the Hub"),
        ({"dtype": "float8"}, "--dtype is unknown; saw 'float8'; expected float32 or bfloat16 or float16"),
        ({"device": "cuda:9"}, "device cuda:9 cannot be used"),
        ({"limit": 0}, "--limit is too small; saw 0; expected 1 or more"),
        ({"batch_size": -1}, "--batch-size is too small"),
    ],
)
def test_wrong_choices_are_refused(tiny_run, data_dir, tmp_path, change, message):
    values = {"model": str(tiny_run / "final"), "tasks": QUICK, "data_dir": data_dir, "output_dir": tmp_path}
    with pytest.raises(AntError, match=message):
        evaluate(**{**values, **change})
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_model_says_where_one_is(tiny_run, data_dir):
    with pytest.raises(AntError, match=r"is not a model folder.*Did you mean .*final\?"):
        measure(tiny_run, data_dir)


def test_a_tokenizer_larger_than_the_model_is_refused(model, data_dir):
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    added = dict(tokenizer["added_tokens"][0], id=384, content="<|extra|>")
    tokenizer["added_tokens"].append(added)
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(
        AntError, match="has more entries than the model; saw '385 entries'; expected at most vocab_size 384"
    ):
        measure(model, data_dir)


def test_a_hub_that_does_not_answer_is_noticed_at_once(tiny_run, tmp_path):
    # A port nobody listens on; asked for every file, with retries, this would take minutes. The libraries
    # read at import that the Hub is not to be asked.
    nowhere = {"HF_HUB_OFFLINE": "", "HF_DATASETS_OFFLINE": "", "HF_ENDPOINT": "http://127.0.0.1:9"}
    command = (
        "ant-hf",
        "evaluate",
        tiny_run / "final",
        "--tasks",
        "arc_easy,boolq",
        "--output-dir",
        tmp_path,
    )
    result = in_a_process(*command, env=os.environ | nowhere | {"HF_HOME": str(tmp_path / "empty")})
    assert result.returncode == 2
    assert "the Hub cannot be reached; saw 'arc_easy, boolq'" in result.stderr
    assert "--data-dir" in result.stderr
    assert "Traceback" not in result.stderr
