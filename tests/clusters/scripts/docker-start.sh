#!/bin/bash
# Private dockerd (Debian docker.io 20.10, its own containerd) for tests, as root, no systemd: a unix
# socket only, no bridge, no iptables rules (use --network host or none), and an image, work:1, from
# this machine's own python3 (no registry is reachable).  Then:  . $DIR/env
#   apt-get install -y --no-install-recommends docker.io
set -euo pipefail
DIR=${DOCKER_TEST_DIR:-${TMPDIR:-/tmp}/masterslave-clusters/docker}; mkdir -p "$DIR"
echo "{}" > "$DIR/daemon.json"; echo "export DOCKER_HOST=unix://$DIR/sock" > "$DIR/env"; . "$DIR/env"
alive() { local p; p=$(cat "$1" 2> /dev/null) && [ -n "$p" ] && grep -qaF "$2" "/proc/$p/cmdline" 2> /dev/null; }
if ! alive "$DIR/pid" dockerd; then
  # of a dockerd that was killed, containerd is left: the next one needs its folder
  c=$DIR/exec/containerd/containerd.pid
  if alive "$c" containerd; then p=$(cat "$c"); kill -9 "$p"; while grep -q '^State:[^Z]*$' "/proc/$p/status" 2> /dev/null; do sleep .05; done; fi
  rm -f "$DIR/own.pid" "$c"
  setsid dockerd --config-file "$DIR/daemon.json" --data-root "$DIR/data" --exec-root "$DIR/exec" --pidfile "$DIR/own.pid" \
    -H "$DOCKER_HOST" --bridge none --iptables=false --ip6tables=false --ip-masq=false --oom-score-adjust 0 \
    --exec-opt native.cgroupdriver=cgroupfs "$@" >> "$DIR/log" 2>&1 < /dev/null & echo $! > "$DIR/pid"
fi
for i in $(seq 300); do docker version > /dev/null 2>&1 && break; [ "$i" -lt 300 ] || { echo "docker-start: no answer after 30 s; see $DIR/log" >&2; exit 1; }; sleep .1; done
docker image inspect work:1 > /dev/null 2>&1 || { "$(dirname "$0")/mkrootfs.sh" "$DIR/rootfs"; tar -C "$DIR/rootfs" -c . | docker import - work:1; rm -rf "$DIR/rootfs"; }
echo "docker is up: . $DIR/env"
