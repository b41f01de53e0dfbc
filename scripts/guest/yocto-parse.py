#!/usr/bin/env python3
"""Has bitbake parse the Yocto layers and run what needs no compiler. Called by scripts/yocto-lint.

bitbake itself is real; OpenEmbedded's core, which is on no package registry, is stood in for by tests/yocto/core.
Each series the layers name is accepted and another is not; every recipe parses; bitbake's crate fetcher verifies and
unpacks each crate of the list, from where cargo has put them, and cargo resolves the agent with these alone; the
weights' and the agent's do_install put the files where they belong, the example's configuration over ours.
"""
import json
import logging
import os
import pathlib
import subprocess
import sys
import tempfile
import types

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
LAYERS = ["tests/yocto/core", "yocto-layer/meta-hark", "yocto-layer/meta-example"]
# Servers of bitbake's that the package of it leaves out, and nothing here starts.
for name in ("hashserv", "hashserv.client", "prserv", "prserv.serv"):
    sys.modules[name] = types.ModuleType(name)

import bb.build  # noqa: E402
import bb.cookerdata  # noqa: E402
import bb.fetch2  # noqa: E402

SETTINGS = types.SimpleNamespace(prefile=[], postfile=[], tracking=False, skip_fragments=False, env={})


def configuration(top, series):
    (top / "conf").mkdir(parents=True)
    crates = top / "downloads"
    crates.mkdir()
    home = pathlib.Path(os.environ.get("CARGO_HOME", pathlib.Path.home() / ".cargo"))
    for crate in home.glob("registry/cache/*/*.crate"):
        (crates / crate.name).symlink_to(crate)
    # Releases before styhead have none, and unpack into WORKDIR.
    unpack = "" if series == "scarthgap" else 'UNPACKDIR = "${WORKDIR}/sources"\n'
    layers = " ".join(str(ROOT / layer) for layer in LAYERS)
    (top / "conf/bblayers.conf").write_text(
        f'BBPATH = "{top}"\nHARK_SERIES = "{series}"\nBBLAYERS = "{layers}"\nDL_DIR = "{crates}"\n{unpack}')
    os.chdir(top)
    builder = bb.cookerdata.CookerDataBuilder(SETTINGS)
    builder.parseBaseConfiguration()
    return builder


def recipes(builder):
    """Each recipe parsed, with what is appended to it."""
    found, appends = [], []
    for pattern in builder.data.getVar("BBFILES").split():
        top, _, rest = pattern.partition("/recipes-")
        (appends if pattern.endswith("append") else found).extend(sorted(pathlib.Path(top).glob("recipes-" + rest)))
    for recipe in found:
        name = recipe.stem.split("_")[0]
        mine = [str(a) for a in appends if a.stem.split("_")[0] == name]
        yield name, builder.parseRecipeVariants(str(recipe), mine, layername="hark")[""]


def do(recipe, *tasks):
    for task in tasks:
        for folder in (recipe.getVarFlag(task, "dirs") or "").split():
            bb.utils.mkdirhier(recipe.expand(folder))
        bb.utils.mkdirhier(recipe.getVar("T"))
        bb.build.exec_func(task, recipe)


def must_be_refused(what, action):
    logging.disable()
    try:
        action()
    except (SystemExit, bb.BBHandledException):
        print(f"  refused, as it must be: {what}")
    else:
        raise AssertionError(f"accepted: {what}")
    finally:
        logging.disable(logging.NOTSET)


def installed(recipe):
    image = pathlib.Path(recipe.getVar("D"))
    return {str(file.relative_to(image)) for file in image.rglob("*") if file.is_file()}


def check_crates(recipe):
    do(recipe, "do_fetch", "do_unpack")
    vendor = recipe.getVar("CARGO_VENDOR")
    # As cargo.bbclass tells cargo: these crates and no others, and no network.
    config = ['source.crates-io.replace-with="bitbake"', f'source.bitbake.directory="{vendor}"']
    metadata = subprocess.run(
        ["cargo", "metadata", "--frozen", "--format-version", "1", "--no-default-features",
         "--manifest-path", f"{recipe.getVar('S')}/Cargo.toml", *[part for line in config for part in ("--config", line)]],
        check=True, stdout=subprocess.PIPE).stdout
    outside = [p["name"] for p in json.loads(metadata)["packages"][1:] if p["source"] and not p["manifest_path"].startswith(vendor)]
    assert not outside, f"not out of the recipe's list: {outside}"
    print(f"  {len(os.listdir(vendor))} crates fetched and unpacked by bitbake; cargo resolves the agent with them alone")


def check_agent(recipe):
    # Its crates are the same everywhere.
    recipe.setVar("SRC_URI", " ".join(url for url in recipe.getVar("SRC_URI").split() if url.startswith("file:")))
    do(recipe, "do_fetch", "do_unpack", "do_install")
    files = installed(recipe)
    expected = {"etc/hark/hark.toml", "usr/lib/systemd/system/hark.service", "usr/lib/systemd/system/hark-failure.service",
                "usr/lib/tmpfiles.d/hark.conf", "usr/lib/udev/rules.d/70-hark.rules"}
    assert files == expected, f"{files ^ expected}"
    ours = (pathlib.Path(recipe.getVar("D")) / "etc/hark/hark.toml").read_text()
    assert ours == (ROOT / "yocto-layer/meta-example/recipes-hark/hark/files/hark.toml").read_text(), "the example's configuration is not taken"


def check_models(recipe):
    do(recipe, "do_fetch", "do_unpack", "do_install")
    source = next(ROOT.glob(f"models/hama-{recipe.getVar('PV')}"))
    expected = {f"usr/share/hark/models/{source.name}/{file.name}" for file in source.iterdir()}
    assert installed(recipe) == expected, f"{installed(recipe) ^ expected}"


def main():
    logging.basicConfig(format="%(message)s")
    logging.getLogger("BitBake").setLevel(logging.WARNING)
    compatible = "scarthgap wrynose blacksail".split()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for series in compatible:
            parsed = dict(recipes(configuration(folder / series, series)))
            print(f"  {series}: {', '.join(sorted(parsed))}", flush=True)
            check_models(parsed["hark-models"])
            check_agent(parsed["hark"].createCopy())
        check_crates(parsed["hark"])
        must_be_refused("a series without a Rust that is new enough", lambda: configuration(folder / "kirkstone", "kirkstone"))
        builder = configuration(folder / "tampered", compatible[0])
        tampered = dict(recipes(builder))["hark"]
        tampered.setVarFlag("SRC_URI", "sled-0.34.7.sha256sum", "0" * 64)
        must_be_refused("a crate that is not the one in the list", lambda: do(tampered, "do_fetch"))


if __name__ == "__main__":
    main()
