import json
from pathlib import Path

import numpy as np
import pytest
from records import pack

from ant_hf.data.corpus import Corpus
from ant_hf.data.packing import make_tokens, unfit
from ant_hf.data.packing_tasks import pack_with_workers, plan_packing
from ant_hf.data.survey import survey
from ant_hf.data.tokenizer import load_tokenizer, make_tokenizer
from ant_hf.data.tokens import TRAIN, VALIDATION, PackedTokens, read_manifest
from ant_hf.errors import AntError, RunStopped
from ant_hf.recipe import CorpusRecipe, load_recipe
from ant_hf.train.pretrain import pretrain
from ant_hf.train.run_folder import RunRecord


@pytest.fixture
def texts(tmp_path, chapters):
    """Forty chapters, one long text, and twelve others of which four are among the forty."""
    rows = [json.dumps({"text": text}) + "\n" for text in chapters]
    (tmp_path / "many.jsonl").write_text("".join(rows[:40]))
    (tmp_path / "one.txt").write_text("\n\n".join(chapter[:900] for chapter in chapters[40:52]))
    (tmp_path / "few.jsonl").write_text("".join(rows[36:40] + rows[52:]))
    return tmp_path


@pytest.fixture
def mixed(make_recipe, texts, prepared):
    """A function that gives the tiny recipe with a mix of the three texts."""

    def make(**corpus):
        folder = texts / f"mixed-{len(corpus)}"
        folder.mkdir(exist_ok=True)
        (folder / "tokenizer").symlink_to(prepared / "tokenizer")
        recipe = make_recipe("mixed", data_dir=folder)
        weights = {"many.jsonl": 2, "one.txt": 1, "few.jsonl": 1}
        mix = {name.split(".")[0]: {"path": str(texts / name), "weight": w} for name, w in weights.items()}
        values = {"validation_fraction": 0.15, "mix": mix} | corpus
        return recipe.model_copy(update={"corpus": CorpusRecipe.model_validate(values)})

    return make


def decoded(recipe, split, part):
    tokenizer, tokens = (
        load_tokenizer(recipe.tokenizer_dir),
        PackedTokens(recipe.tokens_dir, split, part=part),
    )
    pieces = np.split(tokens.slice(0, len(tokens)), np.flatnonzero(tokens.slice(0, len(tokens)) == 0) + 1)
    return [tokenizer.decode(piece.tolist()) for piece in pieces if len(piece)]


def test_each_part_is_packed_for_itself_with_text_held_out(mixed, chapters, capsys):
    recipe = mixed()
    manifest = make_tokens(recipe)
    parts, splits = manifest["parts"], manifest["splits"]
    for split in (TRAIN, VALIDATION):
        for key in ("documents", "tokens", "bytes"):
            assert splits[split][key] == sum(part[split][key] for part in parts.values())
        whole = PackedTokens(recipe.tokens_dir, split)
        of_parts = [PackedTokens(recipe.tokens_dir, split, part=name) for name in parts]
        assert np.array_equal(
            whole.slice(0, len(whole)), np.concatenate([part.slice(0, len(part)) for part in of_parts])
        )
        assert all(len(part) for part in of_parts)
    found = {name: [text for split in splits for text in decoded(recipe, split, name)] for name in parts}
    # Each once, in the part that gave it first.
    both = chapters[36:40]
    assert manifest["documents"]["duplicate"] == 4
    assert sorted(found["many"] + found["few"]) == sorted(chapters[:40] + chapters[52:])
    assert set(found["few"]) & set(both)
    # The long text is cut, and no other.
    assert "".join(found["one"]).replace("\n", "")[:50] in chapters[40].replace("\n", "")
    assert manifest["documents"]["cut"]["held_out"] > 0
    assert "cut" in read_manifest(recipe.tokens_dir)["inputs"]["corpus"]["parts"]["one"]
    make_tokens(recipe)
    printed = capsys.readouterr().out
    assert "part few:" in printed
    assert "reused" in printed


