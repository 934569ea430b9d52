"""The audit finds every discrepancy of the public cards that arithmetic shows, and invents none."""

import dataclasses
import itertools
import re

import pytest

from ant_hf.card.audit import audit, count_parameters
from ant_hf.card.claims import (
    Accuracy,
    Claims,
    Moment,
    Perplexities,
    Printed,
    Schedule,
    Sliced,
    published_claims,
)
from ant_hf.published import published_models


def findings(name):
    (model,) = [m for m in published_models() if m.name == name]
    return audit(published_claims(model))


def disagreements(name):
    return [(f.claim, f.recomputed) for f in findings(name) if f.verdict == "DISAGREES"]


# What a reader with a pocket calculator finds on the card of Ant-10M: claim, and what it should be.
ANT_10M = [
    ("9,902,464 parameters", "9,902,336 from the architecture (+128 printed)"),
    ("81,520 to 83,000 tokens/s", "85,936 tokens/s"),
    ("perplexity 15.22 at step 600", "exp(2.7217) = 15.21, exp(2.7231) = 15.23"),
    ("learning rate 2.46e-4 at step 80", "1.60e-04"),
    ("cosine through 2.31e-4 at step 600, last step 1,200", "ends by step 1,090 at the latest"),
    ("piqa 50.32% of 1,838", "not a whole number"),
    ("boolq 37.82% of 3,270", "1,237 is 37.829%"),
    ("WikiText-2 byte perplexity 30.62", "3.42 nats per byte: worse than a uniform guess among 4,096 tokens"),
    ("loss 2.5314 per token beside 3.42 nats per byte", "0.74 bytes per token"),
]
ANT_5M = [
    ("arc_challenge 24.42% of 1,172", "not a whole number"),
    ("winogrande 48.85% of 1,267", "not a whole number"),
    ("arithmark_2.0, 1 operator 23.40% of 1,250", "not a whole number"),
    ("arithmark_2.0, 2 operators 21.90% of 750", "not a whole number"),
    ("arithmark_2.0, 3 operators 20.10% of 500", "not a whole number"),
    ("arithmark_2.0 22.10% of 2,500", "not a whole number"),
]


@pytest.mark.parametrize(("name", "expected"), [("Ant-10M", ANT_10M), ("Ant-5M", ANT_5M)], ids=["10M", "5M"])
def test_every_known_discrepancy_is_found(name, expected):
    found = disagreements(name)
    for claim, recomputed in expected:
        matching = [text for text, _ in found if text.startswith(claim)]
        assert matching, f"{claim} not found among {found}"
        assert any(recomputed in value for text, value in found if text.startswith(claim))


def test_what_is_right_on_the_public_card_is_not_accused():
    assert len(disagreements("Ant-10M")) == len(ANT_10M)
    # Beyond the counts: its slices do not average to its total, and 48.91 is above the uniform guess.
    assert len(disagreements("Ant-5M")) == len(ANT_5M) + 2
    right = {f.claim for f in findings("Ant-10M") if f.verdict == "agrees"}
    assert "arithmark_2.0, 1 operator 26.40% of 1,250" in right
    assert "arithmark_2.0 25.44% overall" in right
    assert "perplexity 161.37 at step 80" in right
    assert any(claim.startswith("WikiText-2 word perplexity") for claim in right)
    shown = {f.claim: f.recomputed for f in findings("Ant-10M")}
    assert "2,482,679 tokens per step" in shown["tokens per step (not printed)"]
    assert "636 right" in shown["arithmark_2.0 25.44% of 2,500"]


def sliced(overall, items):
    parts = Accuracy("one", Printed("0.2640"), 1250), Accuracy("two", Printed("0.2080"), 500)
    return Sliced(Accuracy("all", Printed(overall), items), parts)


