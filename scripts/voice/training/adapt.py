"""Fits the change of the network's last blocks.

Three things are asked of it at once:

- People are heard as before: what the changed network hears in a window, disturbed or not, is held to what the unchanged
  one hears in it undisturbed (distillation; Kullback-Leibler divergence of each frame).
- "Help" and "Hilfe" score high, those of synthetic voices and of the people who say "help": the best score of the lattice
  that ends where the clip, or the person's word, does.
- No other talk of people and voices scores high anywhere, confusable words above all; people's counts twice, and what of it
  and of words alone scores highest is drawn more often.

    loss = 1.5 · divergence + softplus(-4 (s + 0.3)) / 4 of phrases + softplus(4 (s + 1)) / 4 of other talk

where s is the logarithm of the detector's score: 0.74 is high enough and 0.37 low enough to matter little."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy

import network
import windows

RANK = 16
# Of what is drawn more often: one of so many windows of the group.
HARDEST = {"people": 12, "alone-": 4}


@dataclasses.dataclass
class Round:
    steps: int
    rate: float
    # Windows of a step.
    shares: dict
    # After these steps all windows of the groups in HARDEST are looked at, and from then on half of a step's are of those that score highest.
    mined: tuple
    # The part of the change that is taken in the end. Between the model before and the changed one lies one that hears the new
    # voices nearly as well and all others as before (Wortsman et al. 2022). Measured in docs/voice.md.
    taken: float


# People's talk and people's "help", then phrases and other talk of plain and of mixed voices.
SHARES = {"people": 9, "cries": 2, "synth+": 3, "synth-": 2, "mixed+": 5, "mixed-": 4}
FIRST = Round(steps=1_200, rate=1.5e-3, shares=SHARES, mined=(400, 800), taken=0.85)
# Words alone come afterwards, slowly: fitted on from the start they cost people's talk (docs/voice.md, "What was tried").
ALONE = Round(steps=500, rate=4e-4, shares=SHARES | {"alone+": 1, "alone-": 4}, mined=(1, 170, 340), taken=0.5)
# (phonemes, the detector's scale of the log ratio, the most frames) of the two words.
WORDS = (("h/ɦ ɛ l/ɫ p/pʰ", 6, 50), ("h/ɦ ɪ/i l/ɫ f ə/ɝ", 8, 60))
# How much of the divergence counts for a synthetic voice: it is to be heard otherwise than before.
SYNTHETIC = 0.15


def loss_of(weights, chains):
    def loss(change, front, heard, meta):
        got = network.log_probs(network.changed(weights, change), front, windows.FRONT)
        label, first, last, kind = (meta[:, column, None] for column in range(4))
        frame = jnp.arange(got.shape[1])[None]
        said = (frame >= first - 3) & (frame <= last + 12) & (label > 0)
        divergence = (jnp.exp(heard) * (heard - got)).sum(-1) * jnp.where(kind == 1, SYNTHETIC, 1.0) * ~said
        score = [network.fits(got, chain, most) / scale for chain, (_, scale, most) in zip(chains, WORDS)]
        score = jnp.stack(score, -1)
        ends = (frame >= first + 4) & (frame <= last + 10)
        mine = jnp.arange(len(WORDS))[None] == label - 1
        there = jnp.where(ends[..., None], score, -10.0).max(1)
        missed = (jax.nn.softplus(-4 * (there + 0.3)) / 4 * mine).sum(1)
        counts = jnp.where(label > 0, 0.3, jnp.where(kind == 0, 2.0, 1.0))
        wrong = (jax.nn.softplus(4 * (score.max(1) + 1.0)) / 4 * ~mine * counts).sum(1)
        parts = divergence.mean(), missed.mean(), wrong.mean()
        return 1.5 * parts[0] + 1.3 * parts[1] + parts[2], parts

    return loss


def updater(loss):
    @jax.jit
    def update(change, moments, count, rate, batch):
        (_, parts), slope = jax.value_and_grad(loss, has_aux=True)(change, *batch)
        size = jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(slope)))
        slope = jax.tree.map(lambda leaf: leaf * jnp.minimum(1.0, 2.0 / (size + 1e-9)), slope)
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, moments[0], slope)
        second = jax.tree.map(lambda m, g: 0.99 * m + 0.01 * g * g, moments[1], slope)
        move = lambda w, m, v: w - rate * (m / (1 - 0.9**count)) / (jnp.sqrt(v / (1 - 0.99**count)) + 1e-8)  # noqa: E731
        return jax.tree.map(move, change, first, second), (first, second), jnp.array(parts)

    return update


def scorer(weights, chains):
    @jax.jit
    def highest(change, front):
        got = network.log_probs(network.changed(weights, change), front, windows.FRONT)
        return jnp.stack([network.fits(got, chain, most).max(1) / scale for chain, (_, scale, most) in zip(chains, WORDS)]).max(0)

    return highest


def hardest(highest, change, front, part):
    """Numbers of the windows that score highest, one of so many (`part`)."""
    scores = [highest(change, front[at : at + 50].astype("float32")) for at in range(0, len(front) - 49, 50)]
    scores = numpy.concatenate(scores)
    return numpy.argsort(-scores)[: len(scores) // part]


def batches(groups, shares, hard, chance):
    """Without end: every group once through in a random order, and again; `hard` are windows of a group that come up more often."""
    waiting = {name: [] for name in shares}
    while True:
        chosen = []
        for name, count in shares.items():
            while len(waiting[name]) < count:
                waiting[name] += list(chance.permutation(len(groups[name][0])))
            rows, waiting[name] = waiting[name][:count], waiting[name][count:]
            if name in hard:
                rows[: count // 2] = chance.choice(hard[name], count // 2, replace=False)
            chosen.append([column[rows] for column in groups[name]])
        front, heard, meta = (numpy.concatenate(columns) for columns in zip(*chosen))
        yield front.astype("float32"), heard.astype("float32"), meta


def fitted(change, groups, weights, chains, plan):
    """`change` after a round."""
    nothing = jax.tree.map(jnp.zeros_like, change)
    moments, recent, hard, started = (nothing, nothing), [], {}, time.monotonic()
    update, highest = updater(loss_of(weights, chains)), scorer(weights, chains)
    for step, batch in zip(range(1, plan.steps + 1), batches(groups, plan.shares, hard, numpy.random.default_rng(5))):
        rate = plan.rate * min(1, step / 30) * 0.5 * (1 + numpy.cos(numpy.pi * step / plan.steps))
        change, moments, parts = update(change, moments, float(step), rate, batch)
        recent = [*recent[-19:], numpy.array(parts)]
        if step in plan.mined:
            wanted = {name: part for name, part in HARDEST.items() if name in plan.shares}
            hard |= {name: hardest(highest, change, groups[name][0], part) for name, part in wanted.items()}
        if step % 20 == 0:
            divergence, missed, wrong = numpy.mean(recent, 0)
            took = (time.monotonic() - started) / 60
            print(f"adapt: step {step} of {plan.steps}, {took:.0f} min: divergence {divergence:.3f}, missed {missed:.3f}, wrong {wrong:.3f}", flush=True)
    return change


def main(repository, weights, vocabulary, corpus, out):
    weights, known = network.read(repository, weights), network.numbers(vocabulary)
    groups = {name: windows.load(corpus, name) for name in ("people", "cries")}
    for name in ("synth", "mixed", "alone"):
        columns = windows.load(corpus, name)
        is_phrase = columns[2][:, 0] > 0
        groups |= {name + "+": [c[is_phrase] for c in columns], name + "-": [c[~is_phrase] for c in columns]}
    chains = [network.states(known, phonemes) for phonemes, *_ in WORDS]
    start = network.start(weights, windows.FRONT, RANK)
    count = sum(leaf.size for leaf in jax.tree.leaves(start))
    print(f"adapt: {count} numbers to fit on {sum(len(group[0]) for group in groups.values())} windows", flush=True)
    change = fitted(start, groups, weights, chains, FIRST)
    low = {name: (left, FIRST.taken * right) for name, (left, right) in change["low"].items()}
    before = {"low": low, "direct": {name: FIRST.taken * value for name, value in change["direct"].items()}}
    # The second round moves the factors of the first a little, so a part of the way of each of them is nearly that part of the change.
    after = fitted(before, groups, weights, chains, ALONE)
    network.write(out, jax.tree.map(lambda old, new: old + ALONE.taken * (new - old), before, after))
