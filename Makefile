# pcomp: `make` builds build/pcomp; `make help` lists the rest.
#
# Objects of one flavour (cpu, asan, fuzz) and one compiler live in one folder, build/<flavour>,
# or build/<flavour>-<compiler> when that is not gcc; changed flags rebuild that folder.

ifeq ($(origin CC),default)
CC := gcc
endif
CFLAGS ?=
LDFLAGS ?=
WERROR ?= -Werror
ARCH ?= x86-64-v3
PREFIX ?= /usr/local
FUZZ_SECONDS ?= 30
FLAVOUR ?= cpu
MAKEFLAGS += --no-print-directory --no-builtin-rules

COMPILER := $(notdir $(firstword $(filter-out ccache,$(CC))))
DIR := build/$(FLAVOUR)$(if $(filter gcc,$(COMPILER)),,-$(COMPILER))

# ==== Flags ====

WARN := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wvla -Wpointer-arith -Wno-pass-failed
OPT := -O2 -g
OPT_HOT := -O3 -g
SANITIZE :=
ifeq ($(FLAVOUR),asan)
OPT := -O1 -g -fno-omit-frame-pointer
OPT_HOT := -O2 -g -fno-omit-frame-pointer # kernels are most of what tests wait for
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all
WERROR := # sanitizers make gcc warn about code that is right; the cpu flavour judges
else ifeq ($(FLAVOUR),fuzz)
OPT := -O1 -g -fno-omit-frame-pointer
SANITIZE := -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all
WERROR :=
else ifneq ($(FLAVOUR),cpu)
$(error FLAVOUR is cpu, asan or fuzz, not '$(FLAVOUR)')
endif

# pkg-config name : Debian package
PKGS := libcjson:libcjson-dev libxxhash:libxxhash-dev libpcre2-8:libpcre2-dev zlib:zlib1g-dev libzstd:libzstd-dev
PKG_NAMES := $(foreach p,$(PKGS),$(firstword $(subst :, ,$(p))))
PKG_CFLAGS := $(shell pkg-config --cflags $(PKG_NAMES) 2>/dev/null)
PKG_LIBS := $(shell pkg-config --libs $(PKG_NAMES) 2>/dev/null)

# Several processes to a run, by MPI: built in where pkg-config finds Open MPI (MPI=0 leaves it out), or else not there.
MPI ?= $(shell pkg-config --exists ompi-c 2>/dev/null && echo 1 || echo 0)
ifeq ($(MPI),1)
MPI_CFLAGS := $(shell pkg-config --cflags ompi-c)
PKG_LIBS += $(shell pkg-config --libs ompi-c)
endif

BASE := -std=c11 -D_GNU_SOURCE -fopenmp $(WARN) $(WERROR) $(SANITIZE) -Isrc -I. -MMD -MP $(PKG_CFLAGS) $(CFLAGS)
LINK = $(CC) -fopenmp $(SANITIZE) $(LDFLAGS)
LIBS := $(PKG_LIBS) -lm

# ==== Sources ====

# Kernel sources are compiled once per instruction set and never otherwise.
KERNELS := $(wildcard src/kernels_*.c)
ISAS := avx2 avx512 avx512vnni
ISA_avx2 := -march=x86-64-v3
ISA_avx512 := -march=x86-64-v4
ISA_avx512vnni := -march=x86-64-v4 -mavx512vnni

