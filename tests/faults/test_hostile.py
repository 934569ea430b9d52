"""Input made to harm: nothing is executed, written outside the folder, or allocated."""

import json
import pickle
import resource
import shutil

import pytest
import torch
from faultlog import tried

from ant_hf.data.packing import MANIFEST
from ant_hf.data.tokens import PackedTokens, read_manifest, verify_shards
from ant_hf.errors import AntError
from ant_hf.model.architecture import load_config
from ant_hf.model.loading import load_final
from ant_hf.recipe import load_recipe
from ant_hf.train.checkpoints import newest_checkpoint, seal
from ant_hf.train.pretrain import pretrain
from ant_hf.train.run_folder import open_run_folder
from ant_hf.utils.names import SEAL


@pytest.fixture
def run(tiny_run, tmp_path):
    return shutil.copytree(tiny_run, tmp_path / "run")


class Harmful:
    """Unpickled, it leaves a file behind."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return (open, (self.trace, "w"))


@pytest.mark.parametrize(
    "name",
    [
        "../secret.bin",
        "/etc/passwd",
        "train-00000.bin/../../secret.bin",
        "train-00000.tar.gz",
        "a\0b",
        7,
        None,
    ],
)
def test_a_manifest_names_only_its_own_shards(run, name):
    manifest = json.loads((run / "tokens" / MANIFEST).read_text())
    manifest["format_version"] = 1  # without a seal, as somebody would forge it
    del manifest["values_sha256"]
    manifest["splits"]["train"]["shards"][0]["file"] = name
    (run / "tokens" / MANIFEST).write_text(json.dumps(manifest))
    with tried("manifest with a path, an archive or no name as shard") as trial:
        for read in (read_manifest, verify_shards, lambda folder: PackedTokens(folder, "train")):
            with pytest.raises(
                AntError, match=r"manifest\.json is damaged: splits\.train\.shards\.0\.file: "
            ) as refused:
                read(run / "tokens")
        trial.message = refused.value


def test_a_seal_names_only_files_of_its_own_folder(run):
    seal = json.loads((run / "checkpoint-8" / SEAL).read_text())
    seal["files"]["../../secret"] = seal["files"]["model.safetensors"]
    (run / "checkpoint-8" / SEAL).write_text(json.dumps(seal))
    with tried("checkpoint that names files outside its folder"):
        assert newest_checkpoint(run).name == "checkpoint-4"


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch TRACE']",
        "name: !!python/name:os.system",
        "corpus: !!python/object/new:subprocess.Popen [['touch', 'TRACE']]",
        "a: &a [x, x]\nb: &b [*a, *a, *a, *a]\nc: [*b, *b, *b, *b]",
        "&a [*a]",
        "? [complex, key]\n: 1",
        "name: " + "[" * 5000,
        "seed: " + "9" * 5000,
        "day: 2026-13-45",
    ],
)
def test_yaml_runs_and_expands_nothing(tmp_path, text):
    trace = tmp_path / "trace"
    file = tmp_path / "recipe.yaml"
    file.write_text(text.replace("TRACE", str(trace)))
    with tried("recipe with tags, aliases or absurd values") as trial:
        with pytest.raises(AntError, match=r"recipe\.yaml") as refused:
            load_recipe(file)
        trial.message = refused.value
        assert len(str(refused.value)) < 10_000
        assert not trace.exists()


def test_a_config_of_a_trillion_parameters_is_refused_before_allocation(shared, tmp_path):
    values = json.loads((shared / "config.json").read_text())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wide = {"hidden_size": 2**20, "intermediate_size": 2**20, "num_attention_heads": 2**10, "head_dim": 2**10}
    for change in (wide, {"num_hidden_layers": 10**9}, {"head_dim": 10**12}, {"intermediate_size": 10**12}):
        (tmp_path / "config.json").write_text(json.dumps(values | change))
        with tried("config.json asking for 10^12 parameters") as trial:
            with pytest.raises(AntError, match=r"the model would have about [\d,]+ parameters") as refused:
                load_config(tmp_path)
            trial.message = refused.value
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_model_folder_that_asks_for_a_trillion_parameters(run, tmp_path):
    config = json.loads((run / "final" / "config.json").read_text())
    alone = shutil.copytree(run / "final", tmp_path / "alone")
    (alone / "config.json").write_text(json.dumps(config | {"intermediate_size": 10**12}))
    with pytest.raises(AntError, match="parameters"):
        load_final(alone)
    (alone / "config.json").write_text(json.dumps(config | {"intermediate_size": 10**6}))
    with tried("weights far smaller than their config") as trial:
        with pytest.raises(
            AntError, match=r"is cut short, or config\.json belongs to another model"
        ) as refused:
            load_final(alone)
        trial.message = refused.value


def test_remote_code_is_never_asked_for(run, tmp_path):
    alone = shutil.copytree(run / "final", tmp_path / "alone")
    trace = tmp_path / "trace"
    (alone / "modeling_evil.py").write_text(f"open({str(trace)!r}, 'w')\n")
    auto_map = {"AutoConfig": "modeling_evil.C", "AutoModelForCausalLM": "modeling_evil.M"}
    config = json.loads((alone / "config.json").read_text())
    (alone / "config.json").write_text(json.dumps(config | {"auto_map": auto_map}))
    with tried("config.json with auto_map (remote code)") as trial:
        with pytest.raises(AntError, match="auto_map is not a key of LlamaConfig") as refused:
            load_final(alone)
        trial.message = refused.value
    (alone / "config.json").write_text(json.dumps(config))
    settings = json.loads((alone / "tokenizer_config.json").read_text())
    settings |= {
        "auto_map": {"AutoTokenizer": ["modeling_evil.T", "modeling_evil.T"]},
        "tokenizer_class": "Evil",
    }
    (alone / "tokenizer_config.json").write_text(json.dumps(settings))
    with tried("tokenizer_config.json with auto_map (remote code)") as trial:
        with pytest.raises(AntError, match="needs code that comes with the model") as refused:
            load_final(alone)
        trial.message = refused.value
    assert not trace.exists()


def test_a_pickle_posing_as_weights_is_not_opened(run, tmp_path):
    trace = tmp_path / "trace"
    alone = shutil.copytree(run / "final", tmp_path / "alone")
    (alone / "model.safetensors").unlink()
    (alone / "pytorch_model.bin").write_bytes(pickle.dumps(Harmful(trace)))
    with tried("pickle instead of safetensors") as trial:
        with pytest.raises(AntError, match=r"model\.safetensors.*Only safetensors are read") as refused:
            load_final(alone)
        trial.message = refused.value
    (alone / "model.safetensors").write_bytes(pickle.dumps(Harmful(trace)) + b"\0" * 50_000)
    with tried("pickle named model.safetensors") as trial:
        with pytest.raises(AntError, match=r"model\.safetensors is cut short or damaged") as refused:
            load_final(alone)
        trial.message = refused.value
    assert not trace.exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "scheduler.pt"])
def test_a_sealed_checkpoint_with_a_harmful_pickle_is_refused(make_recipe, tmp_path, name):
    """The seal only says that nothing changed since; whoever can write the folder can write a seal."""
    from ant_hf.errors import RunStopped

    recipe = make_recipe(max_hours=1e-9)
    with pytest.raises(RunStopped):
        pretrain(recipe)
    folder, trace = open_run_folder(recipe).path, tmp_path / "trace"
    made_of = json.loads((folder / "checkpoint-1" / SEAL).read_text())["made_of"]
    torch.save({"state": Harmful(trace)}, folder / "checkpoint-1" / name)
    seal(folder / "checkpoint-1", made_of, keep=2)
    with tried("harmful pickle in a checkpoint") as trial:
        with pytest.raises(
            AntError, match="checkpoint-1 cannot be loaded: one of its files contains more than"
        ) as refused:
            pretrain(recipe)
        trial.message = refused.value
        assert not trace.exists()
