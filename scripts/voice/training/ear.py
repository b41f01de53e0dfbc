"""The detector's ear in numpy: windows as src/voice/detector.rs cuts and levels them, the phoneme model,
and the log ratio of each phrase as src/voice/lattice.rs finds it."""

import json
import pathlib

import numpy
import onnxruntime

WINDOW, HOP, FRAMES, MARGIN = 48_000, 16_000, 151, 25
BLOCK, FRAME = 1_600, 320
PHRASES = {
    "help": "h/ɦ ɛ l/ɫ p/pʰ",
    "help me": "h/ɦ ɛ l/ɫ p/pʰ | m i",
    "hilfe": "h/ɦ ɪ/i l/ɫ f ə/ɝ",
    "zu hilfe": "t/tʰ s u | h/ɦ ɪ/i l/ɫ f ə/ɝ",
}


def dither():
    state, mask, out = 1, (1 << 64) - 1, numpy.empty(WINDOW, "float32")
    for i in range(WINDOW):
        state = (state * 6_364_136_223_846_793_005 + 1_442_695_040_888_963_407) & mask
        out[i] = 2 * ((state >> 40) / (1 << 24)) - 1
    return out * numpy.float32(3**0.5 * 10 ** (-50 / 20))


DITHER = dither()


def leveled(sound):
    blocks = [sound[i : i + BLOCK] for i in range(0, len(sound), BLOCK)]
    loudest = max(10 * numpy.log10(max(1e-12, numpy.mean(numpy.square(b, dtype="float64")))) for b in blocks)
    window = numpy.zeros(WINDOW, "float32")
    window[WINDOW - len(sound) :] = sound * 10 ** (numpy.clip(-16 - loudest, -12, 30) / 20)
    return numpy.clip(window + DITHER, -1, 1).astype("float32")


def windows(sound):
    """(end in samples, frames at its end in which nothing is reported, window) as the detector takes them."""
    ragged = BLOCK - len(sound) % BLOCK
    sound = numpy.concatenate([sound, numpy.zeros(ragged + MARGIN * FRAME, "float32")])
    ends = [(end, MARGIN) for end in range(HOP, len(sound) + 1, HOP)] + [(len(sound), 0)]
    for end, margin in ends:
        yield end, margin, leveled(sound[max(0, end - WINDOW) : end])


class Ear:
    def __init__(self, models):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        models = pathlib.Path(models)
        self.session = onnxruntime.InferenceSession(str(models / "asr_waveform.onnx"), options)
        tokens = json.loads((models / "g2p_vocab.json").read_text())["decoder"] + ["<wb>", "<blank>"]
        self.numbers = {token: number for number, token in enumerate(tokens)}

    def hear(self, windows, outputs=("features",)):
        """Of a batch of windows: the features, half precision [n, 151, 144] each, and the log ratio of each phrase that
        ends at each frame [n, 151, 4]."""
        heard = [self.session.run(["log_probs", *outputs], {"waveform": window[None]}) for window in windows]
        ratio = numpy.concatenate([log_probs for log_probs, *_ in heard])
        ratio -= ratio.max(2, keepdims=True)
        features = [numpy.concatenate(column).astype("float16") for column in list(zip(*heard))[1:]]
        return *features, numpy.stack([self.fits(ratio, phonemes) for phonemes in PHRASES.values()], 2)

    def fits(self, ratio, phonemes):
        rows, gaps, blank = [], [], self.numbers["<blank>"]
        for written in phonemes.split():
            if written == "|":
                gaps[-1] = ratio[:, :, [blank, self.numbers["<wb>"]]].max(2)
                continue
            rows.append(ratio[:, :, [self.numbers[token] for token in written.split("/")]].max(2))
            gaps.append(ratio[:, :, blank])
        emitted = numpy.stack([state for pair in zip(rows, gaps) for state in pair][:-1], 2)
        windows, frames, states = emitted.shape
        best, start = numpy.full((windows, states), -1e9), numpy.zeros((windows, states))
        longest, out = max(50, 12 * len(rows)), numpy.full((windows, frames), -1e9, "float32")
        for frame in range(frames):
            into, begun = best.copy(), start.copy()
            # From the state before, and past the gap; of equal ways the one that began later.
            for step in (1, 2):
                target = slice(1, None) if step == 1 else slice(2, None, 2)
                origin = slice(None, -1) if step == 1 else slice(0, -2, 2)
                other, other_begun = best[:, origin], start[:, origin]
                better = (other > into[:, target]) | ((other == into[:, target]) & (other_begun > begun[:, target]))
                into[:, target] = numpy.where(better, other, into[:, target])
                begun[:, target] = numpy.where(better, other_begun, begun[:, target])
            into[:, 0], begun[:, 0] = 0, frame
            best, start = into + emitted[:, frame], begun
            out[:, frame] = numpy.where(frame + 1 - start[:, -1] <= longest, best[:, -1], -1e9)
        return numpy.maximum(out, -60).astype("float16")