SOURCES := $(filter-out $(KERNELS) src/main.c $(if $(MPI_CFLAGS),,src/team_mpi.c),$(wildcard src/*.c eviction/*.c calib/*.c))
OBJECTS := $(SOURCES:%.c=$(DIR)/%.o) $(foreach isa,$(ISAS),$(KERNELS:%.c=$(DIR)/%.$(isa).o))
EVAL_SOURCES := $(filter-out eval/main.c,$(wildcard eval/*.c))
EVAL_OBJECTS := $(EVAL_SOURCES:%.c=$(DIR)/%.o)
PROGRAMS := $(DIR)/pcomp $(DIR)/pcomp-eval

TEST_SUPPORT := $(patsubst %.c,$(DIR)/%.o,$(wildcard tests/tiny.c tests/gca_ref.c))
UNIT_TESTS := $(patsubst tests/unit/%.c,$(DIR)/tests/%,$(wildcard tests/unit/test_*.c))
TINY_MODEL := $(patsubst tests/tiny_main.c,$(DIR)/tests/tiny_model,$(wildcard tests/tiny_main.c))
EVAL_TOOLS := $(patsubst tests/%.c,$(DIR)/tests/%,$(wildcard tests/jieba_tool.c tests/score_tool.c tests/page_tool.c))
FUZZERS := $(patsubst tests/fuzz/%.c,$(DIR)/tests/%,$(wildcard tests/fuzz/fuzz_*.c))

# The commit goes only to the files that name it, so that a commit does not rebuild everything.
COMMIT := $(or $(shell git describe --always --dirty --abbrev=12 --exclude '*' 2>/dev/null),unknown)
COMMIT_OBJECTS := $(patsubst %.c,$(DIR)/%.o,$(shell grep -ls PCOMP_COMMIT src/*.c eval/*.c))

# ==== Build ====

all: $(PROGRAMS) ## build build/pcomp and build/pcomp-eval (CC=clang for the other compiler)
	@ln -sfn $(DIR:build/%=%)/pcomp build/pcomp
	@ln -sfn $(DIR:build/%=%)/pcomp-eval build/pcomp-eval

$(DIR)/pcomp: $(DIR)/src/main.o $(OBJECTS)
	$(LINK) -o $@ $^ $(LIBS)

$(DIR)/pcomp-eval: $(DIR)/eval/main.o $(EVAL_OBJECTS) $(OBJECTS)
	$(LINK) -o $@ $^ $(LIBS)

$(DIR)/src/quant.o $(DIR)/src/geometry_rows.o: private OPT := $(OPT_HOT)
$(DIR)/src/team_mpi.o: private DEFINES := $(MPI_CFLAGS)
$(COMMIT_OBJECTS): private DEFINES := -DPCOMP_COMMIT='"$(COMMIT)"'
$(COMMIT_OBJECTS): $(DIR)/.commit

define kernel_rule
$(DIR)/src/kernels_%.$(1).o: src/kernels_%.c $(DIR)/.flags
	@mkdir -p $$(@D)
	$$(CC) $$(BASE) $$(OPT_HOT) $$(ISA_$(1)) -DPCOMP_ISA=$(1) -c -o $$@ $$<
endef
$(foreach isa,$(ISAS),$(eval $(call kernel_rule,$(isa))))

$(DIR)/%.o: %.c $(DIR)/.flags
	@mkdir -p $(@D)
	$(CC) $(BASE) $(OPT) -march=$(ARCH) $(DEFINES) -c -o $@ $<

# Stamps: rewritten only when what they hold has changed.
$(DIR)/.flags: FORCE | check-tools
	@mkdir -p $(@D)
	$(call stamp,$(CC) $(BASE) $(OPT) $(OPT_HOT) $(ARCH) $(LDFLAGS) $(LIBS))
$(DIR)/.commit: FORCE
	@mkdir -p $(@D)
	$(call stamp,$(COMMIT))
stamp = @echo '$(1)' | cmp -s - $@ || echo '$(1)' > $@

check-tools:
	@for tool in $(CC) pkg-config; do command -v $$tool > /dev/null \
	  || { echo "missing $$tool: run \`make deps\`" >&2; exit 1; }; done
	@for p in $(PKGS); do pkg-config --exists $${p%:*} \
	  || { echo "missing $${p#*:}: run \`make deps\`" >&2; exit 1; }; done

# ==== CUDA ====

# The same C objects, linked with cuda/*.cu: a build that finds no GPU computes on the CPU. The toolkit's folder is looked
# up, or fetched, only by goals that need it.
CUDA_FOLDER = $(or $(CUDA_FOUND),$(eval CUDA_FOUND := $(shell CUDA=$(CUDA) tests/cuda.sh))$(CUDA_FOUND),\
  $(error no CUDA toolkit))
NVCC = $(CUDA_FOLDER)/bin/nvcc
CUDA_DIR := build/cuda$(DIR:build/cpu%=%)
CUDA_OBJECTS := $(patsubst cuda/%.cu,$(CUDA_DIR)/%.o,$(wildcard cuda/*.cu))
CUDA_PROGRAMS := $(CUDA_DIR)/pcomp $(CUDA_DIR)/pcomp-eval
CUDA_TESTS := $(patsubst tests/cuda/%,$(CUDA_DIR)/tests/%,$(basename $(wildcard tests/cuda/test_*.cu tests/cuda/test_*.c))) \
  $(CUDA_DIR)/tests/test_golden $(CUDA_DIR)/tests/lt_written.so
HOPPER := -gencode=arch=compute_90a,code=sm_90a
GENCODE := -gencode=arch=compute_80,code=[sm_80,compute_80] $(HOPPER)
NVCC_FLAGS := -std=c++17 -O3 -lineinfo -Isrc -I. -Xcompiler -Wall,-Wextra,-Wno-missing-field-initializers,-fopenmp -Werror all-warnings -MMD -MP
CUDA_LIB = $(firstword $(wildcard $(CUDA_FOLDER)/lib64 $(CUDA_FOLDER)/lib))
CUDA_LIBS = -L$(CUDA_LIB) -Wl,-rpath,$(CUDA_LIB) -l:libcublasLt.so.13 -lcudart_static -lstdc++ -ldl -lrt -lpthread

cuda: all $(CUDA_PROGRAMS) ## the same programs with the CUDA backend beside the CPU's, in build/cuda
cuda-tests: cuda $(CUDA_TESTS)

$(CUDA_DIR)/%_sm90a.o: private GENCODE := $(HOPPER)
$(CUDA_DIR)/%.o: cuda/%.cu
	@mkdir -p $(@D)
	$(NVCC) $(NVCC_FLAGS) $(GENCODE) -c -o $@ $<

$(CUDA_DIR)/pcomp: $(DIR)/src/main.o $(OBJECTS) $(CUDA_OBJECTS)
	$(LINK) -o $@ $^ $(LIBS) $(CUDA_LIBS)

$(CUDA_DIR)/pcomp-eval: $(DIR)/eval/main.o $(EVAL_OBJECTS) $(OBJECTS) $(CUDA_OBJECTS)
	$(LINK) -o $@ $^ $(LIBS) $(CUDA_LIBS)

$(CUDA_DIR)/tests/%: tests/cuda/%.cu $(CUDA_OBJECTS)
	@mkdir -p $(@D)
	$(NVCC) $(NVCC_FLAGS) $(GENCODE) -o $@ $< $(CUDA_OBJECTS) $(OBJECTS) -Xlinker -rpath=$(CUDA_LIB) \
	  -L$(CUDA_LIB) -l:libcublasLt.so.13 -lgomp $(LIBS)

$(CUDA_DIR)/tests/%: $(DIR)/tests/cuda/%.o $(OBJECTS) $(CUDA_OBJECTS)
	@mkdir -p $(@D)
	$(LINK) -o $@ $^ $(LIBS) $(CUDA_LIBS)

$(CUDA_DIR)/tests/lt_written.so: tests/cuda/lt_written.c
	@mkdir -p $(@D)
	$(CC) -std=c11 -D_GNU_SOURCE -Wall -Wextra -Werror -O2 -shared -fPIC -I$(CUDA_FOLDER)/include -o $@ $< -ldl

$(CUDA_DIR)/tests/test_golden: $(DIR)/tests/unit/test_golden.o $(OBJECTS) $(CUDA_OBJECTS)
	@mkdir -p $(@D)
	$(LINK) -o $@ $^ $(LIBS) $(CUDA_LIBS) -lcmocka

test-cuda: cuda-tests ## tests of the CUDA backend; without a GPU they skip
	@tests/run.sh $(CUDA_DIR) cuda

# ==== Set-up ====

deps: ## install what building, the demo, the tests and mpirun need (Debian packages)
	@tests/setup.sh build demo test mpi

model: ## fetch SmolLM2-135M (98 MB) into models/
	@tests/fetch.sh smol

models: ## fetch all three models (1.7 GB) into models/
	@tests/fetch.sh smol qwen05 qwen15

book: ## fetch the demo's book into models/
	@tests/fetch.sh book

jieba: ## fetch the dictionary for cutting Chinese text into models/jieba
	@tests/fetch.sh jieba

demo: ## from nothing to an answer over a whole book: set up, build, fetch, run
	@tests/setup.sh build demo
	@$(MAKE) all
	@tests/fetch.sh smol book
	@./build/pcomp demo

# ==== Tests ====

test: ## all tests; those of the real model or dictionary skip when it cannot be fetched
	@tests/setup.sh build test
	@tests/fetch.sh smol || echo 'Tests of the real model will be skipped.' >&2
	@tests/fetch.sh jieba || echo 'Tests of the Chinese dictionary will be skipped.' >&2
	@$(MAKE) all test-programs
	@tests/run.sh $(DIR)

test-programs: $(PROGRAMS) $(UNIT_TESTS) $(TINY_MODEL) $(EVAL_TOOLS)

asan: ## unit tests under the address and undefined-behaviour sanitizers
	@$(MAKE) FLAVOUR=asan test-programs
	@tests/run.sh $(patsubst build/$(FLAVOUR)%,build/asan%,$(DIR)) unit

fuzz: ## every fuzz target for FUZZ_SECONDS (30) each
	@tests/setup.sh build fuzz
	@$(MAKE) FLAVOUR=fuzz CC=clang fuzz-programs
	@tests/fuzz/run.sh build/fuzz-clang $(FUZZ_SECONDS)

fuzz-programs: $(FUZZERS) $(TINY_MODEL)

$(UNIT_TESTS): $(DIR)/tests/%: $(DIR)/tests/unit/%.o $(TEST_SUPPORT) $(EVAL_OBJECTS) $(OBJECTS)
	$(LINK) -o $@ $^ $(LIBS) -lcmocka

$(TINY_MODEL): $(DIR)/tests/tiny_main.o $(TEST_SUPPORT) $(OBJECTS)
	$(LINK) -o $@ $^ $(LIBS)

$(EVAL_TOOLS): $(DIR)/tests/%: $(DIR)/tests/%.o $(EVAL_OBJECTS) $(OBJECTS)
	$(LINK) -o $@ $^ $(LIBS)

$(FUZZERS): $(DIR)/tests/%: $(DIR)/tests/fuzz/%.o $(TEST_SUPPORT) $(EVAL_OBJECTS) $(OBJECTS)
	$(LINK) -fsanitize=fuzzer -o $@ $^ $(LIBS)

bench: all ## speed on this machine, beside llama.cpp when python3 has llama_cpp
	@tests/fetch.sh smol
	@tests/bench.sh

# ==== Upkeep ====

C_FILES = $(wildcard src/*.[ch] eviction/*.[ch] calib/*.[ch] eval/*.[ch] tests/*.[ch] tests/unit/*.[ch] tests/fuzz/*.[ch])

# Left out: what the tools say for want of seeing that a failed call returns before its output is read.
CPPCHECK := --enable=warning,portability --inline-suppr $(foreach w,missingIncludeSystem invalidPointerCast \
  arrayIndexThenCheck zerodiv uninitvar,--suppress=$(w)) -D_GNU_SOURCE
TIDY := $(subst $() ,,-*, bugprone-*, clang-analyzer-unix.*, clang-analyzer-deadcode.*, \
  -bugprone-easily-swappable-parameters, -bugprone-narrowing-conversions, -bugprone-suspicious-string-compare, \
  -bugprone-implicit-widening-of-multiplication-result, -bugprone-not-null-terminated-result)
LINT_FILES = $(SOURCES) $(EVAL_SOURCES) src/main.c eval/main.c

lint: ## dependency rule, shellcheck, cppcheck and clang-tidy, as far as they are installed
	@tests/check_deps.sh
	@! command -v shellcheck > /dev/null || shellcheck -x .ci/run $(wildcard tests/*.sh tests/*/*.sh)
	@! command -v cppcheck > /dev/null || cppcheck --quiet --std=c11 --error-exitcode=1 $(CPPCHECK) \
	  -Isrc -I. $(LINT_FILES)
	@! command -v clang-tidy > /dev/null || clang-tidy --quiet --checks='$(TIDY)' --warnings-as-errors='*' \
	  $(LINT_FILES) -- -std=c11 -D_GNU_SOURCE -DPCOMP_COMMIT='""' -fopenmp -march=$(ARCH) -Isrc -I. $(PKG_CFLAGS) $(MPI_CFLAGS)

format: ## clang-format on every C file
	clang-format -i $(C_FILES)

install: all ## install both programs and the presets under DESTDIR/PREFIX
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/bin $(PROGRAMS)
	install -d $(addprefix $(DESTDIR)$(PREFIX)/share/pcomp/configs/,tasks heads chunks)
	install -m 644 configs/*.json $(DESTDIR)$(PREFIX)/share/pcomp/configs
	install -m 644 configs/tasks/*.json $(DESTDIR)$(PREFIX)/share/pcomp/configs/tasks
	install -m 644 configs/heads/*.json $(DESTDIR)$(PREFIX)/share/pcomp/configs/heads
	install -m 644 configs/chunks/*.json $(DESTDIR)$(PREFIX)/share/pcomp/configs/chunks

clean: ## remove build/ (models/ stays)
	rm -rf build

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1|\2/p' Makefile | awk -F'|' '{printf "  %-9s %s\n", $$1, $$2}'

FORCE:
.PHONY: all cuda cuda-tests test-cuda check-tools deps model models book jieba demo test test-programs asan fuzz fuzz-programs \
  bench lint format install clean help FORCE
.SECONDARY:
.DEFAULT_GOAL := all

-include $(shell find $(DIR) $(CUDA_DIR) -name '*.d' 2>/dev/null)
