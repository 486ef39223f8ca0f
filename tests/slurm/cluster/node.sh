#!/bin/bash
# node.sh BASE NODE crash|kill|start : fault injection on one node of the cluster up.sh made in BASE.
# node.sh BASE ctl  restart         : SIGKILL the controller and start it again from its saved state
#   kill : SIGKILL the node's slurmd only (its slurmstepds and tasks go on: the "network partition" case)
#   crash: SIGKILL slurmd, its slurmstepds, and every task on it (the "machine lost power" case)
#   start: start the node's slurmd again and record it for down.sh
set -uo pipefail
BASE=$(cd "$1" && pwd -P) NODE=$2 OP=$3; export SLURM_CONF=$BASE/etc/slurm.conf PATH=$PATH:/usr/sbin:/sbin
starttime() { local s; s=$(cat "/proc/$1/stat" 2>/dev/null) || return 1; s=${s##*) }; set -- $s; echo "${20}"; }
if [ "$NODE" = ctl ]; then
  read -r _ pid st < <(grep "^slurmctld " "$BASE/pids") || exit 1
  [ "$(starttime "$pid")" = "$st" ] && kill -9 "$pid"
  setsid slurmctld -D >> "$BASE/log/slurmctld.out" 2>&1 < /dev/null &
  sed -i "s/^slurmctld .*/slurmctld $! $(starttime $!)/" "$BASE/pids"
  for ((i=0; i<200; i++)); do scontrol ping 2>/dev/null | grep -q 'is UP' && exit 0; sleep 0.1; done
  echo "slurmctld did not come back: see $BASE/log/slurmctld.out" >&2; exit 1
fi
read -r _ pid st < <(grep "^slurmd.$NODE " "$BASE/pids") || { echo "no node $NODE in $BASE" >&2; exit 1; }
same() { [ "$(starttime "$pid")" = "$st" ]; }
envhas() { tr '\0' '\n' 2>/dev/null < "/proc/$1/environ" | grep -qxF "$2"; }
members() { # slurmstepds (they inherit slurmd's LAB_NODE) first, then the tasks (SLURMD_NODENAME)
  local p s= t=
  for p in /proc/[0-9]*; do
    p=${p#/proc/}; [ "$p" = $$ ] || [ "$p" = "$pid" ] && continue
    envhas "$p" "SLURM_CONF=$SLURM_CONF" || continue
    if envhas "$p" "LAB_NODE=$NODE"; then s="$s $p"; elif envhas "$p" "SLURMD_NODENAME=$NODE"; then t="$t $p"; fi
  done 2>/dev/null
  echo $s $t
}
case $OP in
kill)  same && kill -9 "$pid";;
crash) m=$(members); same && kill -9 "$pid"; [ -n "$m" ] && kill -9 $m 2>/dev/null; echo "killed $(wc -w <<<"$m") processes of $NODE besides slurmd";;
start) same && { echo "$NODE already runs"; exit 0; }
  setsid env LAB_NODE="$NODE" slurmd -D -N "$NODE" >> "$BASE/log/slurmd.$NODE.out" 2>&1 < /dev/null &
  sed -i "s/^slurmd.$NODE .*/slurmd.$NODE $! $(starttime $!)/" "$BASE/pids"
  for ((i=0; i<200; i++)); do case $(sinfo -h -N -n "$NODE" -o %T | sort -u) in idle|mixed|allocated) exit 0;; esac; sleep 0.1; done
  echo "$NODE did not come back: $(sinfo -h -N -n "$NODE" -o '%T %E')" >&2; exit 1;;
*) sed -n 2,7p "$0"; exit 2;;
esac
true
