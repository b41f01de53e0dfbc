"""People: the prompts of a telephone exchange (Debian's asterisk-core-sounds-en-wav, CC-BY-SA-3.0, one speaker) and the
dialogue of the adventure games in Debian's beneath-a-steel-sky and drascula (their licences let everybody modify and pass
them on; some twenty actors in the first). Nothing of them is in the weights but what was learned from them.

All lines were written down by machine, as scripts/voice/human-set does it. help-by-people.txt holds those with "help" in
them, and where in seconds the unadapted model hears the word; - where it does not, and of "helpful": such a line is
neither a cry nor talk that is none."""

import pathlib
import struct

import numpy
import soundfile
from scipy.signal import resample_poly

RATE = 16_000
# What stands before is no speech.
FIRST_LINE = 50_000
HERE = pathlib.Path(__file__).parent
# (first, last second) of the word "help" in a clip, None where it is not known.
HELP = {
    name: tuple(map(float, when)) if when[0] != "-" else None
    for name, *when in map(str.split, (HERE / "help-by-people.txt").read_text().splitlines())
}
# Prompts that the development set holds: it is to stay apart.
DEVELOPMENT = set((HERE / "development-prompts.txt").read_text().split())


class Bits:
    """The bit stream of RNC ProPack: words of 16 bits, the lowest bit first, mixed with plain bytes."""

    def __init__(self, data, at):
        self.data, self.at, self.count = data + bytes(8), at, 16
        self.buffer = self.word()

    def word(self):
        return int.from_bytes(self.data[self.at : self.at + 2], "little")

    def take(self, count):
        value = self.buffer & (1 << count) - 1
        self.buffer >>= count
        self.count -= count
        if self.count < 16:
            self.at += 2
            self.buffer |= self.word() << self.count
            self.count += 16
        return value

    def plain(self, size):
        piece = self.data[self.at : self.at + size]
        self.at += size
        self.count -= 16
        self.buffer = self.buffer & (1 << self.count) - 1 | self.word() << self.count
        self.count += 16
        return piece

    def table(self):
        lengths = [self.take(4) for _ in range(self.take(5))]
        longest, code = max(lengths, default=0), 0
        table = [(0, 0)] * (1 << longest)
        for length in range(1, longest + 1):
            for symbol, own in enumerate(lengths):
                if own == length:
                    first = int(format(code, f"0{length}b")[::-1], 2)
                    table[first :: 1 << length] = [(length, symbol)] * len(table[first :: 1 << length])
                    code += 1
            code <<= 1
        return longest, table

    def value(self, coded):
        longest, table = coded
        length, symbol = table[self.buffer & (1 << longest) - 1]
        self.take(length)
        return symbol if symbol < 2 else 1 << symbol - 1 | self.take(symbol - 1)


def unpacked(data):
    """RNC ProPack, method 1: Huffman-coded copies of what came before, between plain bytes."""
    size, bits, out = int.from_bytes(data[4:8], "big"), Bits(data, 18), bytearray()
    bits.take(2)
    for _ in range(data[17]):
        plain, distance, length = bits.table(), bits.table(), bits.table()
        left = bits.take(16)
        while True:
            count = bits.value(plain)
            if count:
                out += bits.plain(count)
            left -= 1
            if left <= 0:
                break
            start = len(out) - bits.value(distance) - 1
            for at in range(start, start + bits.value(length) + 2):
                out.append(out[at])
    if len(out) != size:
        raise ValueError(f"{len(out)} bytes instead of {size}")
    return bytes(out)


def save(path, data):
    """Unsigned bytes at 11 kHz, as games of the time hold their speech."""
    sound = (numpy.frombuffer(data, "uint8").astype("float32") - 128) / 128
    if len(sound) >= 4_000:
        sound = numpy.clip(resample_poly(sound, 640, 441), -1, 1)
        soundfile.write(path, sound.astype("float32"), RATE, subtype="PCM_16")


def steel_sky(directory, out):
    index, data = (directory / "sky.dnr").read_bytes(), (directory / "sky.dsk").read_bytes()
    for at in range(4, len(index) - 7, 8):
        number = struct.unpack_from("<H", index, at)[0]
        path = out / f"sky-{number}.flac"
        if number < FIRST_LINE or path.exists():
            continue
        offset, size = (int.from_bytes(index[at + i : at + i + 3], "little") for i in (2, 5))
        offset = (offset & 0x7FFFFF) * (16 if offset >> 23 else 1)
        line = data[offset : offset + (size & 0x3FFFFF)][22:]
        save(path, unpacked(line) if line[:3] == b"RNC" else line)


def drascula(directory, out):
    for source in sorted(directory.glob("*.ALS")):
        path = out / f"drascula-{source.stem}.flac"
        if not source.is_symlink() and not path.exists():
            save(path, source.read_bytes())


def main(root, out):
    """Paths of all clips, cries and talk; `root` is where the packages were unpacked."""
    out.mkdir(parents=True, exist_ok=True)
    steel_sky(root / "usr/share/scummvm/beneath-a-steel-sky", out)
    drascula(root / "usr/share/scummvm/drascula/en", out)
    prompts = root / "usr/share/asterisk/sounds/en_US_f_Allison"
    for path in sorted(prompts.rglob("*.wav")):
        if path.stem in DEVELOPMENT:
            continue
        target = out / ("ast-" + "-".join(path.relative_to(prompts).with_suffix(".flac").parts))
        if "help" in path.stem or target.exists():
            continue
        sound, rate = soundfile.read(path, dtype="float32")
        divisor = numpy.gcd(RATE, rate)
        sound = resample_poly(sound, RATE // divisor, rate // divisor).astype("float32")
        soundfile.write(target, numpy.clip(sound, -1, 1), RATE, subtype="PCM_16")
    clips = sorted(out.glob("*.flac"))
    return [path for path in clips if HELP.get(path.stem)], [path for path in clips if path.stem not in HELP]
