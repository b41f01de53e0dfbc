python () {
    d.setVar("S", d.getVar("EXTERNALSRC"))
    d.setVar("B", d.getVar("EXTERNALSRC_BUILD"))
}