def test_the_parts_are_read_in_turn_and_weights_need_no_new_packing(mixed):
    recipe = mixed()
    corpus = Corpus.from_recipe(recipe.corpus)
    order = [document.part for document in corpus]
    first = order[: len(order) // 4]
    assert set(first) == {0, 1, 2}
    assert [document.part for document in corpus] == order
    mix = {name: part.model_dump() for name, part in recipe.corpus.mix.items()}
    mix["few"]["weight"] = 9.0
    heavier = CorpusRecipe.model_validate(recipe.corpus.model_dump() | {"mix": mix})
    assert Corpus.from_recipe(heavier).identity() == corpus.identity()
    assert heavier.parts["few"].weight == 0.75


def test_with_a_limit_the_weights_say_what_is_read(mixed):
    recipe = mixed(max_tokens=6000)
    manifest = pack(recipe)
    tokens = {name: part[TRAIN]["tokens"] for name, part in manifest["parts"].items()}
    assert 6000 <= sum(tokens.values()) < 9000
    assert 0.3 < tokens["many"] / sum(tokens.values()) < 0.7
    even = mixed(max_tokens=6000, mix={**recipe.corpus.model_dump()["mix"], "few": {
        "path": recipe.corpus.mix["few"].path, "weight": 50.0}})  # fmt: skip
    assert Corpus.from_recipe(even.corpus).identity() != Corpus.from_recipe(recipe.corpus).identity()


def test_a_part_without_text_of_its_own_is_refused(mixed, texts):
    (texts / "same.jsonl").write_bytes((texts / "few.jsonl").read_bytes())
    recipe = mixed()
    mix = recipe.corpus.model_dump()["mix"] | {"same": {"path": str(texts / "same.jsonl"), "weight": 0.1}}
    mix["few"] = mix["few"] | {"path": str(texts / "many.jsonl")}
    mix["same"]["path"] = str(texts / "many.jsonl")
    with pytest.raises(AntError, match=r"part '(few|same)' of the mix gives no text"):
        make_tokens(mixed(mix=mix, language="en"))
    mix["few"] = mix["few"] | {"path": str(texts / "short.txt")}
    (texts / "short.txt").write_text("Too short.")
    with pytest.raises(AntError, match="part 'few' of the mix: the corpus is too short"):
        make_tokens(mixed(mix=mix, language="en", text_column="text"))


def test_a_look_at_the_text_tells_the_tokens_of_each_part(mixed):
    recipe = mixed()
    recipe = recipe.model_copy(update={"data_dir": f"{recipe.data_dir}-new"})
    seen = survey(recipe, 64)
    assert seen.is_whole
    make_tokenizer(recipe, 64)
    manifest = make_tokens(recipe)
    packed = {name: part[TRAIN]["tokens"] for name, part in manifest["parts"].items()}
    assert seen.tokens_by_part == packed == survey(recipe, 64).tokens_by_part
    assert seen.train_tokens == sum(packed.values())


def test_tasks_leave_a_mix_to_one_process(mixed, capsys):
    recipe = mixed()
    with pytest.raises(AntError, match="the files of a single text"):
        plan_packing(recipe)
    assert len(pack_with_workers(recipe, 2)["parts"]) == 3
    assert "in one process" in capsys.readouterr().out


def test_replay_is_a_mix_of_two(texts):
    values = {"source": "files", "path": str(texts / "one.txt"), "text_column": "body"}
    replay = {"path": str(texts / "many.jsonl"), "share": 0.25}
    parts = CorpusRecipe.model_validate({**values, "replay": replay}).parts
    assert {name: (part.weight, part.text_column) for name, part in parts.items()} == {
        "text": (0.75, "body"),
        "replay": (0.25, "text"),
    }


def test_a_text_whose_held_out_documents_are_all_in_its_replay_is_refused(make_recipe, texts):
    recipe = make_recipe()
    corpus = {"source": "files", "path": str(texts / "one.txt"), "validation_fraction": 0.1}
    corpus["replay"] = {"path": str(texts / "many.jsonl"), "share": 0.25}
    recipe = recipe.model_copy(update={"corpus": CorpusRecipe.model_validate(corpus)})
    held_out, none = {"documents": 4, "tokens": 900}, {"documents": 0, "tokens": 0}
    parts = {"text": {TRAIN: held_out, VALIDATION: none}, "replay": {TRAIN: held_out, VALIDATION: held_out}}
    counts = {"documents": {"past_limit": 0}, "splits": {VALIDATION: held_out}}
    assert "no document fell into the validation split" in str(unfit(recipe, counts | {"parts": parts}))
    assert unfit(recipe, counts) is None


TWO = {"a": {"path": "a.txt", "weight": 1}, "b": {"path": "b.txt", "weight": 1}}


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ({"mix": {"a": TWO["a"]}}, r"corpus\.mix is .*at least 2"),
        ({"mix": TWO | {"c": {"path": "c.txt"}}}, r"corpus\.mix\.c\.weight is missing"),
        (
            {"mix": TWO | {"c": {"path": "c.txt", "weight": 0}}},
            r"corpus\.mix\.c\.weight is 0; must be above 0",
        ),
        (
            {"mix": {name: part | {"weight": 0, "decay_weight": 1} for name, part in TWO.items()}},
            r"all weights are 0 before the decay",
        ),
        (
            {"mix": TWO | {"c": {"path": "c.txt", "weight": 0, "decay_weight": 1}}, "max_tokens": 9},
            r"corpus\.max_tokens and a decay_weight are both set",
        ),
        (
            {"mix": TWO | {"c": {"path": "c.txt", "weight": 0, "decay_weight": 1}}},
            r"set training\.lr_scheduler_type to warmup_stable_decay",
        ),
        ({"mix": TWO | {"c": {"weight": 1}}}, r"corpus\.mix\.c\.path is missing; source 'files'"),
        ({"mix": TWO | {"c": {"path": "c.txt", "wieght": 1}}}, r"did you mean corpus\.mix\.c\.weight"),
        ({"mix": TWO | {"c": {"path": "", "weight": 1}}}, r"corpus\.mix\.c\.path is ''; must be text"),
        ({"mix": TWO, "source": "files", "path": "d.txt"}, r"corpus\.source and corpus\.mix are both set"),
        ({"mix": TWO, "encoding": "latin-1"}, r"set it for a part: corpus\.mix\.NAME\.encoding"),
        (
            {"mix": TWO, "replay": {"path": "d.txt", "share": 0.1}},
            r"corpus\.replay and corpus\.mix are both set",
        ),
        (
            {"source": "files", "path": "a", "replay": {"path": "b", "share": 1.0}},
            r"replay\.share is 1\.0; .*less",
        ),
        ({"source": "files", "path": "a", "encoding": "klingon"}, r"corpus\.encoding is 'klingon'"),
    ],
)
def test_mistakes_in_a_mix_are_named(make_recipe, tmp_path, corpus, message):
    make_recipe()
    with pytest.raises(AntError, match=message):
        load_recipe(tmp_path / "run.yaml", changes={"corpus": corpus})


