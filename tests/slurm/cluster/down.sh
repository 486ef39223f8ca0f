#!/bin/bash
# down.sh BASE [--wipe]: stop the cluster up.sh started in BASE, and only its processes.
# Order: cancel jobs, slurmctld, slurmd(s), their slurmstepds and tasks, slurmdbd, mariadbd, munged.
# Each pid was recorded with its kernel start time; a pid whose start time differs is left alone.
set -uo pipefail
BASE=${1:?usage: down.sh BASE [--wipe]}; BASE=$(cd "$BASE" 2>/dev/null && pwd -P) || { echo "[down] no $1: nothing to do"; exit 0; }
PIDS=$BASE/pids; export SLURM_CONF=$BASE/etc/slurm.conf PATH=$PATH:/usr/sbin:/sbin
t0=$(date +%s.%N)
starttime() { local s; s=$(cat "/proc/$1/stat" 2>/dev/null) || return 1; s=${s##*) }; set -- $s; echo "${20}"; }
alive() { [ "$(starttime "$1" 2>/dev/null)" = "$2" ] && [ "$(sed 's/.*) //' /proc/$1/stat 2>/dev/null | cut -c1)" != Z ]; }
stop() { # pid starttime name grace
  alive "$1" "$2" || return 0
  kill "$1" 2>/dev/null
  for ((i=0; i<$4*20; i++)); do alive "$1" "$2" || return 0; sleep 0.05; done
  echo "[down] $3 ($1) ignored TERM for $4 s: KILL"; kill -9 "$1" 2>/dev/null
}
# job processes of this cluster: those with its SLURM_CONF in their environment that are a slurmstepd or carry
# SLURM_JOB_ID (slurmstepds daemonize, so the parent chain is lost)
left() {
  local p
  for p in /proc/[0-9]*; do
    p=${p#/proc/}; [ "$p" = $$ ] && continue
    [ "$(readlink /proc/$p/exe 2>/dev/null)" ] || continue
    case "$(tr '\0' ' ' < /proc/$p/cmdline 2>/dev/null)" in slurmstepd:*) ;; *) tr '\0' '\n' < /proc/$p/environ 2>/dev/null | grep -q '^SLURM_JOB_ID=' || continue ;; esac
    tr '\0' '\n' < /proc/$p/environ 2>/dev/null | grep -qxF "SLURM_CONF=$SLURM_CONF" && echo "$p $(starttime $p)"
  done
}
if [ -s "$PIDS" ]; then
  if ctl=$(grep '^slurmctld ' "$PIDS"); then read -r _ cp cs <<<"$ctl"
    if alive "$cp" "$cs"; then
      timeout 10 scancel --state=PENDING -u root 2>/dev/null; timeout 10 scancel -u root 2>/dev/null
      for ((i=0; i<60; i++)); do [ -z "$(timeout 5 squeue -h -t R,CG,S,CF -o %i 2>/dev/null)" ] && break; sleep 0.1; done
    fi
  fi
  for want in slurmctld slurmd. STEPS slurmdbd mariadbd munged; do
    if [ $want = STEPS ]; then while read -r p s; do [ -n "$p" ] && stop "$p" "$s" "job process" 2; done < <(left); continue; fi
    while read -r name pid st; do case $name in "$want"*) stop "$pid" "$st" "$name" 15;; esac; done < "$PIDS"
  done
  n=0; while read -r name pid st; do alive "$pid" "$st" && { echo "[down] still alive: $name $pid"; n=1; }; done < "$PIDS"
  [ $n = 0 ] && rm -f "$PIDS" "$BASE/READY"
else n=0; echo "[down] no cluster recorded in $BASE"; fi
case " ${*:2} " in *" --wipe "*) rm -rf "${BASE:?}"/{etc,munge,state,spool,log,db,dev,env.sh} "$BASE"/*.pid;; esac
printf '[down] done in %.2fs\n' "$(echo "$(date +%s.%N) $t0" | awk '{print $1-$2}')"
exit $n
