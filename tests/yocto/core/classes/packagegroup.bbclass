# As in the core: what only names other packages has a licence of its own.
LICENSE ?= "MIT"
