python () {
    for package in d.getVar("PACKAGES").split():
        if not d.getVar("SYSTEMD_SERVICE:" + package):
            bb.fatal("%s inherits systemd and names no unit" % package)
}
