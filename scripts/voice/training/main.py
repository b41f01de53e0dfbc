"""The stages of scripts/voice/train, one after the other; each says what it does and how long it took."""

import pathlib
import sys
import time

import numpy


def main():
    build, models = (pathlib.Path(argument) for argument in sys.argv[1:3])
    started = time.monotonic()

    def stage(name):
        print(f"train: {name}, {(time.monotonic() - started) / 60:.0f} min after the start", flush=True)

    import hear
    import people
    import sets
    import speak

    stage("people (a minute)")
    clips = people.main(build / "debian", build / "people")
    stage("speak (25 minutes of one core)")
    speak.main(build / "packages", build)
    sets.main(build)
    stage("hear (5 minutes)")
    hear.main(models, build, clips)
    parts = [numpy.load(path) for path in sorted((build / "heard").glob("*-*.npz"))]
    features, ratio, meta = (numpy.concatenate([part[key] for part in parts]) for key in ("features", "ratio", "meta"))
    # The head is fitted on the first clips, what it counts on the others.
    aside = int(0.85 * len(meta))
    stage(f"fit the head on {aside} windows (5 minutes)")
    import compare
    import ear
    import fuse
    import head

    weights = head.fit(features[:aside], meta[:aside])
    head.export(build / "head.onnx", *weights)
    opinion = head.opinions(*weights, features[aside:])
    for kind in fuse.KINDS:
        fuse.fit(ratio[aside:], opinion, meta[aside:], kind)
    stage("compare on held-out voices (3 minutes)")
    compare.main(build, ear.Ear(models), weights)
    stage("done")


if __name__ == "__main__":
    main()
