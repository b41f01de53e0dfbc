"""What the adaptation is fitted on: windows of 2.5 s, half of them disturbed by a room and noise.

Of each window there is kept what the front of the network makes of it as it is heard (`front`), what the whole of it
hears in it undisturbed (`heard`, log probabilities), and of what kind it is (`meta`: 0 other talk, 1 help, 2 Hilfe; first and last
frame of the clip; 0 a person, 1 a synthetic voice). A part at a time into DIR/windows/, each window from a seed
of its own: what exists already is not done again."""

import csv
import random

import numpy
import onnxruntime
import soundfile

import ear
import rooms
from people import HELP

RATE, PART, SECONDS = 16_000, 200, 2.5
SIZE = int(SECONDS * RATE)
FRAMES = SIZE // ear.FRAME + 1
# Blocks of the network that stay as they are.
FRONT = 1
# Copies of a clip, each by another throat in another room: (of a phrase, of other talk).
COPIES = {"espeak": (1, 1), "pico": (2, 2), "mixed": (4, 3)}
# And of one that is said alone.
COPIES_ALONE = {"espeak": 1, "pico": 2, "mixed": 3}
# And of a line in which a person says "help".
HUMAN_COPIES = 40
# How many of a group's windows are in a room with noise. Words alone stand in silence more often: they are heard otherwise there.
DISTURBED = {"people": 0.65, "cries": 0.6, "synth": 0.6, "mixed": 0.6, "alone": 0.3}
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


def spoken_somewhere(rng, clip, phrase, talk):
    """(window, first, last sample of the clip), with or without other talk before and after it."""
    sound, longest = rooms.spoken(rng, clip), int((SECONDS - 0.4) * RATE)
    if len(sound) > longest:
        if not phrase:
            start = rng.integers(len(sound) - longest)
            sound = sound[start : start + longest]
        else:
            sound = sound[:longest] if phrase in GOES_ON else sound[-longest:]
    latest = (SECONDS - 0.3) * RATE
    end = int(rng.uniform(min(latest, len(sound) + 800), (SECONDS - 0.2) * RATE))
    start = max(0, end - len(sound))
    window = numpy.zeros(SIZE, "float32")
    window[start:end] = sound[-(end - start) :]
    level, gap = numpy.std(sound) + 1e-6, int(rng.uniform(0.05, 0.4) * RATE)
    if rng.random() < 0.3 and start > gap + 4_000:
        window[: start - gap] = level * 10 * rng.uniform(0.5, 1.4) * rooms.excerpt(rng, start - gap, talk)
    if rng.random() < 0.25 and SIZE - end > gap + 4_000:
        size = SIZE - end - gap
        window[end + gap :] = level * 10 * rng.uniform(0.5, 1.4) * rooms.excerpt(rng, size, talk)
    return window, start, end


def line_around(rng, clip, when):
    """(window, first, last sample of the word in it): a line in which a person says "help", as that person or another throat
    says it, cut so that the word is heard to its end and a little further."""
    first, last = (int(second * RATE) for second in when)
    before, after = (clip[:first], clip[last:]) if rng.random() < 0.7 else (clip[:0], clip[last : last + 1_600])
    word, rest = clip[max(0, first - 800) : last + 800], after[800:]
    before, changed = before[: max(0, len(before) - 800)], rng.random()
    if changed < 0.5:
        factor = rng.uniform(0.87, 1.13)
        before, word, rest = (rooms.resampled(piece, factor) if len(piece) else piece for piece in (before, word, rest))
    if changed > 0.75:
        word = rooms.shouted(rng, word)
    latest = SIZE - int(rng.uniform(0.2, 0.5) * RATE)
    end = int(rng.uniform(min(latest, len(word)), latest))
    window = numpy.zeros(SIZE, "float32")
    start = max(0, end - len(word))
    window[start:end] = word[-(end - start) :]
    early, late = min(len(before), start), min(len(rest), SIZE - end)
    window[start - early : start], window[end : end + late] = before[len(before) - early :], rest[:late]
    return window, start, end


