"""What the demo's page is made of: seeds of one's own, the library's sampling, text that is never markup."""

import copy
import html
import importlib.util
import re
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LogitsProcessorList, PreTrainedTokenizerFast

from ant_hf.cli.models import demo
from ant_hf.demo.markup import alternatives_html, describe, fragments_html, output_html, safe
from ant_hf.demo.sampling import Draw, Generation, Sampling, generate_together, processors
from ant_hf.demo.texts import CANDIDATES, start_text
from ant_hf.errors import AntError
from ant_hf.inspection.fragments import Candidate, Fragment
from ant_hf.model.encoding import context_length
from ant_hf.model.generation import CARD_SAMPLING, encode_prompt
from ant_hf.model.loading import Subject, load_final


def test_a_missing_extra_is_one_line(monkeypatch, tiny_run):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AntError, match=r"pip install .*\[demo\]'"):
        demo(str(tiny_run / "final"))


@pytest.fixture(scope="module")
def loaded(tiny_run):
    return load_final(tiny_run / "final")


def written(model, tokenizer, prompt):
    text = start_text(Subject("tiny", Path(), model, tokenizer, {}), prompt, Sampling(max_new_tokens=4))
    for _ in generate_together([text.generation]):
        pass
    return text


def test_scores_that_are_not_numbers_are_told_wherever_they_begin(loaded):
    model, tokenizer = copy.deepcopy(loaded[0]), loaded[1]
    torch.nn.init.constant_(model.model.norm.weight, torch.nan)
    with pytest.raises(ValueError, match="scores are not numbers"):
        start_text(Subject("tiny", Path(), model, tokenizer, {}), "In the", Sampling())
    with pytest.raises(AntError, match="the model failed: its scores are not numbers"):
        list(generate_together([Generation(model, [5], Sampling(), 64)]))


def test_a_tokenizer_whose_entries_have_no_known_bytes_still_gives_text(loaded):
    words = Tokenizer(WordLevel({"in": 0, "the": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = Whitespace()
    text = written(loaded[0], PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?"), "in the")
    assert "2 + 4 tokens" in text.facts(1.0)
    assert text.fragments() == []
    assert "cannot be shown" in fragments_html(0, "tiny", text.fragments(), 0)


def test_what_was_considered_is_what_the_model_gives_in_that_place(loaded):
    text = written(*loaded, "In the")
    *_, place = range(len(text.fragments()))
    with torch.no_grad():
        ids = torch.tensor([text.generation.prompt_ids + text.generation.ids[:-1]])
        probabilities = loaded[0](ids).logits[0, -1].softmax(-1)
    best = probabilities.topk(CANDIDATES)
    assert [each.token_id for each in text.considered(place)] == best.indices.tolist()
    assert [each.probability for each in text.considered(place)] == pytest.approx(
        best.values.tolist(), rel=1e-3
    )
    assert len(text.considered(0)) == CANDIDATES


def test_no_public_address_is_one_message(monkeypatch):
    pytest.importorskip("gradio")
    from ant_hf.demo import serving

    def launched(page, **_):
        # As Gradio does it: it prints why, and continues.
        print("\nCould not create share link. Missing file: frpc. ")

    page = SimpleNamespace(share_url=None, server=SimpleNamespace(), close=lambda verbose: None)
    monkeypatch.setattr(serving, "load_page", lambda _: page)
    monkeypatch.setattr(serving, "launch", launched)
    with pytest.raises(
        AntError, match=r"the page did not get a public address: Could not .* frpc\. Check the network"
    ):
        serving.serve(["tiny"], share=True)


def generated(loaded, **values):
    model, tokenizer = loaded
    generation = Generation(
        model, encode_prompt(model, tokenizer, "In the"), Sampling(**values), context_length(model, tokenizer)
    )
    for _ in generate_together([generation]):
        pass
    return generation


def test_a_seed_gives_the_same_text_whatever_else_draws_random_numbers(loaded):
    alone = {seed: generated(loaded, seed=seed).ids for seed in range(4)}
    assert len({tuple(ids) for ids in alone.values()}) == 4
    together, threads = {}, []
    for seed in alone:
        threads.append(
            threading.Thread(target=lambda s=seed: together.update({s: generated(loaded, seed=s).ids}))
        )
        threads[-1].start()
    state = torch.get_rng_state()
    for thread in threads:
        torch.rand(1)
        thread.join()
    assert together == alone
    torch.set_rng_state(state)


def test_scores_are_those_that_generate_samples_from_with_the_cards_settings(loaded):
    model, tokenizer = loaded
    ids = torch.tensor([encode_prompt(model, tokenizer, "And he said, and he")])
    theirs = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=1,
        do_sample=True,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        **CARD_SAMPLING,
    )
    *ours, draw = processors(Sampling())
    assert isinstance(draw, Draw)
    assert torch.equal(LogitsProcessorList(ours)(ids, theirs.logits[0]), theirs.scores[0])
    assert torch.isinf(theirs.scores[0]).any()


def test_draws_have_the_probabilities_of_the_scores():
    wanted = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])
    scores, draw, count = wanted.log()[None], Draw(3), 20_000
    drawn = torch.stack([draw(None, scores).argmax() for _ in range(count)])
    shares = torch.bincount(drawn, minlength=5) / count
    # Four standard errors of a share.
    assert torch.all((shares - wanted).abs() <= 4 * (wanted * (1 - wanted) / count).sqrt())


def test_greedy_is_generates_own_and_needs_no_seed(loaded):
    model, tokenizer = loaded
    ids = torch.tensor([encode_prompt(model, tokenizer, "In the")])
    theirs = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=32, repetition_penalty=1.5
    )
    first, second = (generated(loaded, greedy=True, seed=seed) for seed in (0, 1))
    assert first.ids == second.ids == theirs[0, ids.shape[1] :].tolist()


