SUMMARY = "What an emergency device with hark needs"
DESCRIPTION = "The agent, the weights of its ears, a sound card's tools and the time."
HOMEPAGE = "https://example.invalid/hark"
BUGTRACKER = "https://example.invalid/hark/issues"
SECTION = "net"

inherit packagegroup

RDEPENDS:${PN} = "\
    alsa-state \
    alsa-utils-amixer \
    alsa-utils-aplay \
    ca-certificates \
    hark \
    hark-models \
"
