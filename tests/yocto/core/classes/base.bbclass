addtask fetch
addtask unpack after do_fetch
addtask configure after do_unpack
addtask compile after do_configure
addtask install after do_compile

python () {
    d.setVar("FILESPATH", d.getVar("FILESEXTRAPATHS").replace("__default:", "") + d.getVar("FILESPATH"))
    for variable in ("SUMMARY", "LICENSE"):
        if not d.getVar(variable):
            bb.fatal("%s has no %s" % (d.getVar("PN"), variable))
}

python do_fetch() {
    bb.fetch2.Fetch(d.getVar("SRC_URI").split(), d).download()
}
# Before styhead there is no UNPACKDIR.
HARK_UNPACK = "${@d.getVar('UNPACKDIR') if d.getVar('HARK_SERIES') != 'scarthgap' else d.getVar('WORKDIR')}"
do_unpack[dirs] = "${HARK_UNPACK}"
python do_unpack() {
    bb.fetch2.Fetch(d.getVar("SRC_URI").split(), d).unpack(d.getVar("HARK_UNPACK"))
}
do_configure() {
    :
}
do_compile() {
    :
}
do_install() {
    :
}
do_install[dirs] = "${D}"
