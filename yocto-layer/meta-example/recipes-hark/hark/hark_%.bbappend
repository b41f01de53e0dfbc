FILESEXTRAPATHS:prepend := "${THISDIR}/files:"

SRC_URI += "file://hark.toml"
# scarthgap unpacks into WORKDIR and knows no other place.
UNPACKDIR ??= "${WORKDIR}"

do_install:append() {
    install -m 0644 ${UNPACKDIR}/hark.toml ${D}${sysconfdir}/hark/hark.toml
}
