CARGO_BUILD_FLAGS = "--frozen --release --manifest-path=${S}/Cargo.toml"
# Where the crate fetcher of bitbake unpacks to.
CARGO_VENDOR = "${HARK_UNPACK}/cargo_home/bitbake"

cargo_do_install() {
    install -d ${D}${bindir}
}
EXPORT_FUNCTIONS do_install
