/* Signals that scripts ask for: see lua_signal.h. */
#include "lua_signal.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>

#include "lua_arg.h"
#include "mem.h"
#include "sig.h"

/* A signal and the function for it. */
struct lua_signal {
	struct vm *vm;
	struct sig *watch; /* NULL: the host of the run watches it and delivers */
	int signo;
	int function_ref; /* LUA_NOREF: inherited, not claimed yet */
	struct lua_signal *next;
};

/* Kept from every script: what the process itself lives by, and faults, which would be raised again for ever. */
static const int kept_always[] = {SIGPIPE, SIGCHLD, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS};

/* Kept from handlers: the service's own. */
static const int kept_by_service[] = {SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};

/* Is a number in a list? */
static bool is_in(int signo, const int *list, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if (list[i] == signo)
			return true;
	return false;
}

/* Does the daemon keep that signal for itself? */
static bool is_kept(const struct vm *vm, int signo)
{
	if (signo == guard_signal() || signo == sig_orphan() || is_in(signo, kept_always, sizeof kept_always / sizeof *kept_always))
		return true;
	return !vm->options.is_script && is_in(signo, kept_by_service, sizeof kept_by_service / sizeof *kept_by_service);
}

/* Does the host of a run watch it, to end the run? */
static bool is_delivered(const struct vm *vm, int signo)
{
	return vm->options.is_script && (signo == SIGHUP || signo == SIGINT || signo == SIGTERM);
}

/* A signal by its name. */
int lua_signal_check(lua_State *L, int index)
{
	const char *name = luaL_checkstring(L, index);
	int signo = sig_number(name);

	if (!signo)
		luaL_argerror(L, index, lua_pushfstring(L, "there is no signal '%s'", name));
	return signo;
}

/* The VM's entry for a signal. */
static struct lua_signal **find(struct vm *vm, int signo)
{
	struct lua_signal **at = &vm->signals;

	while (*at && (*at)->signo != signo)
		at = &(*at)->next;
	return at;
}

/* Ends the entry at that place. */
static void drop(struct lua_signal **at)
{
	struct lua_signal *s = *at;

	*at = s->next;
	sig_unwatch(s->watch);
	vm_unref(s->vm, &s->function_ref);
	free(s);
}

/* Calls the function with the signal's name. */
static int signal_body(lua_State *L)
{
	struct lua_signal *s = lua_touserdata(L, 1);
	char name[SIG_NAME_SIZE];

	lua_rawgeti(L, LUA_REGISTRYINDEX, s->function_ref);
	lua_pushstring(L, sig_name(s->signo, name));
	return vm_call_script(L, 1);
}

/* The signal has come. The entry may be gone when the function has returned. */
static void on_signal(int signo, void *data)
{
	struct lua_signal *s = data;
	struct vm_call call = {.body = signal_body, .argument = s, .callback = "on_signal"};

	(void)signo;
	if (s->function_ref != LUA_NOREF)
		vm_enter(s->vm, &call);
}

/* on_signal(name, fn): one function a signal; nil removes it. True, or nil, message, code. */
static int l_on_signal(lua_State *L)
{
	struct vm *vm = vm_of(L);
	int signo = lua_signal_check(L, 1);
	bool remove = lua_isnoneornil(L, 2);
	char name[SIG_NAME_SIZE];

	if (!remove)
		arg_function(L, 2);
	vm_check_open(L);
	if (signo == SIGKILL || signo == SIGSTOP)
		luaL_argerror(L, 1, lua_pushfstring(L, "SIG%s cannot be caught", sig_name(signo, name)));
	if (is_kept(vm, signo))
		luaL_argerror(L, 1, lua_pushfstring(L, "the daemon keeps SIG%s for itself", sig_name(signo, name)));
	struct lua_signal **at = find(vm, signo);
	if (remove) {
		if (*at)
			drop(at);
		lua_pushboolean(L, true);
		return 1;
	}
	lua_settop(L, 2);
	int ref = vm_ref(L);
	if (!*at) {
		struct lua_signal *s = mem_zalloc(sizeof *s);
		*s = (struct lua_signal){.vm = vm, .signo = signo, .function_ref = LUA_NOREF};
		if (!is_delivered(vm, signo) && !(s->watch = sig_watch(vm->options.loop, signo, on_signal, s))) {
			int error = errno;
			free(s);
			vm_unref(vm, &ref);
			return arg_failure_errno(L, error);
		}
		*at = s;
	}
	vm_unref(vm, &(*at)->function_ref);
	(*at)->function_ref = ref;
	lua_pushboolean(L, true);
	return 1;
}

/* Delivers what the host has caught. */
bool lua_signal_deliver(struct vm *vm, int signo)
{
	struct lua_signal *s = *find(vm, signo);

	if (!s || s->watch || s->function_ref == LUA_NOREF)
		return false;
	on_signal(signo, s);
	return true;
}

/* Ends all functions. */
void lua_signal_cancel_all(struct vm *vm, struct vm *heir)
{
	while (vm->signals) {
		struct lua_signal *s = vm->signals;
		if (!heir || *find(heir, s->signo)) {
			drop(&vm->signals);
			continue;
		}
		vm->signals = s->next;
		vm_unref(vm, &s->function_ref);
		s->vm = heir;
		s->next = heir->signals;
		heir->signals = s;
	}
}

/* Ends what has no function. */
void lua_signal_drop_inheritance(struct vm *vm)
{
	for (struct lua_signal **at = &vm->signals; *at;) {
		if ((*at)->function_ref == LUA_NOREF)
			drop(at);
		else
			at = &(*at)->next;
	}
}

/* Registers all of it. */
void lua_signal_open(lua_State *L)
{
	lua_pushcfunction(L, l_on_signal);
	lua_setfield(L, 1, "on_signal");
}
