"""The phoneme recogniser in JAX, as scripts/voice/convert-model writes it down, and the lattice of src/voice/lattice.rs so that
both can be differentiated.

What is learned is a small change of the weights of the last blocks: of each matrix the product of two narrow ones (low rank
adaptation, Hu et al. 2021), of each row of numbers (biases, scales) and of the output layer another of the same size."""

import importlib.machinery
import importlib.util
import json
import pathlib
import re
import struct

import jax
import jax.numpy as jnp
import numpy

PREFIX = "acoustic_model.model."
BLOCKS, HEADS, WIDTH, TOKENS = 4, 4, 144, 191


def converter(repository):
    """scripts/voice/convert-model as a module."""
    loader = importlib.machinery.SourceFileLoader("convert_model", str(repository / "scripts/voice/convert-model"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("convert_model", loader))
    loader.exec_module(module)
    return module


def read(repository, path):
    table = converter(repository).read_package(pathlib.Path(path).read_bytes())
    return {name: numpy.array(values, "float32").reshape(shape) for name, (shape, values) in table.items()}


def numbers(vocabulary):
    tokens = json.loads(pathlib.Path(vocabulary).read_text())["decoder"] + ["<wb>", "<blank>"]
    return {token: number for number, token in enumerate(tokens)}


# --- what is learned ------------------------------------------------------------------------------


def matrices(block):
    """The names of a block's matrices."""
    products = [f"onnx::MatMul_{829 + 9 * block + step}" for step in (0, 1, 2, 6, 7, 8)]
    return products + [f"{PREFIX}blocks.{block}.conv.pointwise{half}.weight" for half in (1, 2)]


def start(weights, first, rank, seed=1):
    """No change yet, of the blocks from `first` on."""
    chance, low, direct = numpy.random.default_rng(seed), {}, {}
    for name in [name for block in range(BLOCKS) for name in matrices(block)]:
        rows, columns = weights[name].shape[:2]
        narrow = jnp.array(chance.standard_normal((rows, rank)) / numpy.sqrt(rows), "float32")
        if name in [name for block in range(first, BLOCKS) for name in matrices(block)]:
            low[name] = (narrow, jnp.zeros((rank, columns), "float32"))
    for name, value in weights.items():
        block = re.search(r"blocks\.(\d)", name)
        late = int(block[1]) >= first if block else re.match(rf"{PREFIX}proj|onnx::Conv_8(0[4-9]|1\d)", name)
        if name.startswith("onnx::Conv_8") and late:
            late = (int(name.split("_")[1]) - 804) // 3 >= first
        if late and (value.ndim < 2 or "proj" in name and "attn" not in name):
            direct[name] = jnp.zeros(value.shape, "float32")
    return {"low": low, "direct": direct}


def changed(weights, change):
    weights = dict(weights)
    for name, (left, right) in change["low"].items():
        weights[name] = weights[name] + (left @ right).reshape(weights[name].shape)
    for name, value in change["direct"].items():
        weights[name] = weights[name] + value
    return weights


def write(path, change):
    """As a table of half precision that convert-model reads."""
    tensors = {f"low/{name}/{part}": value for name, pair in change["low"].items() for part, value in enumerate(pair)}
    tensors |= {f"direct/{name}": value for name, value in change["direct"].items()}
    table, data = b"HAMAPK\x01\x02" + struct.pack("<I", len(tensors)), b""
    for name, value in sorted(tensors.items()):
        raw = numpy.asarray(value, "<f2").tobytes()
        table += struct.pack("<H", len(name)) + name.encode() + bytes([1, value.ndim])
        table += struct.pack(f"<{value.ndim}I", *value.shape) + struct.pack("<QQ", len(data), len(raw))
        data += raw
    path.write_bytes(table + data)


# --- the network ----------------------------------------------------------------------------------


def norm(x, weights, prefix):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * weights[prefix + ".weight"] + weights[prefix + ".bias"]


def swish(x):
    return x * jax.nn.sigmoid(x)


def log_probs(weights, x, first):
    """[n, frames, 144], what the block before `first` says -> [n, frames, 191]."""
    for block in range(first, BLOCKS):
        prefix = f"{PREFIX}blocks.{block}."
        products = matrices(block)

        def feed_forward(x, name, inner, outer):
            y = swish(norm(x, weights, f"{name}.norm") @ weights[inner] + weights[f"{name}.fc1.bias"])
            return y @ weights[outer] + weights[f"{name}.fc2.bias"]

        x = x + 0.5 * feed_forward(x, prefix + "ffn1", *products[0:2])
        y = norm(x, weights, prefix + "attn_norm") @ weights[products[2]] + weights[prefix + "attn.in_proj_bias"]
        query, key, value = (part.reshape(*x.shape[:2], HEADS, -1) for part in jnp.split(y, 3, -1))
        score = jnp.einsum("bqhd,bkhd->bhqk", query, key) * (WIDTH // HEADS) ** -0.5
        y = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(score, -1), value).reshape(x.shape)
        x = x + y @ weights[products[3]] + weights[prefix + "attn.out_proj.bias"]
        y = norm(x, weights, prefix + "conv.norm") @ weights[products[6]][:, :, 0].T
        y, gate = jnp.split(y + weights[prefix + "conv.pointwise1.bias"], 2, -1)
        y = jnp.pad(y * jax.nn.sigmoid(gate), ((0, 0), (15, 15), (0, 0)))
        taps, bias = (weights[f"onnx::Conv_{804 + 3 * block + step}"] for step in (0, 1))
        y = swish(sum(y[:, tap : tap + x.shape[1]] * taps[:, 0, tap] for tap in range(31)) + bias)
        x = x + y @ weights[products[7]][:, :, 0].T + weights[prefix + "conv.pointwise2.bias"]
        x = norm(x + 0.5 * feed_forward(x, prefix + "ffn2", *products[4:6]), weights, prefix + "norm")
    x = x @ weights[PREFIX + "proj.weight"][:, :, 0].T + weights[PREFIX + "proj.bias"]
    return jax.nn.log_softmax(x, -1)


# --- the lattice ----------------------------------------------------------------------------------


def states(known, phonemes):
    """The tokens of each state of the chain: phonemes and the gaps between them."""
    out = []
    for written in phonemes.split():
        if written == "|":
            out[-1] = [known["<blank>"], known["<wb>"]]
        else:
            out += [[known[token] for token in written.split("/")], [known["<blank>"]]]
    return out[:-1]


def fits(log_probs, chain, longest):
    """[n, frames, tokens] -> the best log ratio of the phrase that ends at each frame, [n, frames]."""
    ratio = log_probs - log_probs.max(-1, keepdims=True)
    emitted = jnp.stack([ratio[:, :, jnp.array(tokens)].max(-1) for tokens in chain], -1)
    windows, _, count = emitted.shape
    even = jnp.arange(count) % 2 == 0

    def back(x, by, empty):
        return jnp.concatenate([jnp.full((windows, by), empty), x[:, :-by]], 1)

    def step(before, now):
        best, begun, frame = before
        into, since = best, begun
        for by, allowed in ((1, True), (2, even)):
            other = jnp.where(allowed, back(best, by, -1e9), -1e9)
            better = other > into
            into, since = jnp.where(better, other, into), jnp.where(better, back(begun, by, 0.0), since)
        into, since = into.at[:, 0].set(0.0), since.at[:, 0].set(frame)
        best = into + now
        end = jnp.where(frame + 1 - since[:, -1] <= longest, best[:, -1], -60.0)
        return (best, since, frame + 1), jnp.maximum(end, -60.0)

    nothing = (jnp.full((windows, count), -1e9), jnp.zeros((windows, count)), jnp.float32(0))
    return jax.lax.scan(step, nothing, emitted.transpose(1, 0, 2))[1].T
