#!/bin/bash
# PBS/Torque's command line (qsub qstat qdel qhold qalter pbsnodes, PBS job ids) over the Slurm of
# slurm-start.sh: Debian's Perl wrappers.  Their package conflicts with gridengine-client (both have
# /usr/bin/qsub), so it is unpacked under a folder of its own:  PATH=$DIR/usr/bin:$PATH
#   apt-get install -y --no-install-recommends libslurm-perl libslurmdb-perl libswitch-perl
set -euo pipefail
DIR=${PBS_DIR:-${TMPDIR:-/tmp}/masterslave-clusters/pbs}; mkdir -p "$DIR"
if [ ! -x "$DIR/usr/bin/qsub" ]; then
T=$(mktemp -d); (cd "$T"; apt-get download -q slurm-wlm-torque > /dev/null 2>&1; dpkg -x slurm-wlm-torque_*.deb "$DIR.$$"); rm -rf "$T"; mkdir -p "$(dirname "$DIR")"; cp -a "$DIR.$$/." "$DIR/"; rm -rf "$DIR.$$"
fi
for c in sbatch scancel scontrol squeue salloc srun sinfo; do ln -sf /usr/bin/$c "$DIR/usr/bin/$c"; done   # they look beside themselves
echo "PBS commands: PATH=$DIR/usr/bin:\$PATH"
