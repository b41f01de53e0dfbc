# nooelint: oelint.var.bbclassextend - data for a device only
SUMMARY = "Weights of the voice detector of hark"
DESCRIPTION = "The phoneme recogniser with which the agent hears a cry for help. Data made by \
               others: NOTICE names them."
HOMEPAGE = "https://example.invalid/hark"
BUGTRACKER = "https://example.invalid/hark/issues"
SECTION = "sound"
CVE_PRODUCT = "hark-models"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57"

inherit allarch

# scripts/fetch-models puts it there, by package, version and checksum: run it before the build.
# nooelint: oelint.vars.fileextrapaths oelint.vars.outofcontext - they are not part of the layer
FILESEXTRAPATHS:prepend := "${THISDIR}/../../../../models:"
SRC_URI = "file://hama-${PV}/"

# scarthgap unpacks into WORKDIR and knows no other place.
UNPACKDIR ??= "${WORKDIR}"
S = "${UNPACKDIR}/hama-${PV}"

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    install -d ${D}${datadir}/hark/models/hama-${PV}
    install -m 0644 ${S}/* ${D}${datadir}/hark/models/hama-${PV}/
}

FILES:${PN} += "${datadir}/hark/models"
