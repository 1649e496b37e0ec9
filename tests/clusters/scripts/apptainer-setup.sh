#!/bin/bash
# Apptainer for tests, as root, and an image (SIF) from this machine's own python3 (no registry is
# reachable).  No daemon.  Of Debian only sid has it, and it needs sid's libc: package and libraries
# are unpacked once into a folder of their own (42 MB, ten seconds), where the programs are told to
# find them; nothing of this machine is changed.  Then:  PATH=$CACHE/bin:$PATH . $DIR/env
#   apt-get install -y --no-install-recommends patchelf squashfs-tools
set -euo pipefail
DIR=${APPTAINER_TEST_DIR:-${TMPDIR:-/tmp}/masterslave-clusters/apptainer}; mkdir -p "$DIR"/{cache,config,tmp}
CACHE=${APPTAINER_DIR:-/var/cache/masterslave-clusters/apptainer}; mkdir -p "$(dirname "$CACHE")"
HERE=$(dirname "$0")
fail() { echo "apptainer-setup: $*" >&2; exit 1; }

unpack() {
  local apt=$CACHE/apt keyring=/usr/share/keyrings/debian-archive-keyring.gpg interpreter one
  rm -rf "$CACHE"; mkdir -p "$apt"/{lists,cache/archives}/partial; : > "$apt/status"
  [ -e "$keyring" ] && keyring="[signed-by=$keyring]" || keyring=
  echo "deb $keyring ${DEBIAN_MIRROR:-http://deb.debian.org/debian} sid main" > "$apt/sources.list"
  # A state of its own, in which nothing is installed: this machine's apt never hears of sid. A mirror
  # may be some weeks behind, as debootstrap takes it, too; what it signed is verified.
  cat > "$apt/apt.conf" << CONF
Dir::Etc { SourceList "$apt/sources.list"; SourceParts "/dev/null"; Preferences "/dev/null"; PreferencesParts "/dev/null"; };
Dir::State "$apt"; Dir::State::Lists "$apt/lists"; Dir::State::status "$apt/status"; Dir::Cache "$apt/cache";
Acquire::Check-Valid-Until "false"; Acquire::Languages "none"; Acquire::Retries "3"; Acquire::http::Timeout "20"; APT::Sandbox::User "root"; APT::Install-Recommends "false";
CONF
  export APT_CONFIG=$apt/apt.conf
  apt-get -qq update > "$CACHE.log" 2>&1 && apt-get -qq install --download-only --yes apptainer >> "$CACHE.log" 2>&1 ||
    fail "apptainer could not be downloaded from Debian sid: $(grep -m1 -E '^[EW]:' "$CACHE.log" || echo "see $CACHE.log")"
  for one in "$apt"/cache/archives/{apptainer,lib}*.deb; do dpkg -x "$one" "$CACHE"; done
  rm -rf "$apt" "$CACHE/usr/share"
  # It looks for its settings above its programs, which are in usr/bin and usr/lib/*/apptainer/bin.
  mv "$CACHE"/{etc,var} "$CACHE/usr/"; ln -s ../etc ../var "$CACHE/usr/lib/"
  # Root may not have all capabilities here (CAP_SYS_RESOURCE): none are asked for.
  sed -i 's/^root default capabilities *=.*/root default capabilities = no/' "$CACHE/usr/etc/apptainer/apptainer.conf"
  for one in "$CACHE"/usr/bin/apptainer "$CACHE"/usr/lib/*/apptainer/bin/starter; do
    interpreter=$(basename "$(patchelf --print-interpreter "$one")")
    interpreter=$(readlink -f "$(find "$CACHE/usr/lib" "$CACHE/usr/lib64" -name "$interpreter" 2> /dev/null | head -n 1)")
    patchelf --force-rpath --set-interpreter "$interpreter" --set-rpath "$(dirname "$interpreter")" "$one"
  done
  mkdir "$CACHE/bin"; ln -s ../usr/bin/apptainer "$CACHE/bin/"
  "$CACHE/bin/apptainer" --version > "$CACHE/version" 2>> "$CACHE.log" || fail "apptainer of Debian sid does not run here; see $CACHE.log"
}

exec 9> "$CACHE.lock"; flock 9      # others may need it at the same time
[ -s "$CACHE/version" ] || unpack
exec 9>&-
export APPTAINER_CACHEDIR=$DIR/cache APPTAINER_CONFIGDIR=$DIR/config APPTAINER_TMPDIR=$DIR/tmp
echo "export APPTAINER_CACHEDIR=$APPTAINER_CACHEDIR APPTAINER_CONFIGDIR=$APPTAINER_CONFIGDIR APPTAINER_TMPDIR=$APPTAINER_TMPDIR" > "$DIR/env"
PATH=$CACHE/bin:$PATH
if [ ! -e "$DIR/work.sif" ]; then
  "$HERE/mkrootfs.sh" "$DIR/rootfs"
  apptainer --quiet build --mksquashfs-args '-noI -noD -noF -noX' "$DIR/work.sif" "$DIR/rootfs" > "$DIR/log" 2>&1 || fail "no image: $(tail -n 1 "$DIR/log")"
fi
apptainer exec "$DIR/work.sif" python3 -c 'print("apptainer works: . '"$DIR"'/env")'
