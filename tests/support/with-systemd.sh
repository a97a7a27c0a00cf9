#!/bin/bash
# Runs a script on a machine of its own that a real systemd has booted: with-systemd.sh SCRIPT [FOLDER...].
# The machine is this one, as PID 1 of fresh namespaces sees it: the root file system under an overlay in memory, whose changes are gone
# afterwards, and a network of its own that has the loopback interface only. The named folders are there too, read-only, should they
# be file systems of their own. The script's output and status are ours. Status 77: this cannot be had here (not root, no namespaces).
set -eu

# --- outside: new namespaces, and what the script has left ---
if [ "${1:-}" != --inside ]; then
	script=$(readlink -f "$1")
	shift
	[ "$(id -u)" = 0 ] || { echo "only root can boot a systemd" >&2; exit 77; }
	[ -x /lib/systemd/systemd ] || { echo "systemd is not installed" >&2; exit 77; }
	flags=(--mount --pid --fork --uts --ipc --net --cgroup --kill-child)
	unshare "${flags[@]}" true 2>/dev/null || { echo "namespaces are not to be had" >&2; exit 77; }
	work=$(mktemp -d "${TMPDIR:-/var/tmp}/with-systemd.XXXXXX")
	trap 'rm -rf "$work"' EXIT
	trap 'exit 1' INT TERM HUP
	mkdir "$work/root" "$work/memory" "$work/result"
	timeout -k 5 "${WITH_SYSTEMD_TIMEOUT:-60}" unshare "${flags[@]}" "$BASH" "$0" --inside "$work" "$script" "$@" \
		</dev/null >"$work/console" 2>&1 || true
	cat "$work/result/output" 2>/dev/null || true
	[ -e "$work/result/begun" ] || { tail -n 15 "$work/console" >&2; echo "systemd has not booted" >&2; exit 77; }
	[ -e "$work/result/status" ] || { tail -n 15 "$work/console" >&2; echo "the script did not end" >&2; exit 1; }
	exit "$(<"$work/result/status")"
fi

# --- inside: a root file system fit for PID 1 ---
work=$2 script=$3
shift 3
root=$work/root

# mount a new file system of that type at a place below the new root
fresh() {
	mkdir -p "$root$2"
	mount -t "$1" "$1" "$root$2" "${@:3}"
}

mount --make-rprivate /
mount -t tmpfs -o size=400m tmpfs "$work/memory"
mkdir "$work/memory/changes" "$work/memory/scratch"
mount -t overlay -o "lowerdir=/,upperdir=$work/memory/changes,workdir=$work/memory/scratch" overlay "$root"
for folder in "$@"; do
	if mountpoint -q "$(stat -c %m "$folder")" && [ "$(stat -c %m "$folder")" != / ]; then
		mkdir -p "$root$folder"
		mount --rbind "$folder" "$root$folder"
		mount -o remount,bind,ro "$root$folder"
	fi
done
fresh proc /proc
fresh sysfs /sys -o ro 2>/dev/null || mount --rbind /sys "$root/sys"
fresh cgroup2 /sys/fs/cgroup
fresh tmpfs /run -o mode=755
fresh tmpfs /dev -o mode=755
for device in null zero full random urandom tty; do
	: >"$root/dev/$device"
	mount --bind "/dev/$device" "$root/dev/$device"
done
fresh tmpfs /dev/shm
fresh devpts /dev/pts -o newinstance,ptmxmode=0666
ln -s pts/ptmx "$root/dev/ptmx"

# Nothing of this machine's own services, nor what would turn the knobs of the kernel that both share or empty /tmp: one target with one
# unit, after whose end the machine goes down.
: >"$root/etc/fstab"
rm -rf "$root"/etc/systemd/system/*.wants
mkdir -p "$root/run/systemd/system/script.target.wants" "$root/run/result"
for unit in systemd-sysctl systemd-modules-load systemd-udevd systemd-udev-trigger systemd-hwdb-update systemd-random-seed \
	systemd-tmpfiles-setup; do
	ln -s /dev/null "$root/run/systemd/system/$unit.service"
done
mount --bind "$work/result" "$root/run/result"
cp "$script" "$root/run/script"
cat >"$root/run/systemd/system/script.target" <<-END
	[Unit]
	Requires=basic.target
	After=basic.target
END
cat >"$root/run/systemd/system/script.service" <<-END
	[Unit]
	After=basic.target
	[Service]
	Type=oneshot
	ExecStart=/bin/bash -c ': >/run/result/begun; bash /run/script >/run/result/output 2>&1; echo \$? >/run/result/status'
	ExecStopPost=/bin/systemctl --no-block exit
END
ln -s ../script.service "$root/run/systemd/system/script.target.wants/script.service"

cd "$root"
mkdir -p before
pivot_root . before
umount --lazy before
export container=unshare PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
exec chroot . /lib/systemd/systemd --system --unit=script.target --log-target=console --show-status=no
