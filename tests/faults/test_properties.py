"""Thousands of mutations of what people write: a clear error or a right reading, never a traceback."""

import copy
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from conftest import TINY_CONFIG, tiny_values
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ant_hf.data.readers import read_texts
from ant_hf.data.tokens import PackedTokens, verify_shards
from ant_hf.errors import AntError
from ant_hf.model.architecture import load_config, parameter_ledger
from ant_hf.recipe import Recipe, load_recipe
from ant_hf.utils.files import read_sealed, write_sealed
from ant_hf.utils.metrics import read_metrics

# The same examples each time, so that a failure is one on every machine.
QUICK = settings(
    max_examples=int(os.environ.get("ANT_HF_MUTATIONS", "400")),
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=10**9, max_value=10**30),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(
        ["../../x", "\0", "~", "1e999", "0x10", "1:30", "2026-01-01", "*", "&", "!!python/name:os", ""]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def paths(values, prefix=()):
    """Every place in nested mappings and lists."""
    items = (
        values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    )
    for key, value in items:
        yield (*prefix, key)
        yield from paths(value, (*prefix, key))


@st.composite
def mutated(draw, original):
    """A copy with up to three places replaced, removed or joined by a stranger."""
    values = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 3))):
        places = list(paths(values))
        if not places:
            return values
        *parents, last = draw(st.sampled_from(places))
        target = values
        for key in parents:
            target = target[key]
        action = draw(st.sampled_from(["replace", "remove", "add"]))
        if action == "replace":
            target[last] = draw(VALUES)
        elif action == "remove":
            del target[last]
        elif isinstance(target, dict):
            target[draw(st.text(min_size=1, max_size=8))] = draw(VALUES)
    return values


@st.composite
def scrambled(draw, text):
    """Bytes of a text with a few of them replaced, dropped or repeated."""
    data = bytearray(text.encode())
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        action = draw(st.sampled_from(["flip", "cut", "drop", "insert"]))
        if action == "flip" and data:
            data[at] ^= draw(st.integers(1, 255))
        elif action == "cut":
            del data[at:]
        elif action == "drop":
            del data[at : at + draw(st.integers(1, 20))]
        else:
            data[at:at] = draw(st.binary(max_size=8))
    return bytes(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mutations")


BASE_RECIPE = tiny_values(Path("shared"), Path("run"))


@contextmanager
def refused_at_most(name):
    """The block may end in an AntError that names the file and stays short enough to read."""
    try:
        yield
    except AntError as error:
        if name not in str(error) or len(str(error)) > 20_000:
            raise AssertionError(f"no message about {name}: {error}") from error


@QUICK
@given(values=mutated(BASE_RECIPE))
def test_recipes_are_read_as_written_or_refused(folder, values):
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(values, allow_unicode=False), encoding="utf-8")
    with refused_at_most("recipe.yaml"):
        # Accepted: every value written is the value used, and nothing written was dropped.
        assert_contains(load_recipe(file).model_dump(), values)


def assert_contains(read, written):
    for key, value in written.items():
        if isinstance(value, dict):
            assert_contains(read[key], value)
        else:
            assert read[key] == value, key
            assert isinstance(value, bool) == isinstance(read[key], bool)


@QUICK
@given(data=scrambled(yaml.safe_dump(BASE_RECIPE)))
def test_scrambled_recipes_never_crash(folder, data):
    file = folder / "scrambled.yaml"
    file.write_bytes(data)
    with refused_at_most("scrambled.yaml"):
        assert isinstance(load_recipe(file), Recipe)


KEYS = ["seed", "training.max_steps", "training", "corpus.path", "a.b.c", "training.max_steps.x"]


@QUICK
@given(
    override=st.one_of(
        st.text(max_size=30), st.builds("{}={}".format, st.sampled_from(KEYS), st.text(max_size=15))
    )
)
def test_overrides_are_taken_as_written_or_refused(folder, override):
    file = folder / "plain.yaml"
    if not file.exists():
        file.write_text(yaml.safe_dump(BASE_RECIPE))
    with refused_at_most(""):
        read = load_recipe(file, [override]).model_dump()
        key, _, value = override.partition("=")
        for part in key.split("."):
            read = read[part]
        assert read == yaml.safe_load(value)


@QUICK
@given(values=mutated(TINY_CONFIG))
def test_configs_are_built_as_written_or_refused(folder, values):
    file = folder / "config.json"
    file.write_text(json.dumps(values))
    with refused_at_most("config.json"):
        assert_built_as_written(load_config(file), values)


def assert_built_as_written(config, values):
    assert parameter_ledger(config).total > 0
    for key in ("hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size", "tie_word_embeddings"):
        assert getattr(config, key) == values.get(key, getattr(config, key))


@QUICK
@given(data=scrambled(json.dumps(TINY_CONFIG)))
def test_scrambled_configs_are_built_as_written_or_refused(folder, data):
    file = folder / "config.json"
    file.write_bytes(data)
    with refused_at_most("config.json"):
        assert_built_as_written(load_config(file), json.loads(data))


@pytest.fixture(scope="module")
def tokens(tiny_run, tmp_path_factory):
    return shutil.copytree(tiny_run / "tokens", tmp_path_factory.mktemp("tokens") / "tokens")


def split_values(name):
    shard = {"file": f"{name}-00000.bin", "tokens": 2, "sha256": "x"}
    return {"documents": 1, "tokens": 2, "bytes": 3, "shards": [shard]}


MANIFEST = {
    "format_version": 1,
    "inputs_sha256": "0" * 64,
    "inputs": {"tokenizer_sha256": "0" * 64},
    "dtype": "uint16",
    "documents": {"read": 60, "empty": 0, "duplicate": 0, "past_limit": 0},
    "splits": {name: split_values(name) for name in ("train", "validation")},
}


@QUICK
@given(values=mutated(MANIFEST))
def test_forged_manifests_never_crash(tokens, values):
    (tokens / "manifest.json").write_text(json.dumps(values))
    with refused_at_most(str(tokens)):
        PackedTokens(tokens, "train")
        verify_shards(tokens)
        # Only a manifest without any shard has nothing that could be wrong.
        assert not any(values["splits"][name]["shards"] for name in values["splits"])


@QUICK
@given(data=scrambled('{"step": 1, "loss": 5.5}\n{"step": 2, "loss": 5.25, "grad_norm": 1.5}\n'))
def test_scrambled_metrics_never_crash(folder, data):
    file = folder / "metrics.jsonl"
    file.write_bytes(data)
    with refused_at_most("metrics.jsonl"):
        assert all(isinstance(row["step"], int) for row in read_metrics(file))


@QUICK
@given(
    data=scrambled('{"text": "In the beginning"}\n{"text": "God created"}\n{"text": "the heavens \\u00e9"}\n')
)
def test_scrambled_jsonl_never_crashes(folder, data):
    file = folder / "corpus.jsonl"
    file.write_bytes(data)
    with refused_at_most("corpus.jsonl"):
        assert all(isinstance(text, str) for text in read_texts(file, "text"))


RECORD = {"format_version": 2, "status": "running", "recipe": {"seed": 1}, "final": {"loss": 2.5}}


@QUICK
@given(values=mutated(RECORD))
def test_sealed_records_notice_every_change(folder, values):
    file = folder / "record.json"
    write_sealed(file, RECORD)
    seal = json.loads(file.read_text())["values_sha256"]
    file.write_text(json.dumps(values | {"values_sha256": seal}))
    if json.dumps(values, sort_keys=True) != json.dumps(RECORD, sort_keys=True):
        with pytest.raises(AntError):
            read_sealed(file, "record", "")
