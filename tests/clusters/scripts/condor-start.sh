#!/bin/bash
# A real HTCondor 23.9 pool (collector, negotiator, schedd, startd with 4 slots) for tests, on loopback.
# Debian 12 has no HTCondor, Debian 13 (trixie) has: it is unpacked into a folder of its own and run
# there by an ordinary user.  About a minute the first time (430 MB), seconds after.  As root.
#   apt-get install -y --no-install-recommends debootstrap
# The pool runs programs that are inside the folder: its python3 is 3.13; put what a job needs under
# $DIR/home/work (pip install --target, or bind-mount).
set -euo pipefail
DIR=${CONDOR_TEST_DIR:-/var/cache/masterslave-clusters/condor}; PORT0=${PORT0:-19618}; mkdir -p "$(dirname "$DIR")"
if [ ! -x "$DIR/usr/sbin/condor_master" ]; then
  # the last configuration steps of some packages fail without a running system; the programs are there
  debootstrap --variant=minbase --include=minicondor,python3,python3-venv trixie "$DIR" http://deb.debian.org/debian > "$DIR.log" 2>&1 || true
  [ -x "$DIR/usr/sbin/condor_master" ] || { echo "condor-start: see $DIR.log" >&2; exit 1; }
fi
mountpoint -q "$DIR/proc" || mount --bind /proc "$DIR/proc"
mountpoint -q "$DIR/dev" || mount --rbind /dev "$DIR/dev"
cp /etc/hosts "$DIR/etc/hosts"
chroot "$DIR" sh -c 'id work > /dev/null 2>&1 || useradd -m work; cd /home/work; mkdir -p condor/log condor/spool condor/execute; chown -R work condor'
cat > "$DIR/home/work/condor_config" <<'CONF'
use ROLE: CentralManager
use ROLE: Submit
use ROLE: Execute
LOCAL_DIR = /home/work/condor
LOG = $(LOCAL_DIR)/log
SPOOL = $(LOCAL_DIR)/spool
EXECUTE = $(LOCAL_DIR)/execute
LOCK = $(LOG)
RUN = $(LOG)
BIN = /usr/bin
SBIN = /usr/sbin
LIB = /usr/lib/condor
LIBEXEC = /usr/libexec/condor
NETWORK_INTERFACE = 127.0.0.1
BIND_ALL_INTERFACES = False
ENABLE_IPV6 = False
CONDOR_HOST = 127.0.0.1
COLLECTOR_HOST = 127.0.0.1:PORT0
USE_SHARED_PORT = False
ALLOW_READ = *
ALLOW_WRITE = *
ALLOW_ADMINISTRATOR = *
ALLOW_DAEMON = *
ALLOW_NEGOTIATOR = *
SEC_DEFAULT_AUTHENTICATION_METHODS = FS, CLAIMTOBE
NUM_CPUS = 4
NEGOTIATOR_INTERVAL = 2
NEGOTIATOR_CYCLE_DELAY = 1
SCHEDD_INTERVAL = 2
UPDATE_INTERVAL = 3
RUNBENCHMARKS = 0
DISCARD_SESSION_KEYRING_ON_STARTUP = False
USE_PROCD = False
BASE_CGROUP =
CONF
sed -i "s/PORT0/$PORT0/" "$DIR/home/work/condor_config"
run() { chroot "$DIR" su work -c "cd /home/work; export HOME=/home/work CONDOR_CONFIG=/home/work/condor_config PATH=/usr/sbin:/usr/bin:/sbin:/bin; $*"; }
alive() { local p; p=$(cat "$DIR/pid" 2> /dev/null) && [ -n "$p" ] && grep -qaF condor_master "/proc/$p/cmdline" 2> /dev/null; }
if ! alive; then
  "$(dirname "$0")/condor-stop.sh" --daemons   # of a master that was killed: they would answer for the new one
  rm -rf "$DIR"/home/work/condor; chroot "$DIR" su work -c "cd /home/work; mkdir -p condor/log condor/spool condor/execute"
  CONDOR_MARK=$DIR setsid chroot "$DIR" su work -c 'cd /home/work; export HOME=/home/work CONDOR_CONFIG=/home/work/condor_config PATH=/usr/sbin:/usr/bin:/sbin:/bin; exec condor_master -f' > "$DIR.out" 2>&1 < /dev/null &
fi
for i in $(seq 120); do
  run condor_status -af Name 2> /dev/null | grep -q . && break; [ "$i" -lt 120 ] || { echo "condor-start: no slot after 60 s; see $DIR/home/work/condor/log" >&2; exit 1; }; sleep .5
done
for p in /proc/[0-9]*; do [ "$(readlink "$p/root" 2> /dev/null)" = "$DIR" ] && [ "$(cat "$p/comm")" = condor_master ] && echo "${p#/proc/}" > "$DIR/pid"; done
echo "HTCondor is up"
