# Quarry. `make help` lists the targets.
#
# CFLAGS and LDFLAGS belong to you; what the build itself needs is in Q_CFLAGS.
#   make SAN=address,undefined   sanitizer build, in build/san-address-undefined
#   make OUT=/some/where         objects and programs there

CFLAGS ?= -O2 -g
ifdef SAN
comma := ,
SAN_FLAGS := -fsanitize=$(SAN) -fno-omit-frame-pointer -fno-sanitize-recover=all
OUT ?= build/san-$(subst $(comma),-,$(SAN))
else
OUT ?= build
endif

PKGS_common := libcjson libcrypto
PKGS_server := libmicrohttpd sqlite3 libcjson libcrypto
PKGS_worker := libuv libcurl openblas libpcre2-8 libutf8proc libcjson libcrypto
PKGS_cli    := libcurl libcjson libcrypto
PKGS_tests  := cmocka $(PKGS_server) $(PKGS_worker)

Q_CFLAGS := -std=c17 -D_GNU_SOURCE -I. -Wall -Wextra -Wmissing-prototypes -Wstrict-prototypes \
            -Wvla -fno-math-errno -fstack-protector-strong -pthread $(SAN_FLAGS)
Q_LDFLAGS := -pthread $(SAN_FLAGS)
libs = $(shell pkg-config --libs $(PKGS_$(1)))
Q_CFLAGS += $(shell pkg-config --cflags $(sort $(PKGS_server) $(PKGS_worker)) 2>/dev/null)

