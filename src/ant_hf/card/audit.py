"""Checks of a card's figures against each other, by arithmetic alone: no model, no data, no torch.

Every figure is taken as printed, with the interval of values that round to it, so that rounding
never counts as a discrepancy. The same checks read the public cards and our own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ant_hf.card.claims import Accuracy, Claims, Moment, Perplexities, Printed, Schedule, Sliced
from ant_hf.utils.metrics import exp

# WikiText counts differ a little between versions of the harness.
_TEXT_TOLERANCE = 0.005
# Bytes per token are printed with three decimals.
_IDENTITY_TOLERANCE = 0.002
# The least that byte-level BPE of 4,096 entries or more reaches on English; ours has 3.0 to 4.0.
_USUAL_BYTES_PER_TOKEN = 2.5


@dataclass(frozen=True)
class Finding:
    """One line of the audit's table."""

    claim: str
    recomputed: str
    agrees: bool | None
    """None where the card does not say enough to tell."""

    @property
    def verdict(self) -> str:
        return {True: "agrees", False: "DISAGREES", None: "not checkable"}[self.agrees]


def audit(claims: Claims) -> list[Finding]:
    """Everything about a card that can be recomputed from the card."""
    findings = [*_parameters(claims), *_speed(claims), *_dynamics(claims)]
    if claims.schedule:
        findings += _schedule(claims.schedule, claims.dynamics, claims.steps)
    findings += map(_whole_count, claims.accuracies)
    for sliced in claims.sliced:
        findings += _sliced(sliced, claims.accuracies)
    findings += _on_leaderboards(claims)
    for perplexities in claims.perplexities:
        findings += _perplexities(perplexities, claims)
    return findings


