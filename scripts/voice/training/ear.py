"""The detector's ear in numpy: a window as src/voice/detector.rs levels it."""

import numpy

BLOCK, FRAME = 1_600, 320


def dither(size):
    state, mask, out = 1, (1 << 64) - 1, numpy.empty(size, "float32")
    for i in range(size):
        state = (state * 6_364_136_223_846_793_005 + 1_442_695_040_888_963_407) & mask
        out[i] = 2 * ((state >> 40) / (1 << 24)) - 1
    return out * numpy.float32(3**0.5 * 10 ** (-50 / 20))


# Of the longest window that anybody asks for.
DITHER = dither(3 * 16_000)


def leveled(sound, size):
    blocks = [sound[i : i + BLOCK] for i in range(0, len(sound), BLOCK)]
    loudest = max(10 * numpy.log10(max(1e-12, numpy.mean(numpy.square(b, dtype="float64")))) for b in blocks)
    window = numpy.zeros(size, "float32")
    window[size - len(sound) :] = sound * 10 ** (numpy.clip(-16 - loudest, -12, 30) / 20)
    return numpy.clip(window + DITHER[:size], -1, 1).astype("float32")
