"""`ant-hf demo --static`: the folder that it writes, where its parts come from, and its sampling."""

import base64
import functools
import hashlib
import http.server
import io
import json
import re
import shutil
import subprocess
import tarfile
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from commands import run_here
from sites import fake_export, fake_node_modules
from transformers import LogitsProcessorList

from ant_hf.demo import site, vendor
from ant_hf.demo.sampling import Sampling, processors
from ant_hf.demo.site import SiteOptions, make_site
from ant_hf.demo.vendor import PACKAGES, find_packages
from ant_hf.errors import AntError
from ant_hf.evaluation.degeneration import loop_period
from ant_hf.export import onnx
from ant_hf.inspection.fragments import vocabulary
from ant_hf.model.loading import load_any, weights_hash
from ant_hf.utils.files import inventory, write_sealed

NODE = shutil.which("node")


@pytest.fixture
def node_modules(tmp_path):
    return fake_node_modules(tmp_path / "node_modules")


@pytest.fixture
def exported(monkeypatch, tmp_path):
    fake_export(monkeypatch, tmp_path)


@pytest.fixture
def final(tiny_run, tmp_path):
    shutil.copy(tiny_run / "run.json", tmp_path)
    return shutil.copytree(tiny_run / "final", tmp_path / "final")


def test_the_folder_holds_all_that_the_page_asks_for_and_names_nothing_elsewhere(
    final, exported, node_modules, tmp_path
):
    folder = make_site([str(final)], tmp_path / "site", SiteOptions(vendor=node_modules))
    facts = json.loads((folder / "site.json").read_text())
    (model,) = facts["models"]
    assert facts["prompts"][0] == "In the beginning"
    assert model["sampling"] == {
        "temperature": 0.7, "top_p": 0.9, "top_k": 50, "repetition_penalty": 1.5
    }  # fmt: skip
    assert (model["context"], model["prefix"], model["ends"]) == (64, [], [0])
    inside = folder / "models" / model["folder"]
    assert {path.name for path in (inside / "onnx").iterdir()} == {"model_quantized.onnx", "model_fp16.onnx"}
    pieces = json.loads((inside / "pieces.json").read_text())
    tokenizer = load_any(final)[1]
    assert [raw.encode("latin-1") for raw in pieces["raw"]] == list(vocabulary(tokenizer).raw)
    assert pieces["special"] == [0, 1]
    # Modules, styles and files that the page names are there, by relative addresses.
    page = {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}
    named = re.findall(r'(?:href|src)="((?!data:)[^"]+)"', page["index.html"])
    named += [name for text in page.values() for name in re.findall(r'(?:from|URL\()\s*"([^"$]+)"', text)]
    assert len(named) > 8
    assert all(name != "/" and (folder / name).exists() for name in named)
    assert not re.search(
        r"https?://(?!huggingface\.co[\"/])(?!www\.w3\.org/2000/svg)", "".join(page.values())
    )
    licences = {path.parent.name for path in folder.glob("vendor/*/LICENSE")}
    assert licences == {"transformers", "onnxruntime-web", "jinja"}
    assert {path.name.split(".")[-2] for path in folder.glob("vendor/onnxruntime-web/*.wasm")} == {
        "ort-wasm-simd-threaded", "asyncify"
    }  # fmt: skip


def test_a_release_brings_its_graphs(final, node_modules, tmp_path, monkeypatch):
    (final / "onnx").mkdir()
    for kind in onnx.TYPES.values():
        (final / "onnx" / kind.file).write_text(f"verified {kind.file}")
    record = {"files": inventory(final), "made_of": {"weights_sha256": weights_hash(final)}}
    write_sealed(final / "onnx" / "verified.json", record)
    monkeypatch.setattr("ant_hf.export.exporting.importlib.util.find_spec", lambda name: None)
    folder = make_site([str(final)], tmp_path / "site", SiteOptions(vendor=node_modules))
    (graph,) = folder.rglob("model_quantized.onnx")
    assert graph.read_text() == "verified model_quantized.onnx"
    # Others than those that were verified are made again.
    (final / "onnx" / "model_quantized.onnx").write_text("other")
    fake_export(monkeypatch, tmp_path)
    folder = make_site([str(final)], tmp_path / "site", SiteOptions(vendor=node_modules))
    (graph,) = folder.rglob("model_quantized.onnx")
    assert graph.read_text() == "model_quantized.onnx"


def test_a_site_for_processors_alone_is_smaller(final, exported, node_modules, tmp_path):
    options = SiteOptions(("q8",), node_modules, prompts=("And God said",))
    folder = make_site([str(final)], tmp_path / "site", options)
    assert not list(folder.glob("vendor/*/*asyncify*"))
    facts = json.loads((folder / "site.json").read_text())
    assert (facts["webgpu"], facts["prompts"]) == (False, ["And God said"])
    # The same folder again is a newer site.
    make_site([str(final)], folder, replace(options, dtypes=("fp32",)))
    assert [path.name for path in folder.glob("models/*/onnx/*")] == ["model.onnx"]