def test_surprise_is_the_models_own_before_penalty_and_temperature(loaded):
    model, _ = loaded
    generation = generated(loaded, temperature=1.9, repetition_penalty=2.0)
    ids = torch.tensor([generation.prompt_ids + generation.ids])
    with torch.no_grad():
        log_p = torch.log_softmax(model(ids).logits[0, len(generation.prompt_ids) - 1 : -1], dim=-1)
    expected = -log_p.gather(1, torch.tensor(generation.ids)[:, None])[:, 0]
    assert torch.allclose(torch.tensor(generation.nats), expected, atol=1e-4)


def test_closing_ends_the_threads_and_the_context_bounds_the_text(loaded):
    model, tokenizer = loaded
    pair = [
        Generation(model, encode_prompt(model, tokenizer, text), Sampling(), context_length(model, tokenizer))
        for text in ("In", "And")
    ]
    running = generate_together(pair)
    next(running)
    running.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "generation"]
    assert not all(generation.finished for generation in pair)
    whole = generated(loaded, max_new_tokens=1024, greedy=True)
    assert len(whole.prompt_ids) + len(whole.ids) == model.config.max_position_embeddings
    assert whole.finished


def test_a_text_goes_on_from_any_of_its_tokens_and_ends_where_it_must(loaded):
    whole = generated(loaded, greedy=True, max_new_tokens=16)
    context = whole.context

    def after(ids, **values):
        sampling = Sampling(greedy=True, **values)
        new = Generation(whole.model, whole.prompt_ids, sampling, context, list(ids), [0.0] * len(ids))
        for _ in generate_together([new]):
            pass
        return new

    assert after(whole.ids[:5], max_new_tokens=11).ids == whole.ids
    end = whole.model.generation_config.eos_token_id
    assert after([*whole.ids[:5], end]).ids == [*whole.ids[:5], end]
    full = after([whole.ids[0]] * (context - len(whole.prompt_ids)))
    assert full.finished
    assert full.room == 0
    assert len(full.ids) == full.kept


def test_a_failing_model_is_one_message(loaded):
    generation = Generation(loaded[0], [10**6], Sampling(), 64)
    with pytest.raises(AntError, match="the model failed"):
        list(generate_together([generation]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": 0.0}, "temperature is out of range; saw 0.0; expected a number from 0.05 to 2"),
        ({"top_p": float("nan")}, "top p is out of range; saw nan"),
        ({"max_new_tokens": 10**9}, "a whole number from 1 to 1,024"),
        ({"seed": None}, "seed is empty; expected a whole number from 0"),
        ({"repetition_penalty": "2"}, "repetition penalty is out of range; saw '2'"),
    ],
)
def test_values_outside_the_limits_are_named(values, message):
    with pytest.raises(AntError, match=re.escape(message)):
        Sampling(**values)


HOSTILE = "<img src=x onerror=alert(1)> \"' & </span><script>{{x}} ${x} `x` \0"


def test_nothing_written_becomes_markup_or_a_template():
    fragment = Fragment(7, HOSTILE.encode(), HOSTILE, 1.5, 0, 1)
    candidates = [Candidate(7, HOSTILE.encode(), HOSTILE, 0.5)]
    page = output_html(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE)
    page += fragments_html(0, HOSTILE, [fragment], 0) + alternatives_html(0, 0, fragment, candidates, False)
    assert not {"img", "script"} & set(re.findall(r"<(\w+)", page))
    assert not set("{}$`\0") & set(page)
    assert html.unescape(safe(HOSTILE)) == HOSTILE.replace("\0", "\N{REPLACEMENT CHARACTER}")
    assert describe(fragment).endswith("1.50 nats  |  id 7  |  bytes " + HOSTILE.encode().hex(" ").upper())
