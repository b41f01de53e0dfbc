"""The held-out voices as sets to be measured with `hark detect --eval`: clean.csv; noisy.csv, the same with a second before
and half a second after in a room, over babble 10 dB below the voice; and alone.csv, near-homophones one word a clip."""

import csv

import numpy
import soundfile

import phrases
import rooms
import windows

COLUMNS = ["path", "label", "language", "phrase", "source_package"]


def group(row):
    confusable = row["label"] == "non-trigger" and row["text"] not in phrases.SENTENCES + phrases.SAETZE
    return "confusable" if confusable else row["phrase"]


def in_babble(rng, clip, talk):
    """`clip` with a second before and half a second after in a room, over babble 10 dB below the voice."""
    voice = rooms.trimmed(clip)
    sound = numpy.pad(voice, (windows.RATE, windows.RATE // 2)).astype("float32")
    level = numpy.std(voice)
    sound = rooms.in_room(rng, sound, rng.uniform(0.3, 1.0))
    sound = sound + rooms.noise(rng, len(sound), talk, 2) * level * 10 ** (-10 / 20)
    return 0.5 * sound / numpy.abs(sound).max()


def main(corpus):
    everything = list(csv.DictReader(open(corpus / "corpus.csv")))
    rows = [row for row in everything if row["part"] == "held_out"]
    alone = [row for row in everything if row["part"] == "held_out_alone"]
    alone = [[row["path"], row["label"], row["language"], "confusable", row["source_package"]] for row in alone]
    others = [corpus / row["path"] for row in rows if row["label"] == "non-trigger"]
    talk = windows.talk_of(others)
    (corpus / "noisy").mkdir(exist_ok=True)
    clean, noisy = [], []
    for number, row in enumerate(rows):
        rest = [row["label"], row["language"], group(row), row["source_package"]]
        clean.append([row["path"], *rest])
        path = corpus / "noisy" / row["path"].split("/")[-1].replace(".wav", ".flac")
        noisy.append([f"noisy/{path.name}", *rest])
        if path.exists():
            continue
        rng = numpy.random.default_rng([7, number])
        sound = in_babble(rng, windows.read(corpus / row["path"]), talk)
        soundfile.write(path, sound, windows.RATE, subtype="PCM_16")
    for name, lines in (("clean", clean), ("noisy", noisy), ("alone", alone)):
        with open(corpus / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *lines])
    print(f"sets: {len(rows)} clips each in clean.csv and noisy.csv, {len(alone)} in alone.csv")
