FILESEXTRAPATHS:prepend := "${THISDIR}/files:"

SRC_URI += "file://hark.toml"

do_install:append() {
    install -m 0644 ${UNPACKDIR}/hark.toml ${D}${sysconfdir}/hark/hark.toml
}
