"""How much the head's opinion and the lattice's count against each other: a logistic regression for each kind of
phrase, on examples that the head was not fitted on."""

import numpy
from sklearn.linear_model import LogisticRegression

import head

# Numbers of ear.PHRASES by kind, and the phonemes of each.
KINDS = {1: ((0, 4), (1, 6)), 2: ((2, 5), (3, 8))}
LOWEST = -5.0


def steps(ratio, number, phonemes):
    """The lattice's evidence: log ratio a step, as the score was before there was a head."""
    return numpy.maximum(ratio[:, :, number].astype("float32") / (2 * (phonemes - 1)), LOWEST)


def near(opinion, before=head.BEFORE, after=head.AFTER):
    """The largest opinion from `before` frames before each frame to `after` after it."""
    padded = numpy.pad(opinion, ((0, 0), (before, after)), constant_values=-20)
    return numpy.max([padded[:, i : i + opinion.shape[1]] for i in range(before + after + 1)], 0)


def evidence(ratio, opinion, kind):
    """[n, 151, 2] for each phrase of the kind: the lattice's, and the head's, which is the same for both."""
    heard = numpy.clip(near(opinion[:, :, kind - 1]), -8, 8)
    return [numpy.stack([steps(ratio, *phrase), heard], 2) for phrase in KINDS[kind]]


def fused(pair, weights):
    lattice, opinion, constant = weights
    return lattice * pair[..., 0] + opinion * pair[..., 1] + constant


def fit(ratio, opinion, meta, kind, report=print):
    label, first, last = meta.T
    mine, other = label == kind, label != kind
    frame = numpy.arange(ratio.shape[1])[None]
    inside = numpy.where(mine[:, None], (frame >= first[:, None] + 5) & (frame <= last[:, None] + 10), True)
    inside[:, -10:] = False
    weights = (2.0, 0.7, 2.0)
    both = numpy.concatenate(evidence(ratio, opinion, kind), 1)
    inside = numpy.concatenate([inside] * len(KINDS[kind]), 1)
    for _ in range(4):
        best = numpy.where(inside, fused(both, weights), -1e9).argmax(1)
        chosen = both[numpy.arange(len(both)), best]
        model = LogisticRegression(C=100.0).fit(chosen, mine, numpy.where(other, 1.0, other.sum() / mine.sum()))
        weights = (*model.coef_[0], model.intercept_[0])
    score = fused(chosen, weights)
    report(f"fuse: kind {kind}: lattice {weights[0]:.3f}, head {weights[1]:.3f}, constant {weights[2]:.3f}")
    for level in (0.001, 0.003, 0.01):
        at = numpy.quantile(score[other], 1 - level)
        report(f"fuse: {level:.1%} of other windows taken, found {numpy.mean(score[mine] > at):.1%}")
    return tuple(float(w) for w in weights)