def test_two_models_of_one_name_are_told_apart(final, exported, node_modules, tmp_path):
    folder = make_site([str(final)] * 2, tmp_path / "site", SiteOptions(vendor=node_modules))
    models = json.loads((folder / "site.json").read_text())["models"]
    assert len({model["name"] for model in models} | {model["folder"] for model in models}) == 4


def test_a_failure_leaves_what_was_there(final, exported, node_modules, tmp_path, monkeypatch):
    folder = tmp_path / "site"
    make_site([str(final)], folder, SiteOptions(vendor=node_modules))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def fail(*_):
        raise AntError("the export failed")

    monkeypatch.setattr(site, "export", fail)
    with pytest.raises(AntError, match="the export failed"):
        make_site([str(final)], folder, SiteOptions(vendor=node_modules))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(AntError, match=r"mine exists already and is not a site.*-o FOLDER"):
        make_site([str(final)], tmp_path / "mine", SiteOptions(vendor=node_modules))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--static", "--port", "8000"), "--static writes a folder and does not serve it"),
        (("--static", "--dtype", "int4"), "--dtype is unknown; saw 'int4'; expected fp32 or fp16 or q8"),
        (("--static", "--vendor", "nowhere"), "nowhere/@huggingface/transformers/package.json is missing"),
        (("--dtype", "q8"), "Add --static to write"),
        (("-o", "site"), "Add --static to write"),
    ],
)
def test_wrong_options_are_one_line(tiny_run, words, message):
    result = run_here("ant-hf", "demo", tiny_run / "final", *words)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_node_modules_must_have_the_pinned_version(node_modules):
    assert set(find_packages(node_modules)) == set(PACKAGES)
    runtime = node_modules / "onnxruntime-web"
    # npm may put it within the package that needs it.
    inside = node_modules / "@huggingface/transformers/node_modules/onnxruntime-web"
    shutil.move(runtime, inside)
    assert inside in find_packages(node_modules).values()
    (inside / "package.json").write_text('{"version": "1.0.0"}')
    with pytest.raises(AntError, match=r"another version of onnxruntime-web; saw '1\.0\.0'; expected 1\.31"):
        find_packages(node_modules)
    (node_modules / "@huggingface/jinja/LICENSE").unlink()
    with pytest.raises(AntError, match=r"jinja/LICENSE is missing. Fill .* npm install @huggingface"):
        find_packages(node_modules)


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A registry on loopback with one small package, whose file it is, and an empty cache."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in ("LICENSE", "dist/a.js", "dist/large.map"):
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(name)
            archive.addfile(entry, io.BytesIO(name.encode()))
    file = tmp_path / "registry/@owner/thing/-/thing-1.2.3.tgz"
    file.parent.mkdir(parents=True)
    file.write_bytes(packed.getvalue())
    integrity = base64.b64encode(hashlib.sha512(packed.getvalue()).digest()).decode()
    package = vendor.Package("@owner/thing", "1.2.3", integrity, ("LICENSE", "dist/a.js"))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=tmp_path / "registry")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(vendor, "PACKAGES", (package,))
    monkeypatch.setattr(vendor.constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", f"http://127.0.0.1:{server.server_port}/")
    yield file
    server.shutdown()
    server.server_close()


def test_packages_come_from_the_registry_once(registry):
    (folder,) = find_packages().values()
    there = {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}
    assert there == {"LICENSE": "LICENSE", "dist/a.js": "dist/a.js"}
    registry.unlink()
    assert list(find_packages().values()) == [folder]


def test_another_file_than_the_pinned_one_and_no_answer_are_one_error(registry, monkeypatch):
    registry.write_bytes(registry.read_bytes() + b"more")
    with pytest.raises(
        AntError, match=r"another file than the one that was published as @owner/thing 1\.2\.3"
    ):
        find_packages()
    registry.unlink()
    with pytest.raises(
        AntError, match=r"thing-1\.2\.3\.tgz cannot be downloaded: File not found\. .*--vendor node_modules"
    ):
        find_packages()
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:9/")
    with pytest.raises(AntError, match=r"cannot be downloaded: .*refused.*--vendor node_modules"):
        find_packages()
    assert not any(site.Path(vendor.constants.HF_HOME).rglob("LICENSE"))


# --- sampling.js, by Node -----------------------------------------------------------------------------------

_SCRIPT = """
const {allowed, choose, loopPeriod, tell, uniform} = await import(process.argv[1]);
let text = "";
for await (const piece of process.stdin) text += piece;
const {logits, seen, settings, texts} = JSON.parse(text);
const numbers = Array.from({length: 4096}, (_, place) => uniform(7, place));
const chosen = (place) => choose(logits, new Set(seen), {...settings[0], seed: 3}, place).id;
console.log(JSON.stringify({
  allowed: settings.map((each) => [...allowed(Float32Array.from(logits), new Set(seen), each)]),
  told: tell(logits, 5), drawn: Array.from({length: 4000}, (_, place) => chosen(place)),
  again: Array.from({length: 50}, (_, place) => chosen(place)),
  periods: texts.map(loopPeriod), numbers, other: uniform(8, 0),
}));
"""


@pytest.fixture(scope="module")
def by_node():
    """What sampling.js makes of some logits, and what it was given."""
    if NODE is None:
        pytest.skip("not installed: node")
    random = np.random.default_rng(0)
    settings = [
        {"temperature": t, "top_k": k, "top_p": p, "repetition_penalty": r, "greedy": greedy}
        for t, k, p, r, greedy in (
            (0.7, 50, 0.9, 1.5, False), (1.3, 50, 1.0, 1.0, False), (0.2, 50, 0.05, 1.2, False),
            (1.0, 50, 0.5, 3.0, False), (0.7, 50, 0.9, 1.0, True), (0.7, 50, 0.9, 2.0, True),
        )
    ]  # fmt: skip
    given = {
        "logits": (3 * random.standard_normal(300)).astype(np.float32).tolist(),
        "seen": [4, 5, 6, 250, int(random.integers(300))],
        "settings": settings,
        "texts": [
            [1] * 16, [1] * 15, [1, 2] * 8, [9, *[1, 2, 3] * 6], list(range(40)), [], [5, *range(6)] * 3,
            [7, 7, *[1, 2, 3, 4, 5, 6] * 3],
        ],
    }  # fmt: skip
    script = site._PAGE / "sampling.js"
    command = [NODE, "--input-type=module", "-e", _SCRIPT, script]
    result = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return given, json.loads(result.stdout)


def test_settings_leave_what_transformers_leaves(by_node):
    given, found = by_node
    ids = torch.tensor([given["seen"]])
    for settings, pairs in zip(given["settings"], found["allowed"], strict=True):
        sampling = Sampling(
            settings["temperature"], settings["top_p"], settings["repetition_penalty"],
            greedy=settings["greedy"],
        )  # fmt: skip
        # All but the draw.
        chain = LogitsProcessorList([each for each in processors(sampling) if type(each).__name__ != "Draw"])
        scores = chain(ids, torch.tensor([given["logits"]]))
        if settings["greedy"]:
            assert [id_ for id_, _ in pairs] == [int(scores.argmax())]
            continue
        wanted = torch.softmax(scores[0].double(), dim=-1)
        assert {id_ for id_, _ in pairs} == set(wanted.nonzero()[:, 0].tolist())
        assert all(share == pytest.approx(float(wanted[id_]), rel=1e-4) for id_, share in pairs)


def test_draws_follow_the_shares_and_the_seed(by_node):
    _, found = by_node
    assert found["again"] == found["drawn"][:50]
    for id_, share in found["allowed"][0]:
        # Five standard errors.
        slack = 5 * (share * (1 - share) / 4000) ** 0.5
        assert found["drawn"].count(id_) / 4000 == pytest.approx(share, abs=slack)
    numbers = np.array(found["numbers"])
    assert found["other"] not in numbers
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert np.histogram(numbers, bins=16, range=(0, 1))[0].std() < 3 * 16
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.06


def test_surprise_is_the_models_own_and_loops_are_counted_as_in_the_evaluation(by_node):
    given, found = by_node
    log_p = torch.log_softmax(torch.tensor(given["logits"], dtype=torch.float64), dim=-1)
    assert found["told"]["bits"] == pytest.approx(-float(log_p[5]) / np.log(2))
    assert found["told"]["rank"] == 1 + int((log_p > log_p[5]).sum())
    best = [each["id"] for each in found["told"]["top"]]
    assert best[:8] == torch.topk(log_p, 8).indices.tolist()
    assert found["periods"] == [loop_period(ids) or 0 for ids in given["texts"]]
    assert sum(map(bool, found["periods"])) == 5


def test_a_missing_package_is_named_before_anything_is_loaded(monkeypatch, tmp_path):
    # Such a model has no graphs on the Hub.
    monkeypatch.setattr(site, "locate", lambda model, files: (model, tmp_path))
    monkeypatch.setattr("ant_hf.export.exporting.importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(site, "load_subject", pytest.fail)
    with pytest.raises(AntError, match=r"needs packages .*onnxruntime.*pip install .*\[onnx\]'"):
        make_site(["some/model"], tmp_path / "site", SiteOptions())
    assert not list(tmp_path.iterdir())