def somewhere_in(rng, clip):
    """A window of somebody's talk, or all of it somewhere in a window."""
    if len(clip) > SIZE:
        start = rng.integers(len(clip) - SIZE + 1)
        return clip[start : start + SIZE]
    window = numpy.zeros(SIZE, "float32")
    start = rng.integers(SIZE - len(clip) + 1)
    window[start : start + len(clip)] = clip
    return window


def jobs(group, corpus, cries, people):
    """(path or "noise", label, phrase or None) of each window."""
    if group == "cries":
        out = [(path, 1, None) for path in cries for _ in range(HUMAN_COPIES)]
    elif group == "people":
        out = [(path, 0, None) for path in people for _ in range(2)] + [("noise", 0, None)] * 150
    else:
        rows = list(csv.DictReader(open(corpus / "corpus.csv")))
        if group == "alone":
            rows = [row for row in rows if row["part"] == "train_alone"]
        else:
            rows = [row for row in rows if row["part"] == "train" and (row["source_package"] == "mixed") == (group == "mixed")]
        out = []
        for row in rows:
            label, engine = 0 if row["label"] != "trigger" else 1 if row["language"] == "en" else 2, row["source_package"]
            copies = COPIES_ALONE[engine] if group == "alone" else COPIES[engine][label == 0]
            out += [(corpus / row["path"], label, row["phrase"])] * copies
    random.Random(3).shuffle(out)
    return out


def example(rng, path, label, phrase, often, talk):
    """(window undisturbed, as it is heard, meta), None where there is nothing to be heard; `often`: how often it is disturbed."""
    if path == "noise":
        window = 0.1 * rooms.noise(rng, SIZE, talk)
        return window, window, (label, 0, FRAMES - 1, 2)
    clip = read(path)
    if len(clip) < RATE // 10 or not numpy.abs(clip).max() > 1e-3:
        return None
    if phrase is None and label:
        (window, start, end), kind = line_around(rng, clip, HELP[path.stem]), 0
    elif phrase is None:
        if rng.random() < 0.25:
            clip = rooms.shouted(rng, clip[: 4 * RATE])
        window, start, end, kind = somewhere_in(rng, clip), 0, SIZE, 0
        if numpy.std(window) < 1e-3:
            return None
    else:
        (window, start, end), kind = spoken_somewhere(rng, clip, phrase, talk), 1
    heard = window
    if rng.random() < often:
        heard = rooms.disturbed(rng, window, slice(start, end) if label or kind else slice(None), talk)
    return window, heard, (label, start // ear.FRAME, min(FRAMES - 1, end // ear.FRAME), kind)


def main(front, corpus, cries, people):
    out = corpus / "windows"
    out.mkdir(exist_ok=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session, talk = onnxruntime.InferenceSession(str(front), options), talk_of(people[::9])
    for group in DISTURBED:
        todo = jobs(group, corpus, cries, people)
        for part in range((len(todo) + PART - 1) // PART):
            path, columns = out / f"{group}-{part:03}.npz", ([], [], [])
            if path.exists():
                continue
            for number in range(part * PART, min(len(todo), (part + 1) * PART)):
                made = example(numpy.random.default_rng([21, len(group), number]), *todo[number], DISTURBED[group], talk)
                if made is None:
                    continue
                window, heard, meta = made
                run = lambda sound: session.run(None, {"waveform": ear.leveled(sound, SIZE)[None]})  # noqa: E731
                expected, features = run(heard)
                if heard is not window:
                    expected, _ = run(window)
                for column, value in zip(columns, (features[0], numpy.maximum(expected[0], -20), meta)):
                    column.append(value)
            front_, heard_ = (numpy.stack(column).astype("float16") for column in columns[:2])
            scratch = out / "unfinished.npz"
            numpy.savez(scratch, front=front_, heard=heard_, meta=numpy.array(columns[2]))
            scratch.rename(path)
            print(f"windows: {path.name}", flush=True)


def load(corpus, group):
    parts = [numpy.load(path) for path in sorted((corpus / "windows").glob(f"{group}-*.npz"))]
    return [numpy.concatenate([part[key] for part in parts]) for key in ("front", "heard", "meta")]
