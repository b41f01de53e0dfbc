"""The stages of scripts/voice/train, one after the other; each says what it does and how long it took."""

import pathlib
import sys
import time


def main():
    repository, build, model, out = (pathlib.Path(argument) for argument in sys.argv[1:5])
    started = time.monotonic()

    def stage(name):
        print(f"train: {name}, {(time.monotonic() - started) / 60:.0f} min after the start", flush=True)

    import people
    import sets
    import speak
    import windows

    stage("people (a minute)")
    cries, talk = people.main(build / "debian", build / "people")
    stage("speak (55 minutes of one core)")
    speak.main(build / "packages", build)
    sets.main(build)
    stage("windows (12 minutes)")
    windows.main(model / "front.onnx", build, cries, talk)
    stage("adapt (23 minutes of two cores)")
    import adapt

    adapt.main(repository, model / "asr_waveform.hama", model / "g2p_vocab.json", build, out)
    stage("done")


if __name__ == "__main__":
    main()
