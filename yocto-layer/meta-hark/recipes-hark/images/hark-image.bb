SUMMARY = "Example image of an emergency device: read-only root, data apart"
DESCRIPTION = "Boots into the agent and little else. /var/lib is meant to be a partition of its \
               own: the events that are not yet sent live there."
HOMEPAGE = "https://example.invalid/hark"
BUGTRACKER = "https://example.invalid/hark/issues"
SECTION = "images"
CVE_PRODUCT = "hark-image"

inherit core-image

LICENSE = "MIT"

IMAGE_FEATURES += "read-only-rootfs"
IMAGE_INSTALL = "packagegroup-core-boot packagegroup-hark"
IMAGE_LINGUAS = ""