src_common := $(wildcard common/*.c)
src_formats := $(wildcard formats/*.c)
src_server := $(wildcard server/*.c)
src_worker := $(filter-out worker/backend/cpu/kernels_% worker/backend/cuda/%,$(wildcard worker/*.c worker/*/*.c worker/*/*/*.c))
src_cli    := $(wildcard cli/*.c)
src_tests  := $(wildcard tests/unit/test_*.c)
src_testlib := $(wildcard tests/lib/*.c)
src_bench  := $(wildcard bench/*.c)

obj = $(patsubst %.c,$(OUT)/obj/%.o,$(1))
lib_objs = $(call obj,$(filter-out %/main.c,$(src_$(1))))

# --- the cuda backend: CUDA=1 links it in, CUDA=auto does where nvcc is found; else it is left out --------
NVCC ?= $(or $(shell command -v nvcc),/usr/local/cuda/bin/nvcc)
CUDA ?= 0
ifeq ($(CUDA),auto)
override CUDA := $(if $(wildcard $(NVCC)),1,0)
endif
ifeq ($(CUDA),1)
CUDA_HOME ?= $(patsubst %/bin/nvcc,%,$(realpath $(NVCC)))
CUDA_HOME := $(or $(wildcard $(CUDA_HOME)/include/cuda_runtime_api.h),/usr/local/cuda/include/cuda_runtime_api.h)
CUDA_HOME := $(patsubst %/include/cuda_runtime_api.h,%,$(CUDA_HOME))
src_worker += $(wildcard worker/backend/cuda/*.c)
cuda_objs := $(patsubst %.cu,$(OUT)/obj/%.cu.o,$(wildcard worker/backend/cuda/*.cu))
cuda_libs := -L$(CUDA_HOME)/lib64 -lcudart_static -ldl -lrt -lstdc++
# Machine code for Hopper, PTX for what else there is from Ampere on.
CUDA_CODE ?= -gencode arch=compute_90,code=sm_90 -gencode arch=compute_80,code=compute_80
NVCCFLAGS ?= -O3 -lineinfo
Q_NVCCFLAGS := -std=c++17 -I. $(CUDA_CODE) -Xcompiler -Wall,-Wextra,-fno-strict-aliasing
Q_CFLAGS += -isystem $(CUDA_HOME)/include
endif
# The one file that names the backends there are.
src_backends := worker/backend/list.c $(if $(filter 1,$(CUDA)),worker/backend/list_cuda.c,worker/backend/list_plain.c)
src_worker := $(filter-out worker/backend/list%,$(src_worker)) $(src_backends)
src_bench := $(if $(filter 1,$(CUDA)),$(src_bench),$(filter-out bench/bench_cuda.c,$(src_bench)))

programs := $(OUT)/quarry-server $(OUT)/quarry-worker $(OUT)/quarry
unit_tests := $(patsubst tests/unit/%.c,$(OUT)/tests/%,$(src_tests))
test_tools := $(patsubst tests/tools/%.c,$(OUT)/tools/%,$(wildcard tests/tools/*.c))
system_tests := $(sort $(wildcard tests/system/test_*.sh tests/system/test_*.py))
runtime_tests := $(sort $(wildcard tests/runtimes/test_*.py))

.PHONY: all help
all: $(programs)

help:
	@sed -n 's/^## //p' $(firstword $(MAKEFILE_LIST))

# --- compiling -------------------------------------------------------------------

$(OUT)/obj/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(Q_CFLAGS) $(CFLAGS) $(CFLAGS_$(subst /,_,$(dir $<))) -MMD -MP -c $< -o $@

# The cpu backend's inner loops want the full optimizer, those of the formats too.
CFLAGS_worker_backend_cpu_ := $(if $(SAN),,-O3)
CFLAGS_formats_ := $(if $(SAN),,-O3)
# As do the conversions of whole arrays (half.c, checkpoint_read.c).
CFLAGS_common_ := $(if $(SAN),,-O3)

# Hot loops are compiled once per instruction-set level; the backend picks one when it opens.
kernel_sources := $(wildcard worker/backend/cpu/kernels_*.c)
kernel_levels := $(if $(filter x86_64,$(shell uname -m)),base v3 v4,base)
kernel_march_base :=
kernel_march_v3 := -march=x86-64-v3
kernel_march_v4 := -march=x86-64-v4 -mprefer-vector-width=512
kernel_objs := $(foreach l,$(kernel_levels),$(patsubst %.c,$(OUT)/obj/%.$(l).o,$(kernel_sources)))
define kernel_rule
$(OUT)/obj/%.$(1).o: %.c
	@mkdir -p $$(@D)
	$$(CC) $$(Q_CFLAGS) $$(CFLAGS) $$(CFLAGS_worker_backend_cpu_) $$(kernel_march_$(1)) -DKERNEL_LEVEL=$(1) -MMD -MP -c $$< -o $$@
endef
$(foreach l,$(kernel_levels),$(eval $(call kernel_rule,$(l))))

$(OUT)/obj/%.cu.o: %.cu
	@mkdir -p $(@D)
	$(NVCC) $(Q_NVCCFLAGS) $(NVCCFLAGS) -MMD -MP -c $< -o $@

# Files that a program carries inside itself (dashboard, api.yaml, sample texts): deploy/embed turns
# each into a C array; server/embedded.h declares them.
embedded_files := $(wildcard server/dashboard/*) api.yaml $(wildcard migrations/*.sql) $(wildcard examples/texts/*)
$(OUT)/gen/embedded.c: $(embedded_files) deploy/embed Makefile
	@mkdir -p $(@D)
	deploy/embed $(embedded_files) > $@.tmp && mv $@.tmp $@
$(OUT)/obj/gen/embedded.o: $(OUT)/gen/embedded.c
	@mkdir -p $(@D)
	$(CC) $(Q_CFLAGS) $(CFLAGS) -c $< -o $@

define archive_rule
$(OUT)/lib$(1).a: $(call lib_objs,$(1)) $(2)
	@mkdir -p $$(@D)
	@rm -f $$@
	$$(AR) rcs $$@ $$^
endef
$(eval $(call archive_rule,common))
$(eval $(call archive_rule,formats))
$(eval $(call archive_rule,server,$(OUT)/obj/gen/embedded.o))
$(eval $(call archive_rule,worker,$(kernel_objs) $(cuda_objs)))
$(eval $(call archive_rule,cli))

link = $(CC) $(Q_LDFLAGS) $(LDFLAGS) -o $@ $(filter %.o %.a,$^) $(call libs,$(1)) $(cuda_libs) -lm

$(OUT)/quarry-server: $(call obj,server/main.c) $(OUT)/libserver.a $(OUT)/libformats.a $(OUT)/libcommon.a
	$(call link,server)
$(OUT)/quarry-worker: $(call obj,worker/main.c) $(OUT)/libworker.a $(OUT)/libformats.a $(OUT)/libcommon.a
	$(call link,worker)
$(OUT)/quarry: $(call obj,cli/main.c) $(OUT)/libcli.a $(OUT)/libformats.a $(OUT)/libcommon.a
	$(call link,cli)

$(OUT)/tests/%: $(OUT)/obj/tests/unit/%.o $(call obj,$(src_testlib)) $(OUT)/libserver.a $(OUT)/libworker.a $(OUT)/libcli.a $(OUT)/libformats.a $(OUT)/libcommon.a
	@mkdir -p $(@D)
	$(call link,tests)
$(OUT)/bench/bench_cuda: $(call obj,$(wildcard bench/cuda/*.c))
$(OUT)/bench/%: $(OUT)/obj/bench/%.o $(OUT)/libworker.a $(OUT)/libformats.a $(OUT)/libcommon.a
	@mkdir -p $(@D)
	$(call link,worker)

$(OUT)/tools/codec_files: $(call obj,tests/lib/codec_case.c)
# A worker with a backend of its own: the list of backends in its object stands before the one in the library.
$(OUT)/tools/worker_faulty: $(call obj,tests/tools/worker_faulty.c worker/main.c) $(OUT)/libworker.a $(OUT)/libformats.a $(OUT)/libcommon.a
	@mkdir -p $(@D)
	$(call link,worker)
$(OUT)/tools/%: $(OUT)/obj/tests/tools/%.o $(OUT)/libworker.a $(OUT)/libformats.a $(OUT)/libcommon.a
	@mkdir -p $(@D)
	$(call link,worker)

-include $(shell find $(OUT)/obj -name '*.d' 2>/dev/null)
.SECONDARY:

# --- targets ---------------------------------------------------------------------

## all           build/quarry-server, build/quarry-worker, build/quarry
## deps          install the Debian packages that are missing
## check         every test; the last line is "N passed, N failed"
## check-unit    the C tests (T="name ..." picks some)
## check-system  the tests that run the built programs (T="name ..." picks some)
## check-runtimes  results in mlx-lm, llama.cpp and transformers, whose packages it installs into $(OUT)/test-venv
##               (QUARRY_RUNTIMES=full: larger models of ../shared too)
## check-server  the tests of the coordinator, for SAN=thread
## check-source  source rules: include directions, banned functions, routes = api.yaml
## demo          quantize the sample model to 2 bits and print what it cost
## bench         measurements, as ratios to a limit or rival of the same run
## install       programs into $(DESTDIR)$(PREFIX)/bin
## clean         remove $(OUT)
.PHONY: deps deps-tests check-run demo-run check check-unit check-system check-runtimes check-source check-server demo bench install clean tests
picked = $(if $(T),$(foreach t,$(T),$(filter %/test_$(t) %/test_$(t).sh %/test_$(t).py,$(1))),$(1))

# What holds the coordinator, for SAN=thread: its threads are the ones that share memory.
of_server = $(foreach t,$(1),$(if $(filter test_server_% test_store_% test_engine_%,$(notdir $(t))),$(t)))
server_unit_tests := $(call of_server,$(unit_tests))
server_system_tests := $(call of_server,$(system_tests))

tests: $(programs) $(unit_tests) $(test_tools)

# Packages come first, then a fresh make: this one has asked pkg-config already.
deps:
	@deploy/install-deps.sh
deps-tests:
	@deploy/install-deps.sh --tests
all_cores = $(if $(filter -j%,$(MAKEFLAGS)),,-j$(shell nproc))
check: deps-tests
	@$(MAKE) --no-print-directory $(all_cores) check-run
demo: deps
	@$(MAKE) --no-print-directory $(all_cores) -s demo-run

# What takes longest begins first: several run at a time.
check-run: tests
	QUARRY_BUILD=$(abspath $(OUT)) tests/run $(if $(RUNTIMES),$(runtime_tests)) $(system_tests) deploy/check-source $(unit_tests)
check-unit: $(call picked,$(unit_tests)) $(programs)
	QUARRY_BUILD=$(abspath $(OUT)) tests/run $(call picked,$(unit_tests))
check-system: $(programs) $(test_tools)
	QUARRY_BUILD=$(abspath $(OUT)) tests/run $(call picked,$(system_tests))
check-runtimes: $(programs) $(test_tools)
	tests/runtimes/run $(abspath $(OUT)) $(call picked,$(runtime_tests))
check-server: $(programs) $(server_unit_tests)
	QUARRY_BUILD=$(abspath $(OUT)) tests/run $(server_unit_tests) $(server_system_tests)
check-source:
	deploy/check-source

demo-run: $(programs)
	deploy/demo $(OUT)

bench: $(programs) $(patsubst bench/%.c,$(OUT)/bench/%,$(src_bench))
	bench/run $(OUT)

PREFIX ?= /usr/local
install: $(programs)
	install -d $(DESTDIR)$(PREFIX)/bin
	install $(programs) $(DESTDIR)$(PREFIX)/bin

clean:
	rm -rf $(OUT)
