# Builds, tests and installs reactord. `make help` lists the targets.

VERSION    = 0.1.0
PREFIX     = /usr/local
SYSCONFDIR = /etc
DESTDIR    =
BUILD      = build

# ---------------------------------------------------------------------------------------------------------------------
# The architecture: a source includes only headers of rows above its own here, within a row only of files to its left.
# tests/spec/layers_spec.lua reads these lines and checks that.

# 0 ground: logging, memory, plain data, addresses, counters and where processes share them, rights
GROUND   = mem utf8 log_line log_fold log value addr stats scoreboard metrics sources privs

# 1 settings: all mistakes at once, a sandboxed Lua file to plain data, plain data to a checked configuration
SETTINGS = problems confread_lines confread_value confread option config_schema config_dump config_tls config

# 2 reactor: the turn, the timer heap, signals, the watch over callback time
REACTOR  = loop timer sig guard

# 3 wire: sockets, connections with their queues, datagrams
WIRE     = sock sockfile bus adopt tls proxyproto conn_input conn_output conn file tls_filter udp

# 4 sources: what produces connections
SOURCES  = resolver legacy activation preface listener connector relay watch process channel channel_hub store_folder store

# 5 lua: the door into the scripts, one binding a file
LUA      = lua_vm lua_arg lua_source lua_plain lua_conn lua_channel lua_shared lua_methods lua_relay lua_tls lua_file lua_handler \
           lua_watch lua_udp lua_net lua_handover lua_dns lua_timer lua_go lua_signal lua_process lua_sys lua_sandbox lua_freeze lua_core lua_eval

# 6 service: configuration to listeners and handlers, generations, the control socket, the service manager, many processes
SERVICE  = notify watchdog pidfile upgrade spread command runtime settings ports generation report control inquiry startup service member seats master_reload master_upgrade master_control master run

# 7 main: options and subcommands
MAIN     = ctl main

LAYERS   = GROUND SETTINGS REACTOR WIRE SOURCES LUA SERVICE MAIN
# ---------------------------------------------------------------------------------------------------------------------

OBJECTS = $(foreach layer,$(LAYERS),$(addprefix $(BUILD)/,$(addsuffix .o,$($(layer)))))

