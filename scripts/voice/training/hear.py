"""The clips of the corpus and recordings of people who do not cry for help, as the detector's ear hears them: one
window of 3 s an example, its features, its lattice ratios, and the frames in which the phrase is said.

A part at a time into DIR/heard/, each from a seed of its own: what exists already is not done again."""

import csv
import random

import numpy
import soundfile

import ear
import phrases
import rooms

RATE, PART = 16_000, 400
# Copies of a clip, each by another throat in another room.
COPIES = {"espeak": 2, "pico": 6, "kokoro": 5}
# Phrases with something said after the keyphrase; of all others the end of the clip is its end.
GOES_ON = {"help_fallen", "hilfe_gefallen", "help_me_please"}


def read(path):
    return soundfile.read(path, dtype="float32")[0]


def talk_of(paths, seconds=600):
    """Other people's speech in one piece, for babble and television."""
    pieces, size = [], 0
    for path in paths:
        piece = read(path)
        pieces.append(piece / (numpy.std(piece) + 1e-4) * 0.1)
        size += len(piece)
        if size > seconds * RATE:
            break
    return numpy.concatenate(pieces)


def scene(rng, clip, phrase, talk):
    """(window, first frame, last frame): 3 s in which the clip is spoken, with or without other talk around."""
    sound = rooms.spoken(rng, clip)
    longest = int(2.5 * RATE)
    if len(sound) > longest:
        if not phrase:
            start = rng.integers(len(sound) - longest)
            sound = sound[start : start + longest]
        else:
            sound = sound[:longest] if phrase in GOES_ON else sound[-longest:]
    end = int(rng.uniform(min(2.6 * RATE, max(len(sound), 0.9 * RATE)), 2.7 * RATE))
    start = max(0, end - len(sound))
    window = numpy.zeros(ear.WINDOW, "float32")
    window[start:end] = sound[-(end - start) :]
    level = numpy.std(sound) + 1e-6
    gap = int(rng.uniform(0.05, 0.4) * RATE)
    if rng.random() < 0.45 and start > gap + 4_000:
        window[: start - gap] = level * 10 * rng.uniform(0.5, 1.4) * rooms.excerpt(rng, start - gap, talk)
    if rng.random() < 0.35 and ear.WINDOW - end > gap + 4_000:
        size = ear.WINDOW - end - gap
        window[end + gap :] = level * 10 * rng.uniform(0.5, 1.4) * rooms.excerpt(rng, size, talk)
    heard = rooms.heard(rng, window, slice(start, end), talk)
    return ear.leveled(heard), start // ear.FRAME, min(ear.FRAMES - 1, end // ear.FRAME)


def examples(corpus, people, seed, rounds):
    """(key, label 0 other 1 help 2 hilfe, window, first frame, last frame) without end of what there is once."""
    rows = [row for row in csv.DictReader(open(corpus / "corpus.csv")) if row["part"] == "train"]
    others = [corpus / row["path"] for row in rows if row["label"] == "non-trigger"]
    random.Random(seed).shuffle(others)
    talk = talk_of(others[:150] + people[: len(people) // 8], 900)
    clips = [(path, 0, None, 1) for path in people]
    for row in rows:
        trigger = row["label"] == "trigger"
        label = (1 if row["language"] == "en" else 2) if trigger else 0
        copies = COPIES[row["source_package"]] if trigger else rounds
        clips.append((corpus / row["path"], label, row["phrase"], copies))
    random.Random(seed + 1).shuffle(clips)
    # All copies of a clip stand together: whoever takes the last part aside has other clips there.
    jobs = [clip for clip in clips for _ in range(clip[3])]
    for number, (path, label, phrase, _) in enumerate(jobs):
        rng = numpy.random.default_rng([seed, number])
        clip = read(path)
        if len(clip) < RATE // 10 or not numpy.abs(clip).max() > 1e-3:
            continue
        if phrase is None:
            # People as they were recorded, every second window; half of them in another room.
            for index, (_, _, window) in enumerate(ear.windows(clip)):
                if index % 2 == 0:
                    if rng.random() < 0.5:
                        window = ear.leveled(rooms.heard(rng, window, slice(None), talk))
                    yield label, window, 0, ear.FRAMES - 1
        else:
            yield label, *scene(rng, clip, phrase, talk)


def main(models, corpus, people, seed=11, rounds=1, outputs=("features",)):
    heard = corpus / "heard"
    heard.mkdir(exist_ok=True)
    device, batch, part = ear.Ear(models), [], 0

    def finish():
        nonlocal batch, part
        path = heard / f"{seed}-{part:04}.npz"
        if not path.exists():
            *features, ratio = device.hear([window for _, window, _, _ in batch], outputs)
            meta = numpy.array([[label, first, last] for label, _, first, last in batch])
            scratch = heard / "unfinished.npz"
            numpy.savez(scratch, meta=meta, ratio=ratio, **dict(zip(outputs, features)))
            scratch.rename(path)
            print(f"hear: {path.name}", flush=True)
        batch, part = [], part + 1

    for example in examples(corpus, people, seed, rounds):
        batch.append(example)
        if len(batch) == PART:
            finish()
    if batch:
        finish()
