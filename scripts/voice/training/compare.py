"""What the head would change on voices that it was not trained on: found by the lattice alone and with the head's
opinion, each at thresholds that let through equally much of what is not a phrase."""

import csv

import numpy

import ear
import fuse
import head
import hear


def best_of_clips(corpus, name, device, weights):
    """For each clip: (trigger, language, best score of the lattice, best opinion-weighted scores)."""
    rows = list(csv.DictReader(open(corpus / f"{name}.csv")))
    shares = (0.0, 0.03, 0.1, 0.3)
    out = numpy.full((len(rows), len(shares)), -99.0)
    for number, row in enumerate(rows):
        windows = list(ear.windows(hear.read(corpus / row["path"])))
        features, ratio = device.hear([window for _, _, window in windows])
        opinion = head.opinions(*weights, features)
        allowed = numpy.arange(ear.FRAMES)[None] + numpy.array([margin for _, margin, _ in windows])[:, None] < ear.FRAMES
        for column, share in enumerate(shares):
            pairs = (pair for kind in fuse.KINDS for pair in fuse.evidence(ratio, opinion, kind))
            score = numpy.max([pair[..., 0] + share * pair[..., 1] for pair in pairs], 0)
            out[number, column] = numpy.where(allowed, score, -99).max()
    return rows, shares, out


def main(corpus, device, weights):
    for name in ("clean", "noisy"):
        rows, shares, score = best_of_clips(corpus, name, device, weights)
        trigger = numpy.array([row["label"] == "trigger" for row in rows])
        print(f"| {name}: share of the head | " + " | ".join(f"found at {n} false" for n in (5, 10, 20, 40)) + " |")
        print("|---|---|---|---|---|")
        for column, share in enumerate(shares):
            wrong = numpy.sort(score[~trigger, column])[::-1]
            found = [numpy.mean(score[trigger, column] > wrong[n]) for n in (5, 10, 20, 40)]
            print(f"| {share} | " + " | ".join(f"{rate:.0%}" for rate in found) + f" | of {trigger.sum()}, {(~trigger).sum()} others")
