# natkit.  `make demo` and `make test` need only git, make and python3 3.11 or newer.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
FUZZ_SECONDS ?= 600
SOAK_SECONDS ?= 600
# `make bench BENCH=--full` takes half an hour; BENCH='--json FILE' writes down every round.
BENCH ?=
# Laboratories mostly wait, and do not meet one another: several at a time.
LAB_JOBS ?= 6
# Peers, browsers among them, work more than they wait.
INTEROP_JOBS ?= 4
# `make grid GRID="--runs 5"` runs every cell five times; `python -m tools.grid --help` has the rest.
GRID ?=
CLANG ?= clang
LLVM_STRIP ?= llvm-strip
KERNEL := turn/dataplane/kernel
# -g for the BTF that libbpf reads the maps from; what else it brings, DWARF, is taken out again.
# -target bpf does not look where Debian has <asm/types.h>, in a folder of the machine's name.
BPF_CC = $(CLANG) -target bpf -mcpu=v3 -O2 -g -Wall -Wextra $(if $(CI),-Werror) \
	$(patsubst %,-idirafter %,$(wildcard /usr/include/*-linux-gnu*))

.DEFAULT_GOAL := help
.PHONY: help demo test quick lint interop grid bench soak repeat fuzz rivals diagram bpf wheel clean \
	bpf-if-possible

help: ## show what there is
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.run ## build every kind of NAT, have natcheck name each, and two peers meet
	@QUIET=1 sh tools/bootstrap.sh lab
	@$(BIN)/python tools/demo.py

test: $(VENV)/.dev bpf-if-possible ## every test: unit, vectors, property, simulated network, real NATs
	@sh tools/bootstrap.sh lab
	$(PYTEST) --ignore=tests/lab --ignore=tests/interop --ignore=tests/bench --numprocesses=auto
	$(PYTEST) tests/lab --numprocesses=$(LAB_JOBS) --maxschedchunk=1

quick: $(VENV)/.dev ## the tests that need no privileges and under a minute
	$(PYTEST) -m "not slow and not lab" --ignore=tests/lab --ignore=tests/interop --ignore=tests/bench \
		--numprocesses=auto

lint: $(VENV)/.dev bpf-if-possible ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

interop: $(VENV)/.interop bpf-if-possible ## against peers that this project did not write
	@sh tools/bootstrap.sh interop
	$(PYTEST) tests/interop --numprocesses=$(INTEROP_JOBS)

grid: $(VENV)/.interop ## punch, aioice and libnice behind every pair of NATs; draws docs/grid.svg
	@sh tools/bootstrap.sh interop
	@$(BIN)/python -m tools.grid $(GRID)

bench: $(VENV)/.interop bpf-if-possible ## the figures of the README, each beside a peer in one run
	@sh tools/bootstrap.sh interop
	$(PYTEST) tests/bench --benchmark-only --benchmark-group-by=group \
		--benchmark-columns=min,median,iqr,rounds
	$(BIN)/python tools/bench/relay.py $(BENCH)
	$(BIN)/python -m tools.bench.planes $(filter --full,$(BENCH))
	$(BIN)/python -m tools.bench.ice

repeat: $(VENV)/.run ## natcheck 20 times behind every kind of NAT, without loss and with 10 %
	@sh tools/bootstrap.sh lab
	@$(BIN)/python tools/repeat.py

soak: $(VENV)/.run ## turnd with 200 clients that come, talk and vanish, and attacks, SOAK_SECONDS
	@$(BIN)/python tools/soak.py --seconds $(SOAK_SECONDS)

fuzz: $(VENV)/.fuzz ## atheris and hypothesis on all that takes bytes, FUZZ_SECONDS each
	@$(BIN)/python -m tools.fuzz --seconds $(FUZZ_SECONDS)

rivals: $(VENV)/.interop ## natcheck beside pystun3 and turnutils_natdiscovery; writes the README's table
	@sh tools/bootstrap.sh interop
	@$(BIN)/python -m tools.rivals

diagram: $(VENV)/.run ## draw docs/demo-network.svg
	@$(BIN)/python tools/diagram.py

bpf: $(KERNEL)/relay.bpf.o ## the program with which turnd relays inside the kernel, with clang

$(KERNEL)/relay.bpf.o: $(KERNEL)/relay.bpf.c $(KERNEL)/relay.h
	$(BPF_CC) -c $< -o $@.part
	@if command -v $(LLVM_STRIP) >/dev/null; then $(LLVM_STRIP) -g $@.part; fi
	@mv $@.part $@

# Without clang or the headers the targets go on: turnd then relays with sockets, and says why.
bpf-if-possible:
	@sh tools/bootstrap.sh bpf
	@if printf '#include <linux/bpf.h>\n#include <bpf/bpf_helpers.h>\n' | \
		$(BPF_CC) -fsyntax-only -x c - 2>/dev/null; then \
		$(MAKE) --silent $(KERNEL)/relay.bpf.o; fi

wheel: $(VENV)/.dev bpf-if-possible ## build the wheel into dist/, with the program of `make bpf`
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

# One stamp a set of requirements: made anew when pyproject.toml changes, free otherwise.
$(VENV)/.run: pyproject.toml tools/bootstrap.sh
	@PYTHON=$(PYTHON) VENV=$(VENV) sh tools/bootstrap.sh venv run
$(VENV)/.dev $(VENV)/.interop $(VENV)/.fuzz: $(VENV)/.%: pyproject.toml tools/bootstrap.sh
	@PYTHON=$(PYTHON) VENV=$(VENV) sh tools/bootstrap.sh venv $*

clean: ## remove what was built
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	rm -f $(KERNEL)/relay.bpf.o $(KERNEL)/relay.bpf.o.part
