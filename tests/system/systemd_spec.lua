-- The installed unit under a real systemd, on a machine of its own: tests/support/with-systemd.sh.
local t = require "tests.support.harness"

-- What runs there. Each check is a line "ok NAME" or "failed NAME: what was seen".
local script = [=[
set -u
check() { # check NAME EXPECTED SEEN
	if [[ $3 == $2 ]]; then echo "ok $1"; else echo "failed $1: expected '$2', seen '$3'"; fi
}
show() { systemctl show -P "$1" reactord; }
wait_for() { # wait_for PATTERN COMMAND...: until its output matches, 10 s at most
	local seen
	for _ in {1..200}; do
		seen=$("${@:2}" 2>&1)
		[[ $seen != $1 ]] || break
		sleep 0.05
	done
	echo "$seen"
}
say() { # say PORT-OR-PATH WORD: what comes back
	if [[ $1 == /* ]]; then echo "$2" | nc -N -U "$1"; else echo "$2" | nc -N 127.0.0.1 "$1"; fi
}
echo_with() { # the handler answers with that word
	sed -i "s/self:send_data(.*data)/self:send_data('$1 ' .. data)/" /usr/local/share/reactord/handlers/echo.lua
}

systemd-sysusers /usr/local/lib/sysusers.d/reactord.conf
cat >>/etc/reactord/reactord.conf <<-END
	listen "tcp://127.0.0.1:7" { handler = "echo" }
	listen "unix:///run/reactord/echo.sock" { handler = "echo", mode = "0666" }
END
systemctl daemon-reload
systemctl start reactord
check 'starts' 0 $?
check 'is ready when start returns' 'hello' "$(say 8081 hello)"
check 'is active' active "$(show ActiveState)"
check 'tells its status' 'Serving, generation 1' "$(show StatusText)"
check 'runs as its user' reactord "$(stat -c %U "/proc/$(show MainPID)")"
check 'has a port below 1024' low "$(say 7 low)"
stores() { find /run/reactord -name 'reactord-shared-*' | wc -l; }
say 8084 'chat counts its users in em.shared' >/dev/null
check 'has its shared data in /run/reactord' 1 "$(stores)"
check 'has a socket in /run/reactord' unix "$(say /run/reactord/echo.sock unix)"

exec 5<>/dev/tcp/127.0.0.1/8081
echo_with new
systemctl reload reactord
check 'reloads' 0 $?
check 'tells the new status' 'Serving, generation 2' "$(wait_for 'Serving, generation 2' show StatusText)"
check 'serves new code' 'new word' "$(say 8081 word)"
echo word >&5
read -r -t 5 line <&5
check 'keeps an open connection on old code' word "$line"

echo 'x = = 1' >>/usr/local/share/reactord/handlers/echo.lua
systemctl reload reactord
check 'fails to reload visibly' 1 $?
check 'tells of a refusal' 'Reload refused, generation 2 serves on: *' "$(wait_for 'Reload refused*' show StatusText)"
check 'is active all the same' active "$(show ActiveState)"
check 'serves on' 'new word' "$(say 8081 word)"
check 'has the reason in the journal' '*handler*echo*echo.lua:12: *expected near*' \
	"$(wait_for '*expected near*' journalctl -q -u reactord -p err -o cat --no-pager)"
check 'gives the journal priorities, not prefixes' '' "$(journalctl -q -u reactord -o cat --no-pager | grep '^<')"
sed -i '$d' /usr/local/share/reactord/handlers/echo.lua

exec 5>&-
# A handler that hangs in C: the watchdog ends it, and systemd starts it again.
mkdir -p /run/systemd/system/reactord.service.d /run/systemd/system/reactord@.service.d
printf '[Service]\nWatchdogSec=1\n' | tee /run/systemd/system/reactord.service.d/x.conf >/run/systemd/system/reactord@.service.d/x.conf
cat >/usr/local/share/reactord/handlers/hang.lua <<-END
	return { receive_data = function() return (("a"):rep(3000)):find((".-"):rep(8) .. "b") end }
END
echo 'listen "tcp://127.0.0.1:8099" { handler = "hang" }' >>/etc/reactord/reactord.conf
systemctl daemon-reload
systemctl restart reactord
check 'restarts' active "$(show ActiveState)"
before=$(show MainPID)
sleep 2.2
check 'is left alone by the watchdog while it turns' "$before" "$(show MainPID)"
echo x | nc -w 8 127.0.0.1 8099 >/dev/null
check 'is killed by the watchdog when it hangs, and started again' 1 "$(wait_for 1 show NRestarts)"
check 'serves again after it' 'new word' "$(wait_for 'new word' say 8081 word)"
say 8084 'chat counts its users in em.shared' >/dev/null

before=$(show MainPID)
kill -KILL "$before"
check 'is started again after a crash' active "$(wait_for active show ActiveState)"
wait_for '[1-9]*' show MainPID >/dev/null
check 'serves after a crash' 'new word' "$(wait_for 'new word' say 8081 word)"
check 'has left its shared data behind' 1 "$(stores)"
say 8084 'and starts anew' >/dev/null
check 'clears it up' 1 "$(stores)"

exec 5<>/dev/tcp/127.0.0.1/8081
echo word >&5
read -r -t 5 line <&5
systemctl stop --no-block reactord
check 'drains' deactivating "$(wait_for deactivating show ActiveState)"
check 'tells that it drains' Draining "$(wait_for Draining show StatusText)"
echo more >&5
read -r -t 5 line <&5
check 'serves during the drain' 'new more' "$line"
exec 5>&-
check 'stops with the last connection' inactive "$(wait_for inactive show ActiveState)"
check 'stops well' success "$(show Result)"
check 'leaves no shared data' 0 "$(stores)"
check 'leaves nothing open' '*stopped: *connections=0 listeners=0 timers=0 references=0*' \
	"$(wait_for '*connections=0 listeners=0*' journalctl -q -u reactord -o cat --no-pager)"

# With a socket of systemd's own nobody is refused while it is restarted.
sed -i '/8099/d; s|listen "tcp://127.0.0.1:8081"|listen "fd://reactord"|' /etc/reactord/reactord.conf
systemctl start reactord.socket
check 'does not run before somebody connects' inactive "$(show ActiveState)"
check 'is started by who connects' 'new first' "$(say 8081 first)"
(
	refused=0 answered=0
	while [[ ! -e /run/enough ]]; do
		if [[ $(say 8081 load) == 'new load' ]]; then answered=$((answered + 1)); else refused=$((refused + 1)); fi
	done
	echo "refused=$refused answered=$answered" >/run/counts
) &
load=$!
for _ in 1 2 3; do
	systemctl restart reactord
	check 'restarts under load' 0 $?
	sleep 0.3
done
touch /run/enough
wait "$load"
check 'has refused nobody' 'refused=0 answered=[1-9]*' "$(</run/counts)"
systemctl stop reactord.socket reactord

# An instance has a configuration, folders and a control socket of its own.
sed 's/fd:.*reactord"/tcp:\/\/127.0.0.1:8090"/; /8082\|8083\|8084\|:7"/d; s|/run/reactord/|/run/reactord-two/|' \
	/etc/reactord/reactord.conf >/etc/reactord/two.conf
systemctl start reactord@two
check 'starts an instance' 0 $?
check 'serves by the instance' 'new other' "$(say 8090 other)"
systemctl reload reactord@two
check 'reloads the instance' 0 $?
echo 'x = = 1' >>/usr/local/share/reactord/handlers/echo.lua
systemctl reload reactord@two
check 'fails to reload the instance' 1 $?
sed -i '$d' /usr/local/share/reactord/handlers/echo.lua
systemctl stop reactord@two

echo 'zebra = 1' >>/etc/reactord/reactord.conf
systemctl start reactord
check 'fails with a bad configuration' 1 $?
check 'has status 1' 1 "$(show ExecMainStatus)"
check 'is not started again' 0 "$(show NRestarts)"
check 'says why' '*unknown option*zebra*' "$(wait_for '*zebra*' journalctl -q -u reactord -p err -o cat --no-pager)"
echo 'the end'
]=]

describe("the installed unit", function()
  t.auto()

  it("starts, reloads, recovers, drains and stops under systemd", function()
    if t.sanitized then pending("the unit's fences are not for sanitizers") end
    local install = ("make -s --no-print-directory -C %q install-files BUILD=%q >/dev/null || exit 1\n")
      :format(t.root, os.getenv("REACTORD_BUILD") or "build")
    local r = t.run {
      "tests/support/with-systemd.sh", t.write("script", install .. script), t.root, cwd = t.root, seconds = 60, env = { TMPDIR = false },
    }
    if r.status == 77 then pending(r.err:match("[^\n]*\n?$")) end
    assert.equal(0, r.status, r.out .. r.err)
    assert.is_nil(("\n" .. r.out):find("\nfailed ", 1, true), r.out)
    assert.matches("the end\n$", r.out)
    assert.equal(47, select(2, r.out:gsub("\nok ", "")), r.out)
  end)
end)
