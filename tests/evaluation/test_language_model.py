"""Scores by shared contexts and token batches equal those computed one request at a time."""

import copy

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers.processors import TemplateProcessing

from ant_hf.errors import AntError
from ant_hf.evaluation import language_model as scoring
from ant_hf.evaluation.language_model import BatchedLM, LikelihoodStore
from ant_hf.model.loading import load_final


@pytest.fixture(scope="module")
def loaded(tiny_run):
    return load_final(tiny_run / "final")


@pytest.fixture
def language_model(loaded, tmp_path):
    def make(batch_size=1, name="store", tokenizer=None):
        store = LikelihoodStore(tmp_path / name, {"weights": 1})
        return BatchedLM(loaded[0], tokenizer or loaded[1], store, batch_size)

    return make


def requests(chapters):
    """Mixed lengths: shared contexts, an empty one, and one longer than the model's 64 tokens."""
    pairs = []
    for i, chapter in enumerate(chapters[:20]):
        context = chapter[: 5 + 13 * i]
        pairs += [(context, f" {word}") for word in chapter[200:300].split()[: 1 + i % 5]]
        pairs.append((context, chapter[300 : 310 + 3 * i]))
    pairs += [("", chapters[0][:60]), (chapters[1][:600], " and the evening"), (chapters[1][:600], " and")]
    return [Instance("loglikelihood", {}, pair, 0, ("arc_easy", i, 1)) for i, pair in enumerate(pairs)]


def by_hand(model, tokenizer, context, continuation):
    """lm-eval's definition, one request at a time: spaces at the end of the context go to the
    continuation, both are encoded together, cut from the left, summed."""
    trimmed = context.rstrip(" ")
    context, continuation = trimmed, context[len(trimmed) :] + continuation
    start = tokenizer.encode(context) if context else [tokenizer.bos_token_id]
    ids = tokenizer.encode(context + continuation) if context else [*start, *tokenizer.encode(continuation)]
    targets = ids[len(start) :]
    ids = [*start, *targets][-65:]
    with torch.no_grad():
        logits = model(torch.tensor([ids[:-1]])).logits[0, -len(targets) :].log_softmax(-1)
    index = torch.tensor(targets)
    nats = logits.gather(1, index[:, None]).sum()
    return float(nats), bool((logits.argmax(-1) == index).all())


def test_contexts_are_shared_on_a_llama(language_model):
    assert language_model().shares_contexts


def test_scores_equal_those_computed_by_hand(language_model, loaded, chapters):
    scored = language_model(batch_size=4).loglikelihood(requests(chapters))
    for (nats, greedy), request in zip(scored, requests(chapters), strict=True):
        expected, expected_greedy = by_hand(*loaded, *request.args)
        assert nats == pytest.approx(expected, abs=1e-4)
        assert greedy == expected_greedy


def test_texts_that_begin_alike_share_their_beginning(language_model, loaded, chapters):
    """As BLiMP's pairs do, across documents too; one may end where another continues, or be the same."""
    words = chapters[0][:80].split()
    texts = [" ".join(words[:4]), " ".join(words[:4]), " ".join(words[:9])]
    texts += [" ".join([*words[:end], chapters[1][:last]]) for end in (1, 2, 3, 6, 7) for last in (6, 12, 15)]
    pairs = [*(("", text) for text in texts), (" ".join(words[:3]), " and"), (" ".join(words[:3]), " and so")]
    asked = [Instance("loglikelihood", {}, pair, 0, ("blimp", i, 1)) for i, pair in enumerate(pairs)]
    scorer = language_model(batch_size=4)
    rows = scorer._rows([(None, *scorer._pair(*pair)) for pair in pairs], list(range(len(pairs))))
    alone = [len(scorer._pair(*pair)[0]) + len(scorer._pair(*pair)[1]) - 1 for pair in pairs]
    assert sum(map(len, rows)) < 0.7 * sum(alone)
    for (nats, greedy), pair in zip(scorer.loglikelihood(asked), pairs, strict=True):
        expected, expected_greedy = by_hand(*loaded, *pair)
        assert nats == pytest.approx(expected, abs=1e-4)
        assert greedy == expected_greedy


def test_batch_size_does_not_change_a_score(language_model, chapters):
    alone = language_model(batch_size=1, name="a").loglikelihood(requests(chapters))
    together = language_model(batch_size=16, name="b").loglikelihood(requests(chapters))
    assert [nats for nats, _ in alone] == pytest.approx([nats for nats, _ in together], abs=1e-4)
    assert [greedy for _, greedy in alone] == [greedy for _, greedy in together]


def test_a_model_that_takes_no_mask_of_ours_is_scored_without_sharing(
    language_model, loaded, chapters, monkeypatch
):
    expected = language_model(name="a").loglikelihood(requests(chapters))
    forward = loaded[0].forward

    def deaf(*args, attention_mask=None, **kwargs):
        return forward(*args, **kwargs)

    monkeypatch.setattr(loaded[0], "forward", deaf)
    scorer = language_model(name="b")
    found = scorer.loglikelihood(requests(chapters))
    assert not scorer.shares_contexts
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in expected], abs=1e-4)


def tokenizer_that_adds(tokenizer, template):
    own = copy.deepcopy(tokenizer)
    special = [(own.bos_token, own.bos_token_id)]
    own._tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=special)
    return own


