"""Fits the change of the network's last blocks.

Three things are asked of it at once:

- People are heard as before: what the changed network hears in a window, disturbed or not, is held to what the unchanged
  one hears in it undisturbed (distillation; Kullback-Leibler divergence of each frame).
- "Help" and "Hilfe" score high, those of synthetic voices and of the people who say "help": the best score of the lattice
  that ends where the clip, or the person's word, does.
- No other talk of people and voices scores high anywhere, confusable words above all; people's counts twice, and what of it
  scores highest is drawn more often (MINED).

    loss = 1.5 · divergence + softplus(-4 (s + 0.3)) / 4 of phrases + softplus(4 (s + 1)) / 4 of other talk

where s is the logarithm of the detector's score: 0.74 is high enough and 0.37 low enough to matter little."""

import time

import jax
import jax.numpy as jnp
import numpy

import network
import windows

STEPS, RANK, RATE = 1_200, 16, 1.5e-3
# The part of the change that is taken in the end: between the unchanged model and the changed one lies one that hears the new voices nearly as
# well and people as before (Wortsman et al. 2022). Measured in docs/voice.md.
TAKEN = 0.85
# Windows of a step: people's talk and people's "help", then phrases and other talk of plain and of mixed voices.
SHARES = {"people": 9, "cries": 2, "synth+": 3, "synth-": 2, "mixed+": 5, "mixed-": 4}
# After these steps all of people's talk is looked at, and from then on half of a step's is of the twelfth part that scores highest.
MINED = (400, 800)
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


def hardest(highest, change, front):
    """Numbers of the twelfth part of the windows that score highest."""
    scores = [highest(change, front[at : at + 50].astype("float32")) for at in range(0, len(front) - 49, 50)]
    scores = numpy.concatenate(scores)
    return numpy.argsort(-scores)[: len(scores) // 12]


def batches(groups, hard, chance):
    """Without end: every group once through in a random order, and again; `hard` are windows of people that come up more often."""
    waiting = {name: [] for name in SHARES}
    while True:
        chosen = []
        for name, count in SHARES.items():
            while len(waiting[name]) < count:
                waiting[name] += list(chance.permutation(len(groups[name][0])))
            rows, waiting[name] = waiting[name][:count], waiting[name][count:]
            if name == "people" and len(hard):
                rows[: count // 2] = chance.choice(hard, count // 2, replace=False)
            chosen.append([column[rows] for column in groups[name]])
        front, heard, meta = (numpy.concatenate(columns) for columns in zip(*chosen))
        yield front.astype("float32"), heard.astype("float32"), meta


def main(repository, weights, vocabulary, corpus, out):
    weights, known = network.read(repository, weights), network.numbers(vocabulary)
    groups = {name: windows.load(corpus, name) for name in ("people", "cries")}
    for name in ("synth", "mixed"):
        columns = windows.load(corpus, name)
        is_phrase = columns[2][:, 0] > 0
        groups |= {name + "+": [c[is_phrase] for c in columns], name + "-": [c[~is_phrase] for c in columns]}
    change = network.start(weights, windows.FRONT, RANK)
    nothing = jax.tree.map(jnp.zeros_like, change)
    moments, recent, started = (nothing, nothing), [], time.monotonic()
    chains, hard = [network.states(known, phonemes) for phonemes, *_ in WORDS], []
    update, highest = updater(loss_of(weights, chains)), scorer(weights, chains)
    count = sum(leaf.size for leaf in jax.tree.leaves(change))
    print(f"adapt: {count} numbers to fit on {sum(len(group[0]) for group in groups.values())} windows", flush=True)
    for step, batch in zip(range(1, STEPS + 1), batches(groups, hard, numpy.random.default_rng(5))):
        rate = RATE * min(1, step / 30) * 0.5 * (1 + numpy.cos(numpy.pi * step / STEPS))
        change, moments, parts = update(change, moments, float(step), rate, batch)
        recent = [*recent[-19:], numpy.array(parts)]
        if step in MINED:
            hard[:] = hardest(highest, change, groups["people"][0])
        if step % 20 == 0:
            divergence, missed, wrong = numpy.mean(recent, 0)
            took = (time.monotonic() - started) / 60
            print(f"adapt: step {step} of {STEPS}, {took:.0f} min: divergence {divergence:.3f}, missed {missed:.3f}, wrong {wrong:.3f}", flush=True)
    low = {name: (left, TAKEN * right) for name, (left, right) in change["low"].items()}
    direct = {name: TAKEN * value for name, value in change["direct"].items()}
    network.write(out, {"low": low, "direct": direct})
