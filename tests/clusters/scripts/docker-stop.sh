#!/bin/bash
# Stops docker-start.sh's dockerd and every container in it.  --purge forgets images and logs.
set -u
DIR=${DOCKER_TEST_DIR:-${TMPDIR:-/tmp}/masterslave-clusters/docker}; [ -e "$DIR/env" ] || exit 0; . "$DIR/env"
gone() { local i; for i in $(seq "$2"); do grep -q '^State:[^Z]*$' "/proc/$1/status" 2> /dev/null || return 0; sleep .05; done; return 1; }
timeout 10 docker ps -q 2> /dev/null | xargs -r timeout 20 docker kill > /dev/null 2>&1
for f in "$DIR/pid" "$DIR/exec/containerd/containerd.pid"; do
  p=$(cat "$f" 2> /dev/null) && grep -qaE 'dockerd|containerd' "/proc/$p/cmdline" 2> /dev/null && { kill "$p"; gone "$p" 200 || kill -9 "$p"; }
  rm -f "$f"
done
for p in /proc/[0-9]*; do                       # of containers whose daemon was killed, with their processes
  grep -qaF "$DIR/exec/" "$p/cmdline" 2> /dev/null && grep -q containerd-shim "$p/comm" && kill -9 "${p#/proc/}"
done
[ "${1:-}" = --purge ] && { grep -oE " $DIR/[^ ]+" /proc/mounts | sort -r | xargs -r umount 2> /dev/null; rm -rf "$DIR"; rmdir /sys/fs/cgroup/*/docker 2> /dev/null; }
exit 0