def test_a_tokenizer_that_adds_a_bos_token_is_scored_with_one(language_model, loaded, chapters):
    tokenizer = tokenizer_that_adds(loaded[1], f"{loaded[1].bos_token} $A")
    ours, plain = (
        language_model(name="a", tokenizer=tokenizer),
        HFLM(loaded[0], "causal", tokenizer=tokenizer),
    )
    expected = plain.loglikelihood(requests(chapters), disable_tqdm=True)
    assert [nats for nats, _ in ours.loglikelihood(requests(chapters))] == pytest.approx(
        [nats for nats, _ in expected], abs=1e-4
    )
    page = [Instance("loglikelihood_rolling", {}, (chapters[0][:400],), 0, ("wikitext", 0, 1))]
    assert ours.loglikelihood_rolling(page) == language_model(name="b").loglikelihood_rolling(page)


def test_a_token_that_a_tokenizer_puts_behind_a_text_is_no_part_of_a_prompt(language_model, loaded, chapters):
    tokenizer = tokenizer_that_adds(loaded[1], f"$A {loaded[1].eos_token}")
    expected = language_model(name="a").loglikelihood(requests(chapters))
    assert language_model(name="b", tokenizer=tokenizer).loglikelihood(requests(chapters)) == expected


def test_a_tokenizer_without_special_tokens_scores_what_has_a_context(language_model, loaded, chapters):
    tokenizer = copy.deepcopy(loaded[1])
    tokenizer.bos_token = tokenizer.eos_token = tokenizer.pad_token = None
    entries = len(tokenizer)
    scorer = language_model(name="a", tokenizer=tokenizer)
    own = [request for request in requests(chapters) if request.args[0]]
    assert scorer.loglikelihood(own) == language_model(name="b").loglikelihood(own)
    assert len(tokenizer) == entries
    page = Instance("loglikelihood_rolling", {}, (chapters[0],), 0, ("wikitext", 0, 1))
    for request in (page, Instance("loglikelihood", {}, ("", " sea"), 0, ("blimp", 0, 1))):
        with pytest.raises(AntError, match=r"line 1: the text needs a token before it.*bos_token"):
            scorer.check(request, "line 1")


def test_rolling_windows_score_every_token_once(language_model, loaded, chapters):
    model, tokenizer = loaded
    text = chapters[0][:1200]
    request = Instance("loglikelihood_rolling", {}, (text,), 0, ("wikitext", 0, 1))
    (total,) = language_model().loglikelihood_rolling([request])
    ids = [tokenizer.bos_token_id, *tokenizer.encode(text)]
    expected, position = 0.0, 0
    while position < len(ids) - 1:
        end = min(position + 64, len(ids) - 1)
        # The last window reaches back for a full context; only its new tokens count.
        start = max(0, end - 64) if end == len(ids) - 1 and position else position
        with torch.no_grad():
            logits = model(torch.tensor([ids[start:end]])).logits[0].log_softmax(-1)
        for k in range(position, end):
            expected += float(logits[k - start, ids[k + 1]])
        position = end
    assert total == pytest.approx(expected, abs=1e-3)


def test_windows_of_a_text_are_not_laid_side_by_side(language_model):
    """All begin behind the one end-of-text token; together they would be a row as long as the text."""
    scorer = language_model()
    windows = [(None, [0], list(range(5, 69))) for _ in range(6)] + [(None, [0], [7, 8, 9])] * 3
    rows = scorer._rows(windows, list(range(9)))
    assert max(len(row) for row in rows) <= scorer.max_length
    assert sorted(request.index for row in rows for request in row.requests) == list(range(9))


def test_a_score_that_is_no_number_names_task_and_document(language_model, loaded, chapters, monkeypatch):
    scorer = language_model()
    head = loaded[0].get_output_embeddings().weight
    poisoned = head.detach().clone()
    poisoned[7] = float("nan")
    monkeypatch.setattr(head, "data", poisoned)
    with pytest.raises(AntError, match="not a number: task arc_easy, document 0"):
        scorer.loglikelihood(requests(chapters)[:1])


def test_scores_are_kept_and_not_computed_again(language_model, loaded, chapters, monkeypatch):
    first = language_model(name="kept").loglikelihood(requests(chapters))
    scorer = language_model(name="kept")
    monkeypatch.setattr(scorer, "_score", None)
    assert scorer.loglikelihood(requests(chapters)) == first


def test_a_store_cut_in_the_middle_of_a_line_goes_on(tmp_path):
    store = LikelihoodStore(tmp_path / "s", {"weights": 1})
    store.add([("a", (-1.5, True)), ("b", (-2.0, False))])
    whole = (tmp_path / "s").read_bytes()
    (tmp_path / "s").write_bytes(whole[:-4])
    again = LikelihoodStore(tmp_path / "s", {"weights": 1})
    assert (again.get("a"), again.get("b"), again.resumed) == ((-1.5, True), None, 1)


def test_a_kill_while_a_store_is_opened_loses_nothing(tmp_path, monkeypatch):
    values = [("a", (-1.5, True)), ("b", (-2.0, False))]
    LikelihoodStore(tmp_path / "s", {"weights": 1}).add(values)

    def killed(key, value):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "_line", killed)
        with pytest.raises(KeyboardInterrupt):
            LikelihoodStore(tmp_path / "s", {"weights": 1})
    again = LikelihoodStore(tmp_path / "s", {"weights": 1})
    assert [again.get(key) for key, _ in values] == [value for _, value in values]


@pytest.mark.parametrize("content", ["", "no json", "[1]", '{"weights": 2}'])
def test_a_store_of_another_model_is_refused(tmp_path, content):
    (tmp_path / "s").write_text(content)
    with pytest.raises(AntError, match="--fresh"):
        LikelihoodStore(tmp_path / "s", {"weights": 1})