# Unit tests link with everything that is below Lua, as far as it exists.
BELOW_LUA = $(GROUND) $(SETTINGS) $(REACTOR) $(WIRE) $(SOURCES)
TESTED    = $(patsubst daemon/%.c,$(BUILD)/%.o,$(wildcard $(BELOW_LUA:%=daemon/%.c)))
UNITS     = $(patsubst tests/unit/%.c,$(BUILD)/tests/%,$(wildcard tests/unit/*_test.c))
BENCHES   = $(patsubst tests/bench/%.c,$(BUILD)/bench/%,$(wildcard tests/bench/*.c))

# The test programs' own helper is loaded by plain lua5.4, so it is built one way only, sanitizers or not.
TESTSYS = build/tests/testsys.so

# Compiler and libraries.
CC        = gcc
LIBRARIES = lua5.4 libevent_core libcares libsystemd jansson libssl libcrypto msgpack lmdb
WARNINGS  = -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wformat=2 -Wvla -Wpointer-arith
DEFINES   = -D_GNU_SOURCE -DVERSION='"$(VERSION)"' -DREACTORD_LIBDIR='"$(PREFIX)/share/reactord/handlers"' \
            -DREACTORD_CONF='"$(SYSCONFDIR)/reactord/reactord.conf"'
INCLUDES  = -Iinclude -Idaemon $(shell pkg-config --cflags $(LIBRARIES) 2>/dev/null)
LIBS      = $(shell pkg-config --libs $(LIBRARIES) 2>/dev/null) -lm
ifdef SANITIZE
OPTIMIZE  = -O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
else
OPTIMIZE  = -O2 -D_FORTIFY_SOURCE=2 -fstack-protector-strong
endif
ALL_CFLAGS  := -std=gnu11 -g -fPIE $(OPTIMIZE) $(WARNINGS) $(if $(WERROR),-Werror) $(DEFINES) $(INCLUDES) $(CFLAGS)
ALL_LDFLAGS := -pie -Wl,-z,relro,-z,now $(OPTIMIZE) $(LDFLAGS)
LIBS        := $(LIBS)

# Debian 12's packages: to build and try the daemon, to run the tests, to check the sources.
RUN_PACKAGES  = gcc libc6-dev pkg-config liblua5.4-dev libevent-dev>=2.1.12-stable-8+deb12u1 libc-ares-dev libsystemd-dev libssl-dev \
                libjansson-dev libmsgpack-dev liblmdb-dev uthash-dev netcat-openbsd
TEST_PACKAGES = $(RUN_PACKAGES) lua5.4 lua-busted lua-socket lua-filesystem lua-dkjson libcmocka-dev systemd dnsmasq-base ruby-eventmachine \
                lua-sec curl openssl haproxy
FULL_PACKAGES = $(TEST_PACKAGES) prometheus testssl.sh bsdextrautils dnsutils
LINT_PACKAGES = lua-check clang-format cppcheck

JOBS      = $(shell nproc)
PARALLEL  = $(if $(filter -j% --jobserver%,$(MAKEFLAGS)),,-j$(JOBS))
SUBMAKE   = $(MAKE) --no-print-directory $(PARALLEL)
TEST_ENV  = REACTORD=$(CURDIR)/$(BUILD)/reactord REACTORD_BUILD=$(BUILD)
C_FILES   = $(wildcard daemon/*.[ch] include/*.h tests/unit/*.[ch] tests/support/*.c tests/bench/*.c tests/fuzz/*.c)
LUA_FILES = handlers tests

# Commands of the compiler are shown with V=1 only.
Q = $(if $(V),,@echo '  $@'; )

.PHONY: all help deps run test test-all test-deps test-programs test-run lint format asan bench install install-files uninstall clean FORCE
.DELETE_ON_ERROR:
.SECONDARY:

all: $(BUILD)/reactord

help:
	@echo 'make            build build/reactord (WERROR=1: warnings are errors, V=1: show commands)'
	@echo 'make run        install what is missing, build, serve conf/reactord.conf in the foreground'
	@echo 'make test       install what is missing, build, run every test (SPECS="files": only these)'
	@echo 'make test-all   the same with full counts and heavy peers'
	@echo 'make asan       the same tests under address, undefined-behaviour and leak sanitizers'
	@echo 'make lint       luacheck, clang-format, cppcheck'
	@echo 'make format     clang-format over all C files'
	@echo 'make bench      echo speed beside a bare epoll server; what clients notice of reloads'
	@echo 'make install    into DESTDIR, PREFIX ($(PREFIX)), SYSCONFDIR ($(SYSCONFDIR)); make uninstall'
	@echo 'make clean      remove build/'

$(BUILD)/reactord: $(OBJECTS)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $(OBJECTS) $(LIBS)

$(BUILD)/%.o: daemon/%.c $(BUILD)/flags
	$(Q)$(CC) $(ALL_CFLAGS) -MMD -MP -c -o $@ $<

# Everything is built again when the compiler's flags change, and not otherwise.
$(BUILD)/flags: FORCE
	@pkg-config --print-errors --exists $(LIBRARIES) || { echo 'libraries are missing: try "make deps"' >&2; exit 1; }
	@mkdir -p $(BUILD)/tests $(BUILD)/bench
	@printf '%s\n' '$(subst ','\'',$(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS))' | cmp -s - $@ || \
	 printf '%s\n' '$(subst ','\'',$(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS))' > $@

deps:
	@.ci/install-packages '$(RUN_PACKAGES)'

run: deps
	@$(SUBMAKE) all
	@echo
	@echo 'Serving conf/reactord.conf. Try in another terminal:'
	@echo '  nc 127.0.0.1 8081   echo: says back what you type'
	@echo '  nc 127.0.0.1 8082   discard: reads and forgets'
	@echo '  nc 127.0.0.1 8083   line_counter: ten lines, then good-bye'
	@echo '  nc 127.0.0.1 8084   chat: from two terminals'
	@echo "Edit handlers/echo.lua, then: kill -HUP $$$$. Ctrl-C ends it."; echo; exec $(BUILD)/reactord -c conf/reactord.conf

# --- tests -----------------------------------------------------------------------------------------------------------

test-deps:
	@.ci/install-packages '$(TEST_PACKAGES)'

test: test-deps
	@$(SUBMAKE) test-programs
	@$(TEST_ENV) tests/support/run-tests $(BUILD)/tests $(SPECS)

test-all:
	@.ci/install-packages '$(FULL_PACKAGES)'
	@$(SUBMAKE) test-programs
	@$(TEST_ENV) REACTORD_FULL=1 SPEC_TIMEOUT=1800 tests/support/run-tests $(BUILD)/tests $(SPECS)

# The program under test has the sanitizers, the program that tests it is plain Lua. What they report goes to files in the
# folder of each test, where the harness looks for them.
asan: test-deps
	@$(SUBMAKE) BUILD=build/asan SANITIZE=1 test-programs
	@$(MAKE) --no-print-directory BUILD=build/asan SANITIZE=1 test-run

test-run:
	@$(TEST_ENV) REACTORD_SLOW=5 REACTORD_SANITIZED=1 SPEC_TIMEOUT=400 \
	 ASAN_OPTIONS=detect_leaks=1:halt_on_error=1:detect_stack_use_after_return=1:strict_string_checks=1 \
	 UBSAN_OPTIONS=print_stacktrace=1 tests/support/run-tests $(BUILD)/tests $(SPECS)

test-programs: all $(UNITS) $(TESTSYS)

$(BUILD)/tests/%_test: $(BUILD)/tests/%_test.o $(BUILD)/tested.a
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ -lcmocka $(LIBS)

$(BUILD)/tests/%.o: tests/unit/%.c $(BUILD)/flags
	$(Q)$(CC) $(ALL_CFLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/tested.a: $(TESTED)
	@rm -f $@
	@$(AR) rcs $@ $^

$(TESTSYS): tests/support/testsys.c
	@mkdir -p $(@D)
	$(Q)$(CC) -std=gnu11 -D_GNU_SOURCE -g -O2 -fPIC -shared $(WARNINGS) $(if $(WERROR),-Werror) $(INCLUDES) -o $@ $<

bench: test-deps
	@$(SUBMAKE) all $(BENCHES)
	@tests/bench/run $(BUILD)/reactord
	@tests/bench/live $(BUILD)/reactord

$(BUILD)/bench/%: tests/bench/%.c $(BUILD)/flags
	$(Q)$(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -o $@ $< $(LIBS)

# --- sources ---------------------------------------------------------------------------------------------------------

lint:
	@.ci/install-packages '$(RUN_PACKAGES) $(LINT_PACKAGES)'
	luacheck --quiet --no-color $(LUA_FILES)
	clang-format --dry-run -Werror $(C_FILES)
	cppcheck --quiet --error-exitcode=1 --std=c11 --language=c --library=posix -Iinclude -Idaemon -D_GNU_SOURCE \
	 -DVERSION='""' -DREACTORD_LIBDIR='""' -DREACTORD_CONF='""' --enable=warning,performance,portability --inline-suppr \
	 --suppress=missingInclude --suppress=missingIncludeSystem \
	 $(addprefix --suppress=,getpwnamCalled getpwuidCalled getgrnamCalled getgrgidCalled readdirCalled) -j$(JOBS) $(filter %.c,$(C_FILES))

format:
	@.ci/install-packages '$(LINT_PACKAGES)'
	clang-format -i $(C_FILES)

# --- installation ----------------------------------------------------------------------------------------------------

BIN      = $(DESTDIR)$(PREFIX)/bin
SHARE    = $(DESTDIR)$(PREFIX)/share/reactord
LIB      = $(DESTDIR)$(PREFIX)/lib
CONF     = $(DESTDIR)$(SYSCONFDIR)/reactord
HANDLERS = $(shell cd handlers && find . -name '*.lua' -o -name '*.md')

UNIT_FILES = reactord.service reactord@.service reactord.socket

# The shipped configuration with the handlers' installed place instead of the one beside it.
INSTALLED_CONF = sed 's|"\.\./handlers"|"$(PREFIX)/share/reactord/handlers"|' conf/reactord.conf

install: all install-files

install-files:
	install -d $(BIN) $(SHARE)/handlers $(CONF) $(LIB)/systemd/system $(LIB)/sysusers.d $(LIB)/tmpfiles.d
	install -m 755 $(BUILD)/reactord $(BIN)/reactord
	ln -sf reactord $(BIN)/reactorctl
	cd handlers && for file in $(HANDLERS); do install -D -m 644 $$file $(abspath $(SHARE))/handlers/$$file || exit 1; done
	for unit in $(UNIT_FILES); do \
	 sed 's|@PREFIX@|$(PREFIX)|g; s|@SYSCONFDIR@|$(SYSCONFDIR)|g' systemd/$$unit > $(LIB)/systemd/system/$$unit && \
	 chmod 644 $(LIB)/systemd/system/$$unit || exit 1; done
	install -m 644 systemd/reactord.sysusers $(LIB)/sysusers.d/reactord.conf
	install -m 644 systemd/reactord.tmpfiles $(LIB)/tmpfiles.d/reactord.conf
	@if [ -e $(CONF)/reactord.conf ]; then echo 'kept: $(CONF)/reactord.conf is there already'; \
	 else $(INSTALLED_CONF) > $(CONF)/reactord.conf && chmod 644 $(CONF)/reactord.conf; fi

# What install put there; a configuration that was changed since stays, and so do files that are not ours.
uninstall:
	rm -f $(BIN)/reactord $(BIN)/reactorctl $(addprefix $(LIB)/systemd/system/,$(UNIT_FILES)) \
	 $(LIB)/sysusers.d/reactord.conf $(LIB)/tmpfiles.d/reactord.conf
	rm -f $(addprefix $(SHARE)/handlers/,$(HANDLERS))
	-@find $(SHARE) -depth -type d -empty -delete 2>/dev/null
	@if [ -e $(CONF)/reactord.conf ]; then \
	 if $(INSTALLED_CONF) | cmp -s - $(CONF)/reactord.conf; then rm $(CONF)/reactord.conf && rmdir --ignore-fail-on-non-empty $(CONF); \
	 else echo 'kept: $(CONF)/reactord.conf was changed'; fi; fi

clean:
	rm -rf build

-include $(wildcard $(BUILD)/*.d $(BUILD)/tests/*.d)
