"""The head: a small convolution over the phoneme model's last features that gives, for each frame, how much it
sounds as if "help" or "Hilfe" had just been said; and the weights with which its opinion joins the lattice's.

    features [151, 144] -> standardised -> conv 5 -> relu -> conv 9 -> relu -> conv 9, spaced 3 -> relu -> 2 logits

It hears 0.8 s around each frame. An example is a window of which only the stretch is known in which the phrase is said, so
the loss is on the largest logit of that stretch, and on every frame outside of it. Then the hard ones count
more: after each round the other talk that it takes for a phrase most readily is weighted up ("mining")."""

import importlib.machinery
import pathlib

import jax
import jax.numpy as jnp
import numpy

WIDTH, HIDDEN, KINDS = 144, 40, 2
# (taps, spacing, inputs, outputs) of each layer; all padded to the same length.
LAYERS = ((5, 1, WIDTH, HIDDEN), (9, 1, HIDDEN, HIDDEN), (9, 3, HIDDEN, HIDDEN), (1, 1, HIDDEN, KINDS))
# Frames around the end of a fit in which the head's opinion of it is looked for.
BEFORE, AFTER = 8, 12


def start(seed):
    keys = jax.random.split(jax.random.PRNGKey(seed), len(LAYERS))
    scale = lambda taps, inputs: (2 / (taps * inputs)) ** 0.5  # noqa: E731
    return [
        (jax.random.normal(key, (outputs, inputs, taps)) * scale(taps, inputs), jnp.zeros(outputs))
        for key, (taps, _, inputs, outputs) in zip(keys, LAYERS)
    ]


def logits(weights, x):
    """x [n, 151, 144] standardised -> [n, 151, 2]."""
    x = jnp.transpose(x, (0, 2, 1))
    for number, ((weight, bias), (taps, spacing, _, _)) in enumerate(zip(weights, LAYERS)):
        pad = spacing * (taps // 2)
        x = jax.lax.conv_general_dilated(x, weight, (1,), [(pad, pad)], rhs_dilation=(spacing,))
        x = x + bias[None, :, None]
        if number < len(LAYERS) - 1:
            x = jax.nn.relu(x)
    return jnp.transpose(x, (0, 2, 1))


def loss(weights, x, label, first, last, importance, key):
    keep = jax.random.bernoulli(key, 0.9, (x.shape[0], 1, WIDTH)) / 0.9
    z = logits(weights, x * keep)
    frame = jnp.arange(z.shape[1])[None, :, None]
    said = (frame >= first[:, None, None] + 5) & (frame <= last[:, None, None] + 10)
    mine = jnp.arange(KINDS)[None, :] == label[:, None] - 1
    # Where the phrase is said, its own kind must peak somewhere; of it, nothing else is known.
    peak = jnp.where(said, z, -1e9).max(1)
    hit = (jax.nn.softplus(-peak) * mine).sum(1)
    elsewhere = jax.nn.softplus(z) * ~(said & mine[:, None, :])
    # The loudest wrong frames matter, not the thousands that are right by far.
    wrong = jax.lax.top_k(jnp.transpose(elsewhere, (0, 2, 1)), 8)[0].mean(2).sum(1)
    return (importance * (hit + wrong)).mean() + 1e-4 * sum((w**2).sum() for w, _ in weights)


@jax.jit
def step(weights, moments, count, rate, batch, key):
    value, slope = jax.value_and_grad(loss)(weights, *batch, key)
    first, second = moments
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, slope)
    second = jax.tree.map(lambda m, g: 0.99 * m + 0.01 * g * g, second, slope)
    move = lambda w, m, v: w - rate * (m / (1 - 0.9**count)) / (jnp.sqrt(v / (1 - 0.99**count)) + 1e-8)  # noqa: E731
    return jax.tree.map(move, weights, first, second), (first, second), value


def fit(features, meta, seed=3, epochs=10, mining=2, batch=64, report=print):
    """(weights, mean and deviation of the features)."""
    label, first, last = meta.T
    sample = features[:: max(1, len(features) // 2_000)].astype("float32").reshape(-1, WIDTH)
    mean, deviation = sample.mean(0), sample.std(0) + 1e-3
    weights, count = start(seed), 0
    moments = (jax.tree.map(jnp.zeros_like, weights), jax.tree.map(jnp.zeros_like, weights))
    rng, key = numpy.random.default_rng(seed), jax.random.PRNGKey(seed)
    importance = numpy.where(label == 0, 1.0, 1.5).astype("float32")
    total = epochs * (len(features) // batch)
    for epoch in range(epochs):
        order, values = rng.permutation(len(features)), []
        for number in range(len(features) // batch):
            chosen = numpy.sort(order[number * batch : (number + 1) * batch])
            x = (features[chosen].astype("float32") - mean) / deviation
            count, key = count + 1, jax.random.fold_in(key, count)
            rate = 2e-3 * 0.5 * (1 + numpy.cos(numpy.pi * count / total))
            these = (x, label[chosen], first[chosen], last[chosen], importance[chosen])
            weights, moments, value = step(weights, moments, float(count), rate, these, key)
            values.append(float(value))
        report(f"head: epoch {epoch + 1} of {epochs}, loss {numpy.mean(values):.4f}")
        if epoch + 1 in [round(epochs * (i + 1) / (mining + 1)) for i in range(mining)]:
            peak = opinions(weights, mean, deviation, features).max(1)
            wrong = (label == 0) & (peak.max(1) > -1)
            importance = numpy.where(wrong, 3.0, importance).astype("float32")
            report(f"head: {wrong.sum()} windows of other talk are hard and count more")
    return weights, mean, deviation


def opinions(weights, mean, deviation, features, batch=256):
    run = jax.jit(logits)
    parts = (features[i : i + batch].astype("float32") for i in range(0, len(features), batch))
    return numpy.concatenate([numpy.asarray(run(weights, (part - mean) / deviation)) for part in parts])


def export(path, weights, mean, deviation):
    """Writes the head as ONNX, with the writer of scripts/voice/convert-model."""
    script = pathlib.Path(__file__).parent.parent / "convert-model"
    convert = importlib.machinery.SourceFileLoader("convert_model", str(script)).load_module()
    graph = convert.Graph()
    put = lambda name, values: graph.weights(name, values.shape, numpy.asarray(values, "float32").ravel().tolist())  # noqa: E731
    x = graph.add("Mul", graph.add("Sub", "features", put("mean", mean)), put("scale", 1 / deviation))
    x = graph.add("Transpose", x, perm=[0, 2, 1])
    for number, ((weight, bias), (taps, spacing, _, _)) in enumerate(zip(weights, LAYERS)):
        pad = spacing * (taps // 2)
        names = put(f"weight{number}", numpy.asarray(weight)), put(f"bias{number}", numpy.asarray(bias))
        shape = {"kernel_shape": [taps], "pads": [pad, pad], "strides": [1], "dilations": [spacing], "group": 1}
        x = graph.add("Conv", x, *names, **shape)
        if number < len(LAYERS) - 1:
            x = graph.add("Relu", x)
    graph.add("Transpose", x, perm=[0, 2, 1], output="opinions")
    inputs = [convert.value_info("features", 1, "frames", WIDTH)]
    path.write_bytes(graph.model("hark-head", inputs, [convert.value_info("opinions", 1, "frames", KINDS)]))
