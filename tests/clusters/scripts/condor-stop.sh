#!/bin/bash
# Ends what runs inside the folder of condor-start.sh, daemons and jobs; the folder stays, its mounts do not
# (with --daemons they do).
DIR=${CONDOR_TEST_DIR:-/var/cache/masterslave-clusters/condor}; [ -d "$DIR" ] || exit 0
inside() { local p; for p in /proc/[0-9]*; do [ "$(readlink "$p/root" 2> /dev/null)" = "$DIR" ] && echo "${p#/proc/}"; done; }
p=$(cat "$DIR/pid" 2> /dev/null) && grep -qaF condor_master "/proc/$p/cmdline" 2> /dev/null && kill "$p" || inside | xargs -r kill -9 2> /dev/null
for i in $(seq 100); do [ -n "$(inside)" ] || break; sleep .1; done
inside | xargs -r kill -9 2> /dev/null
rm -f "$DIR/pid"; [ "${1:-}" = --daemons ] || umount -l "$DIR/dev" "$DIR/proc" 2> /dev/null
exit 0
