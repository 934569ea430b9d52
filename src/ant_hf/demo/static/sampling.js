// How the next token is chosen from the model's logits, and what is told of the choice. Nothing here knows of
// the page, and nothing is random: a seed and a place in the text decide.

// Tokens that are told of a place.
const CANDIDATES = 8;
// As `ant-hf evaluate` counts loops: the last 16 tokens or more, three rounds or more.
const LOOP_TOKENS = 16, LOOP_ROUNDS = 3;

// The finalizer of MurmurHash3 (Austin Appleby, public domain): every bit of 32 depends on all.
function mix(value) {
  value = Math.imul(value ^ (value >>> 16), 0x85ebca6b);
  value = Math.imul(value ^ (value >>> 13), 0xc2b2ae35);
  return (value ^ (value >>> 16)) >>> 0;
}

// A number from 0 up to 1 for a seed and a place. Without a state, a text that was stopped and continues is the
// same as one that was not stopped.
export function uniform(seed, place) {
  const high = mix((seed ^ mix(place + 0x9e3779b9)) >>> 0), low = mix((high + 0x9e3779b9 + place) >>> 0);
  return (high * 2 ** 21 + (low >>> 11)) / 2 ** 53;
}

function logSumExp(values) {
  let most = -Infinity, sum = 0;
  for (const value of values) if (value > most) most = value;
  for (const value of values) sum += Math.exp(value - most);
  return most + Math.log(sum);
}

// The `count` highest, without sorting all.
function highest(scores, count) {
  const best = [];
  for (let id = 0; id < scores.length; id++) {
    if (best.length === count && scores[id] <= scores[best[count - 1]]) continue;
    let at = best.length;
    while (at && scores[best[at - 1]] < scores[id]) at--;
    best.splice(at, 0, id);
    if (best.length > count) best.pop();
  }
  return best;
}

// What the settings leave of the logits, as Transformers does it and in its order: repetition penalty,
// temperature, top-k, top-p. Returns probabilities by id, the most probable first.
export function allowed(logits, seen, {temperature, top_k, top_p, repetition_penalty, greedy}) {
  const scores = Float64Array.from(logits);
  for (const id of seen) scores[id] *= scores[id] < 0 ? repetition_penalty : 1 / repetition_penalty;
  if (greedy) return new Map([[highest(scores, 1)[0], 1]]);
  for (let id = 0; id < scores.length; id++) scores[id] /= temperature;
  const ids = highest(scores, Math.min(top_k, scores.length));
  const kept = ids.map((id) => scores[id]), whole = logSumExp(kept);
  const shares = kept.map((score) => Math.exp(score - whole));
  let count = 0, sum = 0;
  while (count < ids.length && (count === 0 || sum < top_p)) sum += shares[count++];
  return new Map(ids.slice(0, count).map((id, at) => [id, shares[at] / sum]));
}

// What is told of one token in its place: the surprise in bits by the model's own probabilities, before any
// setting; its rank; the most probable tokens; and what the settings made of their probabilities.
export function tell(logits, id, shares = null) {
  const whole = logSumExp(logits), share = (each) => Math.exp(logits[each] - whole);
  const bits = (whole - logits[id]) / Math.LN2;
  if (!Number.isFinite(bits)) throw new Error("its scores are not numbers");
  let rank = 1;
  for (const logit of logits) if (logit > logits[id]) rank++;
  const candidates = highest(logits, CANDIDATES);
  if (!candidates.includes(id)) candidates.push(id);
  const top = candidates.map((each) => ({id: each, share: share(each), after: shares && (shares.get(each) ?? 0)}));
  return {id, bits, rank, top};
}

// The token in a place of the text, as `tell` tells it.
export function choose(logits, seen, settings, place) {
  const shares = allowed(logits, seen, settings);
  let left = uniform(settings.seed, place), id;
  for (const [each, share] of shares) {
    id = each;
    if ((left -= share) < 0) break;
  }
  return tell(logits, id, shares);
}

// Length of the span that the text repeats to its end, or 0.
export function loopPeriod(ids) {
  for (let period = 1; period <= ids.length / LOOP_ROUNDS; period++) {
    let run = period;
    while (run < ids.length && ids[ids.length - 1 - run] === ids[ids.length - 1 - run + period]) run++;
    if (run >= Math.max(LOOP_TOKENS, LOOP_ROUNDS * period)) return period;
  }
  return 0;
}
