python () {
    for feature in (d.getVar("REQUIRED_DISTRO_FEATURES") or "").split():
        if feature not in d.getVar("DISTRO_FEATURES").split():
            raise bb.parse.SkipRecipe("no distro feature %s" % feature)
}
