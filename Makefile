# Two commands do everything on a fresh Debian: `make demo` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# What the tests use of Debian: a real registry, real peers, what builds images. COMMAND:PACKAGE.
TOOLS := docker-registry:docker-registry skopeo:skopeo umoci:umoci podman:podman buildah:buildah runc:runc crun:crun ldd:libc-bin \
    bsdtar:libarchive-tools busybox:busybox-static pax:pax zstd:zstd pigz:pigz igzip:isal bgzip:tabix openssl:openssl \
    strace:strace setpriv:util-linux unshare:util-linux newuidmap:uidmap fuse-overlayfs:fuse-overlayfs ip:iproute2 \
    curl:curl setfattr:attr pasta:passt slirp4netns:slirp4netns groff:groff-base losetup:mount mkfs.ext4:e2fsprogs \
    mkfs.xfs:xfsprogs mkfs.btrfs:btrfs-progs microsocks:microsocks

.PHONY: demo test check fuzz soak torture docs bench tools clean

demo: $(BIN)/pullpipe
	$(BIN)/pullpipe demo

test: check tools
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

check: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Some half an hour: thousands of cases of what `make test` tries a few of; then, where atheris installs, by coverage.
fuzz: $(VENV)/.test
	PULLPIPE_FUZZ_CASES=3000 timeout 3600 $(BIN)/python -m pytest --timeout 1800 \
	    tests/pipe/test_differential.py tests/pipe/test_fuzz_bytes.py
	$(BIN)/pip install --quiet atheris || true
	timeout 300 $(BIN)/python -m tests.fuzz_atheris tarstream --runs 5000000 --seconds 240
	timeout 300 $(BIN)/python -m tests.fuzz_atheris inflate --runs 5000000 --seconds 240

# A few minutes: pulls through random faults, some of them killed, by another seed each time.
soak: $(VENV)/.test
	PULLPIPE_SOAK=200 $(BIN)/python -m pytest tests/cli/test_soak.py

# Some hours: kills, power cuts, each system call failing, a crowd of commands on one store.
torture: $(VENV)/.test
	PULLPIPE_TORTURE=10 $(BIN)/python -m pytest tests/torture

# What is made of the program itself.
docs: $(BIN)/pullpipe
	$(BIN)/python -m pullpipe.cli.manual docs

bench: $(BIN)/pullpipe
	$(BIN)/pip install --quiet --editable '.[bench]'
	$(BIN)/python -m benchmarks pull --output benchmarks.json --plot benchmarks.svg

# Debian keeps venv's installer in a package of its own.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "pullpipe needs Python 3.11 or newer; name one: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null \
	    || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -qq --yes python3-venv; } \
	    || { echo "Python has no venv here; install it: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(BIN)/pullpipe: $(BIN)/python pyproject.toml
	$(BIN)/pip install --quiet --editable .
	@touch $@

$(VENV)/.test: $(BIN)/python pyproject.toml
	$(BIN)/pip install --quiet --editable '.[test]'
	@touch $@ $(BIN)/pullpipe

# As root with apt, install what is missing; else the tests that need it say so and are left out.
tools:
	@missing=; for tool in $(TOOLS); do \
	    command -v "$${tool%%:*}" >/dev/null || missing="$$missing $${tool##*:}"; done; \
	[ -z "$$missing" ] && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends $$missing; \
	else echo "not installed, so some tests are left out:$$missing"; fi

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