def test_parts_are_looked_for_beside_the_recipe(make_recipe, texts):
    make_recipe()
    mix = "{many: {path: many.jsonl, weight: 1}, one: {path: '*.txt', weight: 1}}"
    file = texts / "run.yaml"
    file.write_text(file.read_text().replace("corpus:\n", f"corpus:\n  mix: {mix}\n"))
    text = file.read_text().splitlines(keepends=True)
    file.write_text("".join(x for x in text if not x.startswith(("  path:", "  source:"))))
    assert load_recipe(file).corpus.mix["many"].path == str(texts / "many.jsonl")
    assert load_recipe(file).corpus.mix["one"].path == str(texts / "*.txt")


def test_a_run_has_another_mix_in_its_decay_and_may_change_it_before(mixed, texts):
    recipe = mixed()
    schedule = {"lr_scheduler_type": "warmup_stable_decay", "stable_fraction": 0.5, "min_lr_rate": 0.0}

    def run(max_hours=None, **decay):
        mix = {
            name: {"path": str(texts / f"{name}.jsonl"), "weight": weight, "decay_weight": decay.get(name)}
            for name, weight in (("many", 3), ("few", 1))
        }
        changes = {"max_steps": 8, "max_hours": max_hours, **schedule}
        return recipe.model_copy(
            update={
                "data_dir": str(texts / "data"),
                "corpus": CorpusRecipe(mix=mix, validation_fraction=0.15),
                "training": recipe.training.model_copy(update=changes),
            }
        )

    with pytest.raises(RunStopped):
        pretrain(run(max_hours=1e-9))
    pretrain(run(many=0.0, few=2.0))
    record = RunRecord.read(Path(recipe.output_dir))
    assert {name: (part["share"], part["decay_share"]) for name, part in record.mix.items()} == {
        "many": (0.75, 0.0), "few": (0.25, 1.0),
    }  # fmt: skip
    total = 8 * recipe.training.sequences_per_step * recipe.training.sequence_length
    assert record.mix["few"]["tokens"] / total >= 0.5
    assert "corpus.mix.few.decay_weight was None, is 2.0" in record.changes[0]["what"]
    with pytest.raises(AntError, match=r"mix\.few\.decay_weight was 2\.0, is 1\.0"):
        pretrain(run(many=0.0, few=1.0))
