"""Shapes: within three percent of any number of parameters that can be, counted as on the model."""

import math

import pytest
from conftest import ROOT

from ant_hf.errors import AntError
from ant_hf.model.architecture import load_architecture
from ant_hf.model.shapes import Shape, shapes_for, usual_shape
from ant_hf.utils.files import read_json, write_json

VOCABULARIES = (300, 512, 4096, 16_384, 65_536)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_any_wish_is_met_within_three_percent_or_refused_with_one_that_is(vocabulary):
    met = []
    for step in range(26):
        wish = round(30_000 * 1.55**step)
        try:
            shapes = shapes_for(wish, vocabulary)
        except AntError as error:
            possible = int(str(error).partition("--parameters ")[2].partition(",")[0])
            shapes = shapes_for(possible, vocabulary)
            assert not met, "refused above a wish that was met"
            assert shapes[0].parameters(vocabulary) == pytest.approx(possible, rel=0.03)
            continue
        met.append(wish)
        assert len({shape.width for shape in shapes}) == len(shapes)
        for shape in shapes:
            assert abs(shape.parameters(vocabulary) / wish - 1) <= 0.03
            assert shape.heads * shape.head_dim == shape.width
            assert shape.heads % shape.key_value_heads == 0
            assert shape.mlp % 16 == 0
            assert shape.width < 256 or shape.head_dim == 64
    assert len(met) >= 15


@pytest.mark.parametrize("millions", [1, 5, 20, 60])
@pytest.mark.parametrize("vocabulary", [512, 4096, 16_384])
def test_the_model_has_the_parameters_that_were_counted(tmp_path, millions, vocabulary):
    shape = shapes_for(millions * 10**6, vocabulary)[0]
    write_json(tmp_path / "config.json", shape.architecture(vocabulary, 512))
    config, ledger = load_architecture(tmp_path / "config.json")
    assert ledger.total == shape.parameters(vocabulary)
    assert ledger.total == pytest.approx(millions * 10**6, rel=0.03)
    assert config.max_position_embeddings == 512
    matrices = ledger.total - ledger.embeddings - ledger.norms
    assert shape.matrices == matrices


def test_ant10m_is_the_usual_shape_of_its_size():
    shape = usual_shape(256, 12)
    ant10m = read_json(ROOT / "configs" / "llama_ant10m.json", "config", "")
    assert shape.architecture(4096, 1024) == ant10m
    assert shapes_for(9_902_336, 4096)[0] == shape
    assert shape.disproportion == pytest.approx(0.0)


def test_the_first_shape_is_in_proportion_and_the_others_are_deeper_or_wider():
    first, *others = shapes_for(20_000_000, 8192)
    assert first.disproportion < math.log(2)
    assert {other.width < first.width for other in others} == {True, False}
    for other in others:
        assert (other.width < first.width) == (other.layers > first.layers)


def test_a_vocabulary_that_takes_all_parameters_is_refused_with_what_is_possible():
    with pytest.raises(AntError, match=r"65,536.*2,097,152 in its embeddings alone.*--parameters") as caught:
        shapes_for(1_000_000, 65_536)
    fitting = int(str(caught.value).partition("--vocab ")[2])
    assert shapes_for(1_000_000, fitting)
    with pytest.raises(AntError, match="at most 2,000,000,000"):
        shapes_for(3_000_000_000, 4096)


def test_narrow_models_have_narrower_heads():
    heads = {width: Shape(width, 2, 2 * width).head_dim for width in (32, 64, 128, 192, 256, 1024)}
    assert heads == {32: 16, 64: 16, 128: 32, 192: 32, 256: 64, 1024: 64}
