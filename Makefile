# What can be done here: `make help`. Everything happens in .venv and build; nothing is installed into the system.

PYTHON ?= python3
BIN := .venv/bin
# CMake and ninja come with the virtual environment.
CMAKE := $(BIN)/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -S . -DDLLAMA_BUILD_MODULE=OFF -DDLLAMA_BUILD_TESTS=ON
CTEST := $(BIN)/ctest --output-on-failure --timeout 600 --test-dir
# Older ThreadSanitizers die where Linux places programs too much at random; containers may forbid to change that.
FIXED_LAYOUT = $(shell setarch $$(uname -m) -R true 2> /dev/null && echo setarch $$(uname -m) -R)
CPP_FILES := csrc tests/cpp benchmarks -name '*.h' -o -name '*.cpp'

.DEFAULT_GOAL := help
.PHONY: help setup build dllama test test-slow fuzz test-lan models-table lint format bench bench-check sanitize test-isa clean

# Show the targets.
help:
	@awk '/^# /{remark=substr($$0,3)} /^[a-z-]+:/{sub(":.*",""); printf "make %-12s %s\n", $$0, remark}' Makefile

# Prepare .venv with everything a developer needs: build tools, tests, linters.
setup:
	@$(PYTHON) launch.py setup test lint

# Compile the core into .venv; quick when nothing has changed.
build:
	@$(PYTHON) launch.py setup

# Build, and say where the command is.
dllama: build
	@echo "$(CURDIR)/$(BIN)/dllama"

# Run all tests: the C++ programs, then pytest.
test:
	@$(PYTHON) launch.py setup test
	$(CMAKE) -B build/cpp
	$(BIN)/cmake --build build/cpp
	$(BIN)/python tools/check_isa_objects.py $$(find build/cpp -name 'avx*.o' -o -name 'neon*.o')
	@echo "kernel levels tested here: $$(build/cpp/count_instructions --levels | xargs)"
	$(CTEST) build/cpp
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# Run the tests that take minutes: faults, many times over.
test-slow: build
	$(BIN)/python -m pytest -m slow --timeout 600 $(PYTEST_ARGS)

# Change files at random and read them, TIMES (10) as many as the tests do.
fuzz: build
	@$(PYTHON) launch.py setup test
	FUZZ_TIMES=$(or $(TIMES),10) $(BIN)/python -m pytest tests/test_fuzz_readers.py --timeout 0 $(PYTEST_ARGS)

# Run a cluster's tests on networks of namespaces with links of 1 Gbit/s; for root.
test-lan:
	@$(PYTHON) launch.py setup test
	$(BIN)/python -m pytest tests/lan $(PYTEST_ARGS)

# Write the table of docs/models.md from the tests that verify what it says.
models-table: build
	@$(PYTHON) launch.py setup test
	$(BIN)/python -m pytest -m verifies --write-models-table $(PYTEST_ARGS)

# Check form, types, layers and formatting; changes nothing.
lint:
	@$(PYTHON) launch.py setup test lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python tools/check_layers.py
	find $(CPP_FILES) | xargs $(BIN)/clang-format --dry-run --Werror

# Format all code the way lint wants it.
format:
	@$(PYTHON) launch.py setup test lint
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	find $(CPP_FILES) | xargs $(BIN)/clang-format -i

# Measure this machine with the bundled model.
bench: build
	$(BIN)/dllama bench -m dllama/demo/model.m -p 512 -n 128

# Compare the kernels' instruction counts with benchmarks/instructions.json; RECORD=1 records this compiler's.
bench-check: build
	$(CMAKE) -B build/cpp
	$(BIN)/cmake --build build/cpp --target count_instructions
	$(BIN)/python tools/bench_check.py build/cpp/count_instructions $(if $(RECORD),--record)

# Run the C++ tests under AddressSanitizer and UBSan, and those with threads under ThreadSanitizer.
sanitize: build
	$(CMAKE) -B build/asan -DDLLAMA_SANITIZE=address
	$(BIN)/cmake --build build/asan
	$(CTEST) build/asan
	$(CMAKE) -B build/tsan -DDLLAMA_SANITIZE=thread
	$(BIN)/cmake --build build/tsan
	$(FIXED_LAYOUT) $(CTEST) build/tsan -R 'base|net|model'

# Run the C++ tests under user-mode QEMU, as ARM programs and, on x86-64, those of the kernels on a CPU without AVX.
test-isa: build
	@missing=; \
	command -v aarch64-linux-gnu-g++ > /dev/null || missing="$$missing g++-aarch64-linux-gnu"; \
	command -v qemu-aarch64-static > /dev/null || missing="$$missing qemu-user-static"; \
	test -z "$$missing" || { echo "🚨 missing here; run: sudo apt-get install -y$$missing" >&2; exit 2; }
	$(CMAKE) -B build/aarch64 -DCMAKE_TOOLCHAIN_FILE=tools/aarch64-toolchain.cmake
	$(BIN)/cmake --build build/aarch64
	$(BIN)/python tools/check_isa_objects.py $$(find build/aarch64 -name 'neon*.o')
	QEMU_CPU=cortex-a53 $(CTEST) build/aarch64
	QEMU_CPU=max $(CTEST) build/aarch64
ifeq ($(shell uname -m),x86_64)
	$(CMAKE) -B build/cpp
	$(BIN)/cmake --build build/cpp --target test_quant test_kernels
	$(BIN)/python tools/check_isa_objects.py $$(find build/cpp -name 'avx*.o')
	qemu-x86_64-static -cpu Nehalem build/cpp/test_quant
	qemu-x86_64-static -cpu Nehalem build/cpp/test_kernels
endif

# Remove everything that was made here.
clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
