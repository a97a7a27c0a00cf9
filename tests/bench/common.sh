# What the benchmarks share; to be sourced. Expects $root.

# Says why it cannot go on and ends.
fail() {
	echo "bench: $*" >&2
	exit 1
}

# Ends every process that this script still has, by its pid: politely, after two seconds for good.
cleanup() {
	local status=$? try
	trap '' INT TERM HUP
	for try in {1..42}; do
		mapfile -t left < <(jobs -pr)
		[ ${#left[@]} -gt 0 ] || break
		case $try in
		1) kill -TERM "${left[@]}" 2>/dev/null || true ;;
		41) kill -KILL "${left[@]}" 2>/dev/null || true ;;
		esac
		sleep 0.05
	done
	rm -rf "$tmp"
	exit "$status"
}

# Finds two cores that we may use: the first for the servers, the second for the generator.
choose_cores() {
	local list range i cores=()
	list=$(sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' /proc/self/status)
	for range in ${list//,/ }; do
		for ((i = ${range%-*}; i <= ${range#*-}; i++)); do cores+=("$i"); done
	done
	pin_server=() pin_load=() pinned="not pinned (one core, or no taskset): server and generator share it, rates mean little"
	if [ ${#cores[@]} -ge 2 ] && taskset -c "${cores[0]}" true 2>/dev/null && taskset -c "${cores[1]}" true 2>/dev/null; then
		pin_server=(taskset -c "${cores[0]}") pin_load=(taskset -c "${cores[1]}")
		pinned="server on core ${cores[0]}, generator on core ${cores[1]}"
	fi
}

# Waits until a server's output holds a word; false when the server ended first or ten seconds went by.
wait_for() { # PID FILE PATTERN
	local try
	for try in {1..200}; do
		if grep -qwE "$3" "$2"; then return 0; fi
		kill -0 "$1" 2>/dev/null || break
		sleep 0.05
	done
	grep -qwE "$3" "$2"
}

# A port below the range for outgoing connections, on which nobody answers.
free_port() {
	local port
	while port=$((20000 + RANDOM % 10000)); do
		(: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
	done
	echo "$port"
}

# Takes the daemon to measure; the generator and echo_epoll stand beside it, and there the results go. Sets daemon, built.
use_daemon() { # PATH
	local program
	if [ ! -x "$1" ] || [ -d "$1" ]; then fail "$1: no such program"; fi
	daemon=$(realpath "$1")
	built=$(dirname "$daemon")/bench
	for program in load echo_epoll; do
		[ -x "$built/$program" ] || fail "$built/$program is missing: make bench builds it"
	done
}

# Makes the folder for what is in between, $tmp, which goes at the end with every process that was started.
prepare() {
	tmp=$(mktemp -d)
	trap cleanup EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
	trap 'exit 129' HUP
	unset NOTIFY_SOCKET WATCHDOG_USEC WATCHDOG_PID LISTEN_FDS LISTEN_PID LISTEN_FDNAMES
}
