"""What happens to a voice on its way to a microphone: effort, room, distance, noise, a narrow band.

Everything takes and gives float32 at 16 kHz, and draws from the generator that it is handed."""

import numpy
from scipy.signal import butter, fftconvolve, lfilter, sosfilt

RATE = 16_000


def trimmed(sound):
    loud = numpy.flatnonzero(numpy.abs(sound) > 0.02 * numpy.abs(sound).max())
    return sound[max(0, loud[0] - 200) : loud[-1] + 200] if len(loud) else sound


def resampled(sound, factor):
    """Faster and higher by `factor`: an older or younger voice."""
    at = numpy.arange(0, len(sound), factor)
    return numpy.interp(at, numpy.arange(len(sound)), sound).astype("float32")


def whispered(rng, sound):
    """Noise through the same vocal tract: linear prediction, its residual replaced, 20 ms at a time."""
    size, out = 640, numpy.zeros(len(sound) + 640, "float32")
    window = numpy.hanning(size)
    for start in range(0, len(sound) - size, size // 2):
        piece = sound[start : start + size] * window
        power = numpy.correlate(piece, piece, "full")[size - 1 : size + 17]
        if power[0] < 1e-5:
            continue
        power[0] *= 1.001
        matrix = power[numpy.abs(numpy.subtract.outer(range(16), range(16)))]
        tract = numpy.linalg.solve(matrix, power[1:17])
        noise = lfilter([1.0], [1.0, *-tract], rng.standard_normal(size)) * window
        out[start : start + size] += noise * numpy.sqrt(power[0] / (noise @ noise + 1e-9))
    return sosfilt(butter(2, 400, "high", fs=RATE, output="sos"), out[: len(sound)]).astype("float32")


def shouted(rng, sound):
    """As somebody calls across a house: the pitch up to an octave above, vowels longer, louder and brighter than the consonants around
    them, the first formant raised (Rostolland 1982), and over the limit of the microphone. By the vocoder WORLD (Morise et al. 2016)."""
    # Only where it is needed: scripts/voice/noisy-set does without.
    import pyworld

    sound = sound.astype("float64")
    pitch, at = pyworld.dio(sound, RATE)
    pitch = pyworld.stonemask(sound, pitch, at, RATE)
    envelope, noise = pyworld.cheaptrick(sound, pitch, at, RATE), pyworld.d4c(sound, pitch, at, RATE)
    voiced = pitch > 0
    if not voiced.any():
        return sound.astype("float32")
    raised = rng.uniform(1.1, 1.9)
    pitch = pitch * min(raised, max(1.0, 600 / numpy.median(pitch[voiced])))
    # The first formant up by as much as a seventh, what lies above 3 kHz as it was.
    frequency = numpy.linspace(0, RATE / 2, envelope.shape[1])
    warp = 1 + rng.uniform(0, 0.15) * numpy.clip(1 - frequency / 3_000, 0, 1)
    vowels = numpy.stack([numpy.interp(frequency / warp, frequency, row) for row in envelope[voiced]])
    bright = numpy.clip(numpy.log2(numpy.maximum(frequency, 1) / 500), 0, 3) * rng.uniform(0, 3)
    envelope[voiced] = vowels * 10 ** ((bright + rng.uniform(0, 6)) / 10)
    # A frame of a vowel stands for up to one and a half.
    length = numpy.where(voiced, rng.uniform(0.9, 1.5), 1.0)
    steps = numpy.interp(numpy.arange(0, length.sum(), 1.0), numpy.cumsum(length) - length, numpy.arange(len(length)))
    steps = numpy.minimum(steps.round().astype(int), len(length) - 1)
    pitch, envelope, noise = (numpy.ascontiguousarray(part[steps]) for part in (pitch, envelope, noise))
    sound = pyworld.synthesize(pitch, envelope, noise, RATE)
    return numpy.tanh(rng.uniform(0.5, 3) * sound / (numpy.abs(sound).max() + 1e-9)).astype("float32")


def in_room(rng, sound, far=None):
    """Convolved with a decay of noise: 0.15 to 0.8 s, the voice near, or far and mostly its echo."""
    decay = rng.uniform(0.15, 0.8)
    size = int(decay * RATE)
    echo = rng.standard_normal(size) * numpy.exp(-6.9 * numpy.arange(size) / size)
    echo[: rng.integers(20, 90)] = 0
    echo *= (far or rng.uniform(0.2, 1.6)) / numpy.sqrt(echo @ echo)
    echo[0] = 1
    return fftconvolve(sound, echo)[: len(sound)].astype("float32")


def noise(rng, size, talk, kind=None):
    """Of a room, the kitchen, a television or many people: `talk` is other people's speech."""
    kind = rng.integers(6) if kind is None else kind
    time = numpy.arange(size) / RATE
    if kind == 0:
        out = rng.standard_normal(size)
    elif kind == 1:  # pink: traffic, wind
        spectrum = numpy.fft.rfft(rng.standard_normal(size))
        out = numpy.fft.irfft(spectrum / numpy.sqrt(numpy.maximum(1, numpy.arange(len(spectrum)))), size)
    elif kind == 2:  # babble
        out = sum(excerpt(rng, size, talk) for _ in range(5))
    elif kind == 3:  # a fridge, an extractor hood
        base = rng.choice([50, 60, 100, 120])
        out = sum(numpy.sin(2 * numpy.pi * base * k * time + 6 * rng.random()) / k for k in range(1, 8))
        out = out + 0.5 * rng.standard_normal(size)
    elif kind == 4:  # a television: one voice over something like music
        tune = sum(numpy.sin(2 * numpy.pi * 110 * 2 ** (rng.integers(36) / 12) * time) for _ in range(4))
        beat = 0.5 + 0.5 * numpy.sin(2 * numpy.pi * rng.uniform(1, 3) * time)
        out = excerpt(rng, size, talk) / 0.1 + rng.uniform(0.2, 1) * tune * beat
    else:  # dishes: short ringing blows
        out = 0.02 * rng.standard_normal(size)
        for _ in range(rng.integers(2, 8)):
            at = rng.integers(size)
            ring = time[: size - at]
            blow = numpy.sin(2 * numpy.pi * rng.uniform(1_500, 6_000) * ring) * numpy.exp(-ring * rng.uniform(15, 60))
            out[at:] += rng.uniform(0.3, 1) * blow
    return (out / (numpy.std(out) + 1e-9)).astype("float32")


def excerpt(rng, size, talk):
    start = rng.integers(len(talk) - size)
    piece = talk[start : start + size]
    return 0.1 * piece / (numpy.std(piece) + 1e-4)


def narrow(rng, sound):
    """A telephone, or a cheap microphone."""
    low = 300 if rng.random() < 0.5 else 60
    sos = butter(6, [low, rng.uniform(3_400, 6_500)], "band", fs=RATE, output="sos")
    return sosfilt(sos, sound).astype("float32")


def spoken(rng, clip):
    """The clip by another throat: size, effort."""
    sound = trimmed(clip)
    if rng.random() < 0.5:
        sound = resampled(sound, rng.uniform(0.87, 1.13))
    effort = rng.random()
    if effort < 0.07:
        return whispered(rng, sound)
    return shouted(rng, sound) if effort < 0.2 else sound


def disturbed(rng, sound, voice, talk):
    """`sound`, in which somebody speaks during the slice `voice`, as a microphone in a lively home gets it."""
    level = numpy.std(sound[voice]) + 1e-6
    if rng.random() < 0.6:
        sound = in_room(rng, sound, rng.uniform(0.2, 1.3))
    kind = 2 if rng.random() < 0.4 else None
    sound = sound + noise(rng, len(sound), talk, kind) * level * 10 ** (-rng.uniform(4, 20) / 20)
    if rng.random() < 0.25:
        sound = narrow(rng, sound)
    return sound.astype("float32")