def count_parameters(architecture: dict[str, int | bool]) -> int | None:
    """Parameters of a Llama from its shape alone; None when a key is missing or no number.

    vocabulary x hidden, twice if untied, + layers x (attention q, k, v, o + 3 MLP matrices + 2 norms)
    + the final norm; and the biases of attention and MLP if there are any.
    """
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    if not all(isinstance(architecture.get(key), int) for key in keys):
        return None
    vocabulary, hidden, inner, layers, heads = (int(architecture[key]) for key in keys)
    groups = int(architecture.get("num_key_value_heads") or heads)
    head_dim = int(architecture.get("head_dim") or hidden // heads)
    attention = 2 * hidden * (heads + groups) * head_dim
    if architecture.get("attention_bias"):
        attention += (heads + 2 * groups) * head_dim + hidden
    mlp = 3 * hidden * inner + (2 * inner + hidden if architecture.get("mlp_bias") else 0)
    embeddings = vocabulary * hidden * (1 if architecture.get("tie_word_embeddings") else 2)
    return embeddings + layers * (attention + mlp + 2 * hidden) + hidden


def _parameters(claims: Claims) -> Iterator[Finding]:
    if (printed := claims.parameters) is None:
        return
    label = f"{printed.text} parameters"
    if (counted := count_parameters(claims.architecture)) is None:
        yield Finding(label, "the card does not give the full architecture", None)
        return
    difference = printed.value - counted
    note = f" ({difference:+,.0f} printed)" if difference else ""
    yield Finding(label, f"{counted:,} from the architecture{note}", printed.meets(counted, counted))


def _speed(claims: Claims) -> Iterator[Finding]:
    tokens, hours, speeds = claims.tokens, claims.hours, claims.tokens_per_second
    if tokens and hours and hours.low > 0 and speeds:
        low, high = tokens.low / (hours.high * 3600), tokens.high / (hours.low * 3600)
        claim = f"{' to '.join(p.text for p in speeds)} tokens/s"
        mean = tokens.value / hours.value / 3600
        seen = f"{tokens.text} tokens in {hours.text} h: {mean:,.0f} tokens/s"
        yield Finding(claim, seen, low <= speeds[-1].high and high >= speeds[0].low)
    if tokens and claims.steps:
        each = tokens.value / claims.steps
        recomputed = f"{tokens.text} over {claims.steps:,} steps: {each:,.0f} tokens per step"
        if (printed := claims.tokens_per_step) is None:
            yield Finding("tokens per step (not printed)", recomputed, None)
        else:
            agrees = printed.low - _padding(claims) / claims.steps <= each <= printed.high
            yield Finding(f"{printed.text} tokens per step", recomputed, agrees)


def _padding(claims: Claims) -> int:
    """Tokens that may be missing from steps x tokens per step: the last block of every pass is filled up."""
    if not (claims.tokens and claims.tokens_of_text and claims.block_tokens):
        return 0
    return claims.block_tokens * math.ceil(claims.tokens.high / claims.tokens_of_text)


def _dynamics(claims: Claims) -> Iterator[Finding]:
    for moment in claims.dynamics:
        losses = [loss for loss in (moment.eval_loss, moment.loss) if loss]
        if not moment.perplexity or not losses:
            continue
        recomputed = ", ".join(f"exp({loss.text}) = {exp(loss.value):.2f}" for loss in losses)
        agrees = any(moment.perplexity.meets(exp(loss.low), exp(loss.high)) for loss in losses)
        yield Finding(f"perplexity {moment.perplexity.text} at step {moment.step:,}", recomputed, agrees)


def rate_at(schedule: Schedule, step: int, last_step: int, min_rate: float) -> float:
    """Learning rate as a share of the peak: linear warmup, then the schedule's decay."""
    if step < schedule.warmup_steps:
        return step / schedule.warmup_steps
    decay = last_step - schedule.warmup_steps - schedule.stable_steps
    done = min(1.0, max(0.0, (step - schedule.warmup_steps - schedule.stable_steps) / max(1, decay)))
    remaining = (1 + math.cos(math.pi * done)) / 2 if schedule.kind == "cosine" else 1 - done
    return min_rate + (1 - min_rate) * remaining


def _schedule(schedule: Schedule, moments: tuple[Moment, ...], steps: int | None) -> Iterator[Finding]:
    for moment in moments:
        if (printed := moment.learning_rate) is None:
            continue
        claim = f"learning rate {printed.text} at step {moment.step:,}"
        if moment.step <= schedule.warmup_steps or None not in (schedule.last_step, schedule.min_rate):
            # A log names the rate of the step that ends or of the one that begins, and a schedule waits for
            # steps that were skipped.
            last, least = schedule.last_step or moment.step, schedule.min_rate or 0.0
            first = max(0, moment.step - 1 - schedule.skipped_steps)
            shares = [rate_at(schedule, step, last, least) for step in range(first, moment.step + 1)]
            low, high = min(shares) * schedule.peak.low, max(shares) * schedule.peak.high
            recomputed = f"{shares[-1] * schedule.peak.value:.2e} by the schedule"
            yield Finding(claim, recomputed, printed.meets(low, high))
        elif schedule.kind == "cosine" and steps and moment.step < steps:
            yield _cosine_end(schedule, moment.step, printed, steps)


def _cosine_end(schedule: Schedule, step: int, printed: Printed, steps: int) -> Finding:
    """Where a cosine through this rate ends at the latest: one that falls to zero is the slowest."""
    share = min(1.0, printed.high / schedule.peak.low)
    # share = (1 + cos(pi * done)) / 2
    done = math.acos(2 * share - 1) / math.pi
    end = schedule.warmup_steps + (step - schedule.warmup_steps) / done if done else math.inf
    claim = f"cosine through {printed.text} at step {step:,}, last step {steps:,}"
    return Finding(claim, f"such a cosine ends by step {end:,.0f} at the latest", end >= steps)


def _whole_count(accuracy: Accuracy) -> Finding:
    """The GRIM test (Brown and Heathers 2017): is the share a whole number of items, rounded?"""
    printed, items = accuracy.printed, accuracy.items
    low, high = math.ceil(printed.low * items - 1e-9), math.floor(printed.high * items + 1e-9)
    claim = f"{accuracy.label} {printed.value:.2%} of {items:,}"
    if low <= high:
        return Finding(claim, f"{low:,} right" if low == high else f"{low:,} to {high:,} right", True)
    below = math.floor(printed.value * items)
    near = ", ".join(f"{count:,} is {count / items:.3%}" for count in (below, below + 1))
    return Finding(claim, f"not a whole number of items: {near}", False)


def _sliced(sliced: Sliced, accuracies: tuple[Accuracy, ...]) -> Iterator[Finding]:
    yield from map(_whole_count, sliced.parts)
    overall, items = sliced.overall, sum(part.items for part in sliced.parts)
    if overall not in accuracies:
        yield _whole_count(overall)
    low = sum(part.printed.low * part.items for part in sliced.parts) / items
    high = sum(part.printed.high * part.items for part in sliced.parts) / items
    claim = f"{overall.label} {overall.printed.value:.2%} overall"
    recomputed = f"average of its parts {(low + high) / 2:.2%}"
    if items != overall.items:
        yield Finding(claim, f"its parts have {items:,} items, and it has {overall.items:,}", False)
    else:
        yield Finding(claim, recomputed, overall.printed.meets(low, high))


def _on_leaderboards(claims: Claims) -> Iterator[Finding]:
    """What is sent to the Hub's leaderboards against the card's table, each rounded by itself."""
    shares = {accuracy.label: accuracy.printed for accuracy in claims.accuracies}
    for label, percent in claims.on_leaderboards:
        claim = f"{label} {percent.text} % for the Hub's leaderboard"
        if (share := shares.get(label)) is None:
            yield Finding(claim, "the card's table does not have this set", None)
        else:
            agrees = share.meets(percent.low / 100, percent.high / 100)
            yield Finding(claim, f"{share.text} in the card's table", agrees)


def _perplexities(perplexities: Perplexities, claims: Claims) -> Iterator[Finding]:
    byte, word = perplexities.byte, perplexities.word
    if byte.value <= 1:
        yield Finding(f"{perplexities.text} byte perplexity {byte.text}", "perplexities are above 1", False)
        return
    nats = math.log(byte.value)
    if word and perplexities.bytes_per_word:
        seen, known = math.log(word.value) / nats, perplexities.bytes_per_word
        claim = f"{perplexities.text} word perplexity {word.text} beside byte perplexity {byte.text}"
        agrees = abs(seen / known - 1) <= _TEXT_TOLERANCE
        yield Finding(claim, f"{seen:.3f} bytes per word; the text has {known:.3f}", agrees)
    yield from _identities(perplexities)
    if isinstance(vocabulary := claims.architecture.get("vocab_size"), int):
        yield _against_uniform(perplexities, nats, vocabulary)
    losses = [moment.eval_loss for moment in claims.dynamics if moment.eval_loss]
    if losses and perplexities.bytes_per_token is None:
        implied = losses[-1].value / nats
        yield Finding(
            f"loss {losses[-1].text} per token beside {nats:.2f} nats per byte on {perplexities.text}",
            f"both hold only at {implied:.2f} bytes per token; a token has at least one byte",
            implied >= 1,
        )


def _identities(p: Perplexities) -> Iterator[Finding]:
    """Byte perplexity = 2^bits per byte; token perplexity = exp(nats per token); both are the same nats."""
    if bits := p.bits_per_byte:
        claim = f"{p.text} byte perplexity {p.byte.text}"
        yield Finding(claim, f"2^{bits.text} = {2**bits.value:.3f}", p.byte.meets(2**bits.low, 2**bits.high))
    if (nats := p.nats_per_token) and p.token:
        claim = f"{p.text} token perplexity {p.token.text}"
        seen = f"exp({nats.text}) = {exp(nats.value):,.2f}"
        yield Finding(claim, seen, p.token.meets(exp(nats.low), exp(nats.high)))
    if nats and p.bytes_per_token:
        implied = exp(nats.value / p.bytes_per_token)
        agrees = math.isclose(math.log(implied), math.log(p.byte.value), rel_tol=_IDENTITY_TOLERANCE)
        claim = f"{p.text}: {nats.text} nats per token beside byte perplexity {p.byte.text}"
        yield Finding(claim, f"{implied:.3f} at {p.bytes_per_token} bytes per token", agrees)


def _against_uniform(perplexities: Perplexities, nats: float, vocabulary: int) -> Finding:
    claim = f"{perplexities.text} byte perplexity {perplexities.byte.text}"
    if (known := perplexities.bytes_per_token) is not None:
        uniform = vocabulary ** (1 / known)
        seen = f"a uniform guess scores {uniform:.2f} at {known:.3f} bytes per token"
        return Finding(claim, seen, perplexities.byte.low < uniform)
    # English text at a vocabulary of thousands: about three bytes per token and more.
    needed = math.log(vocabulary) / nats
    return Finding(
        claim,
        f"{nats:.2f} nats per byte: worse than a uniform guess among {vocabulary:,} tokens unless a token "
        f"averages under {needed:.2f} bytes",
        needed > _USUAL_BYTES_PER_TOKEN,
    )
