python () {
    for package in d.getVar("USERADD_PACKAGES").split():
        if not d.getVar("USERADD_PARAM:" + package):
            bb.fatal("%s inherits useradd and adds nobody" % package)
}
