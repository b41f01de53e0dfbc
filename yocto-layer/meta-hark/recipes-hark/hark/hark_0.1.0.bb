# nooelint: oelint.var.bbclassextend - it runs on a device only
SUMMARY = "Emergency device agent"
DESCRIPTION = "Hears a cry for help, keeps it in an on-disk outbox and publishes it over \
               MQTT until the broker has acknowledged it: through power cuts, reboots and \
               dead networks."
HOMEPAGE = "https://example.invalid/hark"
BUGTRACKER = "https://example.invalid/hark/issues"
SECTION = "net"
CVE_PRODUCT = "hark"
LICENSE = "MIT | Apache-2.0"
LIC_FILES_CHKSUM = "\
    file://LICENSE-APACHE;md5=3b83ef96387f14655fc854ddc3c6bd57 \
    file://LICENSE-MIT;md5=5bce01707f135e3c5c7a7c4b1fd7d076 \
"

DEPENDS = "alsa-lib"

require ${BPN}-crates.inc

inherit cargo cargo-update-recipe-crates externalsrc features_check pkgconfig systemd useradd

REQUIRED_DISTRO_FEATURES = "systemd"

# The working copy that this layer is part of.
EXTERNALSRC = "${@os.path.realpath('${THISDIR}/../../../..')}"
EXTERNALSRC_BUILD = "${WORKDIR}/build"

# A device has no simulator.
CARGO_BUILD_FLAGS += "--no-default-features"
export HARK_VERSION = "${PV}"

SYSTEMD_SERVICE:${PN} = "hark.service"

USERADD_PACKAGES = "${PN}"
GROUPADD_PARAM:${PN} = "--system gpio"
USERADD_PARAM:${PN} = "\
    --system --no-create-home --home-dir ${localstatedir}/lib/hark --shell ${base_sbindir}/nologin \
    --user-group --groups audio,input,gpio hark \
"

do_install:append() {
    install -d ${D}${sysconfdir}/hark ${D}${systemd_system_unitdir}
    install -m 0644 ${S}/systemd/hark.toml ${D}${sysconfdir}/hark/
    install -m 0644 ${S}/systemd/hark.service ${S}/systemd/hark-failure.service ${D}${systemd_system_unitdir}/
    install -D -m 0644 ${S}/systemd/hark.tmpfiles ${D}${nonarch_libdir}/tmpfiles.d/hark.conf
    install -D -m 0644 ${S}/systemd/hark.rules ${D}${nonarch_base_libdir}/udev/rules.d/70-hark.rules
}

FILES:${PN} += "${nonarch_libdir}/tmpfiles.d ${nonarch_base_libdir}/udev/rules.d ${systemd_system_unitdir}"
CONFFILES:${PN} = "${sysconfdir}/hark/hark.toml"

RDEPENDS:${PN} += "alsa-conf"
RRECOMMENDS:${PN} += "ca-certificates hark-models"