CONSISTENT = Claims(
    name="ours",
    source="test",
    architecture={
        "vocab_size": 4096, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 12,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    parameters=Printed("9,902,336"),
    tokens=Printed("819,059"),
    hours=Printed("0.1014"),
    steps=400,
    tokens_per_second=(Printed("2,243"),),
    tokens_per_step=Printed("2,048"),
    schedule=Schedule("warmup-stable-decay", Printed("3.00e-2"), 20, 190, 0.0, 400),
    dynamics=(
        Moment(10, Printed("6.5619"), None, Printed("707.6"), Printed("1.35e-2")),
        Moment(300, Printed("4.0"), Printed("4.10"), Printed("60.3"), Printed("1.59e-2")),
    ),
    accuracies=(Accuracy("piqa", Printed("0.5033"), 1838),),
    sliced=(sliced("0.2480", 1750),),
    perplexities=(Perplexities("WikiText-2", Printed("4.540"), Printed("3,264"), 5.347, 3.085),),
)  # fmt: skip


def test_consistent_figures_have_no_finding():
    assert [f for f in audit(CONSISTENT) if f.verdict != "agrees"] == []


def test_a_schedule_waits_for_skipped_steps():
    # Step 300 of 400 at the rate of step 298.
    late = (Moment(300, None, None, None, Printed("1.61e-2")),)
    schedule = dataclasses.replace(CONSISTENT.schedule, skipped_steps=1)
    assert "DISAGREES" in {f.verdict for f in audit(dataclasses.replace(CONSISTENT, dynamics=late))}
    waited = dataclasses.replace(CONSISTENT, dynamics=late, schedule=schedule)
    assert {f.verdict for f in audit(waited)} == {"agrees"}


def test_only_the_last_block_of_a_pass_may_be_missing():
    # Two passes of 50 blocks and a token, 100 tokens per block: 99 of them are padding in each.
    def verdicts(tokens):
        claims = Claims(
            name="ours", source="test", tokens=Printed(tokens), steps=51, tokens_per_step=Printed("200"),
            tokens_of_text=5001, block_tokens=100,
        )  # fmt: skip
        return [f.verdict for f in audit(claims)]

    assert verdicts("10,002") == ["agrees"]
    assert verdicts("9,899") == ["DISAGREES"]


@pytest.mark.parametrize(
    "change",
    [
        {"parameters": Printed("9,902,337")},
        {"hours": Printed("0.1100")},
        {"tokens_per_step": Printed("2,100")},
        {"dynamics": (Moment(10, Printed("6.5619"), None, Printed("708.6")),)},
        {"dynamics": (Moment(10, Printed("800.0"), None, Printed("707.6")),)},
        {"dynamics": (Moment(300, None, None, None, Printed("1.80e-2")),)},
        {"accuracies": (Accuracy("piqa", Printed("0.5032"), 1838),)},
        {"sliced": (sliced("0.2491", 1750),)},
        {"sliced": (sliced("0.2480", 1751),)},
        {"perplexities": (Perplexities("w", Printed("4.540"), Printed("4,264"), 5.347, 3.085),)},
        {"perplexities": (Perplexities("w", Printed("15.540"), None, 5.347, 3.085),)},
        {"perplexities": (Perplexities("w", Printed("0.000")),)},
        {"perplexities": (Perplexities("w", Printed("4.54"), bits_per_byte=Printed("2.283")),)},
        {"perplexities": (Perplexities("w", Printed("4.54"), None, None, 3.0, None, Printed("4.7")),)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_one_wrong_figure_is_one_finding(change):
    changed = dataclasses.replace(CONSISTENT, **change)
    assert [f.verdict for f in audit(changed)].count("DISAGREES") >= 1


def test_a_size_that_is_no_number_cannot_be_checked():
    changed = dataclasses.replace(CONSISTENT, architecture=CONSISTENT.architecture | {"vocab_size": "many"})
    assert {f.verdict for f in audit(changed)} == {"agrees", "not checkable"}


def test_formula_counts_what_the_model_counts():
    from ant_hf.model.architecture import load_config, parameter_ledger

    for name in ("llama_ant10m", "llama_ant5m"):
        config = load_config(f"configs/{name}.json")
        assert count_parameters(config.to_dict()) == parameter_ledger(config).total


def test_formula_and_equation_hold_for_every_kind_of_llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    from ant_hf.model.architecture import parameter_ledger

    kinds = itertools.product((True, False), (True, False), (True, False), (None, 6, 32), (None, 1, 2))
    for attention, mlp, tied, head_dim, groups in kinds:
        config = LlamaConfig(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=groups,
            head_dim=head_dim,
            attention_bias=attention,
            mlp_bias=mlp,
            tie_word_embeddings=tied,
        )
        count = LlamaForCausalLM(config).num_parameters()
        ledger = parameter_ledger(config)
        assert count_parameters(config.to_dict()) == count == ledger.total
        terms = ledger.equation().replace(",", "").replace("2 x ", "2*").rpartition(" = ")[0]
        assert eval(re.sub(r"[a-z_ ]", "", terms)) == count
