#!/bin/bash
# Podman for tests, as root without systemd or CAP_SYS_RESOURCE, and an image from this machine's own
# python3 (no registry is reachable).  No daemon.  Then:  . $DIR/env ; podman run --rm work:1 python3 -c ...
#   apt-get install -y --no-install-recommends podman runc iptables catatonit
set -euo pipefail
DIR=${PODMAN_TEST_DIR:-${TMPDIR:-/tmp}/masterslave-clusters/podman}; mkdir -p "$DIR"
cat > "$DIR/containers.conf" <<'CONF'
[containers]
# this machine has no CAP_SYS_RESOURCE, so podman may not raise limits above our own (its default does)
default_ulimits = ["nofile=1024:NOFILE", "nproc=4096:4096"]
netns = "host"
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"   # no systemd
events_logger = "file"        # no journald
runtime = "runc"              # crun: "cgroups in hybrid mode not supported"
CONF
sed -i "s/NOFILE/$(ulimit -Hn)/" "$DIR/containers.conf"
printf '[storage]\ndriver = "%s"\ngraphroot = "%s"\nrunroot = "%s"\n' "${DRIVER:-overlay}" "$DIR/data" "$DIR/run" > "$DIR/storage.conf"
echo "export CONTAINERS_CONF=$DIR/containers.conf CONTAINERS_STORAGE_CONF=$DIR/storage.conf" > "$DIR/env"; . "$DIR/env"
podman image exists work:1 || { "$(dirname "$0")/mkrootfs.sh" "$DIR/rootfs"; tar -C "$DIR/rootfs" -c . | podman import -q - work:1; }
podman run --rm work:1 python3 -c 'print("podman works: . '"$DIR"'/env")'
